//! Launches of emulated kernels: what is checked at the call, and what is watched while the kernel runs.

use super::byte_set::ByteSet;
use super::memory::{Allocation, Holder, Memory, Spot, Toucher, Violation};
use super::modules::Function;
use super::queue::{Action, Op};
use super::races::Trace;
use super::report::Kind;
use super::span::{Place, Touch};
use super::{Caller, Result, Simulation};
use crate::code::Code;
use crate::emulator::{Access, End, Kernel, Shape};
use crate::machine::Machine;
use std::sync::Arc;

/// A launch, with its parameters as they were when the call was made.
#[derive(Debug)]
pub(crate) struct Launch {
    name: String,
    kernel: Option<Kernel>,
    shape: Shape,
    parameters: Vec<Vec<u8>>,
}

impl Launch {
    /// Every word of the parameters that could be a pointer.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        let words = self.parameters.iter().flat_map(|p| p.chunks_exact(8));
        words.filter_map(|w| w.try_into().ok().map(u64::from_ne_bytes))
    }
}

impl Simulation {
    /// Whether the driver takes a launch of this shape.
    fn check_shape(&self, f: &Function, shape: &Shape, cooperative: bool) -> Result<()> {
        let Shape { grid: [gx, gy, gz], block: [x, y, z], shared } = *shape;
        let most = f.entry.most_threads.unwrap_or(1024).min(1024);
        let threads = u64::from(x) * u64::from(y) * u64::from(z);
        let fits = gx > 0
            && gx <= i32::MAX as u32
            && (1..=65_535).contains(&gy)
            && (1..=65_535).contains(&gz)
            && x <= 1024
            && y <= 1024
            && z <= 64
            && (1..=u64::from(most)).contains(&threads)
            && shared <= f.most_dynamic_shared.max(Self::SHARED_MEMORY.saturating_sub(f.entry.shared));
        if !fits {
            return Err(Code::INVALID_VALUE);
        }
        let resident = u64::from(Self::MULTIPROCESSORS) * u64::from(Self::THREADS_A_MULTIPROCESSOR) / threads;
        if cooperative && u64::from(gx) * u64::from(gy) * u64::from(gz) > resident {
            return Err(Code::COOPERATIVE_LAUNCH_TOO_LARGE);
        }
        Ok(())
    }

    /// Bytes of each parameter of a function.
    pub(crate) fn parameter_sizes(&mut self, caller: &Caller, function: u64) -> Result<Vec<u32>> {
        Ok(self.function(caller, function)?.entry.parameters.clone())
    }

    pub(crate) fn launch(
        &mut self,
        caller: &Caller,
        stream: u64,
        function: u64,
        shape: Shape,
        parameters: Vec<Vec<u8>>,
        cooperative: bool,
    ) -> Result<()> {
        self.context(caller)?;
        let f = self.function(caller, function)?.clone();
        if self.stream(stream)?.context != f.context {
            return Err(Code::INVALID_HANDLE);
        }
        self.check_shape(&f, &shape, cooperative)?;
        if f.kernel.is_none() {
            let message =
                format!("{} launches {}, and GRANULE_SIM_KERNELS names no library", caller.call, f.name);
            self.reports.add(Kind::BadArguments, message);
            return Err(Code::NOT_SUPPORTED);
        }
        let launch = Launch { name: f.name, kernel: f.kernel, shape, parameters };
        self.issue(caller, stream, Action::Launch(Arc::new(launch)), false).map(|_| ())
    }

    /// Runs a kernel; what it does wrong is reported, and the device's error is the answer.
    pub(crate) fn run_launch(&mut self, op: &Op, launch: &Launch) -> std::result::Result<(), Code> {
        let Some(kernel) = launch.kernel else { return Ok(()) };
        let peers = self.contexts.get(&op.context).map_or_else(Vec::new, |c| c.peers.clone());
        self.open_memory(op, &peers);
        let seed = self.random.next() | 1;
        let mut watch = Watch {
            machine: &self.machine,
            memory: &self.memory,
            shadows: self.shadows.as_mut(),
            op,
            peers: &peers,
            recent: [None; 4],
            oldest: 0,
            touched: [ByteSet::default(), ByteSet::default(), ByteSet::default()],
            wrong: None,
        };
        let (end, said) = self
            .kernels
            .run(&kernel, launch.shape, seed, &launch.parameters, &mut |access| watch.allows(access));
        let Watch { touched, wrong, .. } = watch;
        self.note_touched(op, &peers, &touched);
        let who = format!("{} in {}", launch.name, op.call);
        if let Some((kind, why)) = wrong {
            self.reports.add(kind, format!("{who}: {why}"));
        }
        if !self.kernels.shows_accesses(&kernel) {
            self.check_red_zones(op.call, None);
        }
        let (kind, code) = match end {
            End::Fine => return Ok(()),
            End::Refused => return Err(Code::ILLEGAL_ADDRESS),
            End::IllegalAddress => {
                let violation = self.explain_fault(op, &said);
                self.reports.add(violation.kind, format!("{who}: {said}; {}", violation.why));
                return Err(Code::ILLEGAL_ADDRESS);
            }
            End::BarrierDivergence => (Kind::BarrierDivergence, Code::LAUNCH_FAILED),
            End::SharedRace => (Kind::SharedRace, Code::LAUNCH_FAILED),
            End::UninitializedShared => (Kind::UninitializedRead, Code::LAUNCH_FAILED),
            End::Trap => (Kind::KernelTrap, Code::ASSERT),
            End::BadLaunch => (Kind::BadArguments, Code::LAUNCH_FAILED),
        };
        self.reports.add(kind, format!("{who}: {said}"));
        Err(code)
    }

    /// What lies at the address where the processor stopped a kernel; the emulator's message names it.
    fn explain_fault(&self, op: &Op, said: &str) -> Violation {
        let digits = said.split("0x").nth(1).map(|rest| rest.split(|c: char| !c.is_ascii_hexdigit()).next());
        let at = digits.flatten().and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let Some(at) = at else {
            return Violation { kind: Kind::OutsideMapping, why: "nobody knows where".into() };
        };
        let peers = self.contexts.get(&op.context).map_or(&[][..], |c| &c.peers);
        let who = Toucher { device: op.device, peers, any_device: false, call: op.call };
        match self.memory.spot(&self.machine, who, at) {
            Err(violation) => violation,
            Ok(spot) if !spot.writable => Violation {
                kind: Kind::WriteThroughReadOnly,
                why: format!("{at:#x} is mapped to be read only"),
            },
            Ok(_) => {
                Violation { kind: Kind::OutOfBounds, why: format!("the access leaves what lies at {at:#x}") }
            }
        }
    }

    /// Opens what a kernel on a device may reach, and nothing else.
    fn open_memory(&mut self, op: &Op, peers: &[usize]) {
        let device = op.device;
        let reached = |a: &&Allocation| match a.holder {
            Holder::Device => a.device == device || peers.contains(&a.device),
            Holder::Pool(pool) => a.device == device || self.memory.pool_access.contains(&(pool, device)),
            Holder::Managed | Holder::Pinned(_) | Holder::Registered(_) => false,
        };
        let plain = self.memory.live.values().filter(reached).map(|a| (a.start, a.len, true));
        let mapped = self.memory.granules.mappings.values().filter_map(|m| {
            let access = m.access_of_device(device);
            let host_is_in = m.access.iter().any(|((kind, _), flags)| *kind != 1 && *flags != 0);
            let in_time = m.made.number < op.call.number;
            (access != 0 && !host_is_in && in_time).then_some((m.start, m.len, access & 2 != 0))
        });
        self.machine.close();
        self.machine.open(plain.chain(mapped));
    }

    /// What a checked kernel touched takes part in the happens-before check.
    fn note_touched(&mut self, op: &Op, peers: &[usize], touched: &[ByteSet; 3]) {
        let who = Toucher { device: op.device, peers, any_device: false, call: op.call };
        let mut traces = Vec::new();
        for (set, (write, atomic)) in touched.iter().zip([(false, false), (true, false), (true, true)]) {
            for (at, len) in set.runs() {
                let spots = self.memory.resolve(&self.machine, who, (at, len), write).unwrap_or_default();
                traces.extend(
                    spots.iter().map(|s| Trace { touch: Touch { span: s.span, write, atomic }, at: s.at }),
                );
            }
        }
        let clock = op.clock.clone();
        let after = self.queue.iter().filter(|other| other.clock.covers(op.lane, op.tick));
        let following = after.map(|other| (other.lane, other.tick)).collect();
        self.check_races((op.call, op.lane, op.tick), &clock, &traces, &following);
    }
}

/// Looks at every access of a checked kernel.
struct Watch<'a> {
    machine: &'a Machine,
    memory: &'a Memory,
    shadows: Option<&'a mut Vec<ByteSet>>,
    op: &'a Op,
    peers: &'a [usize],
    /// Where the latest accesses went: a kernel goes back and forth between few buffers.
    recent: [Option<Spot>; 4],
    oldest: usize,
    /// Reads, writes, atomics.
    touched: [ByteSet; 3],
    wrong: Option<(Kind, String)>,
}

impl Watch<'_> {
    fn allows(&mut self, access: Access) -> bool {
        match self.judge(access) {
            Ok(()) => true,
            Err((kind, why)) => {
                let Access { block: [bx, by, bz], thread: [x, y, z], len, at, write, .. } = access;
                let doing = if write { "writes" } else { "reads" };
                let message = format!(
                    "thread ({x}, {y}, {z}) of block ({bx}, {by}, {bz}) {doing} {len} bytes at {at:#x}: {why}"
                );
                self.wrong.get_or_insert((kind, message));
                false
            }
        }
    }

    fn judge(&mut self, access: Access) -> std::result::Result<(), (Kind, String)> {
        let Access { at, len, write, atomic, .. } = access;
        let inside = |s: &Spot| s.at <= at && at.saturating_add(len) <= s.at + s.span.len;
        let spot = match self.recent.iter().flatten().copied().find(inside) {
            Some(spot) => spot,
            None => {
                let who = Toucher {
                    device: self.op.device,
                    peers: self.peers,
                    any_device: false,
                    call: self.op.call,
                };
                let pieces =
                    self.memory.resolve(self.machine, who, (at, len), write).map_err(|v| (v.kind, v.why))?;
                match &pieces[..] {
                    [_] => {
                        let spot = self.memory.spot(self.machine, who, at).map_err(|v| (v.kind, v.why))?;
                        self.recent[self.oldest] = Some(spot);
                        self.oldest = (self.oldest + 1) % self.recent.len();
                        spot
                    }
                    // An access over the seam of two mappings: hardware splits it, each part was judged.
                    _ => return Ok(()),
                }
            }
        };
        if write && !spot.writable {
            return Err((Kind::WriteThroughReadOnly, "it is mapped to be read only".into()));
        }
        Memory::leased(&self.op.leases, at, len).map_err(|v| (v.kind, v.why))?;
        let shadow = match (&mut self.shadows, spot.span.place) {
            (Some(shadows), Place::Store(store)) => shadows.get_mut(store),
            _ => None,
        };
        if let Some(shadow) = shadow {
            let start = spot.span.start + (at - spot.at);
            if (!write || atomic)
                && let Some(unset) = shadow.first_unset(start, len)
            {
                let why = format!("nothing wrote the byte at {:#x}", at + (unset - start));
                return Err((Kind::UninitializedRead, why));
            }
            if write {
                shadow.set(start, len);
            }
        }
        let set = if atomic { 2 } else { usize::from(write) };
        self.touched[set].set(at, len);
        Ok(())
    }
}
