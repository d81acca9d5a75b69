//! `BankOptions`: how a bank is set up.

use std::time::Duration;

use granule_device::Bytes;

use crate::Budget;
use crate::ledger::Marks;
use crate::trace::Tracer;

/// How a bank is set up.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct BankOptions {
    /// What the bank may hold in all; by default all that the device has, less the reserve. For a bank over pinned memory half
    /// of what this process may use.
    pub budget: Option<Bytes>,
    /// A further budget, together with other banks.
    pub shared: Option<Budget>,
    /// What the bank leaves free on the device for others, whoever uses it: it makes no granule that would leave less. By
    /// default nothing.
    pub reserve: Option<Bytes>,
    /// How much memory that nobody holds is kept for the next who asks, instead of being given back to the device; by default
    /// 64 MiB. It counts against the budget and makes way for requests.
    pub cache: Option<Bytes>,
    /// How much of it stays when more than `cache` has gathered and some is given back, and how much is made ahead where that
    /// is asked for; by default half of `cache`.
    pub cache_low: Option<Bytes>,
    /// Whether a thread of the bank's own makes granules ahead when fewer than `cache_low` are kept.
    pub prepare: bool,
    /// How long a request may wait for device work that retired memory waits for, before it is refused; by default a second.
    pub patience: Option<Duration>,
    /// Where the bank and all that is made from it tell what happens; by default a tracer of its own, which is off.
    pub tracer: Option<Tracer>,
}

const DEFAULT_CACHE: Bytes = Bytes::mib(64);
const DEFAULT_PATIENCE: Duration = Duration::from_secs(1);

impl BankOptions {
    /// The defaults.
    pub fn new() -> BankOptions {
        BankOptions::default()
    }

    /// With this budget.
    pub fn budget(self, budget: Bytes) -> BankOptions {
        BankOptions { budget: Some(budget), ..self }
    }

    /// With a budget that other banks share.
    pub fn share(self, budget: &Budget) -> BankOptions {
        BankOptions { shared: Some(budget.clone()), ..self }
    }

    /// Leaving so much of the device to others.
    pub fn reserve(self, reserve: Bytes) -> BankOptions {
        BankOptions { reserve: Some(reserve), ..self }
    }

    /// Keeping up to this much that nobody holds.
    pub fn cache(self, cache: Bytes) -> BankOptions {
        BankOptions { cache: Some(cache), ..self }
    }

    /// Keeping this much when some of what is kept is given back; no more than [`BankOptions::cache`].
    pub fn cache_low(self, low: Bytes) -> BankOptions {
        BankOptions { cache_low: Some(low), ..self }
    }

    /// Making granules ahead, on a thread that ends with the bank's last handle.
    pub fn prepare(self) -> BankOptions {
        BankOptions { prepare: true, ..self }
    }

    /// Waiting so long for retired memory before a request is refused. Zero: not at all.
    pub fn patience(self, patience: Duration) -> BankOptions {
        BankOptions { patience: Some(patience), ..self }
    }

    /// Telling this tracer what happens.
    pub fn tracer(self, tracer: &Tracer) -> BankOptions {
        BankOptions { tracer: Some(tracer.clone()), ..self }
    }

    pub(crate) fn marks(&self, granule: Bytes) -> Marks {
        let granules = |size: Bytes| usize::try_from(size.get() / granule.get().max(1)).unwrap_or(usize::MAX);
        let high = granules(self.cache.unwrap_or(DEFAULT_CACHE));
        let low = self.cache_low.map_or(high / 2, granules).min(high);
        Marks { low, high }
    }

    pub(crate) fn patience_or_default(&self) -> Duration {
        self.patience.unwrap_or(DEFAULT_PATIENCE)
    }
}
