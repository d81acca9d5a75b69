//! The pool of threads under a scheduler that tries interleavings: nobody sleeps through a region that is for it, whatever
//! falls asleep when, and whoever limits the pool meanwhile.
//!
//! ```text
//! RUSTFLAGS="--cfg shuttle" cargo test -p granule-ops --test shuttle -- --test-threads=1
//! ```
//!
//! Each lock, atomic and wait of the pool is a point where another thread may go on; all of them are in one order here, which
//! is what the pool asks for where it matters. A wake-up that is lost is a deadlock, which the scheduler finds. Without the
//! flag this is empty.
#![allow(unexpected_cfgs, reason = "set by who runs these tests")]
#![cfg(shuttle)]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use granule_ops::Threads;
use shuttle::thread;

const SCHEDULES: usize = 5_000;

fn pool(count: usize) -> Threads {
    Threads::new(NonZeroUsize::new(count).unwrap()).unwrap()
}

/// Regions of so many threads one after the other: each thread that takes part runs each once.
fn regions(pool: &Threads, counts: &[usize]) {
    for &count in counts {
        let hits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
        pool.limited(NonZeroUsize::new(count).unwrap()).run(&|worker| {
            hits[worker].fetch_add(1, Ordering::Relaxed);
        });
        assert!(hits.iter().all(|hits| hits.load(Ordering::Relaxed) == 1));
    }
}

#[test]
fn every_region_is_run_by_all_that_it_is_for() {
    shuttle::check_random(|| regions(&pool(3), &[3, 1, 2, 3, 2, 2, 3]), SCHEDULES);
    shuttle::check_pct(|| regions(&pool(3), &[3, 2, 3, 3, 2, 3]), SCHEDULES, 3);
}

/// Regions of so many chunks for so many threads: each chunk is run once.
fn chunks(pool: &Threads, regions: &[(usize, usize)]) {
    for &(len, count) in regions {
        let hits: Vec<AtomicUsize> = (0..len).map(|_| AtomicUsize::new(0)).collect();
        pool.limited(NonZeroUsize::new(count).unwrap()).for_each_chunk(len, 1, &|_, range| {
            for i in range {
                hits[i].fetch_add(1, Ordering::Relaxed);
                // Somewhere for the others to go on.
                thread::yield_now();
            }
        });
        assert!(hits.iter().all(|hits| hits.load(Ordering::Relaxed) == 1));
    }
}

#[test]
fn each_chunk_is_run_once_whoever_helps_whom() {
    let alone = || chunks(&pool(3), &[(7, 3), (2, 3), (5, 2), (4, 3)]);
    shuttle::check_random(alone, SCHEDULES);
    shuttle::check_pct(alone, SCHEDULES, 3);
    let shared = || {
        let pool = Arc::new(pool(3));
        let other = Arc::clone(&pool);
        let caller = thread::spawn(move || chunks(&other, &[(4, 3), (3, 2)]));
        chunks(&pool, &[(3, 2), (5, 3)]);
        caller.join().unwrap();
    };
    shuttle::check_random(shared, SCHEDULES);
    shuttle::check_pct(shared, SCHEDULES, 3);
}

#[test]
fn callers_that_share_a_pool_wait_for_one_another() {
    let callers = || {
        let pool = Arc::new(pool(3));
        let other = Arc::clone(&pool);
        let caller = thread::spawn(move || regions(&other, &[2, 3, 2]));
        regions(&pool, &[3, 2, 3]);
        caller.join().unwrap();
    };
    shuttle::check_random(callers, SCHEDULES);
    shuttle::check_pct(callers, SCHEDULES, 3);
}

#[test]
fn a_pool_that_goes_takes_its_sleepers_along() {
    shuttle::check_random(|| drop(pool(3)), SCHEDULES);
    shuttle::check_pct(|| drop(pool(3)), SCHEDULES, 3);
}
