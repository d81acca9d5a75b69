//! What a pool and its heaps have: counts and bytes at one moment.

use granule_device::Bytes;

use crate::heap::HeapCore;
use crate::pool::PoolInner;
use crate::shell::{Counts, State};

/// What heaps did that are gone.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Past {
    hits: u64,
    misses: u64,
    /// The most that the peaks of the heaps that were there at the same time came to, in bytes.
    peak: u64,
}

impl Past {
    /// A heap goes, and `others` is the sum of the peaks of those that stay.
    pub(crate) fn note(&mut self, counts: &Counts, others: u64) {
        self.hits += counts.hits;
        self.misses += counts.misses;
        self.peak = self.peak.max(counts.peak().saturating_add(others));
    }
}

/// The bytes of free blocks that further streams may still use.
pub(crate) fn waiting(state: &State) -> u64 {
    state.waiting.iter().map(|(_, block, _)| block.given).sum()
}

/// What one heap has. Of leases up to 1 MiB it counts 256 GiB at a time, and 16 GiB of their waste: beyond that the sums of bytes
/// are not to be relied on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct HeapStats {
    /// The stream's number in its pool; a local heap has none.
    pub stream: Option<u32>,
    /// Leases that are out.
    pub live: u64,
    /// Their blocks.
    pub current: Bytes,
    /// The most that `current` ever was.
    pub peak: Bytes,
    /// What was asked for, of those: `current` less the waste inside classes.
    pub requested: Bytes,
    /// Free blocks at hand.
    pub cached: Bytes,
    /// Free blocks that other streams, which their leases were marked with, may still use.
    pub waiting: Bytes,
    /// What its arena holds of the bank's memory, whoever has leased from it.
    pub reserved: Bytes,
    /// Allocations that free blocks at hand served.
    pub hits: u64,
    /// Allocations that had to look further.
    pub misses: u64,
}

impl HeapStats {
    pub(crate) fn of(core: &HeapCore) -> HeapStats {
        let arena = core.arena.counts();
        let state = core.shell.lock();
        let counts = &state.counts;
        HeapStats {
            stream: core.clock().map(|clock| clock.id().0),
            live: state.live(),
            current: Bytes::new(counts.given()),
            peak: Bytes::new(counts.peak()),
            requested: Bytes::new(counts.requested()),
            cached: Bytes::new(state.cache.bytes()),
            waiting: Bytes::new(waiting(&state)),
            reserved: Bytes::new(arena.live_bytes + arena.free_bytes),
            hits: counts.hits,
            misses: counts.misses,
        }
    }

    /// Which part of the allocations was served at once, from 0 to 1; 1 where there were none.
    pub fn hit_rate(&self) -> f64 {
        rate(self.hits, self.misses)
    }

    /// The part of `current` that nobody asked for.
    pub fn waste(&self) -> Bytes {
        self.current.saturating_sub(self.requested)
    }
}

/// What a pool has. The sums are over its heaps, each looked at for itself: while other threads allocate they are of slightly
/// different moments.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct PoolStats {
    /// Whom the bank counts the memory for.
    pub owner: String,
    /// Leases that are out.
    pub live: u64,
    /// Their blocks.
    pub current: Bytes,
    /// What `current` never exceeded, and with one heap did reach: the most that the peaks of heaps that were there together
    /// came to.
    pub peak: Bytes,
    /// What was asked for, of the leases that are out.
    pub requested: Bytes,
    /// What the pool holds of the bank's memory: `current`, `cached`, `waiting` and `free`, and what [captured
    /// memory](crate::CapturedMemory) keeps.
    pub reserved: Bytes,
    /// Free blocks that heaps have at hand.
    pub cached: Bytes,
    /// Free blocks that other streams, which their leases were marked with, may still use.
    pub waiting: Bytes,
    /// The part of `reserved` that no block was cut from.
    pub free: Bytes,
    /// The largest piece of that.
    pub largest_free: Bytes,
    /// A request of this size is served now, without asking anybody to give something up: from new granules and idle ones
    /// together. A larger one may be: free blocks at hand come together, or do not.
    pub largest_certain: Bytes,
    /// Allocations that free blocks at hand served.
    pub hits: u64,
    /// Allocations that had to look further.
    pub misses: u64,
    /// Blocks taken from other heaps.
    pub steals: u64,
    /// Times that a stream was made to wait for another one.
    pub waits: u64,
    /// Events recorded.
    pub events: u64,
    /// Times that memory was taken from the bank, each time as many granules as were needed. How many calls to the driver that
    /// is, with all others, [the device](granule_device::Device::calls_made) counts.
    pub maps: u64,
    /// Each heap that is there, in the order in which they were made.
    pub heaps: Vec<HeapStats>,
}

impl PoolStats {
    pub(crate) fn of(pool: &PoolInner) -> PoolStats {
        let heaps: Vec<HeapStats> = pool.heaps().iter().map(|core| HeapStats::of(core)).collect();
        let arenas = pool.arenas();
        let counts: Vec<_> = arenas.iter().map(|arena| arena.counts()).collect();
        let sum = |of: fn(&HeapStats) -> Bytes| heaps.iter().map(of).fold(Bytes::ZERO, Bytes::saturating_add);
        let total = |of: fn(&HeapStats) -> u64| heaps.iter().map(of).sum();
        let past = pool.past();
        let (events, waits) = pool.clocks().calls();
        let (steals, maps) = pool.counted();
        let granule = pool.granule().get().max(1);
        let idle: u64 = arenas.iter().map(|arena| arena.idle()).sum();
        let fresh = (pool.bank().free().get() + idle) / granule * granule;
        let largest_free = counts.iter().map(|counts| counts.largest_free).max().unwrap_or(0);
        PoolStats {
            owner: pool.owner().name().to_owned(),
            live: total(|heap| heap.live),
            current: sum(|heap| heap.current),
            peak: sum(|heap| heap.peak).max(Bytes::new(past.peak)),
            requested: sum(|heap| heap.requested),
            reserved: Bytes::new(counts.iter().map(|counts| counts.live_bytes + counts.free_bytes).sum()),
            cached: sum(|heap| heap.cached),
            waiting: sum(|heap| heap.waiting),
            free: Bytes::new(counts.iter().map(|counts| counts.free_bytes).sum()),
            largest_free: Bytes::new(largest_free),
            largest_certain: Bytes::new(fresh),
            hits: total(|heap| heap.hits) + past.hits,
            misses: total(|heap| heap.misses) + past.misses,
            steals,
            waits,
            events,
            maps,
            heaps,
        }
    }

    /// Which part of the allocations was served at once, from 0 to 1; 1 where there were none.
    pub fn hit_rate(&self) -> f64 {
        rate(self.hits, self.misses)
    }

    /// The part of `current` that nobody asked for: what rounding up to classes costs.
    pub fn waste(&self) -> Bytes {
        self.current.saturating_sub(self.requested)
    }
}

fn rate(hits: u64, misses: u64) -> f64 {
    if hits + misses == 0 { 1.0 } else { hits as f64 / (hits + misses) as f64 }
}
