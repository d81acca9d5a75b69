//! NCCL's part: communicators whose ranks are threads of this process, and what they send each other in stream order. The library's
//! documentation is the source.
//!
//! A group of calls on a stream is two operations there: one that reads what is sent, and behind it one that writes what is received. The
//! second runs once the first ones of all ranks that it deals with have: no rank is through before the others have come, and a rank
//! that never comes is waited for until the communicator is aborted.

use super::call::Call;
use super::queue::{Action, Op};
use super::report::Kind;
use super::{Caller, Result, Simulation};
use crate::code::Code;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One rank's communicator.
#[derive(Debug)]
pub(crate) struct Comm {
    pub(crate) made: Call,
    pub(crate) context: u64,
    world: u64,
    rank: usize,
    /// The second operations of its groups, and the first ones with what they send.
    ends: Vec<u64>,
    begins: Vec<(u64, Arc<Exchange>)>,
}

/// The ranks that were made with one unique id.
#[derive(Debug, Default)]
struct World {
    /// How many there are; 0 before the first has come.
    ranks: usize,
    members: BTreeMap<usize, u64>,
    /// Messages so far, by sender and receiver: sent and received.
    counts: BTreeMap<(usize, usize), [u64; 2]>,
    messages: BTreeMap<Key, Message>,
}

/// Sender, receiver, and the message's number between these two.
type Key = (usize, usize, u64);

/// What is known of a message: of each of its two ends, the sender's first.
#[derive(Debug, Default)]
struct Message {
    ends: [Option<End>; 2],
    bytes: Option<Vec<u8>>,
}

/// One end of a message: the two operations of its group, and what it says of the message.
#[derive(Clone, Copy, Debug)]
struct End {
    begin: u64,
    end: u64,
    len: u64,
    kind: &'static str,
    call: Call,
}

/// All of the ranks' communicators, and the groups of calls that threads are in.
#[derive(Debug, Default)]
pub(crate) struct Nccl {
    pub(crate) comms: BTreeMap<u64, Comm>,
    worlds: BTreeMap<u64, World>,
    groups: BTreeMap<u64, Group>,
}

#[derive(Debug, Default)]
struct Group {
    depth: usize,
    parts: Vec<(u64, u64, Part)>,
}

/// A call's part in a group.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    Send {
        to: usize,
        at: u64,
        len: u64,
    },
    Receive {
        from: usize,
        at: u64,
        len: u64,
    },
    /// Each rank's `len` bytes, one behind the other.
    Gather {
        from: u64,
        to: u64,
        len: u64,
    },
    Broadcast {
        root: usize,
        from: u64,
        to: u64,
        len: u64,
    },
}

/// What one rank does in a group.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    comm: u64,
    world: u64,
    sends: Vec<(Key, u64, u64, &'static str)>,
    receives: Vec<(Key, u64, u64, &'static str)>,
}

impl Exchange {
    /// Where its first operation reads, or its second writes.
    pub(crate) fn touches(&self, write: bool) -> impl Iterator<Item = (u64, u64, bool)> + '_ {
        let ends = if write { &self.receives } else { &self.sends };
        ends.iter().map(move |&(_, at, len, _)| (at, len, write)).filter(|&(_, len, _)| len > 0)
    }
}

impl Simulation {
    pub(crate) fn new_nccl_world(&mut self) -> u64 {
        let world = self.new_handle();
        self.nccl.worlds.insert(world, World::default());
        world
    }

    /// One rank of a world on the caller's device. It is in progress until all have come.
    pub(crate) fn join_nccl(
        &mut self,
        caller: &Caller,
        world: u64,
        rank: usize,
        ranks: usize,
    ) -> Result<u64> {
        let context = self.context(caller)?;
        self.forbid_while_capturing(caller)?;
        let device = self.context_info(context)?.device;
        let handle = self.new_handle();
        let found = self.nccl.worlds.get(&world).ok_or(Code::INVALID_VALUE)?;
        let agrees = found.ranks == 0 || found.ranks == ranks;
        if !agrees || rank >= ranks || found.members.contains_key(&rank) {
            return Err(Code::INVALID_VALUE);
        }
        // "Duplicate GPU detected."
        let others: Vec<u64> = found.members.values().copied().collect();
        let contexts =
            others.iter().filter_map(|other| self.nccl.comms.get(other)).map(|other| other.context);
        if contexts.into_iter().any(|other| self.context_info(other).is_ok_and(|c| c.device == device)) {
            return Err(Code::NOT_SUPPORTED);
        }
        if let Some(found) = self.nccl.worlds.get_mut(&world) {
            found.ranks = ranks;
            found.members.insert(rank, handle);
        }
        let (ends, begins) = (Vec::new(), Vec::new());
        let comm = Comm { made: caller.call, context, world, rank, ends, begins };
        self.nccl.comms.insert(handle, comm);
        Ok(handle)
    }

    /// The communicator's world and rank, and how many ranks there are.
    fn nccl_rank(&mut self, caller: &Caller, comm: u64) -> Result<(u64, usize, usize)> {
        let Some(found) = self.nccl.comms.get(&comm) else {
            return self.bad_handle(caller, "communicator of NCCL", comm);
        };
        let ranks = self.nccl.worlds.get(&found.world).map_or(0, |world| world.ranks);
        Ok((found.world, found.rank, ranks))
    }

    /// [`Code::NOT_READY`] until all ranks of its world have come.
    pub(crate) fn nccl_state(&mut self, caller: &Caller, comm: u64) -> Result<()> {
        let (world, _, ranks) = self.nccl_rank(caller, comm)?;
        let here = self.nccl.worlds.get(&world).map_or(0, |world| world.members.len());
        if here < ranks { Err(Code::NOT_READY) } else { Ok(()) }
    }

    /// Ends a communicator: its own streams go on, other ranks wait on for what it has not sent.
    pub(crate) fn abort_nccl(&mut self, caller: &Caller, comm: u64) -> Result<()> {
        let (_, rank, _) = self.nccl_rank(caller, comm)?;
        self.let_nccl_pass(comm);
        let Some(gone) = self.nccl.comms.remove(&comm) else { return Ok(()) };
        for (begin, exchange) in gone.begins {
            if !self.queue.is_pending(begin) {
                continue;
            }
            // It will not be sent: whoever was to get it, or to be met, is not met.
            for &(key, ..) in exchange.sends.iter().chain(&exchange.receives) {
                let message = self.nccl.worlds.get(&gone.world).and_then(|world| world.messages.get(&key));
                let other = message.and_then(|message| message.ends[usize::from(key.0 == rank)]);
                if let Some(other) = other.filter(|_| key.0 != key.1) {
                    self.queue.hold(other.end);
                }
            }
        }
        // The world keeps the rank's place: nobody else takes it, and others that wait for it wait on.
        Ok(())
    }

    /// Its operations wait for no other rank any more.
    pub(super) fn let_nccl_pass(&mut self, comm: u64) {
        let ends = self.nccl.comms.get(&comm).map(|comm| comm.ends.clone());
        ends.into_iter().flatten().for_each(|end| self.queue.release(end));
    }

    pub(crate) fn begin_nccl_group(&mut self, caller: &Caller) {
        self.nccl.groups.entry(caller.thread).or_default().depth += 1;
    }

    /// A call, at once or as a part of the thread's group.
    pub(crate) fn nccl_call(&mut self, caller: &Caller, comm: u64, stream: u64, part: Part) -> Result<()> {
        let (_, rank, ranks) = self.nccl_rank(caller, comm)?;
        self.nccl_state(caller, comm)?;
        let stream = self.stream_of(caller, stream)?;
        let other = match part {
            Part::Send { to, .. } => to,
            Part::Receive { from, .. } => from,
            Part::Broadcast { root, .. } => root,
            Part::Gather { .. } => rank,
        };
        let itself = other == rank && matches!(part, Part::Send { .. } | Part::Receive { .. });
        if other >= ranks || itself {
            return Err(Code::INVALID_VALUE);
        }
        self.begin_nccl_group(caller);
        if let Some(group) = self.nccl.groups.get_mut(&caller.thread) {
            group.parts.push((comm, stream, part));
        }
        self.end_nccl_group(caller)
    }

    pub(crate) fn end_nccl_group(&mut self, caller: &Caller) -> Result<()> {
        let group = self.nccl.groups.get_mut(&caller.thread).ok_or(Code::NOT_SUPPORTED)?;
        group.depth -= 1;
        if group.depth > 0 {
            return Ok(());
        }
        let parts = self.nccl.groups.remove(&caller.thread).unwrap_or_default().parts;
        let mut of: BTreeMap<(u64, u64), Vec<Part>> = BTreeMap::new();
        for (comm, stream, part) in parts {
            of.entry((comm, stream)).or_default().push(part);
        }
        of.into_iter().try_for_each(|((comm, stream), parts)| self.exchange(caller, comm, stream, &parts))
    }

    fn exchange(&mut self, caller: &Caller, comm: u64, stream: u64, parts: &[Part]) -> Result<()> {
        let (world, rank, ranks) = self.nccl_rank(caller, comm)?;
        if self.capture_of(stream)?.is_some() {
            return Err(Code::NOT_SUPPORTED);
        }
        let context = self.stream(stream)?.context;
        let mut exchange = Exchange { comm, world, ..Exchange::default() };
        let others = || (0..ranks).filter(|&other| other != rank);
        // Numbers are given out once nothing can be refused any more.
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        for part in parts {
            match *part {
                Part::Send { to, at, len } => sends.push((to, at, len, "a send")),
                Part::Receive { from, at, len } => receives.push((from, at, len, "a send")),
                Part::Gather { from, to, len } => {
                    const KIND: &str = "an all-gather";
                    let place = |rank: usize| to + rank as u64 * len;
                    let own = (place(rank) != from).then_some(rank);
                    sends.extend(others().chain(own).map(|other| (other, from, len, KIND)));
                    receives.extend(others().chain(own).map(|other| (other, place(other), len, KIND)));
                }
                Part::Broadcast { root, from, to, len } if root == rank => {
                    let own = (to != from).then_some(rank);
                    sends.extend(others().chain(own).map(|other| (other, from, len, "a broadcast")));
                    receives.extend(own.map(|own| (own, to, len, "a broadcast")));
                }
                Part::Broadcast { root, to, len, .. } => receives.push((root, to, len, "a broadcast")),
            }
        }
        let overlap = |&(_, to, len, _): &(usize, u64, u64, &str)| {
            sends.iter().any(|&(_, from, size, _)| to < from + size && from < to + len)
        };
        if receives.iter().any(overlap) {
            let message = format!("{} receives where it sends from, in one group", caller.call);
            self.reports.add(Kind::BadArguments, message);
            return Err(Code::INVALID_VALUE);
        }
        for (write, ends) in [(false, &sends), (true, &receives)] {
            let keyed = ends.iter().map(|&(other, at, len, kind)| {
                let pair = if write { (other, rank) } else { (rank, other) };
                ((pair.0, pair.1, 0), at, len, kind)
            });
            if write { exchange.receives = keyed.collect() } else { exchange.sends = keyed.collect() }
        }
        // What it touches is looked at before anything is given.
        let probe = Arc::new(exchange);
        self.work(caller.call, context, Action::Send(Arc::clone(&probe)), false)?;
        self.work(caller.call, context, Action::Receive(Arc::clone(&probe)), false)?;
        let mut exchange = Arc::try_unwrap(probe).unwrap_or_default();
        let counts = self.nccl.worlds.get_mut(&world).map(|world| &mut world.counts);
        let counts = counts.ok_or(Code::INVALID_VALUE)?;
        for (end, list) in [&mut exchange.sends, &mut exchange.receives].into_iter().enumerate() {
            for (key, ..) in list {
                let count = &mut counts.entry((key.0, key.1)).or_default()[end];
                key.2 = *count;
                *count += 1;
            }
        }
        let exchange = Arc::new(exchange);
        let given = self.work(caller.call, context, Action::Send(Arc::clone(&exchange)), false)?;
        let (begin, _) = self.push(caller, stream, given, &[])?;
        let taken = self.work(caller.call, context, Action::Receive(Arc::clone(&exchange)), false)?;
        let (end, _) = self.push(caller, stream, taken, &[])?;
        for (which, list) in [&exchange.sends, &exchange.receives].into_iter().enumerate() {
            for &(key, _, len, kind) in list.iter() {
                self.meet(world, key, which, End { begin, end, len, kind, call: caller.call });
            }
        }
        let Some(comm) = self.nccl.comms.get_mut(&comm) else { return Ok(()) };
        let queue = &self.queue;
        comm.ends.retain(|&end| queue.is_pending(end));
        comm.begins.retain(|(begin, _)| queue.is_pending(*begin));
        comm.ends.push(end);
        comm.begins.push((begin, exchange));
        Ok(())
    }

    /// Notes one end of a message, and lets each end wait for the other to begin.
    fn meet(&mut self, world: u64, key: Key, which: usize, own: End) {
        let Some(world) = self.nccl.worlds.get_mut(&world) else { return };
        let message = world.messages.entry(key).or_default();
        message.ends[which] = Some(own);
        if key.0 == key.1 {
            return;
        }
        let Some(other) = message.ends[1 - which] else {
            self.queue.hold(own.end);
            return;
        };
        self.queue.follow(own.end, other.begin);
        self.queue.follow(other.end, own.begin);
        self.queue.unhold(other.end);
        if (own.len, own.kind) != (other.len, other.kind) {
            let said = format!(
                "{} ({} of {} bytes) meets {} ({} of {} bytes) between ranks {} and {}",
                own.call, own.kind, own.len, other.call, other.kind, other.len, key.0, key.1
            );
            self.reports.add(Kind::BadArguments, said);
        }
    }

    /// The first operation of a group: what is sent is read.
    pub(crate) fn run_nccl_send(&mut self, op: &Op, exchange: &Exchange) -> std::result::Result<(), Code> {
        for &(key, at, len, _) in &exchange.sends {
            if len > 0
                && let Some(unset) = self.first_unwritten(op, at, len)
            {
                let message =
                    format!("{} sends {len} bytes at {at:#x}: nothing wrote the byte at {unset:#x}", op.call);
                self.reports.add(Kind::UninitializedRead, message);
            }
            let bytes = if len > 0 { self.read_known(op, at, len)? } else { Vec::new() };
            let world = self.nccl.worlds.get_mut(&exchange.world);
            if let Some(message) = world.and_then(|world| world.messages.get_mut(&key)) {
                message.bytes = Some(bytes);
            }
        }
        Ok(())
    }

    /// What memory holds that an aborted communicator was to receive in.
    const CUT_OFF: u8 = 0xb1;

    /// The second: what has come is written. For a communicator that was aborted it is anything.
    pub(crate) fn run_nccl_receive(&mut self, op: &Op, exchange: &Exchange) -> std::result::Result<(), Code> {
        for &(key, at, len, _) in &exchange.receives {
            let world = self.nccl.worlds.get_mut(&exchange.world);
            let message = world.and_then(|world| world.messages.remove(&key));
            let here = self.nccl.comms.contains_key(&exchange.comm);
            let mut bytes = message.and_then(|message| message.bytes).filter(|_| here);
            bytes = bytes.or_else(|| (!here).then(|| vec![Self::CUT_OFF; len as usize]));
            if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
                self.write_known(op, at, &bytes[..bytes.len().min(len as usize)], true)?;
            }
        }
        Ok(())
    }
}
