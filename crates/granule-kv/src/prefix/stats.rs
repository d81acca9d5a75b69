//! `PrefixStats`: what a prefix cache holds, and what came of it.

use granule_device::Bytes;

/// What a [`PrefixCache`](super::PrefixCache) holds now, and what it did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct PrefixStats {
    /// Prefixes remembered now.
    pub entries: usize,
    /// Their tokens; those that several begin with count once. Each takes 4 bytes of ordinary memory.
    pub tokens: usize,
    /// Distinct granules behind them, shared with live sequences or not, times their size.
    pub held: Bytes,
    /// Lookups that found something.
    pub hits: u64,
    /// Lookups that found nothing.
    pub misses: u64,
    /// Prompts that could not be shared, from a prefix that was found or to remember one: mostly for want of memory or addresses.
    pub failed: u64,
    /// Tokens that lookups found, and that did not have to be computed again.
    pub tokens_saved: u64,
    /// Prefixes that were remembered.
    pub inserted: u64,
    /// Prefixes that were forgotten, for the limits or because the bank's memory was short.
    pub evicted: u64,
}
