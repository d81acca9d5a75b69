//! The heap's cache, stealing, closing and trimming under a scheduler that tries interleavings: no block is issued twice,
//! none is lost, nothing waits for itself.
//!
//! ```text
//! RUSTFLAGS="--cfg shuttle" cargo test -p granule-pool --test shuttle -- --test-threads=1
//! ```
//!
//! Each lock and atomic of the pool is a point where another thread may go on; the bank's are not, and nothing of the pool's
//! is held there. Without the flag this is empty.
#![allow(unexpected_cfgs, reason = "set by who runs these tests")]
#![cfg(shuttle)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, HostOptions};
use granule_pool::{Error, Heap, Lease, Pool, PoolOptions};
use shuttle::thread;

const GRANULE: Bytes = Bytes::kib(64);

/// One device for all schedules: making one is slow.
fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let options = HostOptions::new().granule(GRANULE).capacity(Bytes::mib(64));
    DEVICE.get_or_init(|| Device::host_with(options).unwrap()).clone()
}

fn bank(granules: u64) -> Bank {
    Bank::new(device(), BankOptions::new().budget(GRANULE.checked_mul(granules).unwrap())).unwrap()
}

fn pool(granules: u64) -> Pool {
    Pool::new(&bank(granules), PoolOptions::new()).unwrap()
}

/// What is leased, by address. Its lock is the standard library's: no thread goes on while it is held.
#[derive(Clone, Default)]
struct Leased(Arc<Mutex<BTreeMap<u64, u64>>>);

struct Mine {
    lease: Option<Lease>,
    leased: Leased,
}

impl Leased {
    fn note(&self, lease: Lease) -> Mine {
        let (start, end) = (lease.ptr().addr(), lease.ptr().addr() + lease.given().get());
        let mut map = self.0.lock().unwrap();
        let before = map.range(..end).next_back();
        assert!(before.is_none_or(|(_, &other)| other <= start), "{start:#x} is issued twice");
        map.insert(start, end);
        drop(map);
        Mine { lease: Some(lease), leased: self.clone() }
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        let lease = self.lease.take().unwrap();
        self.leased.0.lock().unwrap().remove(&lease.ptr().addr());
        drop(lease);
    }
}

/// Allocates, and notes what it got; to be short of memory is no mistake.
fn take(heap: &Heap, leased: &Leased, size: Bytes) -> Option<Mine> {
    match heap.alloc(size) {
        Ok(lease) => Some(leased.note(lease)),
        Err(Error::OutOfMemory { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Nobody has anything any more, heaps included: everything goes back.
fn ends(pool: &Pool) {
    let stats = pool.stats();
    assert!(stats.heaps.is_empty(), "a closed heap without leases is still there: {stats:?}");
    pool.drain().unwrap();
    pool.trim().unwrap();
    let stats = pool.stats();
    assert_eq!((stats.live, stats.requested, stats.reserved), (0, Bytes::ZERO, Bytes::ZERO), "{stats:?}");
    pool.bank().drain();
    assert_eq!(pool.bank().stats().held, Bytes::ZERO, "held by nobody");
}

fn schedules(test: fn()) {
    let count = std::env::var("SHUTTLE_SCHEDULES").ok().and_then(|count| count.parse().ok()).unwrap_or(300);
    shuttle::check_random(test, count);
    shuttle::check_pct(test, count, 3);
}

#[test]
fn threads_share_a_heap() {
    schedules(|| {
        let (pool, leased) = (pool(4), Leased::default());
        let heap = pool.local().unwrap();
        let worker = |sizes: [u64; 3]| {
            let (heap, leased) = (heap.clone(), leased.clone());
            thread::spawn(move || {
                let mut kept = Vec::new();
                for size in sizes {
                    kept.push(take(&heap, &leased, Bytes::new(size)));
                    drop(take(&heap, &leased, Bytes::new(size)));
                }
            })
        };
        let workers = [worker([256, 4000, 256]), worker([256, 256, 70_000])];
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        drop(heap);
        ends(&pool);
    });
}

#[test]
fn heaps_take_from_each_other() {
    schedules(|| {
        // Each needs more than half of what there is.
        let (pool, leased) = (pool(3), Leased::default());
        let worker = |size: u64| {
            let (heap, leased) = (pool.local().unwrap(), leased.clone());
            thread::spawn(move || {
                for round in 0..2 {
                    let first = take(&heap, &leased, Bytes::new(size));
                    let second = take(&heap, &leased, Bytes::new(size + round));
                    drop(first);
                    drop(second);
                }
            })
        };
        let workers = [worker(40_000), worker(60_000), worker(130_000)];
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        ends(&pool);
    });
}

#[test]
fn a_heap_is_closed_while_its_leases_are_dropped() {
    schedules(|| {
        let (pool, leased) = (pool(4), Leased::default());
        let heap = pool.local().unwrap();
        let leases: Vec<_> = (0..3).map(|_| take(&heap, &leased, Bytes::new(1000))).collect();
        let dropper = thread::spawn(move || drop(leases));
        let clone = heap.clone();
        let other = thread::spawn(move || drop(clone));
        drop(heap);
        // The next heap may get what was the last one's.
        let next = pool.local().unwrap();
        let again = take(&next, &leased, Bytes::new(1000));
        assert!(again.is_some());
        drop((again, next));
        dropper.join().unwrap();
        other.join().unwrap();
        ends(&pool);
    });
}

#[test]
fn a_streams_heap_is_closed_and_opened_again() {
    schedules(|| {
        let (pool, leased) = (pool(4), Leased::default());
        let stream = Arc::new(device().stream().unwrap());
        let heap = pool.heap(&stream).unwrap();
        let lease = take(&heap, &leased, Bytes::new(5000));
        let dropper = thread::spawn(move || drop(lease));
        let (again, stream_again, leased_again) = (pool.clone(), Arc::clone(&stream), leased.clone());
        let opener = thread::spawn(move || {
            let heap = again.heap(&stream_again).unwrap();
            drop(take(&heap, &leased_again, Bytes::new(5000)));
        });
        drop(heap);
        dropper.join().unwrap();
        opener.join().unwrap();
        ends(&pool);
    });
}

#[test]
fn a_pool_is_trimmed_while_it_is_used() {
    schedules(|| {
        let (pool, leased) = (pool(4), Leased::default());
        let worker = |size: u64| {
            let (heap, leased) = (pool.local().unwrap(), leased.clone());
            thread::spawn(move || {
                let kept = take(&heap, &leased, Bytes::new(size));
                assert!(kept.is_some(), "there is room for both");
                drop(take(&heap, &leased, Bytes::new(size)));
            })
        };
        let workers = [worker(3000), worker(50_000)];
        pool.trim().unwrap();
        let stats = pool.stats();
        assert!(stats.requested <= stats.current, "{stats:?}");
        pool.trim().unwrap();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        ends(&pool);
    });
}

#[test]
fn streams_take_from_each_other() {
    schedules(|| {
        let (pool, leased) = (pool(2), Leased::default());
        let worker = |size: u64| {
            let stream = Arc::new(device().stream().unwrap());
            let (heap, leased) = (pool.heap(&stream).unwrap(), leased.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    drop(take(&heap, &leased, Bytes::new(size)));
                }
            })
        };
        let workers = [worker(60_000), worker(100_000)];
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        ends(&pool);
    });
}

#[test]
fn a_lease_that_further_streams_use_goes_back_once() {
    schedules(|| {
        let (pool, leased) = (pool(2), Leased::default());
        let streams = [(); 2].map(|()| Arc::new(device().stream().unwrap()));
        let [one, two] = [&streams[0], &streams[1]].map(|stream| pool.heap(stream).unwrap());
        let mut marked = take(&one, &leased, Bytes::new(4000)).unwrap();
        marked.lease.as_mut().unwrap().used_by(&two).unwrap();
        let dropper = thread::spawn(move || drop(marked));
        let (heap, noted) = (one.clone(), leased.clone());
        let taker = thread::spawn(move || {
            for size in [4000, 70_000] {
                drop(take(&heap, &noted, Bytes::new(size)));
            }
        });
        pool.trim().unwrap();
        drop(take(&two, &leased, Bytes::new(4000)));
        drop((one, two));
        dropper.join().unwrap();
        pool.trim().unwrap();
        taker.join().unwrap();
        ends(&pool);
    });
}

#[test]
fn a_capture_begins_and_ends_while_the_heap_is_used() {
    schedules(|| {
        let (pool, leased) = (pool(8), Leased::default());
        let streams = [(); 2].map(|()| Arc::new(device().stream().unwrap()));
        let [one, two] = [&streams[0], &streams[1]].map(|stream| pool.heap(stream).unwrap());
        let mut marked = take(&one, &leased, Bytes::new(4000)).unwrap();
        marked.lease.as_mut().unwrap().used_by(&two).unwrap();
        drop(marked);
        let (heap, noted) = (one.clone(), leased.clone());
        let taker = thread::spawn(move || {
            let kept = take(&heap, &noted, Bytes::new(4000));
            drop(take(&heap, &noted, Bytes::new(9000)));
            drop(kept);
        });
        one.begin_private().unwrap();
        let inside = take(&one, &leased, Bytes::new(4000));
        let captured = one.end_private().unwrap();
        drop(inside);
        drop(one);
        taker.join().unwrap();
        drop(captured);
        drop(two);
        ends(&pool);
    });
}

#[test]
fn pools_of_one_bank_give_to_each_other() {
    schedules(|| {
        let bank = bank(2);
        let leased = Leased::default();
        let worker = |name: &str| {
            let pool = Pool::new(&bank, PoolOptions::new().owner(name)).unwrap();
            let leased = leased.clone();
            let heap = pool.local().unwrap();
            let ran = thread::spawn(move || {
                for _ in 0..2 {
                    drop(take(&heap, &leased, Bytes::new(120_000)));
                }
            });
            (ran, pool)
        };
        let workers = [worker("one"), worker("two")];
        for (ran, pool) in workers {
            ran.join().unwrap();
            drop(pool);
        }
        bank.drain();
        assert_eq!(bank.stats().held, Bytes::ZERO);
    });
}
