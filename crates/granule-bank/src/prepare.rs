//! The preparer: a thread that makes granules ahead, so that nobody has to wait for the driver.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use granule_device::Granule;

use crate::Error;
use crate::bank::Inner;
use crate::trace::Event;

/// What wakes a bank's preparer, where there is one.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    /// Whether there is one.
    on: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    work: bool,
    stop: bool,
}

impl Signal {
    /// Has the preparer look whether granules are wanted. One relaxed load where there is none.
    pub(crate) fn wake(&self) {
        if self.on.load(Ordering::Relaxed) {
            self.state().work = true;
            self.changed.notify_one();
        }
    }

    fn stop(&self) {
        self.state().stop = true;
        self.changed.notify_one();
    }

    /// Waits until there is something to look for; false where it is to stop.
    fn wait(&self) -> bool {
        let idle = |state: &mut State| !state.work && !state.stop;
        let waited = self.changed.wait_while(self.state(), idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.work = false;
        !state.stop
    }

    fn is_stopped(&self) -> bool {
        self.state().stop
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Preparer {
    bank: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

impl Preparer {
    pub(crate) fn start(bank: &Arc<Inner>) -> Result<Preparer, Error> {
        let inner = Arc::clone(bank);
        bank.signal.on.store(true, Ordering::Relaxed);
        bank.signal.wake();
        let thread = std::thread::Builder::new().name("granule-bank".to_owned()).spawn(move || {
            while inner.signal.wait() {
                while !inner.signal.is_stopped() && inner.prepare_one() {}
            }
        });
        let call = "spawn(preparer)";
        let thread = thread.map_err(|source| granule_device::Error::Os { call, source })?;
        bank.budget.preparers().fetch_add(1, Ordering::AcqRel);
        Ok(Preparer { bank: Arc::clone(bank), thread: Some(thread) })
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.bank.budget.preparers().fetch_sub(1, Ordering::AcqRel);
        self.bank.signal.stop();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // It ends by itself; what it panicked with, nobody is there to hear.
            let _ = thread.join();
        }
    }
}

/// A granule being made ahead: however that ends, the books hear of it, and so does whoever waits for it.
struct Preparing<'a> {
    bank: &'a Inner,
    made: Option<Granule>,
}

impl Drop for Preparing<'_> {
    fn drop(&mut self) {
        let made = self.made.take();
        let mut both = self.bank.both();
        both.books.ledger.prepared(&mut both.allowance, made.is_some());
        // Behind those that came back just now and are warm.
        made.into_iter().for_each(|granule| both.books.cache.insert(0, granule));
        drop(both);
        self.bank.prepared.notify_all();
    }
}

impl Inner {
    /// Makes one granule ahead, if it is wanted and there is room for it; true where another one may be.
    fn prepare_one(&self) -> bool {
        {
            let mut both = self.both();
            // Asked under the lock: who has said that it is urgent, and has had the lock since, sees no new one begin.
            if self.budget.is_urgent() || !both.books.ledger.prepare(&mut both.allowance) {
                return false;
            }
        }
        let mut preparing = Preparing { bank: self, made: None };
        let made = self.leave_reserve(1).and_then(|()| self.device.create_granule());
        if made.is_ok() {
            self.tracer.emit(|| Event::Create { device: self.traced, count: 1 });
        }
        preparing.made = made.ok();
        preparing.made.is_some()
    }
}
