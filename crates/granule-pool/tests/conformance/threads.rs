//! Many threads at once. The sanitizers and the simulator look on.

use std::sync::Barrier;

use granule_device::{Bytes, Device};
use granule_pool::{Error, Heap, Lease};

use crate::support::{Random, Worker, bank, pool, stream};

/// Allocates and frees; answers how many requests were served. Every block is one thread's at a time: what was written at its address is still there.
fn hammer(heap: &Heap, seed: u64, rounds: usize, hand_over: &std::sync::mpsc::Sender<Lease>) -> usize {
    let mut random = Random(seed);
    let mut mine: Vec<(Lease, u8)> = Vec::new();
    let mut served = 0;
    for round in 0..rounds {
        let value = random.below(256) as u8;
        match heap.alloc(Bytes::new(1 + random.below(3000))) {
            Ok(mut lease) => {
                if let Some(bytes) = lease.slice_mut().unwrap().as_host_mut() {
                    bytes.fill(value);
                }
                served += 1;
                mine.push((lease, value));
            }
            Err(Error::OutOfMemory { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        if (round % 3 == 0 && !mine.is_empty()) || mine.len() > 40 {
            let (lease, value) = mine.swap_remove(random.below(mine.len() as u64) as usize);
            if let Some(bytes) = lease.slice().unwrap().as_host() {
                assert!(bytes.iter().all(|&byte| byte == value), "two threads have one block");
            }
            if round % 2 == 0 {
                hand_over.send(lease).unwrap();
            }
        }
        if round % 500 == 0 {
            heap.pool().trim().unwrap();
        }
    }
    served
}

/// Has each heap hammered by a thread of its own, with at least so many requests served.
fn run(heaps: &[Heap], least: usize) {
    let barrier = Barrier::new(heaps.len());
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        for (seed, heap) in (1..).zip(heaps) {
            let (sender, barrier) = (sender.clone(), &barrier);
            scope.spawn(move || {
                barrier.wait();
                let served = hammer(heap, seed, 2000, &sender);
                assert!(served >= least, "{served} of 2000 were served");
            });
        }
        drop(sender);
        // What they hand over is dropped here.
        scope.spawn(move || receiver.into_iter().for_each(drop));
    });
}

pub(crate) fn eight_threads_on_one_heap(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 64);
    let heap = pool(&bank).local().unwrap();
    run(&vec![heap.clone(); 8], 500);
    assert_eq!((heap.stats().live, heap.stats().requested), (0, Bytes::ZERO));
}

pub(crate) fn eight_threads_on_eight_heaps(open: &dyn Fn() -> Device) {
    let device = open();
    // Too little for all: they take from each other.
    let bank = bank(&device, 6);
    let pool = pool(&bank);
    let heaps: Vec<Heap> = (0..8).map(|_| pool.local().unwrap()).collect();
    run(&heaps, 200);
    assert_eq!(pool.stats().live, 0);
    drop(heaps);
    pool.trim().unwrap();
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

/// Threads with a stream each take memory from each other while work of theirs still uses it.
pub(crate) fn threads_steal_with_work_in_flight(open: &dyn Fn() -> Device) {
    let device = open();
    // Each wants up to three of four granules.
    let bank = bank(&device, 4);
    let pool = pool(&bank);
    let granule = device.granularity().get();
    std::thread::scope(|scope| {
        for seed in 1..=4_u64 {
            let (pool, device) = (&pool, &device);
            scope.spawn(move || {
                let mut random = Random(seed);
                let mut worker = Worker::new(device);
                let heap = pool.heap(&worker.stream).unwrap();
                let mut served = 0;
                for round in 0..150_u32 {
                    let mut leases: Vec<Lease> = Vec::new();
                    for size in [granule, granule / 3, 1 + random.below(granule), 3000] {
                        match heap.alloc(Bytes::new(size)) {
                            Ok(lease) => leases.push(lease),
                            Err(Error::OutOfMemory { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    served += leases.len();
                    leases.iter_mut().for_each(|lease| worker.use_lease(lease, round as u8));
                }
                assert!(served >= 100, "{served} of 600 were served");
                worker.finish();
            });
        }
    });
    assert!(pool.stats().steals > 0, "{:?}", pool.stats());
    pool.trim().unwrap();
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

pub(crate) fn heaps_come_and_go(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 16);
    let pool = pool(&bank);
    let streams = [stream(&device), stream(&device)];
    std::thread::scope(|scope| {
        for seed in 1..=8_u64 {
            let (pool, streams) = (&pool, &streams);
            scope.spawn(move || {
                let mut random = Random(seed);
                let mut kept = Vec::new();
                for _ in 0..200 {
                    let heap = match random.below(3) {
                        0 => pool.local().unwrap(),
                        which => pool.heap(&streams[which as usize - 1]).unwrap(),
                    };
                    // Enough for all, whatever the others do.
                    kept.extend((0..3).map(|_| heap.alloc(Bytes::new(random.below(2000))).unwrap()));
                    drop(heap);
                    while kept.len() > 10 {
                        drop(kept.swap_remove(random.below(kept.len() as u64) as usize));
                    }
                }
            });
        }
    });
    assert_eq!(pool.stats().live, 0);
    drop(pool);
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}
