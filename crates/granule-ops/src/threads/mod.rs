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
mod disjoint;
mod share;
mod sync;

use std::cell::{Cell, UnsafeCell};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, Weak};

use self::bell::{Apart, Bell, Call};
pub(crate) use self::disjoint::Disjoint;
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
        let shares = &self.pool.shared.shares[..self.count];
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

#[cfg(test)]
mod tests;
