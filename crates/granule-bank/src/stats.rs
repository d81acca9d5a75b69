//! What a bank says about itself in numbers.

use granule_device::Bytes;

use crate::Owner;

/// What one owner holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct OwnerStats {
    /// Who.
    pub owner: Owner,
    /// Granules and charges now.
    pub current: Bytes,
    /// The most that it ever was.
    pub peak: Bytes,
}

/// What came of asking one [reclaimer](crate::Reclaim).
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ReclaimerStats {
    /// Whose memory it gives.
    pub owner: Owner,
    /// How often it was asked for some.
    pub asked: u64,
    /// What the bank got back while it was asked.
    pub gave: Bytes,
}

/// What a [`Budget`](crate::Budget) allows and what its banks make of it together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct BudgetStats {
    /// What all its banks may have together: `held + cached <= limit`.
    pub limit: Bytes,
    /// What owners hold, in all its banks.
    pub held: Bytes,
    /// What nobody holds, in all its banks: granules that are kept or being made ahead.
    pub cached: Bytes,
}

/// Where a bank's memory is, and what has happened to it so far.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct BankStats {
    /// The size of a granule; zero where the device has none.
    pub granule: Bytes,
    /// What the bank may hold in all: `held + cached <= budget`.
    pub budget: Bytes,
    /// The budget it shares with other banks, where it does.
    pub shared: Option<BudgetStats>,
    /// What all owners hold: granules, each once however often it is mapped, and charges.
    pub held: Bytes,
    /// The part of `held` that is charges: memory that is not granules.
    pub charged: Bytes,
    /// The most that `held` ever was.
    pub peak: Bytes,
    /// Granules that nobody holds, kept for the next who asks.
    pub cached: Bytes,
    /// The part of `held` that waits for device work to be done before it is given back.
    pub retiring: Bytes,
    /// By owner, in the order of their names; who never held anything is not listed.
    pub owners: Vec<OwnerStats>,
    /// Who can be asked for memory, in the order in which they came.
    pub reclaimers: Vec<ReclaimerStats>,
    /// Granules that were handed out of the cache: no driver call made them.
    pub cache_hits: u64,
    /// Granules that the driver made while somebody waited for them.
    pub cache_misses: u64,
    /// Granules that were made ahead.
    pub prepared: u64,
    /// Attempts to make one ahead that failed.
    pub prepare_errors: u64,
    /// What reclaimers gave back, all told.
    pub reclaimed: Bytes,
    /// Requests that were refused after everybody was asked.
    pub refused: u64,
    /// Calls into the driver on the bank's device, failed ones and those that others made included.
    pub driver_calls: u64,
}

impl BankStats {
    /// The part of granules handed out that came from the cache, 0 to 1; `None` before the first.
    pub fn hit_rate(&self) -> Option<f64> {
        let all = self.cache_hits + self.cache_misses;
        (all > 0).then(|| self.cache_hits as f64 / all as f64)
    }
}
