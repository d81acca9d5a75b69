//! Faults on demand: the n-th call into the system or the driver fails, so that every error path can be walked.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{Device, Error};

thread_local! {
    static CALLS_HERE: Cell<u64> = const { Cell::new(0) };
}

/// How many calls into the system or a driver this thread has made, through any device: what a hot path is held against,
/// while other threads map memory ahead of it. [`Device::calls_made`] counts all threads.
pub fn calls_made_here() -> u64 {
    CALLS_HERE.get()
}

/// Which call is to fail; see [`Device::inject_fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultPlan {
    nth: u64,
    lasting: bool,
}

impl FaultPlan {
    /// The `n`-th call from now on fails, once; 1 is the next one. 0 never comes.
    pub const fn nth(n: u64) -> FaultPlan {
        FaultPlan { nth: n, lasting: false }
    }

    /// The `n`-th call from now on fails, and every one after it, so that undoing fails too. 0 never comes.
    pub const fn from_nth(n: u64) -> FaultPlan {
        FaultPlan { nth: n, lasting: true }
    }
}

/// A fault plan in force; dropping it ends the plan.
#[derive(Debug)]
pub struct FaultGuard {
    device: Device,
}

impl FaultGuard {
    pub(crate) fn new(device: Device, plan: FaultPlan) -> FaultGuard {
        device.faults().arm(plan);
        FaultGuard { device }
    }

    /// True once a call has failed.
    pub fn fired(&self) -> bool {
        self.device.faults().fired()
    }
}

impl Drop for FaultGuard {
    fn drop(&mut self) {
        self.device.faults().disarm();
    }
}

/// Counts a device's calls, and fails the one that the plan names.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    calls: AtomicU64,
    armed_at: AtomicU64,
    /// The call that fails, counted like `calls`; 0 for none.
    fail_at: AtomicU64,
    /// Whether those after it fail too.
    lasting: AtomicBool,
}

impl Faults {
    /// Stands before every call into the system or driver; an error means that the call is not to be made.
    pub(crate) fn gate(&self, call: &'static str) -> Result<(), Error> {
        let count = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        CALLS_HERE.set(CALLS_HERE.get().wrapping_add(1));
        let fail_at = self.fail_at.load(Ordering::Relaxed);
        if count == fail_at || (fail_at != 0 && count > fail_at && self.lasting.load(Ordering::Relaxed)) {
            return Err(Error::Injected { call, n: count - self.armed_at.load(Ordering::Relaxed) });
        }
        Ok(())
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub(crate) fn arm(&self, plan: FaultPlan) {
        let now = self.calls();
        self.armed_at.store(now, Ordering::Relaxed);
        self.lasting.store(plan.lasting, Ordering::Relaxed);
        self.fail_at.store(if plan.nth == 0 { 0 } else { now.saturating_add(plan.nth) }, Ordering::Relaxed);
    }

    fn disarm(&self) {
        self.fail_at.store(0, Ordering::Relaxed);
    }

    fn fired(&self) -> bool {
        let fail_at = self.fail_at.load(Ordering::Relaxed);
        fail_at != 0 && self.calls() >= fail_at
    }
}
