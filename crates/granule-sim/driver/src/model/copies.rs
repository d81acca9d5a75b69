//! Copies and fills: which of them wait, which take the program's bytes at once, and which come back for them later.

use super::memory::Holder;
use super::queue::{Action, End};
use super::{Caller, Result, Simulation};
use crate::code::Code;
use crate::machine::Extent;

/// What a copy call promises about time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manner {
    /// The `…Async` calls.
    Async,
    /// The others: they wait as the documentation's table of synchronization behaviour says.
    Blocking,
}

impl Simulation {
    /// Whether the driver knows this address: allocated, registered, reserved, or gone a short while ago.
    fn is_known(&self, at: u64) -> bool {
        self.memory.around(at).is_some()
            || self.memory.granules.reservation(at).is_some()
            || self.memory.gone.find(at).is_some()
            || (0..=self.config.devices).any(|store| self.machine.is_front(store, at))
    }

    /// One end of a copy that the call describes as program memory, or as either.
    fn end(&self, memory: Extent) -> End {
        if self.is_known(memory.address()) { End::Known(memory.address()) } else { End::Pageable(memory) }
    }

    fn is_on_host(&self, end: &End) -> bool {
        match end {
            End::Known(at) => self.memory.around(*at).is_some_and(|a| a.holder.on_host()),
            End::Pageable(_) | End::Snapshot(_) => true,
        }
    }

    /// Copies `len` bytes. Ends that are known memory are named by address, others by their extent.
    pub(crate) fn copy(
        &mut self,
        caller: &Caller,
        stream: u64,
        (to, from): (Extent, Extent),
        manner: Manner,
        any_device: bool,
    ) -> Result<()> {
        let len = to.len().min(from.len());
        let (to, from) = (self.end(to), self.end(from));
        if manner == Manner::Blocking {
            self.refuse_if_capturing(stream)?;
            self.capture_forbids_legacy(stream)?;
        }
        if len == 0 {
            return Ok(());
        }
        if self.capture_of(stream)?.is_some() {
            return self.issue(caller, stream, Action::Copy { to, from, len }, any_device).map(|_| ());
        }
        let to_pageable = matches!(to, End::Pageable(_));
        let both_on_host = self.is_on_host(&to) && self.is_on_host(&from);
        let wait = match manner {
            Manner::Async => to_pageable || both_on_host,
            Manner::Blocking => {
                self.is_on_host(&to) || matches!(from, End::Known(_)) && self.is_on_host(&from)
            }
        };
        let from = match from {
            End::Pageable(extent) => {
                // Where it leads is looked at before the program's bytes are: a length may be anything.
                let context = self.stream(stream)?.context;
                let action = Action::Copy { to: to.clone(), from: End::Pageable(extent), len };
                self.work(caller.call, context, action, any_device)?;
                if manner == Manner::Blocking {
                    // "A stream sync is performed before the copy is initiated", and none after it.
                    self.synchronize_stream(stream)?;
                }
                End::Snapshot(extent.part(0, len).load().into())
            }
            other => other,
        };
        let op = self.issue(caller, stream, Action::Copy { to, from, len }, any_device)?;
        if wait {
            let s = self.stream(stream)?;
            let (context, clock) = (s.context, s.clock.clone());
            self.wait_for(&[(op, clock)]);
            self.context_health(context)?;
        }
        Ok(())
    }

    /// Fills `count` elements at `to` with a pattern of 1, 2 or 4 bytes.
    pub(crate) fn fill(
        &mut self,
        caller: &Caller,
        stream: u64,
        to: u64,
        pattern: &[u8],
        count: u64,
        manner: Manner,
    ) -> Result<()> {
        if manner == Manner::Blocking {
            self.refuse_if_capturing(stream)?;
            self.capture_forbids_legacy(stream)?;
        }
        let width = pattern.len() as u64;
        let len = count.checked_mul(width).ok_or(Code::INVALID_VALUE)?;
        if !to.is_multiple_of(width) {
            return Err(Code::INVALID_VALUE);
        }
        if len == 0 {
            return Ok(());
        }
        let on_host = self.is_on_host(&End::Known(to));
        let op = self.issue(caller, stream, Action::Fill { to, len, pattern: pattern.to_vec() }, false)?;
        if manner == Manner::Blocking && on_host {
            let clock = self.stream(stream)?.clock.clone();
            self.wait_for(&[(op, clock)]);
        }
        Ok(())
    }

    /// What a copy will read from pinned memory, and what that holds now, so that a change before the copy runs is seen.
    pub(crate) fn pinned_source(&self, action: &Action) -> Option<(Extent, u64)> {
        let Action::Copy { from: End::Known(at), len, .. } = action else { return None };
        let a = self.memory.around(*at)?;
        let extent = a.extent.part(at - a.start, *len);
        matches!(a.holder, Holder::Pinned(_) | Holder::Registered(_)).then(|| (extent, extent.checksum()))
    }
}
