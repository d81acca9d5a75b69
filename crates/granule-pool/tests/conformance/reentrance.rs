//! What other people's code may do while a pool is at work: a bank's watch, a reclaimer, the pool's own callback, and work of a
//! stream all look at the pool, allocate from it and give back to it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::Duration;

use granule_bank::{Bank, BankOptions, Level, Offer, Owner, Reclaim};
use granule_device::{Bytes, Device, Region};
use granule_pool::{Error, Heap, Lease, Pool, PoolOptions};

use crate::support::{bank, granules, pool, stream};

/// Runs it on a thread of its own: what waits for itself is a failure and no test that hangs.
fn ends(what: impl FnOnce() + Send + 'static) {
    let (done, end) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        what();
        done.send(()).unwrap();
    });
    match end.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it waits for itself"),
        _ => thread.join().unwrap(),
    }
}

pub(crate) fn a_watch_uses_the_pool(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let pool = pool(&bank);
    let (of_stream, local) = (pool.heap(&stream(&device)).unwrap(), pool.local().unwrap());
    let (told, tells) = mpsc::channel();
    let (looked_at, heaps) = (pool.clone(), [of_stream.clone(), local.clone()]);
    // Odd while somebody else has all of it: the watch has a thread of its own, and may say late what was so before.
    let turn = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&turn);
    let watch = bank.watch(granules(&device, 2), move |level| {
        let before = seen.load(Ordering::SeqCst);
        assert!(looked_at.stats().reserved <= looked_at.bank().stats().budget);
        let served = heaps.iter().map(|heap| heap.alloc(Bytes::new(1000)).is_ok());
        let served = served.filter(|&served| served).count();
        // Whoever has seen enough may be gone.
        let was_free = before.is_multiple_of(2) && before == seen.load(Ordering::SeqCst);
        let _ = told.send((level, served, was_free));
    });
    let watch = watch.unwrap();
    ends(move || {
        for heap in [of_stream, local] {
            turn.fetch_add(1, Ordering::SeqCst);
            let all = heap.alloc(granules(pool.device(), 4)).unwrap();
            // The pool goes on while the watch looks at it.
            while tells.recv().unwrap().0 != Level::Low {}
            drop(all);
            turn.fetch_add(1, Ordering::SeqCst);
            loop {
                pool.trim().unwrap();
                pool.drain().unwrap();
                // Told that there is enough again, it has some of it.
                if let Ok((Level::Enough, served, was_free)) = tells.recv_timeout(Duration::from_millis(1)) {
                    assert!(served > 0 || !was_free, "there is enough, and it has none of it");
                    if served > 0 {
                        break;
                    }
                }
            }
        }
    });
    drop(watch);
}

/// The last lease of a region is dropped by the stream's own thread while the pool waits for that stream's work.
pub(crate) fn a_region_ends_while_the_pool_is_trimmed(open: &dyn Fn() -> Device) {
    let device = open();
    for pinned in [false, true] {
        let options = BankOptions::new().budget(Bytes::mib(64));
        let pool = match pinned {
            true => Pool::pinned(&Bank::pinned(device.clone(), options).unwrap(), PoolOptions::new()),
            false => Pool::new(&Bank::new(device.clone(), options).unwrap(), PoolOptions::new()),
        };
        let (pool, stream) = (pool.unwrap(), stream(&device));
        ends(move || {
            let heap = pool.heap(&stream).unwrap();
            let idle = heap.alloc(Bytes::mib(2)).unwrap();
            let mut staging = Region::new(heap.alloc(Bytes::mib(2)).unwrap()).unwrap();
            stream.call(|| std::thread::sleep(Duration::from_millis(100))).unwrap();
            stream.fill(&mut staging, .., 1).unwrap();
            drop((staging, idle));
            pool.trim().unwrap();
            pool.drain().unwrap();
            pool.trim().unwrap();
            assert_eq!(pool.stats().reserved, Bytes::ZERO);
        });
    }
}

/// A callback that needs memory to give memory up gets what there is, and is not asked for it.
pub(crate) fn the_owner_allocates_when_it_is_asked(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 3);
    let heap: Arc<Mutex<Option<Heap>>> = Arc::default();
    let hoard: Arc<Mutex<Vec<Lease>>> = Arc::default();
    let (own, given): (Weak<_>, Weak<_>) = (Arc::downgrade(&heap), Arc::downgrade(&hoard));
    let (depth, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let noted = Arc::clone(&asked);
    let options = PoolOptions::new().reclaim(move |_| {
        let nested = depth.fetch_add(1, Ordering::Relaxed);
        assert_eq!(nested, 0, "asked for what it asks for itself");
        let (own, given) = (own.upgrade().unwrap(), given.upgrade().unwrap());
        let own = own.lock().unwrap().clone().unwrap();
        // Where to put what it gives up: too much, and then what is left.
        let refused = own.alloc(granules(own.device(), 2));
        let staging = own.alloc(Bytes::new(100));
        noted.lock().unwrap().push((refused.is_err(), staging.is_ok()));
        depth.fetch_sub(1, Ordering::Relaxed);
        let lease = given.lock().unwrap().pop();
        lease.map_or(Bytes::ZERO, |lease| lease.len())
    });
    let pool = Pool::new(&bank, options).unwrap();
    *heap.lock().unwrap() = Some(pool.local().unwrap());
    let own = heap.lock().unwrap().clone().unwrap();
    let small = own.alloc(Bytes::new(100)).unwrap();
    hoard.lock().unwrap().extend((0..2).map(|_| own.alloc(device.granularity()).unwrap()));
    let large = own.alloc(granules(&device, 2)).unwrap();
    assert_eq!(*asked.lock().unwrap(), [(true, true); 2], "two had to go for two");
    assert!(matches!(own.alloc(granules(&device, 2)), Err(Error::OutOfMemory { .. })));
    assert_eq!(asked.lock().unwrap().len(), 3, "nothing came of it, and it is not repeated");
    drop((small, large));
    heap.lock().unwrap().take();
}

/// Another owner of the bank, which allocates from the pool when it is asked to give its memory back.
struct Other {
    heap: Heap,
    has: Mutex<Option<granule_bank::Growable>>,
    served: AtomicUsize,
}

impl Reclaim for Other {
    fn owner(&self) -> Owner {
        Owner::new("other")
    }

    fn could_give(&self) -> Vec<Offer> {
        let has = self.has.lock().unwrap();
        assert!(self.heap.pool().stats().reserved <= self.heap.pool().bank().stats().held);
        has.iter().map(|has| Offer::new(has.mapped(), 100)).collect()
    }

    fn reclaim(&self, _: Bytes) -> Bytes {
        let Some(has) = self.has.lock().unwrap().take() else { return Bytes::ZERO };
        let gone = has.mapped();
        drop(has);
        let staging = self.heap.alloc(Bytes::new(100));
        self.served.fetch_add(usize::from(staging.is_ok()), Ordering::Relaxed);
        gone
    }
}

pub(crate) fn a_reclaimer_allocates(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let pool = pool(&bank);
    let mut has = bank.growable(&Owner::new("other"), granules(&device, 2)).unwrap();
    has.grow_to(granules(&device, 2)).unwrap();
    let (heap, served) = (pool.local().unwrap(), AtomicUsize::new(0));
    let other = Arc::new(Other { heap: heap.clone(), has: Mutex::new(Some(has)), served });
    let registered = bank.add_reclaimer(&other);
    let served = Arc::clone(&other);
    ends(move || drop(heap.alloc(granules(pool.device(), 4)).unwrap()));
    assert_eq!(served.served.load(Ordering::Relaxed), 1);
    drop(registered);
}
