//! A CUDA stream: work is given to the driver at once, and what it uses is kept until an event behind it is done.
//!
//! No thread looks after that. A stream's finished work is noticed when the stream is used, waited for or asked, and when a
//! region waits; then what the work held is let go, on the thread that noticed.

mod capture;
mod held;

use std::ffi::c_void;
use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use cudarc::driver::sys::{CUresult, CUstream};
use cudarc::driver::{CudaStream, DriverError};

pub(super) use self::capture::{Captures, Relaxed, end_unwanted, is_captured};
use self::held::Held;
pub(super) use self::held::{Finished, Resource};
use super::calls;
use super::context::{Context, lock};
use super::moment::{CudaMoment, End, Unrecorded, over};
use super::release::{Abandoned, Leftover};
use crate::Error;
use crate::backend::{Moment, Op, RawStream};
use crate::region::{Pending, Ticket};

pub(crate) struct Queue {
    context: Arc<Context>,
    /// Taken out when this is dropped.
    stream: ManuallyDrop<Arc<CudaStream>>,
    /// Whether this crate made the stream.
    own: bool,
    /// Whether somebody else can reach it, and so may capture it.
    shared: AtomicBool,
    /// Whether this crate captures it. Written under the lock of `held`.
    capturing: AtomicBool,
    captures: Arc<Captures>,
    held: Mutex<Held>,
    /// Set once the stream is gone and all that it was given has run.
    over: Arc<AtomicBool>,
    /// What a function that ran here panicked with.
    panic: Arc<Mutex<Option<String>>>,
    this: Weak<Queue>,
}

impl Queue {
    pub(super) fn new(context: Arc<Context>, stream: Arc<CudaStream>, own: bool) -> Arc<Queue> {
        let captures = Captures::of(context.raw());
        let queue = Arc::new_cyclic(|this| Queue {
            context,
            stream: ManuallyDrop::new(stream),
            own,
            shared: AtomicBool::new(false),
            capturing: AtomicBool::new(false),
            captures,
            held: Mutex::default(),
            panic: Arc::default(),
            over: Arc::default(),
            this: Weak::clone(this),
        });
        if !own {
            queue.share();
        }
        queue
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn raw(&self) -> CUstream {
        self.stream.cu_stream()
    }

    /// The stream, to be kept alive.
    pub(super) fn cudarc(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The stream for somebody else to use beside us.
    pub(super) fn share(&self) -> &Arc<CudaStream> {
        if !self.shared.swap(true, Ordering::AcqRel) {
            self.captures.remember(Weak::clone(&self.this));
        }
        &self.stream
    }

    /// Gives work to the stream and keeps what it uses until it has run: the tickets' memory, and a resource, which a captured
    /// graph keeps. `outside` names the work where a capture cannot hold it.
    pub(super) fn give(
        &self,
        outside: Option<&'static str>,
        tickets: Vec<Ticket>,
        resource: Option<Resource>,
        work: impl FnOnce(CUstream) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let moment = if tickets.is_empty() { None } else { Some(Unrecorded::new(&self.context)?) };
        let mut held = lock(&self.held);
        outside.map_or(Ok(()), |what| self.refuse_captured(what))?;
        work(self.raw())?;
        match resource {
            Some(resource) if self.is_captured() => held.keep_captured(resource),
            Some(resource) => held.keep(resource),
            None => (),
        }
        for ticket in &tickets {
            ticket.held_by(Weak::clone(&self.this) as Weak<dyn RawStream>);
        }
        held.hold(tickets);
        // The work is given and cannot be taken back. Where no event can be put behind it, a later one is behind it too.
        let _ = match moment {
            Some(moment) => self.record_behind(&mut held, moment).map(drop),
            None if held.wants_mark() && !self.is_captured() => self.mark(&mut held),
            None => Ok(()),
        };
        Ok(())
    }

    /// Records an event behind all that the stream was given, and holds what that holds until it is done. The context is
    /// current, and the stream is not captured by us.
    fn record_behind(&self, held: &mut Held, moment: Unrecorded) -> Result<(u64, Arc<CudaMoment>), Error> {
        const WHAT: &str = "recording an event";
        if self.is_captured_by_others() {
            return Err(Error::Capturing { what: WHAT });
        }
        let moment = moment.record(&self.context.driver, self.raw())?;
        if self.is_captured_by_others() {
            // Begun just now, perhaps before the event, which is then none.
            return Err(Error::Capturing { what: WHAT });
        }
        Ok((held.mark(Arc::clone(&moment)), moment))
    }

    fn mark(&self, held: &mut Held) -> Result<(), Error> {
        self.record_behind(held, Unrecorded::new(&self.context)?).map(drop)
    }

    /// Counts a view of a region that cudarc gets for this stream, until it is [given back](Queue::hold).
    pub(super) fn lend(&self) -> Result<(), Error> {
        let mut held = lock(&self.held);
        self.refuse_captured("lending a region")?;
        held.lent += 1;
        Ok(())
    }

    /// A view is gone: keeps what was used by work that somebody else has given to the stream, until that has run.
    pub(super) fn hold(&self, ticket: Ticket) {
        ticket.held_by(Weak::clone(&self.this) as Weak<dyn RawStream>);
        let bound = self.context.bind();
        let moment = bound.as_ref().ok().and_then(|_| Unrecorded::new(&self.context).ok());
        let mut held = lock(&self.held);
        held.lent = held.lent.saturating_sub(1);
        held.hold([ticket]);
        if let Some(moment) = moment {
            // Where that fails it is held until a later event is done.
            let _ = self.record_behind(&mut held, moment);
        }
    }

    /// Lets a stream of somebody else's wait for all that this one was given. Nobody can be told of a failure: what cannot
    /// be ordered is waited for here, and else the context's owner learns of it.
    pub(super) fn order_before(&self, other: &CudaStream) {
        let ordered = || -> Result<(), Error> {
            let _bound = self.context.bind()?;
            let moment = Unrecorded::new(&self.context)?;
            let (_, moment) = self.record_behind(&mut lock(&self.held), moment)?;
            if is_captured(&self.context.driver, other.cu_stream()) {
                // It cannot wait for what is outside its capture.
                return moment.finish();
            }
            moment.hold(&self.context.driver, other.cu_stream())
        };
        if ordered().or_else(|_| self.wait_for_all()).is_err() {
            let code = CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
            other.context().record_err(Err::<(), _>(DriverError(code)));
        }
    }

    /// Lets go of what finished work held, without waiting; not while a capture is in progress.
    pub(super) fn reap(&self) {
        if self.captures.any_own() {
            return;
        }
        self.context.settle_put_off();
        loop {
            let Some((number, moment)) = lock(&self.held).front() else { return };
            if !moment.is_done() {
                return;
            }
            self.let_go_until(number);
        }
    }

    /// Lets go of what work up to the event of this number held.
    fn let_go_until(&self, number: u64) {
        let mut finished = lock(&self.held).take_until(number);
        // Outside the lock: the last of a memory's holders frees it.
        finished.clear();
        lock(&self.held).keep_room(finished);
    }

    /// Waits until all has run, past injected faults. An error means that the work may be running still.
    fn wait_for_all(&self) -> Result<(), Error> {
        if self.is_captured_by_others() {
            return Err(Error::Capturing { what: "waiting for the stream" });
        }
        let driver = self.context.driver.unfailing();
        let _bound = self.context.bind_unfailing()?;
        let _relaxed = Relaxed::enter(&driver);
        // SAFETY: the stream is alive.
        over(|| unsafe { driver.cuStreamSynchronize(self.raw()) })
    }

    fn call(&self, function: Box<dyn FnOnce() + Send>) -> Result<(), Error> {
        let job = Box::new(Job { function, panic: Arc::clone(&self.panic) });
        let data = Box::into_raw(job);
        let given = self.give(Some("a function of this process"), Vec::new(), None, |stream| {
            // SAFETY: the stream is alive, and `run_job` gets the one pointer that it takes back.
            unsafe { self.context.driver.cuLaunchHostFunc(stream, Some(run_job), data.cast::<c_void>()) }
        });
        if given.is_err() {
            // SAFETY: the driver did not take it, so it is still the one made above.
            drop(unsafe { Box::from_raw(data) });
        }
        given
    }
}

impl RawStream for Queue {
    fn push(&self, op: Op) -> Result<(), Error> {
        let what = match op {
            Op::Copy { .. } | Op::Fill { .. } => "work on a region",
            Op::Call(_) => "a function of this process",
            Op::Wait(_) => "waiting for an event",
        };
        self.refuse_in_capture(what)?;
        self.reap();
        let context = &self.context;
        let _bound = context.bind()?;
        let driver = &context.driver;
        match op {
            Op::Copy { len: 0, .. } | Op::Fill { len: 0, .. } => Ok(()),
            Op::Copy { from, to, len, across, keep } => self.give(Some(what), keep.into(), None, |stream| {
                // SAFETY: the tickets keep both memories, which the driver can reach, until the copy has run.
                unsafe {
                    match across.as_ref().and_then(|device| device.backend().as_cuda()) {
                        Some(other) => {
                            let (own, other) = (context.raw(), other.context().raw());
                            driver.cuMemcpyPeerAsync(to.addr(), other, from.addr(), own, len, stream)
                        }
                        None => driver.cuMemcpyAsync(to.addr(), from.addr(), len, stream),
                    }
                }
            }),
            Op::Fill { at, len, value, keep } => self.give(Some(what), vec![keep], None, |stream| {
                // SAFETY: the ticket keeps the memory, which the driver can reach, until it is filled.
                unsafe { driver.cuMemsetD8Async(at.addr(), value, len, stream) }
            }),
            Op::Call(function) => self.call(function),
            Op::Wait(moment) => match moment.as_cuda() {
                Some(moment) => self.outside_capture(what, |stream| moment.hold(driver, stream)),
                None => Err(Error::OtherDevice { what: "an event" }),
            },
        }
    }

    fn record(&self) -> Result<Arc<dyn Moment>, Error> {
        self.refuse_in_capture("recording an event")?;
        self.reap();
        let _bound = self.context.bind()?;
        let moment = Unrecorded::new(&self.context)?;
        let mut held = lock(&self.held);
        self.refuse_captured("recording an event")?;
        Ok(self.record_behind(&mut held, moment)?.1)
    }

    fn synchronize(&self) -> Result<(), Error> {
        const WHAT: &str = "waiting for the stream";
        self.refuse_in_capture(WHAT)?;
        let bound = self.context.bind()?;
        // An event, and not the stream itself: what others give or capture meanwhile is not waited for.
        let spare = lock(&self.held).spare.take();
        let moment = spare.map_or_else(|| Unrecorded::new(&self.context), Ok)?;
        let mut held = lock(&self.held);
        self.refuse_captured(WHAT)?;
        let (number, moment) = self.record_behind(&mut held, moment)?;
        drop(held);
        moment.synchronize(&self.context.driver)?;
        drop(bound);
        self.let_go_until(number);
        let unused = std::mem::replace(&mut lock(&self.held).spare, Unrecorded::again(moment));
        drop(unused);
        self.context.settle_put_off();
        lock(&self.panic).take().map_or(Ok(()), |message| Err(Error::HostFunction { message }))
    }

    fn finish(&self, region: &Pending) -> Result<(), Error> {
        if calls::in_host_function() {
            return Err(Error::InHostFunction { call: "waiting for work on a region" });
        }
        let (loose, last) = {
            let held = lock(&self.held);
            (held.is_loose(region), held.last_of(region))
        };
        if loose {
            // Work without an event behind it: waiting for all of the stream is all there is.
            let (number, loose) = {
                let mut held = lock(&self.held);
                (held.events(), held.take_loose())
            };
            if let Err(error) = self.wait_for_all() {
                lock(&self.held).hold(loose);
                return Err(error);
            }
            drop(loose);
            self.let_go_until(number);
        } else if let Some((number, moment)) = last {
            moment.finish()?;
            self.let_go_until(number);
        }
        Ok(())
    }

    fn wait_out(&self) -> Result<(), Error> {
        self.wait_for_all()
    }

    fn end(&self) -> Arc<dyn Moment> {
        Arc::new(End { context: Arc::clone(&self.context), over: Arc::clone(&self.over) })
    }

    fn as_cuda(&self) -> Option<&Queue> {
        Some(self)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let uncaptured = self.abandon_capture();
        let waited = uncaptured && self.wait_for_all().is_ok();
        let mut held = lock(&self.held).take_all();
        if waited {
            self.over.store(true, Ordering::Release);
            // At once: whoever waits for it has nobody left to ask.
            held = Finished::default();
        }
        // SAFETY: it is taken once, here, and nothing uses it afterwards.
        let stream = unsafe { ManuallyDrop::take(&mut self.stream) };
        let (over, captured) = (Arc::clone(&self.over), !uncaptured);
        let abandoned = Abandoned { stream: Some(stream), own: self.own, captured, waited, held, over };
        self.context.release(Leftover::Stream(abandoned));
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queue({})", self.context.name)
    }
}

/// A function on its way through the driver.
struct Job {
    function: Box<dyn FnOnce() + Send>,
    panic: Arc<Mutex<Option<String>>>,
}

/// What the driver calls; nothing may unwind into it.
///
/// # Safety
/// - `data` is a [`Job`] from [`Box::into_raw`], handed over once.
unsafe extern "C" fn run_job(data: *mut c_void) {
    // SAFETY: the caller's promise.
    let job = *unsafe { Box::from_raw(data.cast::<Job>()) };
    let thrown = calls::as_host_function(|| {
        let thrown = catch_unwind(AssertUnwindSafe(job.function));
        thrown.map_err(|panic| {
            let message = crate::stream::panic_message(&*panic);
            // Dropping what was thrown may throw again.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(panic)));
            message
        })
    });
    if let Err(message) = thrown {
        *lock(&job.panic) = Some(message);
    }
}
