//! Captures: how a stream's own begins and ends, which are in progress in this process, and calls that none may forbid.
//!
//! Ours are relaxed: any thread may end one, and the driver lets everything else go on beside it. What must not be done
//! meanwhile, this crate refuses itself, for all devices of the context.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use cudarc::driver::sys::{
    self, CUcontext, CUstream, CUstreamCaptureMode, CUstreamCaptureMode_enum as Mode,
    CUstreamCaptureStatus_enum,
};

use super::Queue;
use super::held::Resource;
use crate::Error;
use crate::cuda::calls::{self, Driver};
use crate::cuda::context::{Raw, lock};

/// The captures in one context that this process's devices know of; several devices may have one context.
#[derive(Default)]
pub(in crate::cuda) struct Captures {
    /// How many streams this crate captures. It grows only under the lock of `beginning`.
    own: AtomicUsize,
    /// Held while one of ours begins, and while something is done that none may begin beside.
    beginning: Mutex<()>,
    /// Streams that somebody else may capture.
    shared: Mutex<Vec<Weak<Queue>>>,
}

impl Captures {
    pub(in crate::cuda) fn of(context: CUcontext) -> Arc<Captures> {
        static ALL: Mutex<Vec<(usize, Weak<Captures>)>> = Mutex::new(Vec::new());
        let mut all = lock(&ALL);
        all.retain(|(_, captures)| captures.strong_count() > 0);
        let known = all.iter().find(|(other, _)| *other == context.addr());
        if let Some(captures) = known.and_then(|(_, captures)| captures.upgrade()) {
            return captures;
        }
        let captures = Arc::new(Captures::default());
        all.push((context.addr(), Arc::downgrade(&captures)));
        captures
    }

    /// Remembers a stream that somebody else can reach, and so can capture.
    pub(super) fn remember(&self, stream: Weak<Queue>) {
        let mut shared = lock(&self.shared);
        shared.retain(|other| other.strong_count() > 0);
        shared.push(stream);
    }

    /// Whether one of ours is in progress.
    pub(super) fn any_own(&self) -> bool {
        self.own.load(Ordering::Acquire) > 0
    }

    /// That none of ours is in progress, and that none begins while the answer lives: for what waits for the whole device, which
    /// spoils a capture in any mode. It says nothing of others' captures, which may begin at any time. Nothing is dropped meanwhile
    /// that could ask for this again.
    #[cfg(any(feature = "cublas", feature = "nccl"))]
    pub(in crate::cuda) fn none_of_ours(&self) -> Option<std::sync::MutexGuard<'_, ()>> {
        let none = lock(&self.beginning);
        (!self.any_own()).then_some(none)
    }

    /// Whether any is in progress.
    pub(in crate::cuda) fn any(&self) -> bool {
        if self.any_own() {
            return true;
        }
        let shared: Vec<_> = lock(&self.shared).iter().filter_map(Weak::upgrade).collect();
        shared.iter().any(|stream| stream.is_captured_by_others())
    }
}

/// While this lives no capture, of this thread or another, forbids this thread the calls that captures forbid, and none of
/// them spoils a capture.
pub(in crate::cuda) struct Relaxed {
    driver: Driver,
    before: CUstreamCaptureMode,
    /// It is this thread's.
    thread: PhantomData<*const ()>,
}

impl Relaxed {
    /// `None` where the driver may not be called. Past injected faults.
    pub(in crate::cuda) fn enter(driver: &Driver) -> Option<Relaxed> {
        let driver = driver.unfailing();
        let mut mode = Mode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: it is read from and written into a local.
        unsafe { driver.cuThreadExchangeStreamCaptureMode(&raw mut mode) }.ok()?;
        Some(Relaxed { driver, before: mode, thread: PhantomData })
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: as above; the mode is the one that the thread had.
        let _ = unsafe { self.driver.cuThreadExchangeStreamCaptureMode(&raw mut self.before) };
    }
}

/// Whether the driver says that a stream, which is alive, is captured. A context of the stream's device is current.
pub(in crate::cuda) fn is_captured(driver: &Driver, stream: CUstream) -> bool {
    let mut status = CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the stream is alive; it is written into a local.
    let asked = unsafe { driver.unfailing().cuStreamIsCapturing(stream, &raw mut status) };
    asked.is_ok() && status != CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE
}

impl Queue {
    /// Whether this crate captures it now. It changes only under the lock of what the stream holds.
    pub(in crate::cuda) fn is_captured(&self) -> bool {
        self.capturing.load(Ordering::Acquire)
    }

    /// Whether somebody else captures it now.
    pub(in crate::cuda) fn is_captured_by_others(&self) -> bool {
        self.shared.load(Ordering::Acquire) && !self.is_captured() && self.is_captured_now()
    }

    /// What the driver says.
    fn is_captured_now(&self) -> bool {
        if calls::in_host_function() {
            return false;
        }
        let Ok(_bound) = self.context.bind_unfailing() else { return false };
        is_captured(&self.context.driver, self.raw())
    }

    /// Refuses `what` while the stream is captured, and in a function that runs on a stream.
    pub(in crate::cuda) fn refuse_in_capture(&self, what: &'static str) -> Result<(), Error> {
        if calls::in_host_function() {
            return Err(Error::InHostFunction { call: what });
        }
        self.refuse_captured(what)?;
        if self.is_captured_by_others() { Err(Error::Capturing { what }) } else { Ok(()) }
    }

    /// Refuses `what` while this crate captures the stream: for good where the lock of what it holds is held.
    pub(super) fn refuse_captured(&self, what: &'static str) -> Result<(), Error> {
        if self.is_captured() { Err(Error::Capturing { what }) } else { Ok(()) }
    }

    /// Gives the stream something that must not land in a capture: none of ours begins meanwhile.
    pub(in crate::cuda) fn outside_capture<T>(
        &self,
        what: &'static str,
        work: impl FnOnce(CUstream) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let _held = lock(&self.held);
        self.refuse_captured(what)?;
        work(self.raw())
    }

    /// Begins to capture: work given from now on is recorded and does not run.
    pub(in crate::cuda) fn begin_capture(&self) -> Result<(), Error> {
        self.refuse_in_capture("another capture")?;
        self.reap();
        let _bound = self.context.bind()?;
        let mut held = lock(&self.held);
        self.refuse_captured("another capture")?;
        if held.lent > 0 {
            // No event could be recorded behind what it is used for.
            return Err(Error::Capturing { what: "keeping a view that is lent to cudarc" });
        }
        if held.is_unmarked() {
            self.mark(&mut held)?;
        }
        let _beginning = lock(&self.captures.beginning);
        // SAFETY: the stream is alive.
        unsafe {
            self.context.driver.cuStreamBeginCapture_v2(self.raw(), Mode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
        }
        self.capturing.store(true, Ordering::Release);
        self.captures.own.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Ends the capture; the graph is the caller's, with what the captured work uses.
    pub(in crate::cuda) fn end_capture(&self) -> Result<(Raw<sys::CUgraph_st>, Vec<Resource>), Error> {
        let bound = self.context.bind()?;
        let mut held = lock(&self.held);
        if !self.is_captured() {
            return Err(Error::NotCapturing);
        }
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream is alive; it is written into a local.
        let ended = unsafe { self.context.driver.cuStreamEndCapture(self.raw(), &raw mut graph) };
        // A capture that was spoilt ends with an error, one that could not be ended goes on.
        if ended.is_err() && self.is_captured_now() {
            return ended.map(|()| (Raw(graph), Vec::new()));
        }
        self.captured_no_more();
        let resources = held.take_captured();
        drop((held, bound));
        self.context.settle_put_off();
        ended.map(|()| (Raw(graph), resources))
    }

    fn captured_no_more(&self) {
        if self.capturing.swap(false, Ordering::AcqRel) {
            self.captures.own.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Ends the capture of a stream that is being dropped, which counts as over in any case; answers whether the driver
    /// knows that too.
    pub(super) fn abandon_capture(&self) -> bool {
        if !self.is_captured() {
            return true;
        }
        // Where the driver may not be called, binding fails.
        let bound = self.context.bind_unfailing();
        let ended = bound.and_then(|_bound| end_unwanted(&self.context.driver.unfailing(), self.raw()));
        self.captured_no_more();
        ended.is_ok()
    }
}

/// Ends a capture that nobody wants any more. The stream's context is current.
pub(in crate::cuda) fn end_unwanted(driver: &Driver, stream: CUstream) -> Result<(), Error> {
    let mut graph = std::ptr::null_mut();
    // SAFETY: the stream is alive; it is written into a local.
    let ended = unsafe { driver.cuStreamEndCapture(stream, &raw mut graph) };
    if ended.is_err() && is_captured(driver, stream) {
        return ended;
    }
    if !graph.is_null() {
        // SAFETY: the graph was made above and nobody else has it.
        let _ = unsafe { driver.cuGraphDestroy(graph) };
    }
    Ok(())
}
