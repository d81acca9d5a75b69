//! Leases: announced, poisoned, ended.

use super::Simulation;
use super::call::Call;
use super::leases::Refused;
use super::memory::Memory;
use super::report::Kind;
use super::span::Place;
use crate::machine::Extent;

impl Simulation {
    /// Notes a suballocation; false and a report where it cannot be one.
    pub(crate) fn lease(&mut self, call: Call, at: u64, len: u64) -> bool {
        let Some(ground) = self.memory.ground(at) else {
            let why = self.memory.nothing_at(at).why;
            self.reports.add(Kind::BadArguments, format!("{call}: no memory for a lease: {why}"));
            return false;
        };
        match self.memory.leases.add(ground, at, len, call) {
            Ok(()) => {
                self.forget_contents(at, len);
                self.poison(at, len, Memory::FRESH);
                true
            }
            Err(refused) => {
                let why = match refused {
                    Refused::Empty => "it is empty".to_owned(),
                    Refused::Overlaps(other) => format!("it overlaps the lease of {other}"),
                    Refused::LeavesItsAllocation => "it leaves its allocation".to_owned(),
                };
                let message = format!("{call}: no lease of {len} bytes at {at:#x}: {why}");
                self.reports.add(Kind::BadArguments, message);
                false
            }
        }
    }

    /// Ends the suballocation that begins at `at`; false where there is none.
    pub(crate) fn unlease(&mut self, at: u64) -> bool {
        let Some(len) = self.memory.leases.remove(at) else { return false };
        self.poison(at, len, Memory::FREED);
        true
    }

    /// What lies at these addresses now, as far as something does.
    fn extents(&self, at: u64, len: u64) -> Vec<(Option<(usize, u64)>, Extent)> {
        if let Some(a) = self.memory.around(at) {
            let from = at - a.start;
            let store = match a.span.place {
                Place::Store(store) => Some((store, a.span.start + from)),
                Place::Host => None,
            };
            return vec![(store, a.extent.part(from, len))];
        }
        let mut found = Vec::new();
        let mut next = at;
        let end = at + len;
        while next < end {
            let Some(m) = self.memory.granules.mapping(next) else {
                // A hole of a reservation: on to the next mapping.
                let following = self.memory.granules.mappings.range(next..end).next();
                next = following.map_or(end, |(&start, _)| start);
                continue;
            };
            let offset = m.offset + (next - m.start);
            let part = (m.start + m.len).min(end) - next;
            found.push((Some((m.store, offset)), self.machine.extent(m.store, offset, part)));
            next += part;
        }
        found
    }

    /// Nobody wrote a new lease's bytes yet.
    fn forget_contents(&mut self, at: u64, len: u64) {
        let extents = self.extents(at, len);
        if let Some(shadows) = &mut self.shadows {
            for (store, extent) in extents {
                if let Some((store, start)) = store
                    && let Some(shadow) = shadows.get_mut(store)
                {
                    shadow.clear(start, extent.len());
                }
            }
        }
    }

    /// Overwrites a lease's bytes, unless work is queued: in stream order that work may still own them.
    fn poison(&mut self, at: u64, len: u64, byte: u8) {
        if self.queue.is_empty() {
            self.extents(at, len).iter().for_each(|(_, extent)| extent.fill(&[byte]));
        }
    }
}
