//! Streams: who waits for whom, and what the host may know.

use super::call::Call;
use super::clock::{Clock, Lane};
use super::report::Kind;
use super::{Caller, Result, Simulation};
use crate::code::Code;

/// A queue of operations.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) context: u64,
    pub(crate) made: Call,
    /// `CU_STREAM_NON_BLOCKING`: no order with the legacy default stream.
    pub(crate) free: bool,
    pub(crate) priority: i32,
    /// A default stream: nobody created it, nobody destroys it.
    pub(crate) default: bool,
    pub(crate) lane: Lane,
    pub(crate) tail: Option<u64>,
    pub(crate) clock: Clock,
    pub(crate) capture: Option<u64>,
    /// Destroyed; it stays here until the host knows that its work is done.
    pub(crate) destroyed: bool,
}

/// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD`.
const LEGACY: u64 = 1;
const PER_THREAD: u64 = 2;

impl Simulation {
    /// The stream that a handle means to this caller.
    pub(crate) fn stream_of(&mut self, caller: &Caller, handle: u64) -> Result<u64> {
        let key = match handle {
            0 | LEGACY => None,
            PER_THREAD => Some(caller.thread),
            _ if self.streams.get(&handle).is_some_and(|s| !s.destroyed) => return Ok(handle),
            _ => return self.bad_handle(caller, "stream", handle),
        };
        let context = self.context(caller)?;
        let known = self.contexts.get(&context).and_then(|c| c.default_streams.get(&key)).copied();
        if let Some(stream) = known {
            return Ok(stream);
        }
        let stream = self.new_stream(caller.call, context, false, 0, true);
        if let Some(c) = self.contexts.get_mut(&context) {
            c.default_streams.insert(key, stream);
        }
        Ok(stream)
    }

    pub(crate) fn create_stream(&mut self, caller: &Caller, free: bool, priority: i32) -> Result<u64> {
        let context = self.context(caller)?;
        Ok(self.new_stream(caller.call, context, free, priority, false))
    }

    fn new_stream(&mut self, made: Call, context: u64, free: bool, priority: i32, default: bool) -> u64 {
        let handle = self.new_handle();
        let stream = Stream {
            context,
            made,
            free,
            priority,
            default,
            lane: Lane(handle),
            tail: None,
            clock: Clock::default(),
            capture: None,
            destroyed: false,
        };
        self.streams.insert(handle, stream);
        handle
    }

    pub(crate) fn stream(&self, stream: u64) -> Result<&Stream> {
        self.streams.get(&stream).ok_or(Code::INVALID_HANDLE)
    }

    pub(crate) fn stream_mut(&mut self, stream: u64) -> Result<&mut Stream> {
        self.streams.get_mut(&stream).ok_or(Code::INVALID_HANDLE)
    }

    pub(crate) fn is_legacy(&self, stream: u64) -> bool {
        self.streams
            .get(&stream)
            .and_then(|s| self.contexts.get(&s.context))
            .is_some_and(|c| c.default_streams.get(&None) == Some(&stream))
    }

    /// Streams whose work comes before the next operation of `stream`: itself, and what the legacy default stream's
    /// rule adds.
    pub(super) fn ordered_with(&self, stream: u64) -> Vec<u64> {
        let mut with = vec![stream];
        let Some(s) = self.streams.get(&stream) else { return with };
        if self.is_legacy(stream) {
            let blocking = self.streams.iter().filter(|(_, o)| o.context == s.context && !o.free);
            with.extend(blocking.map(|(&id, _)| id).filter(|&id| id != stream));
        } else if !s.free {
            let legacy = self.contexts.get(&s.context).and_then(|c| c.default_streams.get(&None));
            with.extend(legacy);
        }
        with
    }

    /// Has the operations run, in some order that the rules allow, and then the host knows that they did. Who can be asked again has
    /// seen to it that they can run ([`Simulation::run_first`]); of the others, one that waits for a rank of NCCL that has not come is
    /// reported, and stays where it is.
    pub(crate) fn wait_for(&mut self, targets: &[(Option<u64>, Clock)]) {
        if self.run_to(targets.iter().filter_map(|(id, _)| *id).collect()).is_err() {
            let message = "a call that is no synchronization waits for work that waits for another rank of NCCL, which has \
                           not come: not simulated";
            self.reports.add(Kind::BadArguments, message.to_owned());
        }
        for (_, clock) in targets {
            self.host.join(clock);
        }
        self.settle();
    }

    /// Has everything in some streams run, without the host knowing: a wait that no document promises.
    /// [`Code::UNMET`] where some of it waits for a rank of NCCL that has not come.
    pub(crate) fn run_streams(&mut self, which: impl Fn(&Stream) -> bool) -> Result<()> {
        self.run_to(self.streams.values().filter(|s| which(s)).filter_map(|s| s.tail).collect())
    }

    fn run_to(&mut self, ids: Vec<u64>) -> Result<()> {
        let needed = self.queue.with_ancestors(ids.iter().copied());
        let lazy = self.random.coin();
        while ids.iter().any(|id| self.queue.is_pending(*id)) {
            if !self.run_one(lazy.then_some(&needed)) {
                break;
            }
        }
        self.machine.close();
        if ids.iter().any(|id| self.queue.is_pending(*id)) { Err(Code::UNMET) } else { Ok(()) }
    }

    /// Forgets what the host knows to be done.
    pub(super) fn settle(&mut self) {
        self.races.settle(&self.host, self.queue.iter().map(|op| &op.clock));
        let host = &self.host;
        self.streams.retain(|_, s| !s.destroyed || !host.covers_all(&s.clock));
    }

    /// As [`Simulation::wait_for`], for everything in some streams.
    pub(crate) fn wait_for_streams(&mut self, which: impl Fn(&Stream) -> bool) {
        let targets: Vec<_> =
            self.streams.values().filter(|s| which(s)).map(|s| (s.tail, s.clock.clone())).collect();
        self.wait_for(&targets);
    }

    /// Has an operation run: [`Code::UNMET`] where it waits for a rank of NCCL that has not come, and the caller is to try again.
    pub(crate) fn run_first(&mut self, op: Option<u64>) -> Result<()> {
        if self.nccl.comms.is_empty() { Ok(()) } else { self.run_to(op.into_iter().collect()) }
    }

    /// Runs none, one or a few operations: what a device does while the host looks elsewhere.
    pub(crate) fn let_time_pass(&mut self) {
        for _ in 0..self.random.below(4) {
            self.run_one(None);
        }
        self.machine.close();
    }

    pub(crate) fn synchronize_stream(&mut self, stream: u64) -> Result<()> {
        self.refuse_if_capturing(stream)?;
        let s = self.stream(stream)?;
        let (context, target) = (s.context, (s.tail, s.clock.clone()));
        self.run_first(target.0)?;
        self.wait_for(&[target]);
        self.context_health(context)
    }

    pub(crate) fn query_stream(&mut self, stream: u64) -> Result<()> {
        self.refuse_if_capturing(stream)?;
        self.let_time_pass();
        let s = self.stream(stream)?;
        let (context, tail, clock) = (s.context, s.tail, s.clock.clone());
        self.context_health(context)?;
        self.known_done(tail, &clock)
    }

    pub(super) fn known_done(&mut self, op: Option<u64>, clock: &Clock) -> Result<()> {
        if op.is_some_and(|op| self.queue.is_pending(op)) {
            return Err(Code::NOT_READY);
        }
        self.host.join(clock);
        self.settle();
        Ok(())
    }

    pub(crate) fn destroy_stream(&mut self, stream: u64) -> Result<()> {
        if self.stream(stream)?.default {
            return Err(Code::INVALID_HANDLE);
        }
        self.end_capture_of_destroyed(stream);
        // "The call returns immediately, and the resources go when the work is done."
        self.stream_mut(stream)?.destroyed = true;
        self.settle();
        Ok(())
    }
}
