//! A point in a CUDA stream's work: an event of the driver's, recorded once, that goes back to the device's spare ones.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cudarc::driver::sys::{self, CUstream};

use super::calls::{self, Driver};
use super::context::{Context, Raw};
use super::errors;
use crate::Error;
use crate::backend::Moment;

pub(crate) struct CudaMoment {
    context: Arc<Context>,
    event: Raw<sys::CUevent_st>,
    /// Once true, the driver is not asked any more.
    done: AtomicBool,
}

/// An event that is not recorded yet, so that recording cannot fail for want of one.
pub(super) struct Unrecorded(CudaMoment);

impl Unrecorded {
    pub(super) fn new(context: &Arc<Context>) -> Result<Unrecorded, Error> {
        let event = context.take_event()?;
        Ok(Unrecorded(CudaMoment { context: Arc::clone(context), event, done: AtomicBool::new(false) }))
    }

    /// The point after all that the stream was given so far. The context is current.
    pub(super) fn record(self, driver: &Driver, stream: CUstream) -> Result<Arc<CudaMoment>, Error> {
        // SAFETY: event and stream are alive and of one context, and nobody else has the event.
        unsafe { driver.cuEventRecord(self.0.event.0, stream)? };
        Ok(Arc::new(self.0))
    }
}

impl CudaMoment {
    /// Lets a stream wait for it. The stream's context is current.
    pub(super) fn hold(&self, driver: &Driver, stream: CUstream) -> Result<(), Error> {
        // SAFETY: event and stream are alive.
        unsafe { driver.cuStreamWaitEvent(stream, self.event.0, 0) }
    }

    fn query(&self) -> Result<bool, Error> {
        let driver = &self.context.driver;
        // SAFETY: the event is alive and was recorded.
        match unsafe { driver.cuEventQuery(self.event.0) } {
            Ok(()) => Ok(true),
            Err(error) if errors::code(&error) == Some(errors::NOT_READY) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits; an error means that the driver could not say, and that the work may be running still.
    fn synchronize(&self, driver: &Driver) -> Result<(), Error> {
        // SAFETY: the event is alive and was recorded.
        unsafe { driver.cuEventSynchronize(self.event.0) }
    }
}

impl Moment for CudaMoment {
    fn is_done(&self) -> bool {
        if self.done.load(Ordering::Acquire) {
            return true;
        }
        // In a function that runs on a stream the driver cannot be asked: what is not known to be done is not.
        let done = self.query().unwrap_or(false);
        if done {
            self.done.store(true, Ordering::Release);
        }
        done
    }

    fn wait(&self) {
        if self.done.load(Ordering::Acquire) {
            return;
        }
        outside(|| {
            let driver = &self.context.driver;
            // Waiting must not be cut short: past an injected fault, or the error of something else, it is asked for again.
            // A driver that goes on refusing has lost the context, and with it the work.
            let waited = self.synchronize(driver).or_else(|_| self.synchronize(&driver.unfailing()));
            let _ = waited.or_else(|_| self.synchronize(&driver.unfailing()));
        });
        self.done.store(true, Ordering::Release);
    }

    fn as_cuda(&self) -> Option<&CudaMoment> {
        Some(self)
    }
}

impl Drop for CudaMoment {
    fn drop(&mut self) {
        self.context.put_event(self.event);
    }
}

impl fmt::Debug for CudaMoment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaMoment({})", self.context.name)
    }
}

/// Runs something that calls the driver, on another thread where this one is the driver's and may not call it.
pub(super) fn outside<T: Send>(ask: impl Fn() -> T + Sync) -> T {
    if !calls::in_host_function() {
        return ask();
    }
    loop {
        let answer = std::thread::scope(|scope| {
            let spawned =
                std::thread::Builder::new().name("granule-wait".to_owned()).spawn_scoped(scope, &ask);
            spawned.ok().and_then(|thread| thread.join().ok())
        });
        match answer {
            Some(answer) => return answer,
            // The system has no thread for it now.
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
