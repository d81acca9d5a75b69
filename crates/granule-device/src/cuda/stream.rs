//! A CUDA stream: work is given to the driver at once, and what it uses is kept until an event behind it is done.
//!
//! No thread looks after that. A stream's finished work is noticed when the stream is used, waited for or asked, and when a
//! region waits; then what the work held is let go, on the thread that noticed.

use std::any::Any;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use cudarc::driver::CudaStream;
use cudarc::driver::sys::{self, CUstream, CUstreamCaptureMode_enum, CUstreamCaptureStatus_enum};

use super::calls;
use super::context::{Context, Raw, lock};
use super::moment::{CudaMoment, Unrecorded};
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
    capturing: AtomicBool,
    state: Mutex<State>,
    /// What a function that ran here panicked with.
    panic: Arc<Mutex<Option<String>>>,
    this: Weak<Queue>,
}

#[derive(Default)]
struct State {
    /// In the order of the stream.
    running: VecDeque<Batch>,
    given: u64,
    /// Tickets of work behind which no event could be recorded: the next event is behind it too.
    loose: Vec<Ticket>,
    /// Modules and graphs, kept until the stream has been waited for.
    kept: Vec<Arc<dyn Any + Send + Sync>>,
}

struct Batch {
    number: u64,
    moment: Arc<CudaMoment>,
    tickets: Vec<Ticket>,
}

impl State {
    /// Takes the batches up to one with this number.
    fn take_until(&mut self, number: u64) -> Vec<Batch> {
        let done = self.running.iter().take_while(|batch| batch.number <= number).count();
        self.running.drain(..done).collect()
    }
}

impl Queue {
    pub(super) fn new(context: Arc<Context>, stream: Arc<CudaStream>, own: bool) -> Arc<Queue> {
        let queue = Arc::new_cyclic(|this| Queue {
            context,
            stream: ManuallyDrop::new(stream),
            own,
            shared: AtomicBool::new(false),
            capturing: AtomicBool::new(false),
            state: Mutex::default(),
            panic: Arc::default(),
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
            self.context.remember_shared(Weak::clone(&self.this));
        }
        &self.stream
    }

    /// Whether this crate captures it now.
    pub(super) fn is_captured(&self) -> bool {
        self.capturing.load(Ordering::Acquire)
    }

    /// Whether somebody else captures it now.
    pub(super) fn is_captured_by_others(&self) -> bool {
        self.shared.load(Ordering::Acquire) && self.is_captured_now()
    }

    /// What the driver says.
    fn is_captured_now(&self) -> bool {
        if calls::in_host_function() {
            return false;
        }
        let mut status = CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE;
        let Ok(_bound) = self.context.bind_unfailing() else { return false };
        // SAFETY: the stream is alive; it is written into a local.
        let asked =
            unsafe { self.context.driver.unfailing().cuStreamIsCapturing(self.raw(), &raw mut status) };
        asked.is_ok() && status != CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE
    }

    /// Refuses `what` while the stream is captured, and in a function that runs on a stream.
    pub(super) fn refuse_in_capture(&self, what: &'static str) -> Result<(), Error> {
        if calls::in_host_function() {
            return Err(Error::InHostFunction { call: what });
        }
        if self.is_captured() || self.is_captured_by_others() {
            return Err(Error::Capturing { what });
        }
        Ok(())
    }

    /// Gives work to the stream and keeps what it uses: the tickets' memory until it has run, what is `kept` until the
    /// stream has been waited for.
    pub(super) fn give(
        &self,
        tickets: Vec<Ticket>,
        kept: Option<Arc<dyn Any + Send + Sync>>,
        work: impl FnOnce(CUstream) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let moment = if tickets.is_empty() { None } else { Some(Unrecorded::new(&self.context)?) };
        let mut state = lock(&self.state);
        work(self.raw())?;
        if let Some(kept) = kept
            && !state.kept.iter().any(|other| Arc::ptr_eq(other, &kept))
        {
            state.kept.push(kept);
        }
        // The work is given and cannot be taken back. Where no event can be put behind it, a later one is behind it too.
        state.loose.extend(tickets);
        for ticket in &state.loose {
            ticket.held_by(Weak::clone(&self.this) as Weak<dyn RawStream>);
        }
        if let Some(moment) = moment
            && let Ok(moment) = moment.record(&self.context.driver, self.raw())
        {
            state.given += 1;
            let (number, tickets) = (state.given, std::mem::take(&mut state.loose));
            state.running.push_back(Batch { number, moment, tickets });
        }
        Ok(())
    }

    /// Keeps what was used by work that somebody else has given to the stream, until that has run.
    pub(super) fn hold(&self, ticket: Ticket) {
        let bound = self.context.bind().ok().filter(|_| self.refuse_in_capture("").is_ok());
        let moment = bound.as_ref().and_then(|_| Unrecorded::new(&self.context).ok());
        ticket.held_by(Weak::clone(&self.this) as Weak<dyn RawStream>);
        let mut state = lock(&self.state);
        state.loose.push(ticket);
        if let Some(Ok(moment)) = moment.map(|moment| moment.record(&self.context.driver, self.raw())) {
            state.given += 1;
            let (number, tickets) = (state.given, std::mem::take(&mut state.loose));
            state.running.push_back(Batch { number, moment, tickets });
        }
    }

    /// Lets go of what finished work held, without waiting.
    pub(super) fn reap(&self) {
        self.context.settle_put_off();
        loop {
            let Some(front) =
                lock(&self.state).running.front().map(|batch| (batch.number, Arc::clone(&batch.moment)))
            else {
                return;
            };
            if !front.1.is_done() {
                return;
            }
            // Dropped outside the lock: the last of a memory's holders frees it.
            let finished = lock(&self.state).take_until(front.0);
            drop(finished);
        }
    }

    /// Waits until all has run, past injected faults.
    fn wait_for_all(&self) {
        let driver = self.context.driver.unfailing();
        let ask = || -> Result<(), Error> {
            let _bound = self.context.bind_unfailing()?;
            // SAFETY: the stream is alive.
            unsafe { driver.cuStreamSynchronize(self.raw()) }
        };
        // Asked twice: an answer may be the error of something else. A driver that goes on refusing has lost the context,
        // and with it the work.
        let _ = ask().or_else(|_| ask());
    }

    /// Everything the stream holds.
    fn take_all(&self) -> (Vec<Ticket>, Vec<Arc<dyn Any + Send + Sync>>) {
        let mut state = lock(&self.state);
        let batches = std::mem::take(&mut state.running);
        let mut tickets = std::mem::take(&mut state.loose);
        tickets.extend(batches.into_iter().flat_map(|batch| batch.tickets));
        (tickets, std::mem::take(&mut state.kept))
    }

    fn call(&self, function: Box<dyn FnOnce() + Send>) -> Result<(), Error> {
        let job = Box::new(Job { function, panic: Arc::clone(&self.panic) });
        let data = Box::into_raw(job);
        let given = self.give(Vec::new(), None, |stream| {
            // SAFETY: the stream is alive, and `run_job` gets the one pointer that it takes back.
            unsafe { self.context.driver.cuLaunchHostFunc(stream, Some(run_job), data.cast::<c_void>()) }
        });
        if given.is_err() {
            // SAFETY: the driver did not take it, so it is still the one made above.
            drop(unsafe { Box::from_raw(data) });
        }
        given
    }

    /// Begins to capture: work given from now on is recorded and does not run.
    pub(super) fn begin_capture(&self) -> Result<(), Error> {
        self.refuse_in_capture("another capture")?;
        self.reap();
        let _bound = self.context.bind()?;
        let mode = CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        unsafe { self.context.driver.cuStreamBeginCapture_v2(self.raw(), mode)? };
        self.capturing.store(true, Ordering::Release);
        self.context.captures.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Ends the capture; the graph is the caller's, with the modules of what was captured.
    #[expect(clippy::type_complexity, reason = "one caller, which takes it apart")]
    pub(super) fn end_capture(
        &self,
    ) -> Result<(Raw<sys::CUgraph_st>, Vec<Arc<dyn Any + Send + Sync>>), Error> {
        if !self.is_captured() {
            return Err(Error::NotCapturing);
        }
        let _bound = self.context.bind()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream is alive; it is written into a local.
        let ended = unsafe { self.context.driver.cuStreamEndCapture(self.raw(), &raw mut graph) };
        // A capture that was spoilt ends with an error, one that could not be ended goes on.
        if ended.is_err() && self.is_captured_now() {
            return ended.map(|()| (Raw(graph), Vec::new()));
        }
        self.capturing.store(false, Ordering::Release);
        self.context.captures.fetch_sub(1, Ordering::AcqRel);
        self.context.settle_put_off();
        ended?;
        // Kept by the stream too: what came before the capture may be among them.
        Ok((Raw(graph), lock(&self.state).kept.clone()))
    }
}

impl RawStream for Queue {
    fn push(&self, op: Op) -> Result<(), Error> {
        self.refuse_in_capture(match op {
            Op::Copy { .. } | Op::Fill { .. } => "work on a region",
            Op::Call(_) => "a function of this process",
            Op::Wait(_) => "waiting for an event",
        })?;
        self.reap();
        let context = &self.context;
        let _bound = context.bind()?;
        let driver = &context.driver;
        match op {
            Op::Copy { len: 0, .. } | Op::Fill { len: 0, .. } => Ok(()),
            Op::Copy { from, to, len, across, keep } => self.give(keep.into(), None, |stream| {
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
            Op::Fill { at, len, value, keep } => self.give(vec![keep], None, |stream| {
                // SAFETY: the ticket keeps the memory, which the driver can reach, until it is filled.
                unsafe { driver.cuMemsetD8Async(at.addr(), value, len, stream) }
            }),
            Op::Call(function) => self.call(function),
            Op::Wait(moment) => match moment.as_cuda() {
                Some(moment) => moment.hold(driver, self.raw()),
                None => Err(Error::OtherDevice { what: "an event" }),
            },
        }
    }

    fn record(&self) -> Result<Arc<dyn Moment>, Error> {
        self.refuse_in_capture("recording an event")?;
        self.reap();
        let _bound = self.context.bind()?;
        Ok(Unrecorded::new(&self.context)?.record(&self.context.driver, self.raw())?)
    }

    fn synchronize(&self) -> Result<(), Error> {
        self.refuse_in_capture("waiting for the stream")?;
        let bound = self.context.bind()?;
        // Taken out first: what others give meanwhile keeps its own, and is not waited for.
        let (last, loose, kept) = {
            let mut state = lock(&self.state);
            (state.given, std::mem::take(&mut state.loose), std::mem::take(&mut state.kept))
        };
        // SAFETY: the stream is alive.
        let waited = unsafe { self.context.driver.cuStreamSynchronize(self.raw()) };
        drop(bound);
        if waited.is_err() {
            let mut state = lock(&self.state);
            state.loose.extend(loose);
            state.kept.extend(kept);
            return waited;
        }
        let finished = lock(&self.state).take_until(last);
        drop((finished, loose, kept));
        self.reap();
        lock(&self.panic).take().map_or(Ok(()), |message| Err(Error::HostFunction { message }))
    }

    fn finish(&self, region: &Pending) -> Result<(), Error> {
        if calls::in_host_function() {
            return Err(Error::InHostFunction { call: "waiting for work on a region" });
        }
        let found = {
            let state = lock(&self.state);
            let holds = |tickets: &[Ticket]| tickets.iter().any(|ticket| ticket.is_of(region));
            if holds(&state.loose) {
                None
            } else {
                let last = state.running.iter().rfind(|batch| holds(&batch.tickets));
                let Some(last) = last else { return Ok(()) };
                Some((last.number, Arc::clone(&last.moment)))
            }
        };
        if let Some((number, moment)) = found {
            moment.wait();
            let finished = lock(&self.state).take_until(number);
            drop(finished);
            return Ok(());
        }
        // Work without an event behind it: waiting for all of the stream is all there is.
        self.wait_for_all();
        let finished = self.take_all();
        drop(finished);
        Ok(())
    }

    fn as_cuda(&self) -> Option<&Queue> {
        Some(self)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.is_captured()
            && let Ok((graph, _)) = self.end_capture()
        {
            self.context.release(Leftover::Graph(graph));
        }
        let waited = !calls::in_host_function();
        if waited {
            self.wait_for_all();
        }
        let (tickets, kept) = self.take_all();
        // SAFETY: it is taken once, here, and nothing uses it afterwards.
        let stream = unsafe { ManuallyDrop::take(&mut self.stream) };
        let abandoned = Abandoned { stream: Some(stream), own: self.own, waited, tickets, kept };
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
