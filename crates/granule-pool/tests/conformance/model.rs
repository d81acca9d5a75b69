//! Random operations on one pool, beside a model that is a list of who has which bytes.

use std::collections::BTreeMap;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, LeaseMode};
use granule_pool::{DryHeap, Error, Heap, Lease, Pool, PoolOptions};

use crate::support::{Random, bank, granules, pool, read, stream, write};

struct Run {
    bank: Bank,
    pool: Pool,
    heaps: Vec<Heap>,
    live: Vec<(Lease, u8)>,
    random: Random,
    /// Requests that were served, and that were not.
    served: usize,
    refused: usize,
}

impl Run {
    fn new(device: &Device, seed: u64, streams: usize) -> Run {
        let bank = bank(device, 24);
        let pool = pool(&bank);
        let mut heaps: Vec<Heap> = (0..streams).map(|_| pool.heap(&stream(device)).unwrap()).collect();
        heaps.resize_with(3, || pool.local().unwrap());
        Run {
            bank,
            pool,
            heaps,
            live: Vec::new(),
            served: 0,
            refused: 0,
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
        }
    }

    /// One operation; answers where the lease lies that it made.
    fn step(&mut self) -> Option<u64> {
        let random = &mut self.random;
        let granule = self.pool.device().granularity().get();
        match random.below(20) {
            0..=9 => {
                let align = Bytes::new(1 << (8 + random.below(7)));
                let heap = &self.heaps[random.below(3) as usize];
                let size = random.size(granule);
                let lease = match heap.alloc_aligned(size, align) {
                    Ok(lease) => lease,
                    Err(Error::OutOfMemory { requested, .. }) if requested == size => {
                        self.refused += 1;
                        return None;
                    }
                    Err(error) => panic!("{error}"),
                };
                self.served += 1;
                let at = lease.ptr().addr();
                assert!(at.is_multiple_of(align.get()));
                self.live.push((lease, random.below(256) as u8));
                return Some(at);
            }
            10..=17 if !self.live.is_empty() => {
                drop(self.live.swap_remove(random.below(self.live.len() as u64) as usize));
            }
            18 => drop(self.pool.trim().unwrap()),
            19 if random.below(4) == 0 => self.live.clear(),
            _ => {}
        }
        None
    }
}

pub(crate) fn random_operations_like_a_model(open: &dyn Fn() -> Device) {
    let device = open();
    for seed in 1..=6 {
        let mut run = Run::new(&device, seed, 2);
        // Who has which bytes: start, end and value.
        for _ in 0..250 {
            if run.step().is_some()
                && let Some((lease, value)) = run.live.last_mut()
            {
                let bytes = vec![*value; lease.len().to_usize().unwrap()];
                write(&device, &bytes, lease.slice_mut().unwrap());
            }
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            for (lease, _) in &run.live {
                model.insert(lease.ptr().addr(), lease.ptr().addr() + lease.given().get());
            }
            assert_eq!(model.len(), run.live.len(), "two leases at one address");
            let ends = model.values().zip(model.keys().skip(1));
            assert!(ends.into_iter().all(|(end, next)| end <= next), "two leases overlap");
            let stats = run.pool.stats();
            let sum =
                |of: fn(&Lease) -> Bytes| run.live.iter().map(|(lease, _)| of(lease).get()).sum::<u64>();
            assert_eq!(stats.live, run.live.len() as u64);
            assert_eq!(stats.requested.get(), sum(Lease::len));
            assert_eq!(stats.current.get(), sum(Lease::given));
            assert!(stats.peak >= stats.current);
            // Each byte is leased, at hand, or free; and all of it is granules of the bank.
            assert_eq!(
                stats.reserved.get(),
                stats.current.get() + stats.cached.get() + stats.waiting.get() + stats.free.get()
            );
            assert!(run.bank.stats().held >= stats.reserved);
            assert!(stats.largest_free <= stats.free);
        }
        for (lease, value) in &run.live {
            assert!(read(&device, lease.slice().unwrap()).iter().all(|byte| byte == value), "seed {seed}");
        }
        assert!(run.served > 80 && run.refused < run.served / 4, "{} and {}", run.served, run.refused);
        run.live.clear();
        run.pool.trim().unwrap();
        run.bank.drain();
        assert_eq!(run.bank.stats().held, Bytes::ZERO);
    }
}

/// The same operations in the same order get blocks at the same places, relative to where their ranges lie.
pub(crate) fn the_same_operations_give_the_same_blocks(open: &dyn Fn() -> Device) {
    let device = open();
    device.set_lease_mode(LeaseMode::Quiet);
    let shape = |seed: u64| {
        // Without streams, so that nothing depends on when work is done.
        let mut run = Run::new(&device, seed, 0);
        let places: Vec<Option<u64>> = (0..400).map(|_| run.step()).collect();
        // Ranges lie elsewhere each time: places count by the distance to the one before in the same range.
        let span = granules(&device, 1 << 9).get();
        let mut bases: Vec<u64> = Vec::new();
        let relative = places.into_iter().map(|place| {
            let place = place?;
            match bases.iter().position(|base| place.abs_diff(*base) < span / 4) {
                Some(of) => Some((of, place as i64 - bases[of] as i64)),
                None => {
                    bases.push(place);
                    Some((bases.len() - 1, 0))
                }
            }
        });
        relative.collect::<Vec<_>>()
    };
    for seed in 1..=3 {
        assert_eq!(shape(seed), shape(seed), "seed {seed}");
    }
}

/// A heap's dry twin is told of the same calls, and knows after each what the heap holds: with many sizes at once, and with much of
/// one size and then of others, so that caches are emptied.
pub(crate) fn a_dry_heap_holds_as_much(open: &dyn Fn() -> Device) {
    let device = open();
    let granule = device.granularity();
    // Some of them are larger than a granule, or than any class.
    let (largest, granules) = if granule > Bytes::mib(1) { (512 << 10, 110) } else { (granule.get(), 1000) };
    let pinned = Bank::pinned(device.clone(), BankOptions::new()).unwrap();
    let mut emptied = 0;
    for seed in 1..=8 {
        let bank = bank(&device, granules);
        let stream = stream(&device);
        let heaps = [
            (pool(&bank).local().unwrap(), DryHeap::new(granule)),
            (pool(&bank).heap(&stream).unwrap(), DryHeap::new(granule)),
            (Pool::pinned(&pinned, PoolOptions::new()).unwrap().local().unwrap(), DryHeap::pinned()),
        ];
        for (heap, mut dry) in heaps {
            let has_little = !heap.pool().bank().is_pinned() && granule < Bytes::mib(1);
            let mut random = Random(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15) | 1);
            let mut live = Vec::new();
            let mut alloc = |size: Bytes, live: &mut Vec<_>, dry: &mut DryHeap| {
                let before = heap.stats().cached;
                live.push((heap.alloc(size).unwrap(), dry.alloc(size).unwrap()));
                emptied += usize::from(heap.stats().cached.saturating_add(Bytes::mib(1)) < before);
                assert_eq!(dry.reserved(), heap.stats().reserved, "seed {seed}: {size}");
                assert_eq!(dry.misses(), heap.stats().misses, "seed {seed}: {size}");
            };
            for _ in 0..30 {
                match random.below(3) {
                    0 => {
                        let (size, count) = (random.size(largest), random.below(60));
                        for _ in 0..count {
                            alloc(size, &mut live, &mut dry);
                        }
                    }
                    1 => live.drain(..).for_each(|(_, dried)| dry.free(dried)),
                    _ => {
                        for _ in 0..random.below(200) {
                            if live.len() > 40 || (!live.is_empty() && random.below(2) == 0) {
                                let at = random.below(live.len() as u64) as usize;
                                dry.free(live.swap_remove(at).1);
                            } else {
                                alloc(random.size(largest), &mut live, &mut dry);
                            }
                        }
                    }
                }
            }
            // Much of one size that has been used often, and then of another: a cache of small granules is emptied.
            live.drain(..).for_each(|(_, dried)| dry.free(dried));
            let often = [random.below(9000) + 60_000, random.below(40_000) + 80_000];
            for &size in often.iter().filter(|_| has_little) {
                (0..100).for_each(|_| alloc(Bytes::new(size), &mut live, &mut dry));
                for _ in 0..40_000 {
                    live.pop().into_iter().for_each(|(_, dried)| dry.free(dried));
                    alloc(Bytes::new(size), &mut live, &mut dry);
                }
                live.drain(..).for_each(|(_, dried)| dry.free(dried));
            }
            assert_eq!(dry.reserved(), heap.stats().reserved, "seed {seed}");
        }
    }
    assert!(emptied > 0 || granule > Bytes::kib(64), "no cache was emptied");
}
