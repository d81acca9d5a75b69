//! The bank: takes granules from the device and hands them out, within its budget.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use granule_device::{Bytes, Device, Granule};

use crate::ledger::{Account, BankStats, Ledger, Refusal};
use crate::piece::Piece;
use crate::reclaim::Reclaimers;
use crate::retire::RetireQueue;
use crate::{Error, Growable, Owner, Range};

/// How a bank is set up.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct BankOptions {
    /// What the bank may hold in all; by default all that the device has.
    pub budget: Option<Bytes>,
    /// How much memory that nobody holds is kept for the next who asks, instead of being given back to the device; by default
    /// 64 MiB. It counts against the budget and makes way for requests.
    pub cache: Option<Bytes>,
    /// How long a request may wait for device work that retired memory waits for, before it is refused; by default a second.
    pub patience: Option<Duration>,
}

impl BankOptions {
    /// The defaults.
    pub fn new() -> BankOptions {
        BankOptions::default()
    }

    /// With this budget.
    pub fn budget(self, budget: Bytes) -> BankOptions {
        BankOptions { budget: Some(budget), ..self }
    }

    /// Keeping up to this much that nobody holds.
    pub fn cache(self, cache: Bytes) -> BankOptions {
        BankOptions { cache: Some(cache), ..self }
    }

    /// Waiting so long for retired memory before a request is refused. Zero: not at all.
    pub fn patience(self, patience: Duration) -> BankOptions {
        BankOptions { patience: Some(patience), ..self }
    }
}

const DEFAULT_CACHE: Bytes = Bytes::mib(64);
const DEFAULT_PATIENCE: Duration = Duration::from_secs(1);

/// The owner of a device's granules. Cheap to clone; every clone is the same bank.
#[derive(Clone, Debug)]
pub struct Bank {
    inner: Arc<Inner>,
    retiring: Arc<RetireQueue>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    device: Device,
    pub(crate) patience: Duration,
    books: Mutex<Books>,
    pub(crate) reclaimers: Reclaimers,
}

#[derive(Debug)]
struct Books {
    ledger: Ledger,
    /// As many as the ledger says are cached, except while a request is being served.
    cache: Vec<Granule>,
}

impl Bank {
    /// A bank over a device.
    ///
    /// # Errors
    /// [`Error::Device`] where the device does not say how much memory it has.
    pub fn new(device: Device, options: BankOptions) -> Result<Bank, Error> {
        let budget = match options.budget {
            Some(budget) => budget,
            None => device.memory()?.total,
        };
        let ledger = Ledger::new(device.granularity(), budget, options.cache.unwrap_or(DEFAULT_CACHE));
        let books = Mutex::new(Books { ledger, cache: Vec::new() });
        let patience = options.patience.unwrap_or(DEFAULT_PATIENCE);
        let inner = Inner { device, patience, books, reclaimers: Reclaimers::default() };
        Ok(Bank { inner: Arc::new(inner), retiring: Arc::default() })
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// The size of a granule.
    pub fn granule(&self) -> Bytes {
        self.inner.device.granularity()
    }

    /// Where the memory is now.
    pub fn stats(&self) -> BankStats {
        let retiring = self.retiring.places();
        self.inner.books().ledger.stats(retiring)
    }

    /// What a request could have now: the budget less what owners hold.
    pub fn free(&self) -> Bytes {
        self.inner.books().ledger.free()
    }

    /// Waits for the device work that retired memory waits for, and takes that memory back.
    pub fn drain(&self) {
        self.retiring.drain();
    }

    /// Gives everything that nobody holds back to the device; answers how much that was.
    pub fn trim(&self) -> Bytes {
        self.retiring.poll();
        let granules = {
            let mut books = self.inner.books();
            let count = books.ledger.trim();
            books.drain(count)
        };
        self.granule().saturating_mul(granules.len() as u64)
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

    /// Counts memory that is not granules, mapped weights for example, as the owner's for as long as the charge lives.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`].
    pub fn charge(&self, owner: &Owner, size: Bytes) -> Result<Charge, Error> {
        self.under_pressure(|| self.charge_now(owner, size))
    }

    /// As [`Bank::charge`], without waiting for retired memory and without asking [reclaimers](crate::Reclaim).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`].
    pub fn charge_now(&self, owner: &Owner, size: Bytes) -> Result<Charge, Error> {
        self.retiring.poll();
        let mut books = self.inner.books();
        let account = books.ledger.account(owner);
        match books.ledger.charge(account, size) {
            Ok(drop_count) => {
                let dropped = books.drain(drop_count);
                // The driver is called, by the granules' drop, only after the lock is gone.
                drop(books);
                drop(dropped);
                Ok(Charge { bank: Arc::clone(&self.inner), account, size })
            }
            Err(refusal) => Err(self.inner.refused(&books.ledger, refusal, owner, size)),
        }
    }

    /// Takes `count` granules for `owner`, all or none, to be put behind ranges without asking again. Their contents are
    /// whatever they were. Where they are not to be had, memory that was retired is waited for and whoever could give some back
    /// is asked, cheapest first, before the request is refused.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`], [`Error::Device`].
    pub fn take(&self, owner: &Owner, count: usize) -> Result<Stock, Error> {
        self.under_pressure(|| self.take_now(owner, count))
    }

    /// As [`Bank::take`], without waiting for retired memory and without asking [reclaimers](crate::Reclaim).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`], [`Error::Device`].
    pub fn take_now(&self, owner: &Owner, count: usize) -> Result<Stock, Error> {
        self.retiring.poll();
        let mut books = self.inner.books();
        let account = books.ledger.account(owner);
        let admission = match books.ledger.take(account, count) {
            Ok(admission) => admission,
            Err(refusal) => {
                let requested = books.ledger.size_of(count).unwrap_or(Bytes::MAX);
                return Err(self.inner.refused(&books.ledger, refusal, owner, requested));
            }
        };
        let dropped = books.drain(admission.drop);
        let reused = books.drain(admission.reuse);
        drop(books);
        drop(dropped);
        let piece = |granule| Piece::new(Arc::clone(&self.inner), account, granule);
        let mut pieces: Vec<Piece> = Vec::with_capacity(count);
        pieces.extend(reused.into_iter().map(piece));
        for made in 0..admission.create {
            match self.inner.device.create_granule() {
                Ok(granule) => pieces.push(piece(granule)),
                Err(error) => {
                    let mut books = self.inner.books();
                    books.ledger.take_back(account, admission.create - made);
                    drop(books);
                    drop(pieces);
                    return Err(self.inner.device_refused(error, owner, count));
                }
            }
        }
        Ok(Stock { pieces })
    }

    pub(crate) fn retiring(&self) -> &RetireQueue {
        &self.retiring
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Inner {
    fn books(&self) -> MutexGuard<'_, Books> {
        // Every change of the books is whole before anything that could panic, so a poisoned lock is as good as any.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that was ever given back; it only grows.
    pub(crate) fn returned(&self) -> Bytes {
        self.books().ledger.returned()
    }

    /// Takes back a granule that nobody holds or maps any more.
    pub(crate) fn give_back(&self, account: Account, granule: Granule) {
        let mut books = self.books();
        if books.ledger.give_back(account) {
            books.cache.push(granule);
        } else {
            drop(books);
            drop(granule);
        }
    }

    fn refused(&self, ledger: &Ledger, refusal: Refusal, owner: &Owner, requested: Bytes) -> Error {
        let (device, owner) = (self.device.name().to_owned(), owner.clone());
        let stats = ledger.stats(0);
        match refusal {
            Refusal::TooLarge => Error::TooLarge {
                device,
                owner,
                requested,
                held: stats.held,
                free: ledger.free(),
                budget: stats.budget,
            },
            Refusal::Full => Error::OutOfMemory {
                device,
                owner,
                requested,
                held: stats.held,
                free: ledger.free(),
                budget: stats.budget,
                largest_owner: ledger.largest_owner(),
            },
        }
    }

    /// The device ran out before the budget did: its own word for it, in the bank's terms.
    fn device_refused(&self, error: granule_device::Error, owner: &Owner, count: usize) -> Error {
        let granule_device::Error::OutOfMemory { free, .. } = error else { return Error::Device(error) };
        let books = self.books();
        let requested = books.ledger.size_of(count).unwrap_or(Bytes::MAX);
        match self.refused(&books.ledger, Refusal::Full, owner, requested) {
            Error::OutOfMemory { device, owner, requested, held, budget, largest_owner, .. } => {
                Error::OutOfMemory { device, owner, requested, held, free, budget, largest_owner }
            }
            other => other,
        }
    }
}

impl Books {
    fn drain(&mut self, count: usize) -> Vec<Granule> {
        self.cache.split_off(self.cache.len().saturating_sub(count))
    }
}

/// Memory that is not granules, counted as an owner's until this is dropped.
#[derive(Debug)]
pub struct Charge {
    bank: Arc<Inner>,
    account: Account,
    size: Bytes,
}

impl Charge {
    /// How much is counted.
    pub fn size(&self) -> Bytes {
        self.size
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.bank.books().ledger.discharge(self.account, self.size);
    }
}

/// Granules taken and not yet put behind a range. Dropping it gives them back.
#[derive(Debug)]
pub struct Stock {
    pub(crate) pieces: Vec<Piece>,
}

impl Stock {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}
