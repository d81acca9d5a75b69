//! `KvMemory`: where a cache's memory is.

use granule_device::Bytes;

/// What a sequence, or all sequences of a cache, have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct KvMemory {
    /// Distinct granules behind it, times their size: what is counted against the budget. What is mapped ahead of the tokens is
    /// among them and, of a cache, what is parked.
    pub held: Bytes,
    /// The part of `held` that stands behind another sequence too.
    pub shared: Bytes,
    /// The part of `held` that no token lies in: mapped ahead, left by tokens that are gone and, of a cache, parked. Whoever asks
    /// the bank for memory gets it.
    pub spare: Bytes,
    /// The tokens' own bytes: tokens times the bytes of one, shared or not.
    pub used: Bytes,
    /// Addresses set aside for the whole context; they cost nothing.
    pub reserved: Bytes,
}

impl KvMemory {
    /// Both together, of caches that share no granules.
    #[must_use]
    pub fn saturating_add(self, other: KvMemory) -> KvMemory {
        KvMemory {
            held: self.held.saturating_add(other.held),
            shared: self.shared.saturating_add(other.shared),
            spare: self.spare.saturating_add(other.spare),
            used: self.used.saturating_add(other.used),
            reserved: self.reserved.saturating_add(other.reserved),
        }
    }
}
