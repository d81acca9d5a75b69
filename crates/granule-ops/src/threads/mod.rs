//! A persistent pool of worker threads with low-latency barriers: one job at a time, work handed out in chunks.
//!
//! A decode step is some hundred short parallel regions, so entering one must cost a microsecond and not a
//! system call. Workers spin briefly between regions and then park; an idle pool costs nothing. A handle may be
//! [limited](Threads::limited) to the first few threads: the others sleep through its regions. One pool is meant
//! to be shared by everything in a process that computes on the host (it is cheap to clone), so that two contexts
//! never ask for more threads than the machine has: regions of different callers run one after the other.
//!
//! What it never does: nest. A job that calls [`Threads::run`] on its own pool would wait for itself, so such a
//! call runs the inner job on the calling thread alone.

mod bell;
mod cores;
mod share;
mod sync;

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, Weak};

use self::bell::{Apart, Bell, Call};
use self::share::Share;
pub(crate) use self::share::owner;
use self::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use self::sync::thread::JoinHandle;
use self::sync::{Mutex, MutexGuard, hint, thread, thread_local};
use crate::Error;

/// Looks at the others' progress before a caller lets somebody else have its processor, perhaps the one it waits for.
const LOOKS: u32 = 4_000;
/// Looks between two such times after that.
const MORE_LOOKS: u32 = 100;

/// A handle to a pool of threads; clones share the pool, the last one stops it.
#[derive(Clone)]
pub struct Threads {
    pool: Arc<Pool>,
    /// How many of the pool's threads take part in this handle's regions.
    count: usize,
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Threads").field("count", &self.count()).finish()
    }
}

/// What caller and workers share.
struct Shared {
    /// Rung for each region; a worker that it is for has a job (or has to stop).
    bell: Bell,
    /// The job of the current region: set before the bell rings, read only by workers that have not yet checked out.
    job: UnsafeCell<Option<Job>>,
    /// Workers that have not finished the current region.
    remaining: Apart<AtomicUsize>,
    /// What is left of each thread's share of the current region, where it is cut into chunks.
    shares: Box<[Apart<Share>]>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// A borrowed closure whose lifetime `Threads::run` guards by waiting for every worker before it returns.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(usize) + Sync));

// SAFETY: `job` is written only by the one caller that holds `Pool::gate`, before it rings the bell (a release store), and
// while `remaining` is zero, so no worker reads it then: a worker reads it after it heard a call (an acquire load) that is for
// it, and is counted in `remaining` until it is done. The pointee is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above: the raw pointer inside is only followed between the two barriers of a region.
unsafe impl Send for Shared {}

struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose region is running.
    gate: Mutex<()>,
}

thread_local! {
    /// Whether this thread is inside a region (of any pool): a nested region runs on this thread alone.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Threads {
    /// A pool of `count` threads, but no more than 65,535: the caller's own and `count - 1` workers.
    ///
    /// # Errors
    /// [`Error::Threads`] if the system refuses to start a thread; those already started are stopped.
    pub fn new(count: NonZeroUsize) -> Result<Self, Error> {
        let count = count.get().min(Call::MOST_THREADS);
        let shared = Arc::new(Shared {
            bell: Bell::new(count - 1),
            job: UnsafeCell::new(None),
            remaining: Apart(AtomicUsize::new(0)),
            shares: (0..count).map(|_| Apart(Share::default())).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Pool { shared, workers: Vec::new(), gate: Mutex::new(()) };
        for index in 1..count {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new()
                .name(format!("granule-{index}"))
                .spawn(move || work(&shared, index))
                .map_err(|source| Error::Threads { wanted: count, started: index, source })?;
            pool.workers.push(worker);
        }
        Ok(Self { pool: Arc::new(pool), count })
    }

    /// The pool of the process, with [`Threads::default_count`] threads: everybody who asks while somebody has it gets
    /// the same one, so that two models do not compute on twice the machine's threads.
    ///
    /// # Errors
    /// As [`Threads::new`].
    pub fn shared() -> Result<Self, Error> {
        static SHARED: Mutex<Weak<Pool>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = shared.upgrade() {
            let count = pool.workers.len() + 1;
            return Ok(Self { pool, count });
        }
        let threads = Self::new(Self::default_count())?;
        *shared = Arc::downgrade(&threads.pool);
        Ok(threads)
    }

    /// One thread for each physical core that the process may use: threads that share a core count once, and the affinity mask
    /// and the cgroup's quota of processor time are respected.
    #[must_use]
    pub fn default_count() -> NonZeroUsize {
        cores::default_count()
    }

    /// The same pool, of which only the first `count` threads take part in regions (all of this handle's where there are not
    /// as many); the others go on sleeping.
    #[must_use]
    pub fn limited(&self, count: NonZeroUsize) -> Self {
        Self { pool: Arc::clone(&self.pool), count: self.count.min(count.get()) }
    }

    /// How many threads take part in a region, the caller's included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Runs `job(worker)` once on every thread of this handle, `worker` from 0 (the caller) to `count() - 1`, and
    /// returns when all are done. If a job panics, the panic goes on here after all have finished.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if let Some(region) = self.enter() {
            return region.run(job);
        }
        let _inside = Restore::inside();
        (0..self.count).for_each(job);
    }

    /// Cuts `0..len` into ranges of `chunk` (the last may be shorter) and runs `job(worker, range)` on each. A `chunk` of 0
    /// counts as 1; where there would be 2^32 chunks or more they are longer.
    ///
    /// Each thread begins with a share of its own, whose chunks follow one another, so that what the processor fetches ahead
    /// of one is what the next needs. Who is done with his own helps another, from the end of what that one has left.
    pub fn for_each_chunk(&self, len: usize, chunk: usize, job: &(dyn Fn(usize, Range<usize>) + Sync)) {
        let chunk = chunk.max(1).max(len.div_ceil(u32::MAX as usize));
        let chunks = len.div_ceil(chunk);
        let range = |at: usize| at * chunk..(at * chunk).saturating_add(chunk).min(len);
        if chunks <= 1 {
            if len > 0 {
                job(0, 0..len);
            }
            return;
        }
        let Some(region) = self.enter() else {
            let _inside = Restore::inside();
            return (0..chunks).for_each(|at| job(0, range(at)));
        };
        let shares = &region.threads.pool.shared.shares[..self.count];
        for (i, share) in shares.iter().enumerate() {
            share.0.set(share::of(i, chunks, self.count));
        }
        region.run(&|worker| {
            while let Some(at) = shares[worker].0.first() {
                job(worker, range(at));
            }
            for other in (worker + 1..self.count).chain(0..worker) {
                while let Some(at) = shares[other].0.last() {
                    job(worker, range(at));
                }
            }
        });
    }

    /// Waits until nobody else's region runs; none where a region of this thread would have one thread only, because there is
    /// no other or because it is inside a region.
    fn enter(&self) -> Option<Region<'_>> {
        if self.count == 1 || INSIDE.with(Cell::get) {
            return None;
        }
        let _gate = self.pool.gate.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Region { threads: self, _gate })
    }
}

/// The right to run a region.
struct Region<'a> {
    threads: &'a Threads,
    _gate: MutexGuard<'a, ()>,
}

impl Region<'_> {
    fn run(self, job: &(dyn Fn(usize) + Sync)) {
        let _inside = Restore::inside();
        let Threads { pool, count } = self.threads;
        let shared = &*pool.shared;
        // SAFETY: only the lifetime changes. The pointer is followed by workers only until `remaining` reaches zero,
        // and `Finish` below waits for that before this frame (and with it `job`) can go, also while unwinding.
        let job_static: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(job) };
        // SAFETY: the gate is held and no region is running, so nobody else touches the cell.
        unsafe { *shared.job.get() = Some(Job(job_static)) };
        // Both the caller and a worker may have panicked last time; then the caller's panic is the one that went on.
        shared.panicked.store(false, Ordering::Relaxed);
        shared.remaining.0.store(count - 1, Ordering::Relaxed);
        shared.bell.ring(*count, |worker| pool.wake(worker));
        let finish = Finish(shared);
        job(0);
        drop(finish);
        if shared.panicked.swap(false, Ordering::Relaxed) {
            std::panic::resume_unwind(Box::new("a worker of granule-ops panicked"));
        }
    }
}

impl Threads {
    /// As [`Threads::for_each_chunk`], for jobs that can fail: all chunks run, and one of the errors is returned.
    ///
    /// # Errors
    /// One of the jobs' errors.
    pub fn try_for_each_chunk<E: Send>(
        &self,
        len: usize,
        chunk: usize,
        job: &(dyn Fn(usize, Range<usize>) -> Result<(), E> + Sync),
    ) -> Result<(), E> {
        let failed = Mutex::new(None);
        self.for_each_chunk(len, chunk, &|worker, range| {
            if let Err(error) = job(worker, range) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

impl Threads {
    /// Cuts `from` into pieces of `from_chunk` and `to` into pieces of `to_chunk` (the last of each may be shorter) and runs
    /// `job` on each pair, as [`Threads::try_for_each_chunk`] does. What has no partner is left alone.
    ///
    /// # Errors
    /// One of the jobs' errors.
    pub fn try_zip_chunks<A: Sync, B: Send, E: Send>(
        &self,
        from: &[A],
        from_chunk: usize,
        to: &mut [B],
        to_chunk: usize,
        job: &(impl Fn(&[A], &mut [B]) -> Result<(), E> + Sync),
    ) -> Result<(), E> {
        let (from_chunk, to_chunk) = (from_chunk.max(1), to_chunk.max(1));
        let pairs = from.len().div_ceil(from_chunk).min(to.len().div_ceil(to_chunk));
        let to = Disjoint::new(to);
        self.try_for_each_chunk(pairs, 1, &|_, pairs| {
            pairs.into_iter().try_for_each(|i| {
                let from = &from[i * from_chunk..from.len().min((i + 1) * from_chunk)];
                // SAFETY: each pair is in one chunk, and has its own piece.
                job(from, unsafe { to.range(i * to_chunk..(i + 1) * to_chunk) })
            })
        })
    }
}

/// Puts the thread's `INSIDE` mark back, also while unwinding.
struct Restore(bool);

impl Restore {
    /// Marks this thread as one inside a region.
    fn inside() -> Self {
        Self(INSIDE.with(|inside| inside.replace(true)))
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        INSIDE.with(|inside| inside.set(self.0));
    }
}

/// Waits until every worker has finished the region.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let mut left = LOOKS;
        while self.0.remaining.0.load(Ordering::Acquire) != 0 {
            left -= 1;
            if left == 0 {
                left = MORE_LOOKS;
                thread::yield_now();
            } else {
                hint::spin_loop();
            }
        }
    }
}

fn work(shared: &Shared, index: usize) {
    INSIDE.with(|inside| inside.set(true));
    let (mut heard, mut spins) = (Call::default(), 0);
    loop {
        heard = shared.bell.wait(index, heard, &mut spins);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        if !heard.is_for(index) {
            continue;
        }
        // SAFETY: the call is for this worker, so the caller has stored a job and waits for the check-out below.
        let job = unsafe { *shared.job.get() };
        if let Some(Job(job)) = job {
            // SAFETY: as above: the closure outlives the region.
            if catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(index) })).is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
        }
        shared.remaining.0.fetch_sub(1, Ordering::Release);
        spins = 0;
    }
}

impl Pool {
    /// Wakes the worker of this number, the first of whom is 1.
    fn wake(&self, worker: usize) {
        if let Some(worker) = self.workers.get(worker - 1) {
            worker.thread().unpark();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.bell.ring(self.workers.len() + 1, |worker| self.wake(worker));
        for worker in self.workers.drain(..) {
            // A worker only ever ends by returning: its jobs' panics are caught.
            let _ = worker.join();
        }
    }
}

/// A mutable slice that the threads of a region write in ranges that do not overlap.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `range`, whose contract makes every element reachable from one thread at a time.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Takes the slice for the time of a region.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// The address of element `at`, which must not lie behind the end.
    pub(crate) fn at(&self, at: usize) -> *mut T {
        debug_assert!(at <= self.len);
        self.start.wrapping_add(at)
    }

    /// The elements of `range`, cut to the slice's length.
    ///
    /// # Safety
    /// - No other range that overlaps this one is alive.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        let end = range.end.min(self.len);
        let start = range.start.min(end);
        // SAFETY: start <= end <= len, so the range lies in the slice that `new` borrowed exclusively; the caller
        // vouches that no overlapping range is alive.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), end - start) }
    }
}

#[cfg(test)]
mod tests {
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
}
