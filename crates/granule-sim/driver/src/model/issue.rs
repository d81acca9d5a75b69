//! Operations on their way into a stream: what they touch, who may, and what they race with.

use super::call::Call;
use super::clock::{Clock, Lane};
use super::events::VainWait;
use super::memory::{Memory, Toucher};
use super::queue::{Action, End, Op};
use super::races::{Races, Trace};
use super::report::Kind;
use super::span::{Place, Span, Touch};
use super::{Caller, Result, Simulation};
use crate::code::Code;
use crate::machine::HostFunction;
use std::collections::HashSet;

impl Simulation {
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
        // A launch that has not run: what it touches is known only then.
        let launches = self.queue.iter().filter(|op| matches!(op.action, Action::Launch(_)));
        let awaited = |lane: Lane, tick: u64| launches.clone().any(|launch| !launch.clock.covers(lane, tick));
        for race in self.races.add(who, clock, traces, later, awaited) {
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
        if let Some(oldest) = self.races.take_forgotten() {
            let message = format!(
                "{} is one operation more than the {} that are kept in mind: races with {oldest}, and from now on with \
                 the oldest that the program has not waited for, are not found",
                who.0,
                Races::MOST
            );
            self.reports.add(Kind::Forgotten, message);
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

fn known(touches: impl IntoIterator<Item = (u64, u64, bool)>) -> Vec<(At, u64, bool)> {
    touches.into_iter().map(|(at, len, write)| (At::Known(at), len, write)).collect()
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
        Action::Gemm(gemm) => known(gemm.touches()),
        Action::Send(exchange) => known(exchange.touches(false)),
        Action::Receive(exchange) => known(exchange.touches(true)),
        Action::Free { start, len } => vec![(At::Known(*start), *len, true)],
        Action::Mark | Action::Call(_) | Action::Launch(_) => Vec::new(),
    }
}
