//! What a budget allows: one sum over all the banks that share it.

use granule_device::Bytes;

/// A limit and what counts against it: `held + kept <= limit`.
#[derive(Debug)]
pub(crate) struct Allowance {
    limit: Bytes,
    held: Bytes,
    kept: Bytes,
}

impl Allowance {
    pub(crate) fn new(limit: Bytes) -> Allowance {
        Allowance { limit, held: Bytes::ZERO, kept: Bytes::ZERO }
    }

    pub(crate) fn limit(&self) -> Bytes {
        self.limit
    }

    /// What owners hold.
    pub(crate) fn held(&self) -> Bytes {
        self.held
    }

    /// What nobody holds: granules in caches and granules being prepared.
    pub(crate) fn kept(&self) -> Bytes {
        self.kept
    }

    /// What owners could have: what is kept makes way for them.
    pub(crate) fn free(&self) -> Bytes {
        self.limit.saturating_sub(self.held)
    }

    /// By how much this would stand over the limit, had owners `more` and caches `less`.
    pub(crate) fn over(&self, more: Bytes, less: Bytes) -> Bytes {
        let sum = self.held.saturating_add(more).saturating_add(self.kept.saturating_sub(less));
        sum.saturating_sub(self.limit)
    }

    pub(crate) fn hold(&mut self, size: Bytes) {
        self.held = self.held.saturating_add(size);
    }

    pub(crate) fn unhold(&mut self, size: Bytes) {
        self.held = self.held.saturating_sub(size);
    }

    pub(crate) fn keep(&mut self, size: Bytes) {
        self.kept = self.kept.saturating_add(size);
    }

    pub(crate) fn unkeep(&mut self, size: Bytes) {
        self.kept = self.kept.saturating_sub(size);
    }
}
