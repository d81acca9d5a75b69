//! Events: what they were recorded on, and who waits for them.

use super::call::Call;
use super::clock::{Clock, Lane};
use super::issue::Work;
use super::{Caller, Result, Simulation};
use crate::code::Code;

/// What an event was recorded on.
#[derive(Debug, Clone, Default)]
pub(crate) enum Recorded {
    #[default]
    Never,
    /// The operation that stands for it, and what is certain to be done once that is.
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
    pub(super) lane: Lane,
    /// Operations of the lane before it.
    pub(super) tick: u64,
    pub(super) call: Call,
    pub(super) event: Call,
}

impl VainWait {
    /// How many of the latest are kept, and for how many operations after it a wait is held to be the cause of a race.
    const MOST: usize = 1024;
    pub(super) const SUSPECTED: u64 = 8;
}

impl Simulation {
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
        self.forbid_while_capturing(caller)?;
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
        let (context, recorded) = (event.context, event.recorded.clone());
        self.forbid_while_capturing(caller)?;
        match recorded {
            // Done already, by definition: cudarc waits like this for pinned memory that nothing used.
            Recorded::Never => Ok(()),
            Recorded::InCapture { .. } => Err(Code::CAPTURED_EVENT),
            Recorded::On { op, clock } => {
                self.run_first(Some(op))?;
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
}
