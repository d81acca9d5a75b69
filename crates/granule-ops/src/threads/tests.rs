//! The pool of threads: every region and every chunk is run once, panics arrive, idle costs nothing.

use super::*;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

fn threads(n: usize) -> Threads {
    Threads::new(NonZeroUsize::new(n).unwrap()).unwrap()
}

#[test]
fn every_worker_runs_each_region_once() {
    for n in [1, 2, 3, 7] {
        let pool = threads(n);
        let counts: Vec<AtomicU64> = (0..n).map(|_| AtomicU64::new(0)).collect();
        for _ in 0..500 {
            pool.run(&|w| {
                counts[w].fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 500));
    }
}

#[test]
fn chunks_cover_everything_once() {
    let pool = threads(3);
    for (len, chunk) in [(0, 4), (1, 4), (4, 4), (5, 4), (1000, 7), (10, 0)] {
        let hits: Vec<AtomicU64> = (0..len).map(|_| AtomicU64::new(0)).collect();
        pool.for_each_chunk(len, chunk, &|_, range| {
            for i in range {
                hits[i].fetch_add(1, Ordering::Relaxed);
            }
        });
        assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1), "{len} by {chunk}");
    }
}

#[test]
fn the_process_has_one_pool() {
    let (a, b) = (Threads::shared().unwrap(), Threads::shared().unwrap());
    assert!(Arc::ptr_eq(&a.pool, &b.pool));
    assert_eq!(a.count(), Threads::default_count().get());
}

#[test]
fn a_parked_pool_wakes() {
    let pool = threads(2);
    let sum = AtomicU64::new(0);
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(20));
        pool.run(&|w| {
            sum.fetch_add(w as u64 + 1, Ordering::Relaxed);
        });
    }
    assert_eq!(sum.load(Ordering::Relaxed), 9);
}

#[test]
fn callers_share_the_pool_and_regions_nest() {
    let pool = threads(2);
    let sum = AtomicU64::new(0);
    thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..100 {
                    pool.for_each_chunk(10, 1, &|_, r| {
                        pool.for_each_chunk(3, 1, &|_, inner| {
                            sum.fetch_add((r.len() * inner.len()) as u64, Ordering::Relaxed);
                        });
                    });
                }
            });
        }
    });
    assert_eq!(sum.load(Ordering::Relaxed), 4 * 100 * 30);
}

#[test]
fn a_panic_arrives_at_the_caller_and_the_pool_lives_on() {
    let pool = threads(2);
    for bad in [&[0][..], &[1], &[0, 1]] {
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(&|w| assert!(!bad.contains(&w)))));
        assert!(caught.is_err());
    }
    // Of chunks, those that a thread does not come to any more are run by the other.
    let hits: Vec<AtomicU64> = (0..8).map(|_| AtomicU64::new(0)).collect();
    let run = |bad: usize| {
        pool.for_each_chunk(8, 1, &|_, range| {
            hits[range.start].fetch_add(1, Ordering::Relaxed);
            assert_ne!(range.start, bad);
        });
    };
    assert!(catch_unwind(AssertUnwindSafe(|| run(2))).is_err());
    run(8);
    assert!(hits.iter().all(|hits| hits.load(Ordering::Relaxed) == 2));
}

#[test]
fn a_limited_handle_uses_the_first_threads_and_shares_the_pool() {
    let pool = threads(4);
    let few = |n| pool.limited(NonZeroUsize::new(n).unwrap());
    assert_eq!([1, 3, 4, 9].map(|n| few(n).count()), [1, 3, 4, 4]);
    assert_eq!(few(2).limited(NonZeroUsize::new(3).unwrap()).count(), 2);
    let counts: Vec<AtomicU64> = (0..4).map(|_| AtomicU64::new(0)).collect();
    for round in 0..300 {
        few(round % 4 + 1).run(&|w| {
            counts[w].fetch_add(1, Ordering::Relaxed);
        });
    }
    let counts: Vec<u64> = counts.into_iter().map(AtomicU64::into_inner).collect();
    assert_eq!(counts, [300, 225, 150, 75]);
    let (left, sum) = (few(2), AtomicU64::new(0));
    drop(pool);
    left.for_each_chunk(10, 1, &|_, range| {
        sum.fetch_add(range.len() as u64, Ordering::Relaxed);
    });
    assert_eq!(sum.into_inner(), 10);
}

/// Pauses about as long as a worker spins, so that regions begin while workers go to sleep.
#[test]
fn no_region_is_missed_around_the_moment_of_falling_asleep() {
    let pool = threads(4);
    let (sum, mut wanted) = (AtomicU64::new(0), 0);
    for round in 0..1_000usize {
        let count = round * 7 % 4 + 1;
        let pause = Duration::from_nanos((round * 7_919 % 97) as u64 * 2_000);
        let until = Instant::now() + pause;
        while Instant::now() < until {
            hint::spin_loop();
        }
        pool.limited(NonZeroUsize::new(count).unwrap()).run(&|_| {
            sum.fetch_add(1, Ordering::Relaxed);
        });
        wanted += count as u64;
        assert_eq!(sum.load(Ordering::Relaxed), wanted);
    }
}

/// Nanoseconds that these threads of this process have run.
#[cfg(target_os = "linux")]
fn time_run(threads: &[String]) -> u64 {
    let of = |thread: &String| {
        let told = std::fs::read_to_string(format!("/proc/{thread}/schedstat")).unwrap();
        told.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    threads.iter().map(of).sum()
}

/// The workers' names in `/proc`, the first worker's first.
#[cfg(target_os = "linux")]
fn names(pool: &Threads) -> Vec<String> {
    let names = Mutex::new(vec![String::new(); pool.count()]);
    pool.run(&|worker| {
        let name = std::fs::read_link("/proc/thread-self").unwrap();
        names.lock().unwrap()[worker] = name.to_str().unwrap().to_owned();
    });
    names.into_inner().unwrap().split_off(1)
}

#[test]
#[cfg(target_os = "linux")]
fn an_idle_pool_takes_no_processor_time() {
    let pool = threads(3);
    let workers = names(&pool);
    thread::sleep(Duration::from_millis(100));
    let before = time_run(&workers);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(time_run(&workers) - before, 0);
}

#[test]
#[cfg(target_os = "linux")]
fn threads_beyond_a_limit_sleep_through_its_regions() {
    let pool = threads(4);
    let workers = names(&pool);
    let two = pool.limited(NonZeroUsize::new(2).unwrap());
    let regions_for = |time| {
        let until = Instant::now() + time;
        while Instant::now() < until {
            two.run(&|_| {});
        }
    };
    regions_for(Duration::from_millis(100));
    let before = time_run(&workers[1..]);
    regions_for(Duration::from_millis(200));
    assert_eq!(time_run(&workers[1..]) - before, 0);
    assert_eq!(names(&pool), workers);
}
