//! A point in a CUDA stream's work: an event of the driver's, recorded once, that goes back to the device's spare ones.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cudarc::driver::sys::{self, CUstream};

use super::calls::{self, Driver};
use super::context::{Context, Raw};
use super::errors;
use super::stream::Relaxed;
use crate::Error;
use crate::backend::Moment;

pub(crate) struct CudaMoment {
    context: Arc<Context>,
    event: Raw<sys::CUevent_st>,
    /// Once true, the driver is not asked any more.
    done: AtomicBool,
}

/// An event that is not recorded yet, so that recording cannot fail for want of one. Nobody else has it.
pub(super) struct Unrecorded(Arc<CudaMoment>);

impl Unrecorded {
    pub(super) fn new(context: &Arc<Context>) -> Result<Unrecorded, Error> {
        let event = context.take_event()?;
        let moment = CudaMoment { context: Arc::clone(context), event, done: AtomicBool::new(false) };
        Ok(Unrecorded(Arc::new(moment)))
    }

    /// A moment that is over, to become another one; `None` where somebody else has it still.
    pub(super) fn again(mut moment: Arc<CudaMoment>) -> Option<Unrecorded> {
        *Arc::get_mut(&mut moment)?.done.get_mut() = false;
        Some(Unrecorded(moment))
    }

    /// The point after all that the stream was given so far. The context is current.
    pub(super) fn record(self, driver: &Driver, stream: CUstream) -> Result<Arc<CudaMoment>, Error> {
        // SAFETY: event and stream are alive and of one context, and nobody else has the event.
        unsafe { driver.cuEventRecord(self.0.event.0, stream)? };
        Ok(self.0)
    }
}

impl CudaMoment {
    /// Lets a stream wait for it. The stream's context is current.
    pub(super) fn hold(&self, driver: &Driver, stream: CUstream) -> Result<(), Error> {
        // SAFETY: event and stream are alive.
        unsafe { driver.cuStreamWaitEvent(stream, self.event.0, 0) }
    }

    fn query(&self, driver: &Driver) -> Result<bool, Error> {
        let _bound = self.context.bind_unfailing()?;
        let _relaxed = Relaxed::enter(driver);
        // SAFETY: the event is alive and was recorded.
        match unsafe { driver.cuEventQuery(self.event.0) } {
            Ok(()) => Ok(true),
            Err(error) if errors::code(&error) == Some(errors::NOT_READY) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits; an error means that the driver could not say, and that the work may be running still.
    pub(super) fn synchronize(&self, driver: &Driver) -> Result<(), Error> {
        // A thread without the context might be told that it has none, which says nothing of the work.
        let _bound = self.context.bind_unfailing()?;
        let _relaxed = Relaxed::enter(driver);
        // SAFETY: the event is alive and was recorded.
        unsafe { driver.cuEventSynchronize(self.event.0)? };
        self.done.store(true, Ordering::Release);
        Ok(())
    }

    /// Waits until the work is done or lost, past injected faults. An error means that it may be running still.
    pub(super) fn finish(&self) -> Result<(), Error> {
        if self.done.load(Ordering::Acquire) {
            return Ok(());
        }
        over(|| self.synchronize(&self.context.driver.unfailing()))?;
        self.done.store(true, Ordering::Release);
        Ok(())
    }
}

/// Whether the context is gone, and with it all work: what was given will never run, or touch memory, any more.
pub(super) fn is_lost(error: &Error) -> bool {
    // Shutting down, context destroyed; uncorrectable memory and link; what a kernel or copy can do to its context.
    matches!(errors::code(error), Some(4 | 214 | 220 | 700 | 702 | 709 | 710 | 714..=719))
}

/// Whether a capture is what the driver refused a call for.
pub(super) fn is_captures_fault(error: &Error) -> bool {
    matches!(errors::code(error), Some(900..=908))
}

/// Waits by asking the driver: until it says that the work is done, or, asked again, that it is lost. The first answer may be
/// the error of something else.
pub(super) fn over(ask: impl Fn() -> Result<(), Error>) -> Result<(), Error> {
    match ask().or_else(|_| ask()) {
        Err(error) if is_lost(&error) => Ok(()),
        Err(error) if is_captures_fault(&error) => Err(Error::Capturing { what: "waiting for work" }),
        answer => answer,
    }
}

impl Moment for CudaMoment {
    fn is_done(&self) -> bool {
        if self.done.load(Ordering::Acquire) {
            return true;
        }
        // In a function that runs on a stream the driver cannot be asked: what is not known to be done is not.
        let done = match self.query(&self.context.driver) {
            Ok(done) => done,
            // Asked again, because it may be the error of something else.
            Err(error) if is_lost(&error) => {
                self.query(&self.context.driver.unfailing()).unwrap_or_else(|error| is_lost(&error))
            }
            Err(_) => false,
        };
        if done {
            self.done.store(true, Ordering::Release);
        }
        done
    }

    fn wait(&self) {
        outside(|| {
            // What a capture is in the way of is only put off. Other errors come out of the next call that can fail.
            while let Err(Error::Capturing { .. }) = self.finish() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
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

/// When a stream is gone and its work has run.
#[derive(Debug)]
pub(super) struct End {
    pub(super) context: Arc<Context>,
    pub(super) over: Arc<AtomicBool>,
}

impl Moment for End {
    fn is_done(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn wait(&self) {
        outside(|| {
            while !self.is_done() {
                // A stream that could not wait when it was dropped is waited for here.
                self.context.settle();
                if !self.is_done() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
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
