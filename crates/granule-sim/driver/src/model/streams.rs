//! Streams and events: who waits for whom, and what the host may know.

use super::call::Call;
use super::clock::{Clock, Lane};
use super::memory::{Memory, Toucher};
use super::queue::{Action, End, Op};
use super::races::Trace;
use super::report::Kind;
use super::span::{Place, Span, Touch};
use super::{Caller, Result, Simulation};
use crate::code::Code;
use crate::machine::HostFunction;
use std::collections::HashSet;

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

/// What an event was recorded on.
#[derive(Debug, Clone, Default)]
pub(crate) enum Recorded {
    #[default]
    Never,
    /// The operation, its clock, and when it ran, in milliseconds of the simulated machine's time.
    On { op: u64, clock: Clock },
    /// Nodes of a capture.
    InCapture { capture: u64, nodes: Vec<usize> },
}

#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) context: u64,
    pub(crate) made: Call,
    pub(crate) timed: bool,
    pub(crate) recorded: Recorded,
}

/// A stream's wait for an event that had not been recorded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VainWait {
    lane: Lane,
    /// Operations of the lane before it.
    tick: u64,
    call: Call,
    event: Call,
}

impl VainWait {
    /// How many of the latest are kept, and for how many operations after it a wait is held to be the cause of a race.
    const MOST: usize = 1024;
    const SUSPECTED: u64 = 8;
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
    fn ordered_with(&self, stream: u64) -> Vec<u64> {
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

    /// Appends an operation to a stream, whose touches were resolved; waits additionally for `after`.
    pub(crate) fn push(
        &mut self,
        caller: &Caller,
        stream: u64,
        work: Work,
        after: &[(u64, Clock)],
    ) -> Result<(u64, Clock)> {
        let (context, lane) = self.stream(stream).map(|s| (s.context, s.lane))?;
        let mut clock = self.host.clone();
        let mut before: Vec<u64> = after.iter().map(|(op, _)| *op).collect();
        after.iter().for_each(|(_, c)| clock.join(c));
        for other in self.ordered_with(stream) {
            if let Some(s) = self.streams.get(&other) {
                clock.join(&s.clock);
                before.extend(s.tail);
            }
        }
        let (id, clock) = self.push_on(caller, (context, lane), work, before, clock)?;
        let s = self.stream_mut(stream)?;
        s.tail = Some(id);
        s.clock = clock.clone();
        Ok((id, clock))
    }

    /// Appends an operation to a lane, behind `before`; `clock` is what is certain to be done by then.
    pub(crate) fn push_on(
        &mut self,
        caller: &Caller,
        (context, lane): (u64, Lane),
        work: Work,
        before: Vec<u64>,
        mut clock: Clock,
    ) -> Result<(u64, Clock)> {
        let device = self.contexts.get(&context).ok_or(Code::CONTEXT_IS_DESTROYED)?.device;
        let tick = clock.advance(lane);
        self.check_races((caller.call, lane, tick), &clock, &work.traces, &HashSet::new());
        let behind_call = self.queue.behind_call(&before);
        // A host function may rightly write what a copy behind it reads.
        let source = if behind_call { None } else { self.pinned_source(&work.action) };
        let op = Op {
            call: caller.call,
            context,
            device,
            lane,
            tick,
            clock: clock.clone(),
            after: before,
            action: work.action,
            leases: self.memory.leases.clone(),
            source,
            behind_call,
        };
        Ok((self.queue.push(op), clock))
    }

    /// Reports every operation that races with this one; `following` are operations that come after it.
    pub(crate) fn check_races(
        &mut self,
        who: (Call, Lane, u64),
        clock: &Clock,
        traces: &[Trace],
        following: &HashSet<(Lane, u64)>,
    ) {
        let later = |lane: Lane, tick: u64| following.contains(&(lane, tick));
        for race in self.races.add(who, clock, traces, later) {
            let place = match race.span.place {
                Place::Host => format!("host memory at {:#x}", race.span.start),
                Place::Store(n) if n < self.config.devices => format!("memory of device {n}"),
                Place::Store(_) => "granules on the host".into(),
            };
            let (first, second) = if race.call < who.0 { (race.call, who.0) } else { (who.0, race.call) };
            let message = format!(
                "{first} and {second} touch the same bytes ({} bytes of {place}), one of them writes, and nothing \
                 orders them",
                race.span.len
            );
            self.reports.add(Kind::StreamRace, message);
            for (lane, tick) in [(who.1, who.2), (race.lane, race.tick)] {
                let waits = self.vain_waits.iter().filter(|w| w.lane == lane && w.tick < tick);
                for wait in waits.filter(|w| tick - w.tick <= VainWait::SUSPECTED) {
                    let message = format!(
                        "{} waits for an event ({}) that had not been recorded, which is no wait: {first} and {second} \
                         are in no order",
                        wait.call, wait.event
                    );
                    self.reports.add(Kind::EventNeverRecorded, message);
                }
            }
        }
    }

    /// Issues an operation: into the stream, or into the graph that the stream is capturing.
    pub(crate) fn issue(
        &mut self,
        caller: &Caller,
        stream: u64,
        action: Action,
        any_device: bool,
    ) -> Result<Option<u64>> {
        let context = self.stream(stream)?.context;
        if self.capture_of(stream)?.is_some() {
            // Resolved again at each launch of the graph; here only to refuse what is wrong now.
            self.work(caller.call, context, action.clone(), any_device)?;
            self.capture_node(stream, context, action, any_device)?;
            return Ok(None);
        }
        self.capture_forbids_legacy(stream)?;
        let work = self.work(caller.call, context, action, any_device)?;
        self.push(caller, stream, work, &[]).map(|(id, _)| Some(id))
    }

    /// Resolves what an action touches; a touch that must not be is reported and refused.
    pub(crate) fn work(
        &mut self,
        call: Call,
        context: u64,
        action: Action,
        any_device: bool,
    ) -> Result<Work> {
        let mut traces = Vec::new();
        for (at, len, write) in touches(&action) {
            let at = match at {
                At::Known(at) => at,
                At::Host(at) => {
                    let span = Span { place: Place::Host, start: at, len };
                    traces.push(Trace { touch: Touch { span, write, atomic: false }, at });
                    continue;
                }
            };
            let c = self.contexts.get(&context).ok_or(Code::CONTEXT_IS_DESTROYED)?;
            let who = Toucher { device: c.device, peers: &c.peers, any_device, call };
            let found = self.memory.resolve(&self.machine, who, (at, len), write).and_then(|pieces| {
                let whole = matches!(action, Action::Free { .. });
                let leased = if whole { Ok(()) } else { Memory::leased(&self.memory.leases, at, len) };
                leased.map(|()| pieces)
            });
            match found {
                Ok(pieces) => {
                    let touch = |span| Touch { span, write, atomic: false };
                    traces.extend(pieces.iter().map(|p| Trace { touch: touch(p.span), at: p.at }));
                }
                Err(violation) => {
                    let doing = if write { "writes to" } else { "reads from" };
                    let message = format!("{call} {doing} memory that it must not touch: {}", violation.why);
                    self.reports.add(violation.kind, message);
                    return Err(Memory::code_of(violation.kind));
                }
            }
        }
        Ok(Work { action, traces })
    }

    /// Has the operations run, in some order that the rules allow, and then the host knows that they did.
    pub(crate) fn wait_for(&mut self, targets: &[(Option<u64>, Clock)]) {
        let ids: Vec<u64> = targets.iter().filter_map(|(id, _)| *id).collect();
        let needed = self.queue.with_ancestors(ids.iter().copied());
        let lazy = self.random.coin();
        while ids.iter().any(|id| self.queue.is_pending(*id)) {
            if !self.run_one(lazy.then_some(&needed)) {
                break;
            }
        }
        self.machine.close();
        for (_, clock) in targets {
            self.host.join(clock);
        }
        self.settle();
    }

    /// Forgets what the host knows to be done.
    fn settle(&mut self) {
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

    fn known_done(&mut self, op: Option<u64>, clock: &Clock) -> Result<()> {
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

    fn event(&mut self, caller: &Caller, handle: u64) -> Result<&Event> {
        if !self.events.contains_key(&handle) {
            return self.bad_handle(caller, "event", handle);
        }
        self.events.get(&handle).ok_or(Code::INVALID_HANDLE)
    }

    pub(crate) fn new_event(&mut self, caller: &Caller, timed: bool) -> Result<u64> {
        let context = self.context(caller)?;
        let handle = self.new_handle();
        let event = Event { context, made: caller.call, timed, recorded: Recorded::Never };
        self.events.insert(handle, event);
        Ok(handle)
    }

    pub(crate) fn destroy_event(&mut self, caller: &Caller, handle: u64) -> Result<()> {
        self.event(caller, handle)?;
        self.events.remove(&handle);
        Ok(())
    }

    pub(crate) fn record_event(&mut self, caller: &Caller, handle: u64, stream: u64) -> Result<()> {
        let event_context = self.event(caller, handle)?.context;
        if event_context != self.stream(stream)?.context {
            return Err(Code::INVALID_HANDLE);
        }
        let recorded = match self.capture_of(stream)? {
            Some(capture) => Recorded::InCapture { capture, nodes: self.capture_frontier(capture, stream)? },
            None => {
                self.capture_forbids_legacy(stream)?;
                let (op, clock) = self.push(caller, stream, Work::mark(), &[])?;
                Recorded::On { op, clock }
            }
        };
        if let Some(event) = self.events.get_mut(&handle) {
            event.recorded = recorded;
        }
        Ok(())
    }

    pub(crate) fn wait_event(&mut self, caller: &Caller, stream: u64, handle: u64) -> Result<()> {
        let event = self.event(caller, handle)?;
        let (made, recorded) = (event.made, event.recorded.clone());
        match recorded {
            Recorded::InCapture { capture, nodes } => self.capture_join(stream, capture, &nodes),
            Recorded::Never => {
                // Defined to do nothing, and done on purpose by some (cudarc waits for everything that might have been
                // recorded): a bug only where the order is missed.
                let s = self.stream(stream)?;
                let wait =
                    VainWait { lane: s.lane, tick: s.clock.tick(s.lane), call: caller.call, event: made };
                if self.vain_waits.len() == VainWait::MOST {
                    self.vain_waits.pop_front();
                }
                self.vain_waits.push_back(wait);
                Ok(())
            }
            Recorded::On { op, clock } => {
                if self.capture_of(stream)?.is_some() {
                    return self.capture_breaks(stream, Code::STREAM_CAPTURE_ISOLATION);
                }
                self.capture_forbids_legacy(stream)?;
                self.push(caller, stream, Work::mark(), &[(op, clock)]).map(|_| ())
            }
        }
    }

    pub(crate) fn query_event(&mut self, caller: &Caller, handle: u64) -> Result<()> {
        let event = self.event(caller, handle)?;
        let (context, recorded) = (event.context, event.recorded.clone());
        match recorded {
            Recorded::Never => Ok(()),
            Recorded::InCapture { .. } => Err(Code::CAPTURED_EVENT),
            Recorded::On { op, clock } => {
                self.let_time_pass();
                self.context_health(context)?;
                self.known_done(Some(op), &clock)
            }
        }
    }

    pub(crate) fn synchronize_event(&mut self, caller: &Caller, handle: u64) -> Result<()> {
        let event = self.event(caller, handle)?;
        let (context, made, recorded) = (event.context, event.made, event.recorded.clone());
        match recorded {
            Recorded::Never => {
                let message = format!("{} waits for an event ({made}) that was never recorded", caller.call);
                self.reports.add(Kind::EventNeverRecorded, message);
                Ok(())
            }
            Recorded::InCapture { .. } => Err(Code::CAPTURED_EVENT),
            Recorded::On { op, clock } => {
                self.wait_for(&[(Some(op), clock)]);
                self.context_health(context)
            }
        }
    }

    /// Milliseconds between two events that are done: a made-up time, never negative, 0 for the same event.
    pub(crate) fn elapsed(&mut self, caller: &Caller, from: u64, to: u64) -> Result<f32> {
        let mut at = [0; 2];
        for (place, handle) in at.iter_mut().zip([from, to]) {
            let event = self.event(caller, handle)?;
            let op = match (&event.recorded, event.timed) {
                (Recorded::On { op, .. }, true) => *op,
                _ => return Err(Code::INVALID_HANDLE),
            };
            if self.queue.is_pending(op) {
                return Err(Code::NOT_READY);
            }
            *place = op;
        }
        Ok(at[1].saturating_sub(at[0]) as f32 * 0.001)
    }

    /// A function of the program in stream order.
    pub(crate) fn launch_host_function(
        &mut self,
        caller: &Caller,
        stream: u64,
        function: HostFunction,
    ) -> Result<()> {
        self.issue(caller, stream, Action::Call(function), false).map(|_| ())
    }
}

/// An action whose touches are resolved.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) action: Action,
    pub(crate) traces: Vec<Trace>,
}

impl Work {
    pub(crate) fn mark() -> Work {
        Work { action: Action::Mark, traces: Vec::new() }
    }
}

enum At {
    Known(u64),
    Host(u64),
}

/// What an action is known to touch: where, how many bytes, writing or not. Launches say nothing: their accesses are
/// seen when they run.
fn touches(action: &Action) -> Vec<(At, u64, bool)> {
    match action {
        Action::Copy { to, from, len } => [(to, true), (from, false)]
            .into_iter()
            .filter_map(|(end, write)| match end {
                End::Known(at) => Some((At::Known(*at), *len, write)),
                End::Pageable(extent) => Some((At::Host(extent.address()), *len, write)),
                End::Snapshot(_) => None,
            })
            .collect(),
        Action::Fill { to, len, .. } => vec![(At::Known(*to), *len, true)],
        Action::Free { start, len } => vec![(At::Known(*start), *len, true)],
        Action::Mark | Action::Call(_) | Action::Launch(_) => Vec::new(),
    }
}
