//! The device's side: an operation's turn has come.

use super::Simulation;
use super::memory::{Spot, Toucher};
use super::queue::{Action, End, Op};
use super::report::Kind;
use super::span::Place;
use crate::code::Code;
use crate::machine::Extent;
use std::collections::BTreeSet;

impl Simulation {
    /// Runs one operation that may run, chosen by the seed. False where there was none.
    pub(crate) fn run_one(&mut self, among: Option<&BTreeSet<u64>>) -> bool {
        let Some((id, op)) = self.queue.take(&mut self.random, among) else { return false };
        let healthy = self.context_health(op.context).is_ok();
        if healthy {
            self.execute(&op);
        }
        self.queue.done(id);
        true
    }

    fn execute(&mut self, op: &Op) {
        if let Some((source, sum)) = op.source
            && source.checksum() != sum
        {
            self.report_reuse(op.call, source.address());
        }
        let changes = self.host_memory_changed_by(op);
        self.check_sources(&changes, false);
        let done = match &op.action {
            Action::Mark => Ok(()),
            Action::Copy { to, from, len } => self.run_copy(op, to, from, *len),
            Action::Fill { to, len, pattern } => self.run_fill(op, *to, *len, pattern),
            Action::Call(function) => {
                self.machine.close();
                function.call();
                Ok(())
            }
            Action::Launch(launch) => self.run_launch(op, launch),
            Action::Gemm(gemm) => self.run_gemm(op, gemm),
            Action::Send(exchange) => self.run_nccl_send(op, exchange),
            Action::Receive(exchange) => self.run_nccl_receive(op, exchange),
            Action::Free { start, .. } => {
                self.drop_allocation(op.call, *start);
                Ok(())
            }
        };
        self.check_sources(&changes, true);
        if let Err(code) = done
            && let Some(context) = self.contexts.get_mut(&op.context)
        {
            context.sticky = Some(code);
        }
    }

    /// The host memory that an operation may write.
    fn host_memory_changed_by(&self, op: &Op) -> Changes {
        let allocation = |at: u64| {
            let a = self.memory.around(at).filter(|a| a.holder.on_host());
            a.map(|a| (a.start, a.len))
        };
        match &op.action {
            Action::Mark | Action::Free { .. } | Action::Send(_) => Changes::Within(Vec::new()),
            Action::Call(_) => Changes::Anything,
            // Whatever its pointers lead to.
            Action::Launch(launch) => Changes::Within(launch.words().filter_map(allocation).collect()),
            Action::Gemm(gemm) => {
                let written = gemm.touches().into_iter().filter(|&(_, _, write)| write);
                Changes::Within(written.filter_map(|(at, ..)| allocation(at)).collect())
            }
            Action::Receive(exchange) => {
                Changes::Within(exchange.touches(true).filter_map(|(at, ..)| allocation(at)).collect())
            }
            Action::Copy { to: End::Known(at), len, .. } | Action::Fill { to: at, len, .. } => {
                Changes::Within(allocation(*at).map(|_| (*at, *len)).into_iter().collect())
            }
            Action::Copy { to: End::Pageable(extent), .. } => {
                Changes::Within(vec![(extent.address(), extent.len())])
            }
            Action::Copy { to: End::Snapshot(_), .. } => Changes::Within(Vec::new()),
        }
    }

    fn report_reuse(&mut self, call: super::Call, at: u64) {
        let message = format!(
            "the host memory at {at:#x} that {call} copies from was changed after the call and before the copy ran"
        );
        self.reports.add(Kind::PinnedReuse, message);
    }

    /// Before an operation that may change host memory, looks whether somebody else did; after it, takes what is there.
    fn check_sources(&mut self, changes: &Changes, accept: bool) {
        if matches!(changes, Changes::Within(ranges) if ranges.is_empty()) {
            return;
        }
        let mut changed = Vec::new();
        for op in self.queue.iter_mut() {
            let Some((source, sum)) = op.source.as_mut().filter(|(source, _)| changes.reach(source)) else {
                continue;
            };
            let now = source.checksum();
            if now != *sum && !accept {
                changed.push((op.call, source.address()));
            }
            *sum = now;
        }
        for (call, at) in changed {
            self.report_reuse(call, at);
        }
    }

    /// The bytes of one end; a report and the device's error where they are gone.
    fn pieces(&mut self, op: &Op, end: &End, len: u64, write: bool) -> Result<Vec<Piece>, Code> {
        let at = match end {
            End::Known(at) => *at,
            End::Pageable(extent) => return Ok(vec![Piece::Host(extent.part(0, len))]),
            End::Snapshot(_) => return Ok(Vec::new()),
        };
        // Whether this device may touch it was asked when the operation was issued.
        let who = Toucher { device: op.device, peers: &[], any_device: true, call: op.call };
        match self.memory.resolve(&self.machine, who, (at, len), write) {
            Ok(spots) => Ok(spots.into_iter().map(Piece::Known).collect()),
            Err(violation) => {
                let doing = if write { "writes to" } else { "reads from" };
                let message = format!("{}, when it runs, {doing} what is gone: {}", op.call, violation.why);
                self.reports.add(violation.kind, message);
                Err(Code::ILLEGAL_ADDRESS)
            }
        }
    }

    /// The bytes at an address that the driver knows.
    pub(crate) fn read_known(&mut self, op: &Op, at: u64, len: u64) -> Result<Vec<u8>, Code> {
        let pieces = self.pieces(op, &End::Known(at), len, false)?;
        Ok(pieces.iter().flat_map(|piece| piece.extent().load()).collect())
    }

    /// Puts bytes at an address that the driver knows: as something to be read, or as remains of what nobody may build on.
    pub(crate) fn write_known(&mut self, op: &Op, at: u64, bytes: &[u8], counts: bool) -> Result<(), Code> {
        let mut from = 0;
        for target in self.pieces(op, &End::Known(at), bytes.len() as u64, true)? {
            let len = target.extent().len();
            target.extent().store(&bytes[from..from + len as usize]);
            from += len as usize;
            if let (Some(shadows), Some((store, start))) = (&mut self.shadows, target.store())
                && let Some(shadow) = shadows.get_mut(store)
            {
                if counts { shadow.set(start, len) } else { shadow.clear(start, len) }
            }
        }
        Ok(())
    }

    /// The first of the bytes that nothing wrote, as far as that is known.
    pub(crate) fn first_unwritten(&mut self, op: &Op, at: u64, len: u64) -> Option<u64> {
        let pieces = self.pieces(op, &End::Known(at), len, false).ok()?;
        let shadows = self.shadows.as_ref()?;
        let mut from = at;
        for piece in pieces {
            let size = piece.extent().len();
            let shadow = piece.store().and_then(|(store, start)| Some((shadows.get(store)?, start)));
            if let Some((shadow, start)) = shadow
                && let Some(unset) = shadow.first_unset(start, size)
            {
                return Some(from + (unset - start));
            }
            from += size;
        }
        None
    }

    fn run_copy(&mut self, op: &Op, to: &End, from: &End, len: u64) -> Result<(), Code> {
        let sources = self.pieces(op, from, len, false)?;
        let targets = self.pieces(op, to, len, true)?;
        match (from, &sources[..], &targets[..]) {
            (End::Snapshot(bytes), _, _) => {
                let mut from = 0;
                for target in &targets {
                    let end = from + target.extent().len() as usize;
                    target.extent().store(&bytes[from..end]);
                    from = end;
                }
            }
            (_, [source], [target]) => target.extent().copy_from(&source.extent()),
            _ => {
                let bytes: Vec<u8> = sources.iter().flat_map(|s| s.extent().load()).collect();
                let mut from = 0;
                for target in &targets {
                    let end = from + target.extent().len() as usize;
                    target.extent().store(&bytes[from..end]);
                    from = end;
                }
            }
        }
        self.note_copy(&sources, &targets, len);
        Ok(())
    }

    /// Written bytes travel with a copy; what comes from the host, granules there included, counts as written.
    fn note_copy(&mut self, sources: &[Piece], targets: &[Piece], len: u64) {
        let Some(shadows) = &mut self.shadows else { return };
        let mut done = 0;
        for target in targets {
            let Some((to_store, to)) = target.store().filter(|(store, _)| *store < shadows.len()) else {
                return;
            };
            let size = target.extent().len();
            match sources {
                [source]
                    if source.store().is_some_and(|(store, _)| store < shadows.len())
                        && source.extent().len() == len =>
                {
                    let (from_store, from) = source.store().unwrap_or_default();
                    if from_store == to_store {
                        shadows[to_store].copy(to, None, from + done, size);
                    } else {
                        let mut own = std::mem::take(&mut shadows[to_store]);
                        own.copy(to, Some(&shadows[from_store]), from + done, size);
                        shadows[to_store] = own;
                    }
                }
                _ => shadows[to_store].set(to, size),
            }
            done += size;
        }
    }

    fn run_fill(&mut self, op: &Op, to: u64, len: u64, pattern: &[u8]) -> Result<(), Code> {
        for target in self.pieces(op, &End::Known(to), len, true)? {
            // Pieces begin at multiples of pages from the fill's start, or there is one: the pattern stays in step.
            target.extent().fill(pattern);
            if let (Some(shadows), Some((store, start))) = (&mut self.shadows, target.store())
                && let Some(shadow) = shadows.get_mut(store)
            {
                shadow.set(start, target.extent().len());
            }
        }
        Ok(())
    }
}

/// Host memory that an operation may write.
#[derive(Debug)]
enum Changes {
    Anything,
    /// Start and length.
    Within(Vec<(u64, u64)>),
}

impl Changes {
    fn reach(&self, memory: &Extent) -> bool {
        let (start, end) = (memory.address(), memory.address().saturating_add(memory.len()));
        match self {
            Changes::Anything => true,
            Changes::Within(ranges) => {
                ranges.iter().any(|&(at, len)| at < end && start < at.saturating_add(len))
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Piece {
    Known(Spot),
    Host(Extent),
}

impl Piece {
    fn extent(&self) -> Extent {
        match self {
            Piece::Known(spot) => spot.extent,
            Piece::Host(extent) => *extent,
        }
    }

    fn store(&self) -> Option<(usize, u64)> {
        match self {
            Piece::Known(Spot { span, .. }) => match span.place {
                Place::Store(store) => Some((store, span.start)),
                Place::Host => None,
            },
            Piece::Host(_) => None,
        }
    }
}
