//! The mapper: a thread that maps memory before a sequence needs it, so that no step of decoding waits for the driver.
//!
//! It fills what a sequence's [`Spare`] asks for. For that it asks the bank as everybody does, so remembered prompts make room for
//! live sequences here and not on the thread that decodes; but what is mapped ahead for one sequence is never taken for another's.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::Error;
use crate::spare::Spare;
use crate::stats::Counts;

thread_local! {
    static IS_MAPPER: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is a mapper, of whichever cache.
pub(crate) fn is_mapper() -> bool {
    IS_MAPPER.get()
}

/// What is to be filled, and whether the thread is to end.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<(VecDeque<Arc<Spare>>, bool)>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, (VecDeque<Arc<Spare>>, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next to be filled; `None` where the thread is to end.
    fn next(&self) -> Option<Arc<Spare>> {
        let idle = |(asked, stop): &mut (VecDeque<_>, bool)| asked.is_empty() && !*stop;
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
        let asked = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("granule-kv".to_owned()).spawn(move || {
            IS_MAPPER.set(true);
            while let Some(spare) = asked.next() {
                spare.fill(&counts);
            }
        });
        let call = "spawn(mapper)";
        let thread = thread.map_err(|source| {
            Error::Bank(granule_bank::Error::Device(granule_device::Error::Os { call, source }))
        })?;
        Ok(Mapper { queue, thread: Some(thread) })
    }

    /// Has filled what is asked for, soon.
    pub(crate) fn fill(&self, spare: &Arc<Spare>) {
        self.queue.lock().0.push_back(Arc::clone(spare));
        self.queue.changed.notify_one();
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
