//! `KvStats`: how a cache's memory came and went.

use std::sync::atomic::{AtomicU64, Ordering};

use granule_device::Bytes;

/// What has happened in a cache so far; see [`KvCache::stats`](crate::KvCache::stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct KvStats {
    /// Granules that were mapped before they were needed.
    pub mapped_ahead: u64,
    /// Granules that a sequence mapped itself when it needed them: a prompt's, mostly.
    pub mapped_now: u64,
    /// How often a sequence had to wait for memory that was being mapped ahead.
    pub waits: u64,
    /// Granules that were replaced by private ones because somebody else has them too.
    pub copies: u64,
    /// The bytes copied for that.
    pub copied: Bytes,
    /// Granules of sequences that were gone, used by others with their mappings.
    pub reused: u64,
    /// What is parked now.
    pub parked: Bytes,
}

/// The counts, kept by the cache and its mapper.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    mapped_ahead: AtomicU64,
    mapped_now: AtomicU64,
    waits: AtomicU64,
    copies: AtomicU64,
    copied: AtomicU64,
    reused: AtomicU64,
}

impl Counts {
    pub(crate) fn mapped_ahead(&self, granules: usize) {
        self.mapped_ahead.fetch_add(granules as u64, Ordering::Relaxed);
    }

    pub(crate) fn mapped_now(&self, granules: usize) {
        self.mapped_now.fetch_add(granules as u64, Ordering::Relaxed);
    }

    pub(crate) fn waited(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn copied(&self, granules: usize, bytes: Bytes) {
        self.copies.fetch_add(granules as u64, Ordering::Relaxed);
        self.copied.fetch_add(bytes.get(), Ordering::Relaxed);
    }

    pub(crate) fn reused(&self, granules: usize) {
        self.reused.fetch_add(granules as u64, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self, parked: Bytes) -> KvStats {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        KvStats {
            mapped_ahead: count(&self.mapped_ahead),
            mapped_now: count(&self.mapped_now),
            waits: count(&self.waits),
            copies: count(&self.copies),
            copied: Bytes::new(count(&self.copied)),
            reused: count(&self.reused),
            parked,
        }
    }
}
