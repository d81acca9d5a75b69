//! `Space`: which stretches of which spans are blocks, which are free, and which have no memory.
//!
//! A *span* is a stretch of addresses, cut into *places* of one size. Memory comes and goes by whole places (a granule each;
//! a plain allocation is a span of one place); blocks lie anywhere in places that have memory, and across them. Spans never
//! merge.
//!
//! Each span is a list of physical neighbours that covers it exactly, and each node of it is one of:
//!
//! ```text
//!  bare      whole places without memory          in the list of bare nodes
//!  leaving   whole places on their way out        in no list
//!  free      memory that nobody has, stamped      in a bin of `bins[0]` (own) or `bins[1]` (strangers')
//!  live      a block                              in no list; known by its id
//! ```
//!
//! **Coalescing.** Free neighbours become one as soon as they can without anyone having to wait for more: where both are
//! *own*, that is idle or stamped by the stream whose space this is and by no other, or where both have the same stamp. So
//! one stream's own frees always come together again, and a large idle stretch is not spoilt by a small block that another
//! stream may still be reading. What is left apart so is found by [`Space::take_joined`] and [`Space::plan`], which look at
//! neighbours one by one, and comes together in [`Space::adopt`] and [`Space::settle`].

mod bins;
mod check;
mod nodes;
mod places;
mod plan;
#[cfg(test)]
mod tests;

pub use plan::Growth;

use self::bins::Bins;
use self::nodes::{NONE, Node, Nodes, State};
use super::UNIT;
use super::stamp::{Stamp, StreamId, Tick};

/// A span of a [`Space`], for as long as it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId {
    index: u32,
    generation: u32,
}

impl SpanId {
    /// A small number that no other span of the space has at the same time.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// A block that was taken, for as long as it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId {
    index: u32,
    generation: u32,
}

/// A stretch of memory that somebody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// What [`Space::free`] wants to see.
    pub id: BlockId,
    /// The span it lies in.
    pub span: SpanId,
    /// Where it starts in its span, in bytes.
    pub offset: u64,
    /// Its size in bytes: what was asked for, rounded up to [`UNIT`].
    pub size: u64,
}

/// The id is not that of a block: it was freed before, or never taken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this block is not one of the space's: it was freed before, or belongs to another arena")]
pub struct Stale;

/// Memory is in use where it should go, or the span is none of the space's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("memory of these places is in use, or the span is gone")]
pub struct InUse;

/// What a space has, at one moment. All sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceCounts {
    /// Spans.
    pub spans: usize,
    /// Places that have memory; those on their way out are not counted.
    pub places_backed: usize,
    /// Blocks that somebody has.
    pub live_blocks: usize,
    /// Bytes of those blocks.
    pub live_bytes: u64,
    /// Bytes that have memory and that nobody has.
    pub free_bytes: u64,
    /// The largest stretch of them that is one.
    pub largest_free: u64,
}

/// One request: both rounded, the alignment a power of two.
#[derive(Clone, Copy, Debug)]
struct Want {
    size: u64,
    align: u64,
}

impl Want {
    /// None for what no span could hold.
    fn new(size: u64, align: u64) -> Option<Want> {
        let size = size.max(1).checked_next_multiple_of(UNIT)?;
        Some(Want { size, align: align.max(UNIT).checked_next_power_of_two()? })
    }
}

#[derive(Debug)]
struct Span {
    /// The address of its start, as far as alignment goes.
    base: u64,
    place: u64,
    places: usize,
    /// The node at offset 0; it stays the same one for the life of the span.
    first: u32,
    /// Some node: where the last search by offset ended. Searches that ascend cost one pass together.
    finger: u32,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    span: Option<Span>,
}

/// The tables. Taking a block looks at two bitmaps; freeing one looks at its two neighbours.
#[derive(Debug)]
pub struct Space {
    home: Option<StreamId>,
    nodes: Nodes,
    slots: Vec<Slot>,
    vacant_slots: Vec<u32>,
    /// Free nodes: own ones, and those with strangers in their stamp.
    bins: [Bins; 2],
    /// The list of bare nodes.
    bare: u32,
    counts: SpaceCounts,
}

impl Default for Space {
    fn default() -> Space {
        Space::new()
    }
}

impl Space {
    /// An empty space of nobody in particular: only what is idle counts as its own.
    pub fn new() -> Space {
        Space {
            home: None,
            nodes: Nodes::default(),
            slots: Vec::new(),
            vacant_slots: Vec::new(),
            bins: [Bins::new(), Bins::new()],
            bare: NONE,
            counts: SpaceCounts::default(),
        }
    }

    /// An empty space of a stream: what only that stream may still use counts as its own too, since to take it costs it nothing.
    pub fn of(home: StreamId) -> Space {
        Space { home: Some(home), ..Space::new() }
    }

    /// A span of `places` places of `place` bytes each, none of which has memory, at address `base`. Place and base are multiples of
    /// [`UNIT`], and the span ends below 2^64. Blocks in it are aligned by their address.
    pub fn add_span_at(&mut self, base: u64, place: u64, places: usize) -> SpanId {
        debug_assert!(place.is_multiple_of(UNIT) && base.is_multiple_of(UNIT), "{place} at {base}");
        let slot = match self.vacant_slots.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(Slot { generation: 0, span: None });
                self.slots.len() as u32 - 1
            }
        };
        let first = self.nodes.add(slot, 0, place * places as u64, State::Bare);
        self.list(first);
        let entry = &mut self.slots[slot as usize];
        entry.span = Some(Span { base, place, places, first, finger: first });
        self.counts.spans += 1;
        SpanId { index: slot, generation: entry.generation }
    }

    /// Forgets a span no place of which has memory.
    ///
    /// # Errors
    /// [`InUse`] where one has, or where there is no such span.
    pub fn remove_span(&mut self, id: SpanId) -> Result<(), InUse> {
        let span = self.span(id).ok_or(InUse)?;
        let first = span.first;
        let node = &self.nodes[first];
        if node.state != State::Bare || node.above != NONE {
            return Err(InUse);
        }
        self.unlist(first);
        self.nodes.vacate(first);
        let slot = &mut self.slots[id.index()];
        slot.span = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.vacant_slots.push(id.index);
        self.counts.spans -= 1;
        Ok(())
    }

    /// A block of at least `size` bytes at a multiple of `align` from memory whose stamp is `usable`, with that stamp. The size is
    /// rounded up to [`UNIT`], so nothing takes a unit; the alignment is a power of two, rounded up if it is not.
    ///
    /// Own memory goes before strangers'. None only where no free node has room: neighbours with different stamps may have it
    /// together, see [`Space::take_joined`].
    pub fn take(&mut self, size: u64, align: u64, usable: &dyn Fn(&Stamp) -> bool) -> Option<(Block, Stamp)> {
        let want = Want::new(size, align)?;
        let (node, start) =
            self.find(&self.bins[0], want, usable).or_else(|| self.find(&self.bins[1], want, usable))?;
        Some(self.cut(node, start, want.size))
    }

    /// Gives a block back. It is stamped with who may still use it.
    ///
    /// # Errors
    /// [`Stale`]: the id is that of no block; nothing has changed.
    pub fn free(&mut self, id: BlockId, stamp: Stamp) -> Result<(), Stale> {
        let node = self.nodes.get_mut(id.index).ok_or(Stale)?;
        if node.state != State::Live || node.generation != id.generation {
            return Err(Stale);
        }
        node.generation = node.generation.wrapping_add(1);
        node.state = State::Free;
        node.stamp = stamp;
        self.counts.live_blocks -= 1;
        self.counts.live_bytes -= node.size;
        self.counts.free_bytes += node.size;
        self.rest(id.index);
        Ok(())
    }

    /// What was stamped is idle where it is `complete`, and comes together with its neighbours.
    pub fn settle(&mut self, complete: &dyn Fn(&Stamp) -> bool) {
        self.stamp_anew(&|stamp| complete(stamp).then_some(Stamp::Idle));
    }

    /// Makes strangers' memory that is `covered` the home stream's own. Covered means: the home stream has waited for all that the
    /// stamp says before tick `now` of its own, so whoever waits for that tick waits for the strangers too. Without a home stream
    /// nothing changes.
    pub fn adopt(&mut self, covered: &dyn Fn(&Stamp) -> bool, now: Tick) {
        if let Some(home) = self.home {
            let own = |stamp: &Stamp| own_to(Some(home), stamp);
            self.stamp_anew(&|stamp| (!own(stamp) && covered(stamp)).then_some(Stamp::One(home, now)));
        }
    }

    /// What the space has.
    pub fn counts(&self) -> SpaceCounts {
        let largest = |bins: &Bins| {
            let nodes = bins.last().map_or(NONE, |bin| bins.first(bin));
            self.nodes.list(nodes).map(|node| self.nodes[node].size).max()
        };
        let largest_free = self.bins.iter().filter_map(largest).max().unwrap_or(0);
        SpaceCounts { largest_free, ..self.counts }
    }

    fn stamp_anew(&mut self, anew: &dyn Fn(&Stamp) -> Option<Stamp>) {
        let free = self.bins.iter().flat_map(|bins| bins.occupied(0).map(|bin| bins.first(bin)));
        let stamped = free.flat_map(|first| self.nodes.list(first)).filter_map(|node| {
            let stamp = &self.nodes[node].stamp;
            (!stamp.is_idle()).then(|| Some((node, anew(stamp)?))).flatten()
        });
        let stamped: Vec<(u32, Stamp)> = stamped.collect();
        // First all stamps, then the neighbours: what is stamped anew must not take over the old stamp of a neighbour.
        for (node, stamp) in &stamped {
            self.unlist(*node);
            self.nodes[*node].stamp.clone_from(stamp);
            self.list(*node);
        }
        self.rest_all(stamped.into_iter().map(|(node, _)| node));
    }

    fn find(&self, bins: &Bins, want: Want, usable: &dyn Fn(&Stamp) -> bool) -> Option<(u32, u64)> {
        let fit = |index: u32| {
            let node = &self.nodes[index];
            let start = self.start_in(node, want)?;
            (node.stamp.is_idle() || usable(&node.stamp)).then_some((index, start))
        };
        let own = Bins::of(want.size);
        // What was freed last of about this size is often just what is wanted: memory that was cut for such a request.
        let last = bins.first(own);
        if last != NONE
            && let Some(found) = fit(last)
        {
            return Some(found);
        }
        // From here on every node is large enough, wherever it starts.
        let enough = Bins::at_least(want.size.saturating_add(want.align - UNIT));
        let any =
            |from: usize| bins.occupied(from).flat_map(|bin| self.nodes.list(bins.first(bin))).find_map(fit);
        any(enough).or_else(|| any(own))
    }

    /// Where in the node the request would start, if it fits.
    #[inline]
    fn start_in(&self, node: &Node, want: Want) -> Option<u64> {
        if node.size < want.size {
            return None;
        }
        if want.align <= UNIT {
            return Some(node.offset);
        }
        let start = self.align_up(node.span, node.offset, want.align)?;
        (start.checked_add(want.size)? <= node.end()).then_some(start)
    }

    /// The first offset from `offset` on whose address is a multiple of `align`.
    fn align_up(&self, span: u32, offset: u64, align: u64) -> Option<u64> {
        let base = self.slots[span as usize].span.as_ref()?.base;
        Some(base.checked_add(offset)?.checked_next_multiple_of(align)? - base)
    }

    /// Makes `size` bytes at `start` of a listed free node a block.
    fn cut(&mut self, node: u32, start: u64, size: u64) -> (Block, Stamp) {
        let node = self.carve(node, start, start + size);
        self.hand_out(node)
    }

    /// Makes a free node, which is in no list, a block.
    fn hand_out(&mut self, index: u32) -> (Block, Stamp) {
        let node = &mut self.nodes[index];
        node.state = State::Live;
        let stamp = std::mem::take(&mut node.stamp);
        let &mut Node { offset, size, span, generation, .. } = node;
        self.counts.live_blocks += 1;
        self.counts.live_bytes += size;
        self.counts.free_bytes -= size;
        let id = BlockId { index, generation };
        (Block { id, span: self.id_of(span), offset, size }, stamp)
    }

    /// Takes the stretch `start..end` out of a listed node. What is left of the node on either side stays what it was; the stretch
    /// is a node of its own, in no list.
    fn carve(&mut self, mut node: u32, start: u64, end: u64) -> u32 {
        self.unlist(node);
        if start > self.nodes[node].offset {
            let upper = self.nodes.split(node, start);
            self.list(node);
            node = upper;
        }
        if end < self.nodes[node].end() {
            let upper = self.nodes.split(node, end);
            self.list(upper);
        }
        node
    }

    /// Brings a node, which is in no list, together with those of its neighbours that it may be one with, and lists it.
    fn rest(&mut self, mut node: u32) {
        while let above = self.nodes[node].above
            && above != NONE
            && self.may_join(node, above)
        {
            self.join(node, above);
        }
        while let below = self.nodes[node].below
            && below != NONE
            && self.may_join(below, node)
        {
            self.unlist(below);
            self.merge(below, node);
            node = below;
        }
        self.list(node);
    }

    /// Brings listed nodes together with their neighbours.
    fn rest_all(&mut self, nodes: impl Iterator<Item = u32>) {
        for node in nodes {
            // One before it may have taken it in.
            if self.nodes[node].state != State::Vacant {
                self.unlist(node);
                self.rest(node);
            }
        }
    }

    /// Joins a node, which is in no list, with its listed neighbour above.
    fn join(&mut self, lower: u32, upper: u32) {
        self.unlist(upper);
        self.merge(lower, upper);
    }

    /// Joins two neighbours, neither of which is in a list.
    fn merge(&mut self, lower: u32, upper: u32) {
        let stamp = std::mem::take(&mut self.nodes[upper].stamp);
        self.nodes[lower].stamp.merge(&stamp);
        if let Some(span) = &mut self.slots[self.nodes[upper].span as usize].span
            && span.finger == upper
        {
            span.finger = lower;
        }
        self.nodes.absorb(lower, upper);
    }

    fn may_join(&self, a: u32, b: u32) -> bool {
        let (a, b) = (&self.nodes[a], &self.nodes[b]);
        match (a.state, b.state) {
            (State::Bare, State::Bare) | (State::Leaving, State::Leaving) => true,
            (State::Free, State::Free) => {
                (self.is_own(&a.stamp) && self.is_own(&b.stamp)) || a.stamp == b.stamp
            }
            _ => false,
        }
    }

    fn is_own(&self, stamp: &Stamp) -> bool {
        own_to(self.home, stamp)
    }

    fn list(&mut self, node: u32) {
        match self.nodes[node].state {
            State::Free => {
                let strangers = usize::from(!self.is_own(&self.nodes[node].stamp));
                self.bins[strangers].insert(&mut self.nodes, node);
            }
            State::Bare => self.nodes.push(&mut self.bare, node),
            State::Leaving | State::Live | State::Vacant => {}
        }
    }

    fn unlist(&mut self, node: u32) {
        match self.nodes[node].state {
            State::Free => {
                let strangers = usize::from(!self.is_own(&self.nodes[node].stamp));
                self.bins[strangers].remove(&mut self.nodes, node);
            }
            State::Bare => self.nodes.remove(&mut self.bare, node),
            State::Leaving | State::Live | State::Vacant => {}
        }
    }

    fn span(&self, id: SpanId) -> Option<&Span> {
        let slot = self.slots.get(id.index())?;
        slot.span.as_ref().filter(|_| slot.generation == id.generation)
    }

    fn id_of(&self, span: u32) -> SpanId {
        SpanId { index: span, generation: self.slots[span as usize].generation }
    }

    /// The first nodes of all spans.
    fn firsts(&self) -> Vec<u32> {
        self.slots.iter().filter_map(|slot| Some(slot.span.as_ref()?.first)).collect()
    }
}

/// True where the stamp names no stream but `home`.
#[inline]
fn own_to(home: Option<StreamId>, stamp: &Stamp) -> bool {
    match stamp {
        Stamp::Idle => true,
        Stamp::One(stream, _) => Some(*stream) == home,
        Stamp::Many(_) => false,
    }
}
