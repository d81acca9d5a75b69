//! The mapper: a thread that maps memory before a sequence needs it, so that no step of decoding waits for the driver.
//!
//! A sequence lends places (see [`Range::lend`](granule_bank::Range::lend)) as a [`Job`] and goes on; the mapper fills them;
//! the sequence takes them back, which calls nobody. A job that fails gives everything back: the sequence finds the places
//! bare and maps them itself, and tells of the error if there still is one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use granule_bank::{Lent, PieceId};

use crate::Error;
use crate::stats::Counts;

/// Places of a sequence's groups that are to be filled, or are.
#[derive(Debug)]
pub(crate) struct Job {
    /// Set once by the mapper, so that the sequence can ask without the lock.
    done: AtomicBool,
    /// By group. The mapper holds the lock while it maps; empty once it has failed or they were taken.
    lents: Mutex<Vec<(usize, Lent)>>,
}

impl Job {
    fn new(lents: Vec<(usize, Lent)>) -> Job {
        Job { done: AtomicBool::new(false), lents: Mutex::new(lents) }
    }

    /// True once the mapper has nothing to do with it any more.
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// The places back, filled or, where the mapper had not come to it yet, bare; waits while it is at it.
    pub(crate) fn take(&self) -> Vec<(usize, Lent)> {
        std::mem::take(&mut *self.lock())
    }

    /// Which granules stand behind the places now; waits while they are being mapped.
    pub(crate) fn pieces(&self) -> Vec<PieceId> {
        self.lock().iter().flat_map(|(_, lent)| lent.pieces()).collect()
    }

    fn run(&self, counts: &Counts) {
        let mut lents = self.lock();
        match lents.iter_mut().try_for_each(|(_, lent)| lent.fill()) {
            Ok(()) => counts.mapped_ahead(lents.iter().map(|(_, lent)| lent.places()).sum()),
            // All or nothing: what was filled goes back too.
            Err(_) => lents.clear(),
        }
        drop(lents);
        self.done.store(true, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(usize, Lent)>> {
        self.lents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be done, and whether the thread is to end.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<(VecDeque<Arc<Job>>, bool)>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, (VecDeque<Arc<Job>>, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` where the thread is to end.
    fn next(&self) -> Option<Arc<Job>> {
        let idle = |(jobs, stop): &mut (VecDeque<_>, bool)| jobs.is_empty() && !*stop;
        let waited = self.changed.wait_while(self.lock(), idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.1 { None } else { state.0.pop_front() }
    }
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Mapper {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Mapper {
    pub(crate) fn start(counts: &Arc<Counts>) -> Result<Mapper, Error> {
        let (queue, counts) = (Arc::new(Queue::default()), Arc::clone(counts));
        let jobs = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("granule-kv".to_owned()).spawn(move || {
            while let Some(job) = jobs.next() {
                job.run(&counts);
            }
        });
        let call = "spawn(mapper)";
        let thread = thread.map_err(|source| {
            Error::Bank(granule_bank::Error::Device(granule_device::Error::Os { call, source }))
        })?;
        Ok(Mapper { queue, thread: Some(thread) })
    }

    /// Has the places filled, soon.
    pub(crate) fn fill(&self, lents: Vec<(usize, Lent)>) -> Arc<Job> {
        let job = Arc::new(Job::new(lents));
        self.queue.lock().0.push_back(Arc::clone(&job));
        self.queue.changed.notify_one();
        job
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        self.queue.lock().1 = true;
        self.queue.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // It ends by itself; what it panicked with, nobody is there to hear.
            let _ = thread.join();
        }
    }
}
