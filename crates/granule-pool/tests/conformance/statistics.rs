//! What a pool says about itself.

use granule_device::{Bytes, Device};
use granule_pool::{Heap, Lease, Pool, PoolOptions};

use crate::support::{Worker, bank, granules, pool, stream};

pub(crate) fn sums_outlive_their_heaps(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let pool = pool(&bank);
    let heap = pool.local().unwrap();
    for _ in 0..3 {
        drop(heap.alloc(Bytes::kib(10)).unwrap());
    }
    let before = pool.stats();
    assert_eq!((before.hits, before.misses, before.peak), (2, 1, Bytes::kib(10)));
    drop(heap);
    let after = pool.stats();
    assert_eq!(after.heaps, []);
    assert_eq!((after.hits, after.misses, after.peak), (2, 1, Bytes::kib(10)));
}

pub(crate) fn the_peak_is_of_heaps_that_were_there_together(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 16);
    let pool = pool(&bank);
    for _ in 0..3 {
        drop(pool.local().unwrap().alloc(device.granularity()).unwrap());
    }
    assert_eq!(pool.stats().peak, device.granularity());
    let heaps: Vec<Heap> = (0..3).map(|_| pool.local().unwrap()).collect();
    let leases: Vec<Lease> = heaps.iter().map(|heap| heap.alloc(device.granularity()).unwrap()).collect();
    assert_eq!((pool.stats().peak, pool.stats().current), (granules(&device, 3), granules(&device, 3)));
    drop((heaps, leases));
    assert_eq!(pool.stats().peak, granules(&device, 3));
}

/// Blocks that other streams may still use are in the sums too.
pub(crate) fn every_free_byte_is_counted(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 8);
    let pool = Pool::new(&bank, PoolOptions::new()).unwrap();
    let mut workers = [Worker::new(&device), Worker::new(&device)];
    let heaps: Vec<Heap> = workers.iter().map(|worker| pool.heap(&worker.stream).unwrap()).collect();
    for round in 0..3 {
        let mut lease = heaps[0].alloc(Bytes::kib(10)).unwrap();
        lease.used_by(&heaps[1]).unwrap();
        workers[1].use_lease(&mut lease, round);
    }
    let stats = pool.stats();
    assert_eq!(stats.current, Bytes::ZERO);
    assert!(stats.waiting >= Bytes::kib(10), "{stats:?}");
    assert_eq!(
        stats.reserved.get(),
        stats.cached.get() + stats.waiting.get() + stats.free.get(),
        "{stats:?}"
    );
    workers.iter().for_each(Worker::finish);
    pool.trim().unwrap();
    assert_eq!((pool.stats().waiting, pool.stats().reserved), (Bytes::ZERO, Bytes::ZERO));
}

pub(crate) fn what_is_certain_is_served(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 8);
    let pool = pool(&bank);
    let heap = pool.local().unwrap();
    let mut live: Vec<Lease> = Vec::new();
    for round in 1..40 {
        drop((0..20).map(|_| heap.alloc(Bytes::new(round * 250)).unwrap()).collect::<Vec<_>>());
        live.push(heap.alloc(Bytes::new(round * 300)).unwrap());
        if round % 3 == 0 {
            drop(live.swap_remove(0));
        }
        let certain = pool.stats().largest_certain;
        drop(heap.alloc(certain).unwrap_or_else(|error| panic!("{certain} were certain: {error}")));
    }
    live.clear();
    pool.trim().unwrap();
    assert_eq!(pool.stats().largest_certain, granules(&device, 8));
    // A heap whose stream is captured has what it has for itself.
    let captured = pool.heap(&stream(&device)).unwrap();
    drop(captured.alloc(granules(&device, 3)).unwrap());
    captured.begin_private().unwrap();
    assert_eq!(pool.stats().largest_certain, granules(&device, 5));
    drop(heap.alloc(granules(&device, 5)).unwrap());
    drop(captured.end_private().unwrap());
}
