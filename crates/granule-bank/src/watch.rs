//! Watches: who is told when memory runs low, and when there is enough again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use granule_device::Bytes;

use crate::bank::Inner;
use crate::ledger::levels::Levels;
use crate::{Bank, Budget, Error};

/// On which side of a watch's threshold a bank's free memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Less than the threshold is free.
    Low,
    /// At least the threshold is free.
    Enough,
}

/// Keeps a callback registered; see [`Bank::watch`]. After it is dropped no call begins; one that has begun may still run.
#[must_use = "the callback is called for as long as this lives"]
#[derive(Debug)]
pub struct Watch {
    bank: Weak<Inner>,
    budget: Budget,
    post: Arc<Post>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.budget.watches().fetch_sub(1, Ordering::AcqRel);
        if let Some(bank) = self.bank.upgrade() {
            bank.watches.count.fetch_sub(1, Ordering::AcqRel);
            bank.watches.posts().retain(|post| !Arc::ptr_eq(post, &self.post));
        }
        // Not waited for: this may be its own callback.
        self.post.state().stop = true;
        self.post.changed.notify_one();
    }
}

/// All watches of a bank.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    posts: Mutex<Vec<Arc<Post>>>,
    count: AtomicUsize,
}

impl Watches {
    fn posts(&self) -> MutexGuard<'_, Vec<Arc<Post>>> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where what is free is noted, for a watch's thread to tell.
#[derive(Debug)]
struct Post {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    levels: Levels,
    stop: bool,
}

impl Post {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, free: Bytes) {
        if self.state().levels.note(free) {
            self.changed.notify_one();
        }
    }

    /// Waits until there is something to tell; `None` where there never will be.
    fn next(&self) -> Option<Level> {
        let mut state = self.state();
        loop {
            if state.stop {
                return None;
            }
            if let Some(level) = state.levels.tell() {
                return Some(level);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Bank {
    /// Calls back when less than `threshold` is [free](Bank::free), and again when it is not any more, in turn, beginning with
    /// now if it is low now. Of several changes since the last call it hears that there was one and what is true now.
    ///
    /// The callback runs on a thread of the watch's own, a moment after the change: nobody who takes or gives back memory
    /// waits for it, and none of their locks are held. It may use the bank, and drop the watch. One that panics is not called
    /// again; one that keeps a [`Bank`] keeps it alive for as long as the watch lives.
    ///
    /// ```
    /// # use granule_bank::*; use granule_device::*; use std::sync::mpsc;
    /// # let device = Device::host_with(HostOptions::new().granule(Bytes::kib(16)).capacity(Bytes::mib(1)))?;
    /// let bank = Bank::new(device, BankOptions::new().budget(Bytes::kib(64)))?;
    /// let (tell, told) = mpsc::channel();
    /// let _watch = bank.watch(Bytes::kib(32), move |level| {
    ///     let _ = tell.send(level);
    /// })?;
    /// let stock = bank.take(&Owner::new("kv"), 3)?;
    /// assert_eq!(told.recv()?, Level::Low);
    /// drop(stock);
    /// assert_eq!(told.recv()?, Level::Enough);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Device`] where the thread cannot be started.
    pub fn watch(&self, threshold: Bytes, callback: impl Fn(Level) + Send + 'static) -> Result<Watch, Error> {
        let inner = self.inner();
        let state = Mutex::new(State { levels: Levels::new(threshold), stop: false });
        let post = Arc::new(Post { state, changed: Condvar::new() });
        let told = Arc::clone(&post);
        let tell = move || {
            while let Some(level) = told.next() {
                callback(level);
            }
        };
        let thread = std::thread::Builder::new().name("granule-watch".to_owned()).spawn(tell);
        let call = "spawn(watch)";
        thread.map_err(|source| granule_device::Error::Os { call, source })?;
        inner.watches.posts().push(Arc::clone(&post));
        inner.watches.count.fetch_add(1, Ordering::AcqRel);
        inner.budget.watches().fetch_add(1, Ordering::AcqRel);
        inner.look();
        Ok(Watch { bank: Arc::downgrade(inner), budget: inner.budget.clone(), post })
    }
}

impl Inner {
    /// Called after every change of what is held, with no lock of the bank held: all watches that it matters to see it.
    pub(crate) fn changed(&self) {
        if self.budget.watches().load(Ordering::Acquire) == 0 {
            return;
        }
        if self.is_shared {
            self.budget.members().iter().for_each(|bank| bank.look());
        } else {
            self.look();
        }
    }

    fn look(&self) {
        if self.watches.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let posts = self.watches.posts();
        // Asked under the lock: whoever looks last has seen every change before.
        let free = self.free();
        posts.iter().for_each(|post| post.note(free));
    }
}
