//! The `offset-allocator` crate as an oracle for large sizes: where it finds room, the pool does.
//!
//! Both have the same memory. The oracle's is one span of it, with two-level segregated fit and immediate coalescing; the pool's
//! are granules, which can stand anywhere. So where sizes are whole granules the pool never fails before the oracle. Where they
//! are not, the edges of a block can keep two granules from others, and no more: with that much on top the same holds.

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, HostOptions};
use granule_pool::{Error, Lease, Pool, PoolOptions};
use offset_allocator::{Allocation, Allocator};
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;

const GRANULE: u64 = 64 << 10;
const UNIT: u64 = 256;
/// What there is, in granules.
const SPAN: u64 = 1024;

/// What became of the requests.
#[derive(Debug, Default)]
struct Outcome {
    both: usize,
    neither: usize,
    only_pool: usize,
}

/// Random requests and frees until memory has been full many times over. `step` is what sizes are multiples of.
fn race(seed: u64, step: u64, spare: u64) -> Outcome {
    let device = Device::host_with(HostOptions::new().granule(Bytes::new(GRANULE))).unwrap();
    let budget = Bytes::new((SPAN + spare) * GRANULE);
    let bank = Bank::new(device, BankOptions::new().budget(budget)).unwrap();
    let pool = Pool::new(&bank, PoolOptions::new().owner("race")).unwrap();
    let heap = pool.local().unwrap();
    let mut oracle: Allocator<u32> = Allocator::new((SPAN * GRANULE / UNIT) as u32);
    let mut random = Pcg64::seed_from_u64(seed);
    let mut below = |n: u64| ((u128::from(random.next_u64()) * u128::from(n)) >> 64) as u64;
    let mut live: Vec<(Lease, Allocation<u32>)> = Vec::new();
    let mut outcome = Outcome::default();
    for _ in 0..3000 {
        if below(2) == 0 && !live.is_empty() {
            let (lease, allocation) = live.swap_remove(below(live.len() as u64) as usize);
            drop(lease);
            oracle.free(allocation);
            continue;
        }
        // Beyond the classes: 1 MiB to 17 MiB, the small ones more often.
        let most = (16 << 20) >> below(5);
        let size = ((1 << 20) + 1 + below(most)).next_multiple_of(step);
        let theirs = oracle.allocate((size / UNIT) as u32);
        let ours = heap.alloc(Bytes::new(size));
        match (ours, theirs) {
            (Ok(lease), Some(allocation)) => {
                outcome.both += 1;
                live.push((lease, allocation));
            }
            (Ok(_), None) => outcome.only_pool += 1,
            (Err(Error::OutOfMemory { .. }), None) => outcome.neither += 1,
            (Err(error), _) => panic!("{size} bytes, {} live, {outcome:?}: {error}", live.len()),
        }
    }
    outcome
}

#[test]
fn whole_granules_fit_wherever_the_oracle_fits_them() {
    for seed in 0..4 {
        let outcome = race(seed, GRANULE, 0);
        assert!(outcome.both > 300 && outcome.only_pool > 50, "the memory was never full: {outcome:?}");
    }
}

#[test]
fn any_size_fits_wherever_the_oracle_fits_it_with_the_edges_on_top() {
    for seed in 10..14 {
        // At most 62 blocks of more than 1 MiB are live at once.
        let outcome = race(seed, UNIT, 2 * 62);
        assert!(outcome.both > 300 && outcome.only_pool > 50, "the memory was never full: {outcome:?}");
    }
}
