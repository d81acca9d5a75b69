//! When memory is short: what is tried, in which order, and when it is an error.

use std::sync::{Arc, Mutex};

use granule_bank::{Bank, BankOptions, Owner};
use granule_device::{Bytes, Device, DeviceKind};
use granule_pool::{Error, Heap, Lease, Pool, PoolOptions};

use crate::support::{Random, Worker, bank, granules, pool, stream};

/// The granules that leases have bytes in, counted from their addresses alone.
fn granules_in_use(device: &Device, leases: &[Lease]) -> u64 {
    let granule = device.granularity().get();
    let touched = leases.iter().flat_map(|lease| {
        let start = lease.ptr().addr();
        start / granule..(start + lease.given().get()).div_ceil(granule)
    });
    touched.collect::<std::collections::BTreeSet<u64>>().len() as u64
}

/// After any operations, the largest request that fits beside granules in use is served, and one granule more is not.
pub(crate) fn fails_only_when_nothing_fits(open: &dyn Fn() -> Device) {
    let device = open();
    const BUDGET: u64 = 12;
    for seed in 1..=8 {
        let bank = bank(&device, BUDGET);
        let pool = pool(&bank);
        let mut random = Random(seed * 7919);
        let mut workers: Vec<Worker> = (0..2).map(|_| Worker::new(&device)).collect();
        let mut heaps: Vec<Heap> = workers.iter().map(|worker| pool.heap(&worker.stream).unwrap()).collect();
        heaps.push(pool.local().unwrap());
        let mut live: Vec<Lease> = Vec::new();
        for _ in 0..30 + random.below(150) {
            let who = random.below(3) as usize;
            if random.below(5) < 3 {
                let size = random.size(device.granularity().get());
                match heaps[who].alloc(size) {
                    Ok(mut lease) => {
                        if let Some(worker) = workers.get_mut(who) {
                            worker.use_lease(&mut lease, 1);
                        }
                        live.push(lease);
                    }
                    Err(Error::OutOfMemory { .. }) => {
                        let free = BUDGET - granules_in_use(&device, &live);
                        assert!(
                            granules(&device, free) < size,
                            "{size} refused with {free} granules not in use"
                        );
                    }
                    Err(error) => panic!("{error}"),
                }
            } else if !live.is_empty() {
                drop(live.swap_remove(random.below(live.len() as u64) as usize));
            }
        }
        let free = BUDGET - granules_in_use(&device, &live);
        let who = &heaps[random.below(3) as usize];
        // Parts of two granules in use may help at both ends, but not more.
        assert!(who.alloc(granules(&device, free + 2)).is_err());
        let all = who.alloc(granules(&device, free)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        drop((live, all));
        workers.iter().for_each(Worker::finish);
    }
}

pub(crate) fn every_granule_left_has_a_live_byte(open: &dyn Fn() -> Device) {
    let device = open();
    for seed in 1..=8 {
        let bank = bank(&device, 40);
        let pool = pool(&bank);
        let mut random = Random(seed * 104_729);
        let mut worker = Worker::new(&device);
        let mut other = Worker::new(&device);
        let heaps =
            [pool.heap(&worker.stream).unwrap(), pool.local().unwrap(), pool.heap(&other.stream).unwrap()];
        let mut served = 0;
        let mut live: Vec<Lease> = Vec::new();
        for _ in 0..200 {
            let who = random.below(3) as usize;
            match heaps[who].alloc(random.size(device.granularity().get())) {
                Ok(mut lease) => {
                    match who {
                        0 => worker.use_lease(&mut lease, 1),
                        2 => other.use_lease(&mut lease, 2),
                        _ => {}
                    }
                    // Some are used by the second stream too.
                    if who == 0 && random.below(3) == 0 {
                        lease.used_by(&heaps[2]).unwrap();
                        other.check(&lease, 1);
                    }
                    served += 1;
                    live.push(lease);
                }
                Err(Error::OutOfMemory { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            while live.len() > 30 {
                drop(live.swap_remove(random.below(live.len() as u64) as usize));
            }
        }
        assert!(served > 150, "{served} of 200");
        // The last leases are of a heap that is closed, too.
        let mut heaps = Vec::from(heaps);
        for keep in [20, 3, 0] {
            live.truncate(keep);
            heaps.pop();
            pool.trim().unwrap();
            bank.drain();
            let held = bank.stats().held;
            assert_eq!(
                held,
                granules(&device, granules_in_use(&device, &live)),
                "seed {seed}, {keep} leases"
            );
            assert_eq!(pool.stats().reserved, held);
        }
        worker.finish();
        other.finish();
        assert_eq!(device.live().mappings, 0);
    }
}

pub(crate) fn memory_of_one_heap_serves_another(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let pool = pool(&bank);
    let heaps = [pool.local().unwrap(), pool.heap(&stream(&device)).unwrap(), pool.local().unwrap()];
    for _ in 0..3 {
        for heap in &heaps {
            // Small blocks in a cache, then large ones that need them back together.
            let small: Vec<Lease> = std::iter::from_fn(|| heap.alloc(Bytes::new(3000)).ok()).collect();
            assert!(small.len() as u64 >= 4 * device.granularity().get() / 3072 - 4);
            drop(small);
            drop(heap.alloc(granules(&device, 4)).unwrap());
        }
    }
}

pub(crate) fn another_owner_gets_idle_memory(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 8);
    let pool = pool(&bank);
    let heap = pool.local().unwrap();
    let kept = heap.alloc(Bytes::new(100)).unwrap();
    drop(
        (0..100)
            .map(|_| heap.alloc(Bytes::new(device.granularity().get() / 16)).unwrap())
            .collect::<Vec<_>>(),
    );
    assert!(bank.free() < granules(&device, 4));
    let mut cache = bank.growable(&Owner::new("kv"), granules(&device, 8)).unwrap();
    cache.grow_to(granules(&device, 7)).unwrap();
    assert!(cache.grow_to(granules(&device, 8)).is_err(), "one granule has a live byte");
    drop(kept);
    cache.grow_to(granules(&device, 8)).unwrap();
    assert!(matches!(heap.alloc(Bytes::new(1)), Err(Error::OutOfMemory { .. })));
}

pub(crate) fn the_owner_is_asked_in_the_end(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let hoard: Arc<Mutex<Vec<Lease>>> = Arc::default();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (given, noted) = (Arc::clone(&hoard), Arc::clone(&asked));
    let options = PoolOptions::new().owner("activations").reclaim(move |size| {
        noted.lock().unwrap().push(size);
        given.lock().unwrap().pop().map_or(Bytes::ZERO, |lease| lease.len())
    });
    let pool = Pool::new(&bank, options).unwrap();
    let heap = pool.heap(&stream(&device)).unwrap();
    hoard.lock().unwrap().extend((0..4).map(|_| heap.alloc(device.granularity()).unwrap()));
    let large = heap.alloc(granules(&device, 2)).unwrap();
    assert_eq!(*asked.lock().unwrap(), [granules(&device, 2); 2], "two had to go for two");
    assert_eq!(hoard.lock().unwrap().len(), 2);
    drop(large);
    // What nothing comes of is not repeated.
    hoard.lock().unwrap().clear();
    let _all = heap.alloc(granules(&device, 4)).unwrap();
    asked.lock().unwrap().clear();
    assert!(matches!(heap.alloc(Bytes::new(1)), Err(Error::OutOfMemory { .. })));
    assert_eq!(asked.lock().unwrap().len(), 1);
}

pub(crate) fn never_and_not_now_are_told_apart(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let pool = Pool::new(&bank, PoolOptions::new().owner("activations")).unwrap();
    let heap = pool.local().unwrap();
    let kept = heap.alloc(Bytes::new(1)).unwrap();
    let error = heap.alloc(granules(&device, 4)).unwrap_err();
    let Error::OutOfMemory { requested, reserved, live, .. } = &error else { panic!("{error}") };
    assert_eq!((*requested, *reserved, *live), (granules(&device, 4), granules(&device, 1), Bytes::new(256)));
    assert!(error.to_string().contains("activations"), "{error}");
    let error = heap.alloc(granules(&device, 5)).unwrap_err();
    assert!(matches!(error, Error::TooLarge { budget, .. } if budget == granules(&device, 4)), "{error}");
    drop(kept);
    pool.trim().unwrap();
    assert_eq!(pool.stats().largest_certain, granules(&device, 4));
    drop(heap.alloc(granules(&device, 4)).unwrap());
}

/// Nobody gives anything up for what fits nowhere: no other stream is waited for, and idle memory stays.
pub(crate) fn what_never_fits_asks_nobody(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let options = PoolOptions::new().reclaim(move |_| {
        *count.lock().unwrap() += 1;
        Bytes::new(1)
    });
    let pool = Pool::new(&bank, options).unwrap();
    let heap = pool.heap(&stream(&device)).unwrap();
    let other = pool.heap(&stream(&device)).unwrap();
    drop((heap.alloc(Bytes::new(1)).unwrap(), other.alloc(Bytes::new(1)).unwrap()));
    let before = pool.stats().reserved;
    let sizes =
        [granules(&device, 4).saturating_add(Bytes::new(1)), granules(&device, 16), Bytes::gib(1 << 20)];
    for size in sizes {
        assert!(matches!(heap.alloc(size), Err(Error::TooLarge { requested, .. }) if requested == size));
    }
    assert_eq!((*asked.lock().unwrap(), pool.stats().events, pool.stats().reserved), (0, 0, before));
}

/// A request fails only where its own bytes do not fit, whatever they are rounded up to.
pub(crate) fn a_class_is_not_what_makes_it_too_large(open: &dyn Fn() -> Device) {
    let device = open();
    // 615 KiB are of the class of 640 KiB.
    let bank = Bank::pinned(device.clone(), BankOptions::new().budget(Bytes::kib(620))).unwrap();
    let pool = Pool::pinned(&bank, PoolOptions::new()).unwrap();
    let heap = pool.local().unwrap();
    for _ in 0..3 {
        let lease = heap.alloc(Bytes::kib(615)).unwrap();
        assert_eq!((lease.len(), lease.given()), (Bytes::kib(615), Bytes::kib(615)));
        assert_eq!((heap.stats().current, heap.stats().waste()), (Bytes::kib(615), Bytes::ZERO));
        assert!(matches!(heap.alloc(Bytes::kib(600)), Err(Error::OutOfMemory { .. })));
        drop(lease);
    }
    assert_eq!((heap.stats().live, heap.stats().current), (0, Bytes::ZERO));
    assert!(matches!(heap.alloc(Bytes::kib(621)), Err(Error::TooLarge { .. })));
    // The same where it is somebody else's memory that leaves no room for the class.
    let bank = Bank::pinned(device, BankOptions::new().budget(Bytes::kib(1240))).unwrap();
    let _other = bank.pinned_block(&Owner::new("other"), Bytes::kib(620)).unwrap();
    let pool = Pool::pinned(&bank, PoolOptions::new()).unwrap();
    drop(pool.local().unwrap().alloc(Bytes::kib(615)).unwrap());
}

pub(crate) fn what_work_still_uses_is_given_back_after_it(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 8);
    let pool = pool(&bank);
    let mut worker = Worker::new(&device);
    let heap = pool.heap(&worker.stream).unwrap();
    for round in 0..4 {
        let mut leases: Vec<Lease> = (0..4).map(|_| heap.alloc(device.granularity()).unwrap()).collect();
        leases.iter_mut().for_each(|lease| worker.use_lease(lease, round));
        drop(leases);
        assert_eq!(pool.trim().unwrap(), granules(&device, 4));
        assert_eq!(pool.stats().reserved, Bytes::ZERO);
    }
    worker.finish();
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

/// Memory that two streams still use is given back behind both, and nobody waits for them.
pub(crate) fn a_trim_waits_for_no_work(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 8);
    let pool = pool(&bank);
    let (a, mut b) = (Worker::new(&device), Worker::new(&device));
    let (of_a, of_b) = (pool.heap(&a.stream).unwrap(), pool.heap(&b.stream).unwrap());
    let gates: Vec<std::sync::mpsc::Sender<()>> = [&a, &b]
        .iter()
        .filter(|_| device.kind() == DeviceKind::Host)
        .map(|worker| {
            let (open, gate) = std::sync::mpsc::channel();
            // It runs until the trim is over; a trim that waits for it waits until this gives up.
            let work = move || {
                let _ = gate.recv_timeout(std::time::Duration::from_secs(20));
            };
            worker.stream.call(work).unwrap();
            open
        })
        .collect();
    let mut lease = of_a.alloc(device.granularity()).unwrap();
    a.write(&mut lease, 1);
    lease.used_by(&of_b).unwrap();
    b.check(&lease, 1);
    drop(lease);
    let at = std::time::Instant::now();
    assert_eq!(pool.trim().unwrap(), device.granularity());
    assert!(at.elapsed() < std::time::Duration::from_secs(10) || gates.is_empty(), "the trim waited");
    drop(gates);
    a.finish();
    b.finish();
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

pub(crate) fn cached_blocks_stay_below_their_limit(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 16);
    let pool = Pool::new(&bank, PoolOptions::new().cache_limit(Bytes::kib(64))).unwrap();
    for heap in [pool.local().unwrap(), pool.heap(&stream(&device)).unwrap()] {
        let mut leases: Vec<Lease> = (0..100).map(|i| heap.alloc(Bytes::new(100 * i)).unwrap()).collect();
        while leases.pop().is_some() {
            assert!(heap.stats().cached <= Bytes::kib(64), "{:?}", heap.stats());
        }
        assert!(heap.stats().cached >= Bytes::kib(16), "and are not all let go of");
    }
}
