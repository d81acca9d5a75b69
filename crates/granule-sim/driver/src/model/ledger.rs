//! What is held: for the test that asks, and for the report when a context goes or the process ends.

use super::Simulation;
use super::call::Call;
use super::memory::Holder;
use super::report::Kind;

/// One thing that the program holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// What it is: `allocation`, `stream`, …
    pub(crate) what: &'static str,
    pub(crate) made: Call,
    /// Bytes, where it has any.
    pub(crate) bytes: u64,
    /// The context that it goes with; `None` for what belongs to the process.
    context: Option<u64>,
}

impl Simulation {
    /// Everything that the program holds, in the order in which it was made.
    pub(crate) fn held_things(&self) -> Vec<Held> {
        let mut held = Vec::new();
        let mut add = |what, made, bytes, context| held.push(Held { what, made, bytes, context });
        for (handle, c) in &self.contexts {
            add("context", c.made, 0, Some(*handle));
        }
        for a in self.memory.live.values().filter(|a| a.freed.is_none()) {
            let what = match a.holder {
                Holder::Device => "allocation",
                Holder::Pool(_) => "stream-ordered allocation",
                Holder::Managed => "managed allocation",
                Holder::Pinned(_) => "pinned allocation",
                Holder::Registered(_) => "registration",
            };
            add(what, a.made, a.len, Some(a.context));
        }
        for s in self.streams.values().filter(|s| !s.default && !s.destroyed) {
            add("stream", s.made, 0, Some(s.context));
        }
        for e in self.events.values() {
            add("event", e.made, 0, Some(e.context));
        }
        for m in self.modules.values() {
            add("module", m.made, 0, Some(m.context));
        }
        for b in self.blas.values() {
            add("handle of cuBLAS", b.made, 0, Some(b.context));
        }
        for c in self.nccl.comms.values() {
            add("communicator of NCCL", c.made, 0, Some(c.context));
        }
        for p in self.pools.values().filter(|p| !p.default) {
            add("pool", p.made, 0, None);
        }
        for g in self.graphs.values() {
            add("graph", g.made, 0, None);
        }
        for e in self.executables.values() {
            add("executable graph", e.made, 0, None);
        }
        for r in self.memory.granules.reservations.values() {
            add("reservation", r.made, r.len, None);
        }
        for h in self.memory.granules.handles.values().filter(|h| h.held > 0) {
            add("handle", h.made, h.len, None);
        }
        for m in self.memory.granules.mappings.values() {
            add("mapping", m.made, m.len, None);
        }
        for (_, len, made) in self.memory.leases.all() {
            add("lease", made, len, None);
        }
        held.sort_by_key(|h| h.made);
        held
    }

    /// Reports what a context takes with it; with the last one, also what belongs to no context.
    pub(crate) fn report_leaks(&mut self, at: Call, context: u64) {
        if self.context_health(context).is_err() {
            // After the device's error nothing can be given back in any case.
            return;
        }
        let last = self.contexts.len() == 1;
        for held in self.held_things() {
            let goes = held.context == Some(context) || held.context.is_none() && last;
            if goes && held.what != "context" {
                self.report_leak(&held, &format!("at {at}"));
            }
        }
    }

    /// Reports everything that is held when the process ends.
    pub(crate) fn report_leaks_at_exit(&mut self) {
        for held in self.held_things() {
            let sick = held.context.is_some_and(|c| self.context_health(c).is_err());
            if !sick {
                self.report_leak(&held, "at the end of the process");
            }
        }
    }

    fn report_leak(&mut self, held: &Held, when: &str) {
        if !self.leaks.insert((held.made, held.what)) {
            return;
        }
        let size = if held.bytes > 0 { format!(" of {} bytes", held.bytes) } else { String::new() };
        let message = format!("still held {when}: {}{size}, made by {}", held.what, held.made);
        self.reports.add(Kind::LeakAtContextRelease, message);
    }
}
