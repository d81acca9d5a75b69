//! Many threads at once. The sanitizers and the simulator look on.

use std::sync::Barrier;

use granule_device::{Bytes, Device};
use granule_pool::{Heap, Lease};

use crate::support::{Random, bank, pool, stream};

/// Allocates and frees; every block is one thread's at a time: what was written at its address is still there.
fn hammer(heap: &Heap, seed: u64, rounds: usize, hand_over: &std::sync::mpsc::Sender<Lease>) {
    let mut random = Random(seed);
    let mut mine: Vec<(Lease, u8)> = Vec::new();
    for round in 0..rounds {
        let value = random.below(256) as u8;
        if let Ok(mut lease) = heap.alloc(Bytes::new(1 + random.below(3000))) {
            if let Some(bytes) = lease.slice_mut().unwrap().as_host_mut() {
                bytes.fill(value);
            }
            mine.push((lease, value));
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
}

fn run(heaps: &[Heap]) {
    let barrier = Barrier::new(heaps.len());
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        for (seed, heap) in (1..).zip(heaps) {
            let (sender, barrier) = (sender.clone(), &barrier);
            scope.spawn(move || {
                barrier.wait();
                hammer(heap, seed, 2000, &sender);
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
    run(&vec![heap.clone(); 8]);
    assert_eq!((heap.stats().live, heap.stats().requested), (0, Bytes::ZERO));
}

pub(crate) fn eight_threads_on_eight_heaps(open: &dyn Fn() -> Device) {
    let device = open();
    // Too little for all: they take from each other.
    let bank = bank(&device, 6);
    let pool = pool(&bank);
    let heaps: Vec<Heap> = (0..8).map(|_| pool.local().unwrap()).collect();
    run(&heaps);
    assert_eq!(pool.stats().live, 0);
    drop(heaps);
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
                    kept.extend((0..3).filter_map(|_| heap.alloc(Bytes::new(random.below(2000))).ok()));
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
