//! Ranges of physical bytes: aliases of the same memory have the same span.

/// Where bytes really are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Place {
    /// Memory of the process: pageable, pinned, managed, registered; by its address.
    Host,
    /// A store of the machine (a device's memory, or granules on the host); by its offset.
    Store(usize),
}

/// `len` bytes at `start` of a place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Span {
    pub(crate) place: Place,
    pub(crate) start: u64,
    pub(crate) len: u64,
}

impl Span {
    pub(crate) fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    pub(crate) fn overlaps(&self, other: &Span) -> bool {
        self.place == other.place && self.start < other.end() && other.start < self.end()
    }

    pub(crate) fn contains(&self, other: &Span) -> bool {
        self.place == other.place && self.start <= other.start && other.end() <= self.end()
    }
}

/// A span and what happens to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Touch {
    pub(crate) span: Span,
    pub(crate) write: bool,
    /// Done by atomic operations, which need no order among themselves.
    pub(crate) atomic: bool,
}

impl Touch {
    /// Whether the two need an order: same bytes, at least one write.
    pub(crate) fn conflicts(&self, other: &Touch) -> bool {
        (self.write || other.write) && !(self.atomic && other.atomic) && self.span.overlaps(&other.span)
    }

    /// Whether everything that conflicts with `other` conflicts with this too.
    pub(crate) fn outdoes(&self, other: &Touch) -> bool {
        (self.write || !other.write) && (!self.atomic || other.atomic) && self.span.contains(&other.span)
    }
}
