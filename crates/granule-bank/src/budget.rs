//! `Budget`: a limit that several banks share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use granule_device::Bytes;

use crate::BudgetStats;
use crate::bank::Inner;
use crate::ledger::allowance::Allowance;

/// What several banks may have together: the devices of one machine under one limit, or device and pinned memory of a host.
/// Cheap to clone; every clone is the same budget.
///
/// What one bank keeps without anybody holding it makes way for the others' requests. The banks may be of different devices.
///
/// ```
/// # use granule_bank::*; use granule_device::*;
/// # let device = || Device::host_with(HostOptions::new().granule(Bytes::kib(16)).capacity(Bytes::mib(1)));
/// # let (left, right) = (device()?, device()?);
/// let budget = Budget::new(Bytes::kib(64)); // 4 granules
/// let left = Bank::new(left, BankOptions::new().share(&budget))?;
/// let right = Bank::new(right, BankOptions::new().share(&budget))?;
/// let owner = Owner::new("kv");
/// let three = left.take(&owner, 3)?;
/// assert!(matches!(right.take(&owner, 2), Err(Error::OutOfMemory { .. })));
/// drop(three); // the left bank keeps them, for whoever asks
/// let four = right.take(&owner, 4)?;
/// assert_eq!(budget.stats().held, Bytes::kib(64));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Locked last of all: nothing is called under it.
    allowance: Mutex<Allowance>,
    banks: Mutex<Vec<Weak<Inner>>>,
    /// Watches in all its banks.
    watches: AtomicUsize,
    /// Requests that something stands in the way of: until there are none, no bank makes granules ahead.
    urgent: AtomicUsize,
    /// Banks that do.
    preparers: AtomicUsize,
}

/// A request that something stands in the way of, while it lives.
pub(crate) struct Urgent<'a>(&'a Budget);

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        if self.0.0.urgent.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.wake();
        }
    }
}

impl Budget {
    /// A budget of this size, with no bank in it yet. [`BankOptions::share`](crate::BankOptions::share) puts one in.
    pub fn new(limit: Bytes) -> Budget {
        Budget(Arc::new(Shared {
            allowance: Mutex::new(Allowance::new(limit)),
            banks: Mutex::default(),
            watches: AtomicUsize::new(0),
            urgent: AtomicUsize::new(0),
            preparers: AtomicUsize::new(0),
        }))
    }

    /// What its banks make of it together.
    pub fn stats(&self) -> BudgetStats {
        let allowance = self.allowance();
        BudgetStats { limit: allowance.limit(), held: allowance.held(), cached: allowance.kept() }
    }

    /// True where both handles are of the same budget.
    pub fn is_same(&self, other: &Budget) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn allowance(&self) -> MutexGuard<'_, Allowance> {
        self.0.allowance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn join(&self, bank: &Arc<Inner>) {
        let mut banks = self.banks();
        banks.retain(|bank| bank.strong_count() > 0);
        banks.push(Arc::downgrade(bank));
    }

    /// Its banks, to be called without a lock.
    pub(crate) fn members(&self) -> Vec<Arc<Inner>> {
        self.banks().iter().filter_map(Weak::upgrade).collect()
    }

    /// How many watches its banks have.
    pub(crate) fn watches(&self) -> &AtomicUsize {
        &self.0.watches
    }

    pub(crate) fn urgent(&self) -> Urgent<'_> {
        self.0.urgent.fetch_add(1, Ordering::AcqRel);
        Urgent(self)
    }

    /// How many of its banks make granules ahead.
    pub(crate) fn preparers(&self) -> &AtomicUsize {
        &self.0.preparers
    }

    /// Has whoever makes granules ahead look again whether some are wanted: there may be room for them.
    pub(crate) fn wake(&self) {
        if self.0.preparers.load(Ordering::Acquire) > 0 {
            self.members().iter().for_each(|bank| bank.signal.wake());
        }
    }

    pub(crate) fn is_urgent(&self) -> bool {
        self.0.urgent.load(Ordering::Acquire) > 0
    }

    fn banks(&self) -> MutexGuard<'_, Vec<Weak<Inner>>> {
        self.0.banks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
