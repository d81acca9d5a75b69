//! Giving back: what the driver refuses, or may not be asked for now, is kept and tried again.
//!
//! Only what was not asked of the driver is tried again: an injected fault stands before the call, a context that cannot be
//! made current too. An error of the driver's own is the end of it. Drivers answer a release with the error of earlier work,
//! after having done it, and releasing twice could release what somebody else has got meanwhile.
//!
//! The driver may not be called inside a function that runs on a stream, and freeing memory spoils a capture. In both cases
//! a release is put off until the next use of a stream or the end of the capture. A capture that this crate does not know of
//! is not disturbed: releases are made in the relaxed mode, and one that is refused for a capture's sake is put off too. But for
//! handles of cuBLAS: giving one back waits for the device, which spoils a capture in any mode. None of ours begins beside that;
//! somebody else's that this crate does not know of, or that begins meanwhile, is spoilt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::CudaStream;
use cudarc::driver::sys;

use super::calls;
use super::context::{Context, Raw, lock};
use super::moment::{is_captures_fault, over};
use super::stream::{Finished, Relaxed, end_unwanted, is_captured};
use crate::region::Pending;
use crate::{DevicePtr, Error};

/// One thing that goes back to the driver.
pub(super) enum Leftover {
    Memory(DevicePtr),
    Pinned(DevicePtr),
    Registered(DevicePtr),
    Ordered {
        ptr: DevicePtr,
        stream: Option<Arc<CudaStream>>,
    },
    Granule(u64),
    Reservation(DevicePtr),
    Event(Raw<sys::CUevent_st>),
    Module(Raw<sys::CUmod_st>),
    Graph(Raw<sys::CUgraph_st>),
    Executable(Raw<sys::CUgraphExec_st>),
    Stream(Abandoned),
    #[cfg(feature = "cublas")]
    Blas(super::blas::Abandoned),
    #[cfg(feature = "nccl")]
    Nccl(super::nccl::Abandoned),
}

/// A stream that nobody has any more, with what its work still uses.
pub(super) struct Abandoned {
    /// `None` once it is given back.
    pub(super) stream: Option<Arc<CudaStream>>,
    /// Whether this crate made it.
    pub(super) own: bool,
    /// Whether the driver still captures it for us.
    pub(super) captured: bool,
    /// Whether its work is known to be done.
    pub(super) waited: bool,
    pub(super) held: Finished,
    /// Set once its work is done.
    pub(super) over: Arc<AtomicBool>,
}

impl Context {
    /// Gives one thing back, now or later.
    pub(super) fn release(&self, mut leftover: Leftover) {
        let now = !calls::in_host_function() && !self.is_capturing();
        let given =
            if now { self.give_back(&mut leftover) } else { Err(Error::Capturing { what: "giving back" }) };
        if let Err(error) = given {
            lock(&self.leftovers).push(leftover);
            // Not before it is among them: whoever sees this finds it there.
            if is_refused_in_capture(&error) {
                self.put_off.store(true, Ordering::Release);
            }
        }
    }

    /// Tries again what was put off or refused; answers how much is left.
    pub(super) fn settle(&self) -> usize {
        if calls::in_host_function() || lock(&self.leftovers).is_empty() || self.is_capturing() {
            return lock(&self.leftovers).len();
        }
        self.put_off.store(false, Ordering::Release);
        let (mut refused, mut soon) = (Vec::new(), false);
        let waiting = std::mem::take(&mut *lock(&self.leftovers));
        for mut leftover in waiting {
            if let Err(error) = self.give_back(&mut leftover) {
                refused.push(leftover);
                soon |= is_refused_in_capture(&error);
            }
        }
        // What is dropped with one thing may have left another.
        let mut leftovers = lock(&self.leftovers);
        leftovers.append(&mut refused);
        if soon {
            self.put_off.store(true, Ordering::Release);
        }
        leftovers.len()
    }

    /// Tries again what was only put off: called where a stream is used anyway.
    pub(super) fn settle_put_off(&self) {
        if self.put_off.load(Ordering::Acquire) {
            self.settle();
        }
    }

    /// Lets go of a region that is held by streams that were dropped where they could not be waited for.
    ///
    /// # Errors
    /// [`Error::InHostFunction`], [`Error::Capturing`]: it is held still.
    pub(crate) fn let_go(&self, region: &Pending) -> Result<(), Error> {
        if calls::in_host_function() {
            return Err(Error::InHostFunction { call: "waiting for work on a region" });
        }
        let holds = |leftover: &mut Leftover| match leftover {
            Leftover::Stream(stream) => stream.held.tickets.iter().any(|ticket| ticket.is_of(region)),
            _ => false,
        };
        let mut streams: Vec<Leftover> = lock(&self.leftovers).extract_if(.., holds).collect();
        let mut done = Ok(());
        for leftover in &mut streams {
            if let Leftover::Stream(stream) = leftover {
                let bound = self.bind_unfailing();
                done = done.and(bound.and_then(|_bound| self.wait_for_abandoned(stream)));
            }
        }
        if !streams.is_empty() {
            lock(&self.leftovers).append(&mut streams);
            self.put_off.store(true, Ordering::Release);
            self.settle();
        }
        done
    }

    /// An error means that the driver was not asked, or refused for a capture's sake.
    fn give_back(&self, leftover: &mut Leftover) -> Result<(), Error> {
        let bound = self.bind()?;
        let driver = &self.driver;
        let _relaxed = Relaxed::enter(driver);
        // SAFETY: each was answered by the driver and is given back once; its owner says that nothing uses it any more.
        let asked = unsafe {
            match leftover {
                Leftover::Memory(ptr) => driver.cuMemFree_v2(ptr.addr()),
                Leftover::Pinned(ptr) => driver.cuMemFreeHost(ptr.as_host_ptr().cast()),
                Leftover::Registered(ptr) => driver.cuMemHostUnregister(ptr.as_host_ptr().cast()),
                Leftover::Ordered { ptr, stream } => match stream.as_ref().map(|stream| stream.cu_stream()) {
                    // It would become part of the capture.
                    Some(raw) if is_captured(driver, raw) => Err(Error::Capturing { what: "freeing memory" }),
                    Some(raw) => driver.cuMemFreeAsync(ptr.addr(), raw).inspect(|()| *stream = None),
                    None => Ok(()),
                },
                Leftover::Granule(handle) => driver.cuMemRelease(*handle),
                Leftover::Reservation(base) => self.free_range(*base),
                Leftover::Event(event) => driver.cuEventDestroy_v2(event.0),
                Leftover::Module(module) => driver.cuModuleUnload(module.0),
                Leftover::Graph(graph) => driver.cuGraphDestroy(graph.0),
                Leftover::Executable(executable) => driver.cuGraphExecDestroy(executable.0),
                Leftover::Stream(stream) => self.give_back_stream(stream),
                #[cfg(feature = "cublas")]
                Leftover::Blas(handle) => self.give_back_blas(handle),
                // Past injected faults: streams may wait for it.
                #[cfg(feature = "nccl")]
                Leftover::Nccl(handle) => handle.give_back(),
            }
        };
        drop(bound);
        asked.or_else(was_asked)
    }

    /// # Safety
    /// - The context is current, and nothing uses the handle any more, which was not given back.
    #[cfg(feature = "cublas")]
    unsafe fn give_back_blas(&self, handle: &super::blas::Abandoned) -> Result<(), Error> {
        let _none = self.hold_captures_off("giving back a handle of cuBLAS")?;
        self.driver.gate("cublasDestroy_v2")?;
        // SAFETY: the caller's promise.
        unsafe { handle.give_back() }
    }

    fn give_back_stream(&self, abandoned: &mut Abandoned) -> Result<(), Error> {
        self.wait_for_abandoned(abandoned).map_err(|error| match error {
            // What it holds may be in use still.
            Error::Driver { .. } => Error::Busy { by: "a stream whose work could not be waited for" },
            other => other,
        })?;
        if abandoned.own {
            self.driver.gate("cuStreamDestroy_v2")?;
        }
        // The last hold on the stream destroys it.
        abandoned.stream = None;
        Ok(())
    }

    /// Waits for a stream's work, and lets go of what it held. The context is current.
    fn wait_for_abandoned(&self, abandoned: &mut Abandoned) -> Result<(), Error> {
        if let Some(stream) = abandoned.stream.as_ref().filter(|_| !abandoned.waited) {
            let driver = self.driver.unfailing();
            let _relaxed = Relaxed::enter(&driver);
            if abandoned.captured {
                end_unwanted(&driver, stream.cu_stream())?;
                abandoned.captured = false;
            }
            if is_captured(&driver, stream.cu_stream()) {
                return Err(Error::Capturing { what: "waiting for a stream" });
            }
            // SAFETY: the stream is alive.
            over(|| unsafe { driver.cuStreamSynchronize(stream.cu_stream()) })?;
            abandoned.waited = true;
            abandoned.over.store(true, Ordering::Release);
        }
        abandoned.held = Finished::default();
        Ok(())
    }
}

fn is_refused_in_capture(error: &Error) -> bool {
    matches!(error, Error::Capturing { .. }) || is_captures_fault(error)
}

/// Whatever the driver answered, it was asked; but for a capture's sake it does nothing.
pub(super) fn was_asked(error: Error) -> Result<(), Error> {
    match error {
        Error::Driver { .. } if !is_captures_fault(&error) => Ok(()),
        Error::Cublas { .. } | Error::Nccl { .. } => Ok(()),
        other => Err(other),
    }
}
