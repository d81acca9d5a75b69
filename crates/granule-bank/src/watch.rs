//! Watches: who is told when memory runs low, and when there is enough again.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use granule_device::Bytes;

use crate::Bank;
use crate::bank::Inner;
use crate::ledger::levels::Levels;

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
    id: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(bank) = self.bank.upgrade() else { return };
        let gone = {
            let mut all = bank.watches.all();
            all.levels.remove(self.id);
            let index = all.callbacks.iter().position(|(id, _)| *id == self.id);
            index.map(|index| all.callbacks.swap_remove(index))
        };
        if gone.is_some() {
            bank.budget.watches().fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// All watches of a bank.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    all: Mutex<All>,
    count: AtomicUsize,
}

type Callback = Arc<dyn Fn(Level) + Send + Sync>;

#[derive(Default)]
struct All {
    levels: Levels,
    callbacks: Vec<(u64, Callback)>,
}

impl fmt::Debug for All {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.levels, f)
    }
}

impl Watches {
    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Telling one watch, until dropped, also by a callback that panics.
struct Telling<'a> {
    watches: &'a Watches,
    id: u64,
}

impl Telling<'_> {
    fn go(&self) {
        loop {
            let mut all = self.watches.all();
            let Some(level) = all.levels.tell(self.id) else { return };
            let callback = all.callbacks.iter().find(|(id, _)| *id == self.id);
            let Some(callback) = callback.map(|(_, callback)| Arc::clone(callback)) else { return };
            drop(all);
            callback(level);
        }
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.watches.all().levels.stop_telling(self.id);
        }
    }
}

impl Bank {
    /// Calls back when less than `threshold` is [free](Bank::free), and again when it is not any more: at each change of
    /// sides once, beginning with now if it is low now, one call at a time and in order.
    ///
    /// The callback runs on whatever thread takes or gives back memory, with no lock of the bank held. It may use the bank, and
    /// drop the watch; it should be quick, as somebody waits for memory. One that keeps a [`Bank`] keeps it alive for as long
    /// as the watch lives.
    ///
    /// ```
    /// # use granule_bank::*; use granule_device::*; use std::sync::mpsc;
    /// # let device = Device::host_with(HostOptions::new().granule(Bytes::kib(16)).capacity(Bytes::mib(1)))?;
    /// let bank = Bank::new(device, BankOptions::new().budget(Bytes::kib(64)))?;
    /// let (tell, told) = mpsc::channel();
    /// let _watch = bank.watch(Bytes::kib(32), move |level| drop(tell.send(level)));
    /// let stock = bank.take(&Owner::new("kv"), 3)?;
    /// drop(stock);
    /// assert_eq!(told.try_iter().collect::<Vec<_>>(), [Level::Low, Level::Enough]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn watch(&self, threshold: Bytes, callback: impl Fn(Level) + Send + Sync + 'static) -> Watch {
        let inner = self.inner();
        let id = {
            let mut all = inner.watches.all();
            let id = all.levels.add(threshold);
            all.callbacks.push((id, Arc::new(callback)));
            inner.watches.count.fetch_add(1, Ordering::AcqRel);
            id
        };
        inner.budget.watches().fetch_add(1, Ordering::AcqRel);
        inner.look();
        Watch { bank: Arc::downgrade(inner), id }
    }
}

impl Inner {
    /// Called after every change of what is held, with no lock held: tells the watches of all banks that it matters to.
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

    /// Looks how much is free, and tells those for whom that has changed sides.
    fn look(&self) {
        if self.watches.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let to_tell = {
            let mut all = self.watches.all();
            // Asked under the lock: whoever looks last has seen every change before.
            all.levels.note(self.free())
        };
        for id in to_tell {
            Telling { watches: &self.watches, id }.go();
        }
    }
}
