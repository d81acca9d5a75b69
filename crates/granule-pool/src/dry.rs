//! `DryHeap`: a heap's books without a heap: how much memory a sequence of allocations would have it hold.

use std::mem;

use granule_device::Bytes;

use crate::arena::{FIRST, LARGEST};
use crate::ladder::{ALLOCS_PER_BLOCK, ahead};
use crate::policy::{BlockId, Cache, Class, Space, Stamp, UNIT};
use crate::pool::plenty;
use crate::source::Source;

/// What one [`Heap`](crate::Heap), alone in its pool, does with the same calls in the same order, without any memory: the same policy
/// takes the same blocks, and [`DryHeap::reserved`] is to the byte what
/// [`HeapStats::reserved`](crate::HeapStats::reserved) would be. Of alignments up to 256 bytes, of a pool without a cache limit, and
/// for as long as the bank has what is asked for: under pressure a heap gives up memory, and this knows of none.
///
/// ```
/// use granule_device::Bytes;
/// use granule_pool::DryHeap;
///
/// let mut heap = DryHeap::new(Bytes::mib(2));
/// let one = heap.alloc(Bytes::kib(3)).ok_or("too large")?;
/// assert_eq!(heap.reserved(), Bytes::mib(2));
/// heap.free(one);
/// let two = heap.alloc(Bytes::mib(3)).ok_or("too large")?;
/// assert_eq!(heap.reserved(), Bytes::mib(4));
/// # heap.free(two);
/// # Ok::<(), &str>(())
/// ```
#[derive(Debug)]
pub struct DryHeap {
    source: Source,
    /// What memory comes by, in bytes; where that is allocations, the smallest.
    granule: u64,
    space: Space,
    cache: Cache<BlockId>,
    /// Bytes of blocks that are leased.
    given: u64,
    hits: u64,
    misses: u64,
    /// How many allocations there had been when the cache was last emptied.
    flushed_at: u64,
    /// Places of the next span.
    next: usize,
}

/// What [`DryHeap::alloc`] gives: to be given back to the same heap.
#[derive(Debug)]
#[must_use = "the heap counts it until it is given back"]
pub struct DryLease {
    block: BlockId,
    class: Option<Class>,
    /// Bytes of the block.
    given: u64,
}

/// Memory is anybody's that is free: there is one stream.
const ANY: &dyn Fn(&Stamp) -> bool = &|_| true;

impl DryHeap {
    /// A heap of device memory with granules of this size; zero: of a device without virtual memory, where it comes in whole
    /// allocations.
    #[must_use]
    pub fn new(granule: Bytes) -> DryHeap {
        if granule.is_zero() {
            DryHeap::of(Source::Plain, granule)
        } else {
            DryHeap::of(Source::Granules, granule)
        }
    }

    /// A heap of [pinned memory](crate::Pool::pinned).
    #[must_use]
    pub fn pinned() -> DryHeap {
        DryHeap::of(Source::Pinned, Bytes::ZERO)
    }

    fn of(source: Source, granule: Bytes) -> DryHeap {
        let granule = match source {
            Source::Granules => granule,
            Source::Plain | Source::Pinned => Source::segment(1),
        };
        DryHeap {
            source,
            granule: granule.get(),
            space: Space::new(),
            cache: Cache::new(),
            given: 0,
            hits: 0,
            misses: 0,
            flushed_at: 0,
            next: FIRST,
        }
    }

    /// As [`Heap::alloc`](crate::Heap::alloc); `None` where no addresses could hold it.
    pub fn alloc(&mut self, size: Bytes) -> Option<DryLease> {
        let size = size.get().max(1);
        let class = Class::of(size);
        if let Some((class, block)) = class.and_then(|class| Some((class, self.cache.pop(class)?))) {
            self.hits += 1;
            self.given += class.size();
            return Some(DryLease { block, class: Some(class), given: class.size() });
        }
        let size = class.map_or_else(|| size.checked_next_multiple_of(UNIT), |class| Some(class.size()))?;
        let block = match self.space.take(size, UNIT, ANY) {
            Some((block, _)) => {
                self.cut_ahead(class);
                block
            }
            None => self.climb(size, class)?,
        };
        self.misses += 1;
        self.given += block.size;
        Some(DryLease { block: block.id, class, given: block.size })
    }

    /// The lease is dropped.
    pub fn free(&mut self, lease: DryLease) {
        let DryLease { block, class, given } = lease;
        self.given -= given;
        match class {
            Some(class) => self.cache.push(class, block),
            None => self.give_back(block),
        }
    }

    /// All memory of the heap, leased or free.
    #[must_use]
    pub fn reserved(&self) -> Bytes {
        let counts = self.space.counts();
        Bytes::new(counts.live_bytes + counts.free_bytes)
    }

    /// Allocations so far that no free block at hand served.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// The rungs of the ladder up to new memory.
    fn climb(&mut self, size: u64, class: Option<Class>) -> Option<crate::policy::Block> {
        let cached: u64 = Class::all().map(|class| self.cache.len(class) as u64).sum();
        let paid = self.hits + self.misses - self.flushed_at >= ALLOCS_PER_BLOCK * cached;
        if paid && self.cache.bytes() > plenty(self.given, self.granule) {
            self.flush();
            if let Some((block, _)) = self.space.take(size, UNIT, ANY) {
                return Some(block);
            }
        }
        let block = match self.source {
            Source::Granules => self.map(size)?,
            Source::Plain | Source::Pinned => self.allocate(size)?,
        };
        self.cut_ahead(class);
        Some(block)
    }

    fn map(&mut self, size: u64) -> Option<crate::policy::Block> {
        loop {
            if let Some(growth) = self.space.plan(size, UNIT, ANY) {
                return Some(self.space.grow(&growth)?.0);
            }
            let needed = usize::try_from(size.div_ceil(self.granule)).ok()?;
            let places = self.next.max(needed);
            (places as u64).checked_mul(self.granule)?;
            self.next = (self.next * 2).min(LARGEST);
            self.space.add_span_at(0, self.granule, places);
        }
    }

    fn allocate(&mut self, size: u64) -> Option<crate::policy::Block> {
        let span = self.space.add_span_at(0, Source::segment(size).get(), 1);
        self.space.back(span, 0..1);
        self.space.take(size, UNIT, ANY).map(|(block, _)| block)
    }

    fn cut_ahead(&mut self, class: Option<Class>) {
        let Some(class) = class else { return };
        let cut = || self.space.take(class.size(), UNIT, ANY).map(|(block, _)| block.id);
        let cuts: Vec<BlockId> = std::iter::from_fn(cut).take(ahead(class)).collect();
        // The lowest on top.
        cuts.into_iter().rev().for_each(|block| self.cache.push(class, block));
    }

    fn flush(&mut self) {
        let mut out = Vec::new();
        mem::take(&mut self.cache).drain_to(0, &mut out);
        self.flushed_at = self.hits + self.misses;
        out.into_iter().for_each(|(_, block)| self.give_back(block));
    }

    fn give_back(&mut self, block: BlockId) {
        let known = self.space.free(block, Stamp::Idle);
        debug_assert!(known.is_ok(), "a lease of another heap");
    }
}
