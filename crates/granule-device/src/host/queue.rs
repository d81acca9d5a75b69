//! A stream of the host device: a queue, and a thread that is started with the first work and runs it in order.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::sys;
use crate::Error;
use crate::backend::{Moment, Op, RawStream};
use crate::fault::Faults;
use crate::stream::{STREAM_THREAD, panic_message};

/// A stream. The queue outlives it only where it is dropped by its own last work.
pub(super) struct Queue {
    shared: Arc<Shared>,
    worker: Mutex<Option<JoinHandle<()>>>,
    faults: Arc<Faults>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Held while memory is copied or filled: streams take turns, so that work on the same bytes has some order.
    execution: Arc<Mutex<()>>,
    /// Set when the stream is gone and nothing of it is left to run.
    end: Arc<Flag>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Op>,
    running: bool,
    closed: bool,
    panic: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    pub(super) fn new(execution: Arc<Mutex<()>>, faults: Arc<Faults>) -> Queue {
        let (state, changed, end) = (Mutex::default(), Condvar::new(), Arc::default());
        let shared = Shared { state, changed, execution, end };
        Queue { shared: Arc::new(shared), worker: Mutex::new(None), faults }
    }

    fn start(&self) -> Result<(), Error> {
        let mut worker = lock(&self.worker);
        if worker.is_some() {
            return Ok(());
        }
        self.faults.gate("thread")?;
        let shared = Arc::clone(&self.shared);
        let started = std::thread::Builder::new().name(STREAM_THREAD.to_owned()).spawn(move || shared.work());
        *worker = Some(started.map_err(|source| Error::Os { call: "thread", source })?);
        Ok(())
    }

    fn enqueue(&self, op: Op) -> Result<(), Error> {
        self.start()?;
        lock(&self.shared.state).waiting.push_back(op);
        self.shared.changed.notify_all();
        Ok(())
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let waiting = |state: &mut State| state.waiting.is_empty() && !state.closed;
            let mut state =
                self.changed.wait_while(lock(&self.state), waiting).unwrap_or_else(PoisonError::into_inner);
            let Some(op) = state.waiting.pop_front() else { return self.end.set() };
            state.running = true;
            drop(state);
            let panic = catch_unwind(AssertUnwindSafe(|| self.run(op))).err();
            let mut state = lock(&self.state);
            state.running = false;
            if let Some(panic) = panic {
                state.panic = Some(panic_message(&*panic));
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    fn run(&self, op: Op) {
        match op {
            Op::Copy { from, to, len, across: _, keep } => {
                let turn = lock(&self.execution);
                // SAFETY: the tickets keep both memories; only work on a stream touches them until those are dropped, and
                // it takes turns.
                unsafe { sys::copy(from, to, len) };
                drop(turn);
                drop(keep);
            }
            Op::Fill { at, len, value, keep } => {
                let turn = lock(&self.execution);
                // SAFETY: as for a copy.
                unsafe { sys::fill(at, len, value) };
                drop(turn);
                drop(keep);
            }
            Op::Call(function) => function(),
            Op::Wait(moment) => moment.wait(),
        }
    }
}

impl RawStream for Queue {
    fn push(&self, op: Op) -> Result<(), Error> {
        self.faults.gate(match op {
            Op::Copy { .. } => "copy",
            Op::Fill { .. } => "fill",
            Op::Call(_) => "call",
            Op::Wait(_) => "wait",
        })?;
        self.enqueue(op)
    }

    fn record(&self) -> Result<Arc<dyn Moment>, Error> {
        let done = Arc::new(Flag::default());
        let set = Arc::clone(&done);
        self.faults.gate("record")?;
        self.enqueue(Op::Call(Box::new(move || set.set())))?;
        Ok(done)
    }

    fn synchronize(&self) -> Result<(), Error> {
        let busy = |state: &mut State| state.running || !state.waiting.is_empty();
        let waited = self.shared.changed.wait_while(lock(&self.shared.state), busy);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.panic.take().map_or(Ok(()), |message| Err(Error::HostFunction { message }))
    }

    fn wait_out(&self) -> Result<(), Error> {
        let busy = |state: &mut State| state.running || !state.waiting.is_empty();
        drop(self.shared.changed.wait_while(lock(&self.shared.state), busy));
        Ok(())
    }

    fn end(&self) -> Arc<dyn Moment> {
        Arc::clone(&self.shared.end) as _
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        lock(&self.shared.state).closed = true;
        self.shared.changed.notify_all();
        let Some(worker) = lock(&self.worker).take() else { return self.shared.end.set() };
        // A stream dropped by its own work cannot wait for itself: the thread ends after what is left.
        if worker.thread().id() != std::thread::current().id() {
            // The worker catches what its work throws, so there is nothing to learn from how it ended.
            let _ = worker.join();
        }
    }
}

/// A moment that comes once.
#[derive(Debug, Default)]
struct Flag {
    done: Mutex<bool>,
    changed: Condvar,
}

impl Flag {
    fn set(&self) {
        *lock(&self.done) = true;
        self.changed.notify_all();
    }
}

impl Moment for Flag {
    fn is_done(&self) -> bool {
        *lock(&self.done)
    }

    fn wait(&self) {
        drop(
            self.changed.wait_while(lock(&self.done), |done| !*done).unwrap_or_else(PoisonError::into_inner),
        );
    }
}
