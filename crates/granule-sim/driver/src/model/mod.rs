//! The simulated machine and driver as plain data and safe code: what every call does.

mod allocations;
mod blas;
mod byte_set;
mod call;
mod capture;
mod clock;
mod contexts;
mod copies;
mod devices;
mod events;
mod execute;
mod granules;
mod graphs;
mod issue;
mod launches;
mod leases;
mod leasing;
mod ledger;
mod memory;
mod modules;
mod nccl;
mod occupancy;
mod pointers;
mod pools;
mod ptx;
mod queue;
mod races;
mod random;
mod report;
mod span;
mod streams;
#[cfg(test)]
mod tests;
mod virtual_memory;

pub(crate) use blas::{Factor, Gemm, Rows};
pub(crate) use call::{Call, Calls};
pub(crate) use capture::Mode;
pub(crate) use copies::Manner;
pub(crate) use granules::Access;
pub(crate) use ledger::Held;
pub(crate) use memory::Holder;
pub(crate) use nccl::Part;
pub(crate) use pools::PoolAttribute;
pub(crate) use report::{Kind, Reports};
pub(crate) use virtual_memory::Properties;

use crate::code::Code;
use crate::config::Config;
use crate::emulator::Kernels;
use crate::machine::Machine;
use byte_set::ByteSet;
use clock::Clock;
use memory::Memory;
use queue::Queue;
use races::Races;
use random::Random;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

pub(crate) type Result<T> = std::result::Result<T, Code>;

/// Who calls: the call, and what the driver knows of the calling thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) call: Call,
    pub(crate) thread: u64,
    /// The context that is current on the thread.
    pub(crate) context: Option<u64>,
}

/// Everything there is.
pub(crate) struct Simulation {
    pub(crate) config: Config,
    pub(crate) calls: Calls,
    pub(crate) reports: Reports,
    machine: Machine,
    random: Random,
    devices: Vec<devices::Device>,
    contexts: BTreeMap<u64, contexts::Context>,
    streams: BTreeMap<u64, streams::Stream>,
    events: BTreeMap<u64, events::Event>,
    modules: BTreeMap<u64, modules::Module>,
    functions: BTreeMap<u64, modules::Function>,
    captures: capture::Captures,
    graphs: BTreeMap<u64, graphs::Graph>,
    executables: BTreeMap<u64, graphs::Executable>,
    pools: BTreeMap<u64, pools::Pool>,
    blas: BTreeMap<u64, blas::Blas>,
    nccl: nccl::Nccl,
    kernels: Kernels,
    memory: Memory,
    /// Written bytes of each device; kept where a checked kernel may ask. Granules on the host have none: the host
    /// writes to them unseen, so that all of their bytes count as written.
    shadows: Option<Vec<ByteSet>>,
    queue: Queue,
    races: Races,
    vain_waits: VecDeque<events::VainWait>,
    /// What the host knows to be done.
    host: Clock,
    /// Leaks that were reported.
    leaks: BTreeSet<(Call, &'static str)>,
    handles: u64,
}

impl Simulation {
    /// A machine that was just switched on.
    pub(crate) fn new(config: Config, kernels: Kernels) -> io::Result<Simulation> {
        // One store a device, and one for granules on the host.
        let stores = config.devices + 1;
        let mut reports = Reports::default();
        reports.print = config.print;
        Ok(Simulation {
            machine: Machine::new(stores)?,
            random: Random::new(config.seed),
            devices: (0..stores).map(|_| devices::Device::default()).collect(),
            shadows: kernels.checked().then(|| (0..config.devices).map(|_| ByteSet::default()).collect()),
            calls: Calls::default(),
            reports,
            contexts: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            captures: capture::Captures::default(),
            graphs: BTreeMap::new(),
            executables: BTreeMap::new(),
            pools: BTreeMap::new(),
            blas: BTreeMap::new(),
            nccl: nccl::Nccl::default(),
            kernels,
            memory: Memory::default(),
            queue: Queue::default(),
            races: Races::default(),
            vain_waits: VecDeque::new(),
            host: Clock::default(),
            leaks: BTreeSet::new(),
            handles: 0,
            config,
        })
    }

    pub(crate) fn set_seed(&mut self, seed: u64) {
        self.random = Random::new(seed);
    }

    /// A number that no handle had before; far from every mapped address, so that following it as a pointer dies.
    fn new_handle(&mut self) -> u64 {
        self.handles += 1;
        0xc0de_0000_0000_0000 | self.handles << 4
    }

    pub(crate) fn handles_made(&self) -> u64 {
        self.handles
    }

    /// Handles begin behind the first `count`.
    pub(crate) fn skip_handles(&mut self, count: u64) {
        self.handles = count;
    }

    fn bad_handle<T>(&mut self, caller: &Caller, what: &str, handle: u64) -> Result<T> {
        let message = format!("{} got {handle:#x}, which is no {what} (any more)", caller.call);
        self.reports.add(Kind::BadHandle, message);
        Err(Code::INVALID_HANDLE)
    }
}
