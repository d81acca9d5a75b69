//! Giving back: what the driver refuses, or may not be asked for now, is kept and tried again.
//!
//! Only what was not asked of the driver is tried again: an injected fault stands before the call, a context that cannot be
//! made current too. An error of the driver's own is the end of it. Drivers answer a release with the error of earlier work,
//! after having done it, and releasing twice could release what somebody else has got meanwhile.
//!
//! The driver may not be called inside a function that runs on a stream, and freeing memory spoils a capture. In both cases
//! a release is put off until the next use of a stream or the end of the capture.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cudarc::driver::CudaStream;
use cudarc::driver::sys;

use super::calls;
use super::context::{Context, Raw, lock};
use crate::region::Ticket;
use crate::{DevicePtr, Error};

/// One thing that goes back to the driver.
pub(super) enum Leftover {
    Memory(DevicePtr),
    Pinned(DevicePtr),
    Registered(DevicePtr),
    Ordered { ptr: DevicePtr, stream: Option<Arc<CudaStream>> },
    Granule(u64),
    Reservation(DevicePtr),
    Event(Raw<sys::CUevent_st>),
    Module(Raw<sys::CUmod_st>),
    Graph(Raw<sys::CUgraph_st>),
    Executable(Raw<sys::CUgraphExec_st>),
    Stream(Abandoned),
}

/// A stream that nobody has any more, with what its work still uses.
pub(super) struct Abandoned {
    /// `None` once it is given back.
    pub(super) stream: Option<Arc<CudaStream>>,
    /// Whether this crate made it.
    pub(super) own: bool,
    /// Whether its work is known to be done.
    pub(super) waited: bool,
    pub(super) tickets: Vec<Ticket>,
    pub(super) kept: Vec<Arc<dyn Any + Send + Sync>>,
}

impl Context {
    /// Gives one thing back, now or later.
    pub(super) fn release(&self, mut leftover: Leftover) {
        let now = !calls::in_host_function() && !self.is_capturing();
        if !now {
            self.put_off.store(true, Ordering::Release);
        }
        if !now || self.give_back(&mut leftover).is_err() {
            lock(&self.leftovers).push(leftover);
        }
    }

    /// Tries again what was put off or refused; answers how much is left.
    pub(super) fn settle(&self) -> usize {
        if calls::in_host_function() || lock(&self.leftovers).is_empty() || self.is_capturing() {
            return lock(&self.leftovers).len();
        }
        self.put_off.store(false, Ordering::Release);
        let mut refused = Vec::new();
        let waiting = std::mem::take(&mut *lock(&self.leftovers));
        for mut leftover in waiting {
            if self.give_back(&mut leftover).is_err() {
                refused.push(leftover);
            }
        }
        // What is dropped with one thing may have left another.
        let mut leftovers = lock(&self.leftovers);
        leftovers.append(&mut refused);
        leftovers.len()
    }

    /// Tries again what was only put off: called where a stream is used anyway.
    pub(super) fn settle_put_off(&self) {
        if self.put_off.load(Ordering::Acquire) {
            self.settle();
        }
    }

    /// An error means that the driver was not asked.
    fn give_back(&self, leftover: &mut Leftover) -> Result<(), Error> {
        let bound = self.bind()?;
        let driver = &self.driver;
        // SAFETY: each was answered by the driver and is given back once; its owner says that nothing uses it any more.
        let asked = unsafe {
            match leftover {
                Leftover::Memory(ptr) => driver.cuMemFree_v2(ptr.addr()),
                Leftover::Pinned(ptr) => driver.cuMemFreeHost(ptr.as_host_ptr().cast()),
                Leftover::Registered(ptr) => driver.cuMemHostUnregister(ptr.as_host_ptr().cast()),
                Leftover::Ordered { ptr, stream } => match stream.as_ref().map(|stream| stream.cu_stream()) {
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
            }
        };
        drop(bound);
        asked.or_else(was_asked)
    }

    fn give_back_stream(&self, abandoned: &mut Abandoned) -> Result<(), Error> {
        if let Some(stream) = abandoned.stream.as_ref().filter(|_| !abandoned.waited) {
            // SAFETY: the stream is alive. A driver that refuses has lost the context, and with it the work.
            unsafe { self.driver.cuStreamSynchronize(stream.cu_stream()) }.or_else(was_asked)?;
            abandoned.waited = true;
        }
        abandoned.tickets.clear();
        abandoned.kept.clear();
        if abandoned.own {
            self.driver.gate("cuStreamDestroy_v2")?;
        }
        // The last hold on the stream destroys it.
        abandoned.stream = None;
        Ok(())
    }
}

/// Whatever the driver answered, it was asked.
pub(super) fn was_asked(error: Error) -> Result<(), Error> {
    match error {
        Error::Driver { .. } => Ok(()),
        other => Err(other),
    }
}
