//! The heaps of a stage, dry.

use granule_device::Bytes;
use granule_pool::{DryHeap, DryLease};

use crate::Error;

/// Which heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Activations,
    Scratch,
    Pinned,
}

/// A lease of one of them.
#[derive(Debug)]
pub(crate) struct Leased(Which, DryLease);

/// What goes from operation to operation, what an operation needs for itself, and the host's side of copies.
#[derive(Debug)]
pub(crate) struct Heaps {
    activations: DryHeap,
    scratch: DryHeap,
    pinned: DryHeap,
    /// Leases of each that were larger than any size class.
    large: [u64; 3],
}

/// Larger blocks than this are cut to size each time.
const LARGEST_CLASS: usize = 1 << 20;

impl Heaps {
    pub(crate) fn new(granule: Bytes) -> Heaps {
        let heap = || DryHeap::new(granule);
        Heaps { activations: heap(), scratch: heap(), pinned: DryHeap::pinned(), large: [0; 3] }
    }

    pub(crate) fn take(&mut self, which: Which, bytes: usize) -> Result<Leased, Error> {
        self.large[which as usize] += u64::from(bytes > LARGEST_CLASS);
        let lease = self.heap_mut(which).alloc(Bytes::from_usize(bytes));
        lease.map(|lease| Leased(which, lease)).ok_or(Error::TooLarge { what: "memory of one step" })
    }

    pub(crate) fn give(&mut self, leased: Leased) {
        self.heap_mut(leased.0).free(leased.1);
    }

    /// All of them, the first one first.
    pub(crate) fn give_all(&mut self, leased: impl IntoIterator<Item = Leased>) {
        leased.into_iter().for_each(|leased| self.give(leased));
    }

    pub(crate) fn reserved(&self, which: Which) -> Bytes {
        self.heap(which).reserved()
    }

    /// Of each heap, leases that had to be looked for so far, and those of them that always are, because they are large.
    pub(crate) fn looked_for(&self) -> [(u64, u64); 3] {
        let all = [Which::Activations, Which::Scratch, Which::Pinned];
        all.map(|which| (self.heap(which).misses(), self.large[which as usize]))
    }

    fn heap(&self, which: Which) -> &DryHeap {
        match which {
            Which::Activations => &self.activations,
            Which::Scratch => &self.scratch,
            Which::Pinned => &self.pinned,
        }
    }

    fn heap_mut(&mut self, which: Which) -> &mut DryHeap {
        match which {
            Which::Activations => &mut self.activations,
            Which::Scratch => &mut self.scratch,
            Which::Pinned => &mut self.pinned,
        }
    }
}
