//! The bank: takes granules from the device and hands them out, within its budget.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use granule_device::{Bytes, Device, Granule};

use crate::ledger::allowance::Allowance;
use crate::ledger::{Account, Ledger};
use crate::places::Atlas;
use crate::prepare::{Preparer, Signal};
use crate::reclaim::Reclaimers;
use crate::retire::RetireQueue;
use crate::trace::{DeviceId, Event, OwnerId, Tracer};
use crate::watch::Watches;
use crate::{BankOptions, BankStats, Budget, Charge, Error, Growable, Owner, Range, Stock};

/// The owner of a device's granules. Cheap to clone; every clone is the same bank.
#[derive(Clone)]
pub struct Bank {
    handle: Arc<Handle>,
}

/// What all handles of a bank have together and its granules do not: the last handle stops the preparer and waits for what
/// is retired.
#[derive(Debug)]
struct Handle {
    _preparer: Option<Preparer>,
    retiring: RetireQueue,
    inner: Arc<Inner>,
}

/// What a bank hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goods {
    Granules,
    Pinned,
}

/// The bank itself, kept by its handles and by everything that it handed out.
///
/// Locks, outermost first: the list of watches, the books, the budget's allowance; a watch's own under the list. All others are
/// taken alone. The driver and reclaimers are called under none of them, watches on threads of their own.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) device: Device,
    /// What its handles have, for as long as there is one.
    handle: OnceLock<Weak<Handle>>,
    pub(crate) goods: Goods,
    pub(crate) reserve: Bytes,
    pub(crate) patience: Duration,
    pub(crate) budget: Budget,
    /// Whether the budget was given, and can be others' too.
    pub(crate) is_shared: bool,
    books: Mutex<Books>,
    /// Told when a granule that was being made ahead is in the cache, or could not be made.
    pub(crate) prepared: Condvar,
    pub(crate) signal: Signal,
    pub(crate) reclaimers: Reclaimers,
    pub(crate) watches: Watches,
    pub(crate) ranges: Atlas,
    pub(crate) refused: AtomicU64,
    pub(crate) reclaimed: AtomicU64,
    pub(crate) tracer: Tracer,
    pub(crate) traced: DeviceId,
}

#[derive(Debug)]
pub(crate) struct Books {
    pub(crate) ledger: Ledger,
    /// As many as the ledger says are cached, except while a request is being served.
    pub(crate) cache: Vec<Granule>,
    /// By account.
    traced: Vec<OwnerId>,
}

/// Both locks; the inner one goes first.
pub(crate) struct Both<'a> {
    pub(crate) allowance: MutexGuard<'a, Allowance>,
    pub(crate) books: MutexGuard<'a, Books>,
}

/// Whom something is booked for, in the books and in recordings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tag {
    pub(crate) account: Account,
    pub(crate) owner: OwnerId,
}

impl Bank {
    /// A bank over a device.
    ///
    /// # Errors
    /// [`Error::Device`] where the device does not say how much memory it has, and where a thread that is to make granules
    /// ahead cannot be started.
    pub fn new(device: Device, options: BankOptions) -> Result<Bank, Error> {
        let budget = match options.budget {
            Some(budget) => budget,
            None => device.memory()?.total.saturating_sub(options.reserve.unwrap_or_default()),
        };
        Bank::over(device, Goods::Granules, budget, &options)
    }

    pub(crate) fn over(
        device: Device,
        goods: Goods,
        limit: Bytes,
        options: &BankOptions,
    ) -> Result<Bank, Error> {
        let granule = if goods == Goods::Granules { device.granularity() } else { Bytes::ZERO };
        let ledger = Ledger::new(granule, limit, options.marks(granule));
        let tracer = options.tracer.clone().unwrap_or_default();
        let traced = DeviceId(tracer.number());
        let name = match goods {
            Goods::Granules => device.name().to_owned(),
            Goods::Pinned => format!("{}, pinned", device.name()),
        };
        let budget = options.shared.as_ref().map_or(limit, |shared| limit.min(shared.stats().limit));
        tracer.declare(Event::Device { device: traced, name, granule, budget });
        let inner = Arc::new(Inner {
            device,
            handle: OnceLock::new(),
            goods,
            reserve: options.reserve.unwrap_or_default(),
            patience: options.patience_or_default(),
            budget: options.shared.clone().unwrap_or_else(|| Budget::new(Bytes::MAX)),
            is_shared: options.shared.is_some(),
            books: Mutex::new(Books { ledger, cache: Vec::new(), traced: Vec::new() }),
            prepared: Condvar::new(),
            signal: Signal::default(),
            reclaimers: Reclaimers::default(),
            watches: Watches::default(),
            ranges: Atlas::default(),
            refused: AtomicU64::new(0),
            reclaimed: AtomicU64::new(0),
            tracer,
            traced,
        });
        inner.budget.join(&inner);
        let wanted = options.prepare && !granule.is_zero();
        let preparer = if wanted { Some(Preparer::start(&inner)?) } else { None };
        let handle = Arc::new(Handle { _preparer: preparer, retiring: RetireQueue::default(), inner });
        // Set once, here.
        let _ = handle.inner.handle.set(Arc::downgrade(&handle));
        Ok(Bank { handle })
    }

    /// Whether both are handles of one bank.
    #[must_use]
    pub fn is(&self, other: &Bank) -> bool {
        Arc::ptr_eq(self.inner(), other.inner())
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Device {
        &self.inner().device
    }

    /// The size of a granule; zero where there are none: the device has no virtual memory, or the bank is over pinned memory.
    pub fn granule(&self) -> Bytes {
        self.inner().granule()
    }

    /// Where the memory is now, and what has happened to it so far.
    pub fn stats(&self) -> BankStats {
        let inner = self.inner();
        let retiring = self.granule().saturating_mul(self.retiring().places() as u64);
        let shared = inner.is_shared.then(|| inner.budget.stats());
        let reclaimers = inner.reclaimers.stats();
        let books = inner.books();
        let counts = books.ledger.counts();
        BankStats {
            granule: inner.granule(),
            budget: books.ledger.own_limit(),
            shared,
            held: books.ledger.held(),
            charged: books.ledger.charged(),
            peak: books.ledger.peak(),
            cached: books.ledger.cached(),
            retiring,
            owners: books.ledger.owners(),
            reclaimers,
            cache_hits: counts.hits,
            cache_misses: counts.misses,
            prepared: counts.prepared,
            prepare_errors: counts.prepare_errors,
            reclaimed: Bytes::new(inner.reclaimed.load(Ordering::Relaxed)),
            refused: inner.refused.load(Ordering::Relaxed),
            driver_calls: inner.device.calls_made(),
        }
    }

    /// What a request could have now: the budget less what owners hold, and no more than a shared budget has left.
    pub fn free(&self) -> Bytes {
        self.inner().free()
    }

    /// Where this bank and all that is made from it tell what happens: start a [`Recorder`](crate::trace::Recorder) on it.
    pub fn tracer(&self) -> &Tracer {
        &self.inner().tracer
    }

    /// What recordings call this bank's device.
    pub fn traced(&self) -> DeviceId {
        self.inner().traced
    }

    /// Waits for the device work that retired memory waits for, and takes that memory back.
    pub fn drain(&self) {
        self.retiring().drain();
    }

    /// Gives everything that nobody holds back to the device; answers how much that was.
    pub fn trim(&self) -> Bytes {
        self.retiring().poll();
        let size = self.inner().shed(Bytes::MAX);
        // Room for other banks of the budget; this one is not to make ahead at once what was let go of.
        let others = self.inner().budget.members();
        others.iter().filter(|bank| !Arc::ptr_eq(bank, self.inner())).for_each(|bank| bank.signal.wake());
        size
    }

    /// A range of addresses, at least `reserve` long, with nothing behind it; what is put behind it is `owner`'s.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn range(&self, owner: &Owner, reserve: Bytes) -> Result<Range, Error> {
        Range::new(self, owner, reserve)
    }

    /// A range that is filled from its start on, with nothing behind it yet; what is put behind it is `owner`'s.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn growable(&self, owner: &Owner, reserve: Bytes) -> Result<Growable, Error> {
        Growable::new(self, owner, reserve)
    }

    /// Counts memory that is not granules, mapped weights for example, as the owner's for as long as the charge lives. Under
    /// pressure it goes as in [`Bank::take`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`].
    pub fn charge(&self, owner: &Owner, size: Bytes) -> Result<Charge, Error> {
        self.under_pressure(owner, || self.charge_now(owner, size))
    }

    /// As [`Bank::charge`], without waiting for retired memory and without asking [reclaimers](crate::Reclaim).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`].
    pub fn charge_now(&self, owner: &Owner, size: Bytes) -> Result<Charge, Error> {
        self.retiring().poll();
        self.inner().charge(owner, size)
    }

    /// Takes `count` granules for `owner`, all or none, to be put behind ranges without asking again. Their contents are
    /// whatever they were. Where they are not to be had, memory that was retired is waited for and whoever could give some back
    /// is asked, cheapest first, before the request is refused.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`], [`Error::Device`].
    pub fn take(&self, owner: &Owner, count: usize) -> Result<Stock, Error> {
        self.under_pressure(owner, || self.take_now(owner, count))
    }

    /// As [`Bank::take`], without waiting for retired memory and without asking [reclaimers](crate::Reclaim).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`], [`Error::Device`].
    pub fn take_now(&self, owner: &Owner, count: usize) -> Result<Stock, Error> {
        self.retiring().poll();
        self.inner().take(owner, count)
    }

    pub(crate) fn retiring(&self) -> &RetireQueue {
        &self.handle.retiring
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.handle.inner
    }
}

impl fmt::Debug for Bank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bank({}, {} free)", self.device().name(), self.free())
    }
}

impl Inner {
    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        // Every change of the books is whole before anything that could panic, so a poisoned lock is as good as any.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A handle, if anybody has one still.
    pub(crate) fn bank(&self) -> Option<Bank> {
        Some(Bank { handle: self.handle.get()?.upgrade()? })
    }

    pub(crate) fn granule(&self) -> Bytes {
        match self.goods {
            Goods::Granules => self.device.granularity(),
            Goods::Pinned => Bytes::ZERO,
        }
    }

    /// The books and what they count against. Only this takes the two together, in this order.
    pub(crate) fn both(&self) -> Both<'_> {
        let books = self.books();
        Both { allowance: self.budget.allowance(), books }
    }

    pub(crate) fn free(&self) -> Bytes {
        let both = self.both();
        both.books.ledger.free(&both.allowance)
    }

    /// What the bank's own budget has left, and what the shared one has.
    pub(crate) fn free_of_both(&self) -> (Bytes, Bytes) {
        let both = self.both();
        let own = both.books.ledger.own_limit().saturating_sub(both.books.ledger.held());
        (own, both.allowance.free())
    }

    /// All that was ever given back; it only grows.
    pub(crate) fn returned(&self) -> Bytes {
        self.books().ledger.counts().returned
    }

    /// The owner's tag. Owners are not many and stay known.
    pub(crate) fn tag(&self, books: &mut Books, owner: &Owner) -> Tag {
        let account = books.ledger.account(owner);
        if books.traced.len() <= account.index() {
            books.traced.push(self.tracer.owner(owner));
        }
        Tag { account, owner: books.traced[account.index()] }
    }
}

impl Books {
    /// Takes the granules that are longest in the cache out of it, to be let go.
    pub(crate) fn oldest(&mut self, count: usize) -> Vec<Granule> {
        self.cache.drain(..count.min(self.cache.len())).collect()
    }

    /// Takes the granules that came last out of the cache, to be used again.
    pub(crate) fn newest(&mut self, count: usize) -> Vec<Granule> {
        self.cache.split_off(self.cache.len().saturating_sub(count))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nothing is held any more; what was kept goes with the bank, and off a budget that others share.
        let books = self.books.get_mut().unwrap_or_else(PoisonError::into_inner);
        let count = books.ledger.shed(&mut self.budget.allowance(), Bytes::MAX) as u64;
        if count > 0 {
            self.tracer.emit(|| Event::Destroy { device: self.traced, count });
        }
    }
}
