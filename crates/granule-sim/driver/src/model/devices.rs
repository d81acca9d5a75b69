//! What a device is: its memory, and the attributes that programs ask for.

use super::{Result, Simulation};
use crate::code::Code;
use crate::machine::Machine;
use std::collections::BTreeMap;

/// The state of one store.
#[derive(Debug, Default)]
pub(crate) struct Device {
    /// Bytes of its memory that are allocated.
    pub(crate) used: u64,
    /// Offsets below this were handed out; none is handed out twice.
    next: u64,
    /// Offsets of granules that were given back, by size: their pages are there already.
    spare: BTreeMap<u64, Vec<u64>>,
    spare_bytes: u64,
    /// The primary context, once it was retained.
    pub(crate) primary: Option<u64>,
    pub(crate) primary_flags: u32,
    /// The pool that the device came with, and the one that `cuMemAllocAsync` takes from; made when first asked for.
    pub(crate) default_pool: Option<u64>,
    pub(crate) current_pool: Option<u64>,
}

impl Device {
    /// `len` fresh bytes of a store, `align`ed; `None` where its addresses are used up.
    pub(crate) fn offsets(&mut self, len: u64, align: u64) -> Option<u64> {
        let start = self.next.checked_next_multiple_of(align)?;
        let end = start.checked_add(len)?.checked_next_multiple_of(Machine::PAGE)?;
        if end > Machine::STORE {
            return None;
        }
        self.next = end;
        Some(start)
    }
}

impl Device {
    /// Bytes of granules that were given back and keep their pages.
    const MOST_SPARE: u64 = 256 << 20;

    /// A place for a granule of `len` bytes.
    pub(crate) fn granule(&mut self, len: u64) -> Option<u64> {
        match self.spare.get_mut(&len).and_then(Vec::pop) {
            Some(offset) => {
                self.spare_bytes -= len;
                Some(offset)
            }
            None => self.offsets(len, Machine::PAGE),
        }
    }

    /// A granule's place is free; whether its pages shall stay for the next one.
    pub(crate) fn granule_back(&mut self, offset: u64, len: u64) -> bool {
        let keep = self.spare_bytes + len <= Self::MOST_SPARE;
        if keep {
            self.spare_bytes += len;
            self.spare.entry(len).or_default().push(offset);
        }
        keep
    }
}

/// Threads, warps and memory of every simulated device, in the API's numbering. What an A100 says, where that matters.
const ATTRIBUTES: &[(i32, i32)] = &[
    (1, 1024),       // threads a block
    (2, 1024),       // block x
    (3, 1024),       // block y
    (4, 64),         // block z
    (5, i32::MAX),   // grid x
    (6, 65_535),     // grid y
    (7, 65_535),     // grid z
    (8, 49_152),     // shared memory a block
    (9, 65_536),     // constant memory
    (10, 32),        // warp
    (11, i32::MAX),  // pitch
    (12, 65_536),    // registers a block
    (13, 1_410_000), // kHz
    (14, 512),       // texture alignment
    (15, 1),         // copies overlap
    (16, 8),         // multiprocessors
    (19, 1),         // host memory can be mapped
    (31, 1),         // concurrent kernels
    (36, 1_215_000), // memory clock, kHz
    (37, 5_120),     // memory bus, bits
    (38, 40 << 20),  // L2 cache
    (39, 2_048),     // threads a multiprocessor
    (40, 3),         // copy engines
    (41, 1),         // unified addressing
    (78, 1),         // stream priorities
    (81, 167_936),   // shared memory a multiprocessor
    (82, 65_536),    // registers a multiprocessor
    (89, 1),         // concurrent managed access
    (91, 1),         // registered host pointers can be used as they are
    (95, 1),         // cooperative launch
    (97, 166_912),   // shared memory a block, opt-in
    (99, 1),         // host registration
    (106, 32),       // blocks a multiprocessor
    (111, 1_024),    // reserved shared memory a block
    (113, 1),        // read-only host registration
];

impl Simulation {
    pub(crate) const SHARED_MEMORY: u32 = 49_152;
    pub(crate) const SHARED_MEMORY_OPT_IN: u32 = 166_912;
    pub(crate) const MULTIPROCESSORS: u32 = 8;
    pub(crate) const THREADS_A_MULTIPROCESSOR: u32 = 2_048;

    pub(crate) fn device(&self, ordinal: i32) -> Result<usize> {
        usize::try_from(ordinal).ok().filter(|&n| n < self.config.devices).ok_or(Code::INVALID_DEVICE)
    }

    pub(crate) fn attribute(&self, attribute: i32, device: i32) -> Result<i32> {
        let device = self.device(device)?;
        Ok(match attribute {
            33 => device as i32 + 1,
            75 => self.config.compute_capability.0,
            76 => self.config.compute_capability.1,
            83 => self.config.managed.into(),
            102 => self.config.virtual_memory.into(),
            115 => self.config.pools.into(),
            // The host's NUMA node, where handles may lie (CU_DEVICE_ATTRIBUTE_HOST_NUMA_*).
            134 => 0,
            141 => self.config.host_granules.into(),
            // Anything else that the API numbers: the device has none of it.
            1..=200 => ATTRIBUTES.iter().find(|(a, _)| *a == attribute).map_or(0, |(_, value)| *value),
            _ => return Err(Code::INVALID_VALUE),
        })
    }

    /// A name and an identity that say what this is.
    pub(crate) fn device_name(&self, device: usize) -> String {
        format!("Granule simulated GPU {device}")
    }

    pub(crate) fn device_uuid(&self, device: usize) -> [u8; 16] {
        let mut uuid = *b"granule-sim-gpu\0";
        uuid[15] = device as u8;
        uuid
    }

    pub(crate) fn peers(&self, device: i32, other: i32) -> Result<bool> {
        Ok(self.device(device)? != self.device(other)? && self.config.peers)
    }

    /// Counts memory of a store against its capacity. The store of the host has none.
    pub(crate) fn charge(&mut self, store: usize, len: u64) -> Result<()> {
        let most = if store < self.config.devices { self.config.memory } else { Machine::STORE };
        let used = self.devices[store].used.checked_add(len).filter(|&used| used <= most);
        self.devices[store].used = used.ok_or(Code::OUT_OF_MEMORY)?;
        Ok(())
    }

    pub(crate) fn free_memory(&self, device: usize) -> u64 {
        self.config.memory - self.devices[device].used
    }
}
