//! Leases by themselves: sizes, alignments, lifetimes.

use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, DeviceKind, LeaseMode, Region};
use granule_pool::{Error, Pool, PoolOptions};

use crate::support::{bank, granules, pool, read, stream, write};

pub(crate) fn sizes_alignments_and_waste(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 64);
    let pool = pool(&bank);
    let granule = device.granularity().get();
    for heap in [pool.local().unwrap(), pool.heap(&stream(&device)).unwrap()] {
        let sizes = [
            1,
            255,
            256,
            257,
            2047,
            2048,
            2049,
            3000,
            10_000,
            65_536,
            65_537,
            granule,
            granule + 1,
            3 * granule,
        ];
        let aligns = [1, 256, 512, 4096, granule];
        let mut leases = Vec::new();
        for (size, align) in sizes.into_iter().flat_map(|size| aligns.map(|align| (size, align))) {
            let lease = heap.alloc_aligned(Bytes::new(size), Bytes::new(align)).unwrap();
            assert_eq!(lease.len(), Bytes::new(size));
            assert!(lease.ptr().addr().is_multiple_of(align.max(256)), "{size} at {align}");
            let waste = lease.given().get() - size;
            assert!(waste < 256 || waste * 8 <= size, "{size} wastes {waste}");
            leases.push(lease);
            if leases.len() > 20 {
                leases.clear();
            }
        }
        let mut spans: Vec<(u64, u64)> = leases
            .iter()
            .map(|lease| (lease.ptr().addr(), lease.ptr().addr() + lease.given().get()))
            .collect();
        spans.sort_unstable();
        assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "two leases overlap");
        let stats = heap.stats();
        assert_eq!(stats.live, leases.len() as u64);
        assert_eq!(stats.requested.get(), leases.iter().map(|lease| lease.len().get()).sum::<u64>());
        assert_eq!(stats.current.get(), leases.iter().map(|lease| lease.given().get()).sum::<u64>());
    }
}

pub(crate) fn nothing_is_a_lease_too(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let heap = pool(&bank).local().unwrap();
    let nothing: Vec<_> = (0..3).map(|_| heap.alloc(Bytes::ZERO).unwrap()).collect();
    assert!(nothing.iter().all(|lease| lease.is_empty() && lease.slice().unwrap().is_empty()));
    assert_ne!(nothing[0].ptr(), nothing[1].ptr());
    assert_eq!((heap.stats().requested, heap.stats().waste()), (Bytes::ZERO, Bytes::new(3 * 256)));
    let values = heap.alloc_slice::<f32>(0).unwrap();
    assert!(values.is_empty() && values.slice().unwrap().is_empty());
    drop((nothing, values));
    assert_eq!(heap.stats().live, 0);
}

pub(crate) fn values_are_written_and_read(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 8);
    let pool = pool(&bank);
    for heap in [pool.local().unwrap(), pool.heap(&stream(&device)).unwrap()] {
        let mut values = heap.alloc_slice::<u32>(1000).unwrap();
        assert_eq!((values.len(), values.lease().len()), (1000, Bytes::new(4000)));
        let numbers: Vec<u32> = (0..1000).collect();
        write(&device, bytemuck::cast_slice(&numbers), values.slice_mut().unwrap());
        assert_eq!(read(&device, values.slice().unwrap()), bytemuck::cast_slice::<u32, u8>(&numbers));
        match device.kind() {
            DeviceKind::Host => {
                values.as_mut_slice().unwrap()[7] = 70;
                assert_eq!(values.as_slice().unwrap()[6..9], [6, 70, 8]);
            }
            _ => assert!(matches!(values.as_slice(), Err(Error::NotAddressable { .. }))),
        }
    }
    assert!(matches!(pool.local().unwrap().alloc_slice::<u64>(usize::MAX), Err(Error::TooLarge { .. })));
}

pub(crate) fn regions_of_leases(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 8);
    let pool = pool(&bank);
    let (first, second) = (stream(&device), stream(&device));
    for heap in [pool.local().unwrap(), pool.heap(&first).unwrap()] {
        for value in 0..4 {
            // The memory was just used by the first stream; the region is used by the second.
            let mut before = Region::new(heap.alloc(Bytes::kib(10)).unwrap()).unwrap();
            first.fill(&mut before, .., 99).unwrap();
            drop(before);
            let mut region = Region::new(heap.alloc(Bytes::kib(10)).unwrap()).unwrap();
            second.fill(&mut region, .., value).unwrap();
            let mut copy = Region::new(heap.alloc(Bytes::kib(10)).unwrap()).unwrap();
            second.copy(&region, .., &mut copy, ..).unwrap();
            drop(region);
            assert_eq!(read(&device, copy.slice(..).unwrap()), vec![value; 10 << 10]);
        }
    }
    device.synchronize().unwrap();
    assert_eq!(pool.stats().live, 0);
}

pub(crate) fn leases_outlive_their_heap_and_pool(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 8);
    let mut leases = Vec::new();
    {
        let pool = pool(&bank);
        for heap in [pool.local().unwrap(), pool.heap(&stream(&device)).unwrap()] {
            for size in [100, 5000, 2 * device.granularity().get()] {
                leases.push(heap.alloc(Bytes::new(size)).unwrap());
            }
            drop(heap.alloc(Bytes::new(100)).unwrap());
        }
    }
    for (value, lease) in (0..).zip(&mut leases) {
        write(&device, &vec![value; lease.len().to_usize().unwrap()], lease.slice_mut().unwrap());
    }
    for (value, lease) in (0..).zip(&leases) {
        assert!(read(&device, lease.slice().unwrap()).iter().all(|&byte| byte == value));
    }
    assert!(bank.stats().held >= granules(&device, 4));
    drop(leases);
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO, "the last lease takes the pool along");
}

pub(crate) fn leases_are_dropped_on_other_threads(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 16);
    let heap = pool(&bank).heap(&stream(&device)).unwrap();
    for _ in 0..10 {
        let leases: Vec<_> = (0..50).map(|i| heap.alloc(Bytes::new(i * 300)).unwrap()).collect();
        std::thread::spawn(move || drop(leases)).join().unwrap();
    }
    assert_eq!(heap.stats().live, 0);
    assert_eq!(heap.stats().hits + heap.stats().misses, 500);
}

pub(crate) fn the_same_stream_has_the_same_heap(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let pool = pool(&bank);
    let (a, b) = (stream(&device), stream(&device));
    let heap = pool.heap(&a).unwrap();
    let at = heap.alloc(Bytes::new(1000)).unwrap().ptr();
    assert_eq!(pool.heap(&a).unwrap().alloc(Bytes::new(1000)).unwrap().ptr(), at);
    assert_eq!(heap.clone().stats().hits, 1);
    drop((pool.heap(&b).unwrap(), pool.local().unwrap()));
    assert_eq!(pool.stats().heaps.len(), 1, "a heap that nobody has is gone");
}

pub(crate) fn a_heap_is_opened_again(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let pool = pool(&bank);
    let a = stream(&device);
    let kept = pool.heap(&a).unwrap().alloc(Bytes::new(1000)).unwrap();
    for _ in 0..3 {
        let heap = pool.heap(&a).unwrap();
        assert_eq!(heap.stats().live, 1, "it is the heap that the lease is of");
        let again = heap.alloc(Bytes::new(1000)).unwrap();
        assert_ne!(again.ptr(), kept.ptr());
        drop(again);
        assert!(!heap.stats().cached.is_zero());
    }
    drop(kept);
    assert_eq!(pool.stats().live, 0);
}

pub(crate) fn checkers_see_leases(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 8);
    for mode in [LeaseMode::Announced, LeaseMode::Apart, LeaseMode::Quiet] {
        device.set_lease_mode(mode);
        let pool = pool(&bank);
        let work = stream(&device);
        for heap in [pool.local().unwrap(), pool.heap(&work).unwrap()] {
            let mut leases: Vec<_> = (1..30).map(|i| heap.alloc(Bytes::new(i * 77)).unwrap()).collect();
            let live = device.live();
            match mode {
                LeaseMode::Quiet => assert_eq!((live.suballocations, live.buffers), (0, 0)),
                LeaseMode::Announced => assert_eq!(live.suballocations, leases.len()),
                LeaseMode::Apart => assert!(live.buffers >= leases.len()),
            }
            let aligned = heap.alloc_aligned(Bytes::new(100), Bytes::kib(64)).unwrap();
            assert!(aligned.ptr().addr().is_multiple_of(64 << 10));
            drop(aligned);
            for lease in &mut leases {
                let len = lease.len().to_usize().unwrap();
                write(&device, &vec![7; len], lease.slice_mut().unwrap());
            }
            leases.retain(|lease| lease.len().get().is_multiple_of(2));
            assert!(
                leases
                    .iter()
                    .all(|lease| read(&device, lease.slice().unwrap()).iter().all(|&byte| byte == 7))
            );
            for _ in 0..100 {
                drop(heap.alloc(Bytes::new(1000)).unwrap());
            }
            if mode == LeaseMode::Apart && heap.stream().is_none() {
                let before = device.live().buffers;
                drop(leases.pop());
                assert_eq!(device.live().buffers, before - 1, "a checker sees at once that it is gone");
            }
        }
        assert_eq!(pool.stats().live, 0);
    }
    device.set_lease_mode(LeaseMode::Quiet);
}

pub(crate) fn pinned_memory_comes_from_a_pool_too(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = Bank::pinned(device.clone(), BankOptions::new().budget(Bytes::mib(5))).unwrap();
    let pool = Pool::pinned(&bank, PoolOptions::new().owner("staging")).unwrap();
    let heap = pool.heap(&stream(&device)).unwrap();
    let mut values = heap.alloc_slice::<u16>(5000).unwrap();
    values.as_mut_slice().unwrap().fill(3);
    assert!(values.as_slice().unwrap().iter().all(|&value| value == 3));
    let aligned = heap.alloc_aligned(Bytes::new(100), Bytes::kib(64)).unwrap();
    assert!(aligned.ptr().addr().is_multiple_of(64 << 10));
    let large = heap.alloc(Bytes::mib(2)).unwrap();
    // There is no room for another segment, but there is for as much as is asked for.
    let rest = heap.alloc(Bytes::kib(900)).unwrap();
    assert!(matches!(heap.alloc(Bytes::mib(3)), Err(Error::OutOfMemory { .. })));
    assert!(matches!(heap.alloc(Bytes::mib(6)), Err(Error::TooLarge { .. })));
    drop((values, large, rest, aligned));
    assert_eq!(heap.alloc(Bytes::mib(4)).unwrap().len(), Bytes::mib(4), "idle segments make room");
    pool.drain().unwrap();
    pool.trim().unwrap();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

pub(crate) fn wrong_asks_are_refused(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let pool = pool(&bank);
    let heap = pool.local().unwrap();
    for align in [0, 3, 768, 2 * device.granularity().get()] {
        let refused = heap.alloc_aligned(Bytes::new(100), Bytes::new(align));
        assert!(matches!(refused, Err(Error::Alignment { .. })), "{align}");
    }
    let elsewhere = Device::host().unwrap();
    assert!(matches!(pool.heap(&Arc::new(elsewhere.stream().unwrap())), Err(Error::OtherDevice { .. })));
    assert!(matches!(heap.begin_private(), Err(Error::NoStream { .. })));
    assert!(matches!(heap.alloc(Bytes::MAX), Err(Error::TooLarge { .. })));
    assert_eq!((pool.stats().live, pool.stats().reserved), (0, Bytes::ZERO));
    // Pools over banks of the other kind of memory.
    let wrong = Pool::pinned(&bank, PoolOptions::new());
    assert!(matches!(wrong, Err(Error::WrongBank { how: "Bank::pinned", .. })));
    let pinned = Bank::pinned(device, BankOptions::new().budget(Bytes::mib(8))).unwrap();
    assert!(matches!(Pool::new(&pinned, PoolOptions::new()), Err(Error::WrongBank { how: "Bank::new", .. })));
}
