//! What a pool and its heaps have: counts and bytes at one moment.

use granule_device::Bytes;

use crate::heap::HeapCore;
use crate::pool::PoolInner;

/// What one heap has.
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
    /// The sum of the heaps' peaks: what `current` never exceeded, and with one heap did reach.
    pub peak: Bytes,
    /// What was asked for, of the leases that are out.
    pub requested: Bytes,
    /// What the pool holds of the bank's memory.
    pub reserved: Bytes,
    /// Free blocks that heaps have at hand.
    pub cached: Bytes,
    /// The part of `reserved` that no block was cut from.
    pub free: Bytes,
    /// The largest piece of that.
    pub largest_free: Bytes,
    /// The largest request that would be served now, without asking anybody to give something up: new granules and idle ones
    /// together, or the largest free piece.
    pub largest_possible: Bytes,
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
    /// Times that memory was taken from the bank.
    pub maps: u64,
    /// Each heap that is there, in the order in which they were made. Heaps that are gone are in the sums no more.
    pub heaps: Vec<HeapStats>,
}

impl PoolStats {
    pub(crate) fn of(pool: &PoolInner) -> PoolStats {
        let heaps: Vec<HeapStats> = pool.heaps().iter().map(|core| HeapStats::of(core)).collect();
        let arenas = pool.arenas();
        let counts: Vec<_> = arenas.iter().map(|arena| arena.counts()).collect();
        let sum = |of: fn(&HeapStats) -> Bytes| heaps.iter().map(of).fold(Bytes::ZERO, Bytes::saturating_add);
        let total = |of: fn(&HeapStats) -> u64| heaps.iter().map(of).sum();
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
            peak: sum(|heap| heap.peak),
            requested: sum(|heap| heap.requested),
            reserved: Bytes::new(counts.iter().map(|counts| counts.live_bytes + counts.free_bytes).sum()),
            cached: sum(|heap| heap.cached),
            free: Bytes::new(counts.iter().map(|counts| counts.free_bytes).sum()),
            largest_free: Bytes::new(largest_free),
            largest_possible: Bytes::new(largest_free.max(fresh)),
            hits: total(|heap| heap.hits),
            misses: total(|heap| heap.misses),
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

    /// Calls that the pool has made to the driver, as far as it counts them itself: events, waits, and times that memory came.
    pub fn driver_calls(&self) -> u64 {
        self.events + self.waits + self.maps
    }
}

fn rate(hits: u64, misses: u64) -> f64 {
    if hits + misses == 0 { 1.0 } else { hits as f64 / (hits + misses) as f64 }
}
