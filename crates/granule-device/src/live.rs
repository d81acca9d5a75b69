//! What is counted of a device: everything made on it that is still there.

use crate::Device;

/// Everything made on a device that is still there: what a leak test looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveCounts {
    /// Granules that some handle or mapping keeps.
    pub granules: usize,
    /// Reservations.
    pub reservations: usize,
    /// Places with a granule behind them.
    pub mappings: usize,
    /// Plain buffers.
    pub buffers: usize,
    /// Pinned buffers.
    pub pinned: usize,
    /// Managed buffers.
    pub managed: usize,
    /// Registered memory.
    pub registered: usize,
    /// Streams.
    pub streams: usize,
    /// Modules of kernels.
    pub modules: usize,
    /// Graphs, instantiated ones included.
    pub graphs: usize,
    /// Announced pieces of larger allocations.
    pub suballocations: usize,
    /// Handles of cuBLAS.
    pub blas: usize,
    /// Ranks of NCCL's groups.
    pub nccl: usize,
    /// Releases that the system refused and that will be tried again.
    pub unsettled: usize,
}

/// What [`LiveCounts`] counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Thing {
    Granule,
    Reservation,
    Mapping,
    Buffer,
    Pinned,
    Registered,
    Stream,
    Managed,
    Module,
    Graph,
    Suballocation,
    #[cfg_attr(not(feature = "cublas"), allow(dead_code))]
    Blas,
    #[cfg_attr(not(feature = "nccl"), allow(dead_code))]
    Nccl,
}

/// How many kinds of [`Thing`] there are.
pub(crate) const THINGS: usize = Thing::Nccl as usize + 1;

/// Keeps the device alive and one thing on it counted.
#[derive(Debug)]
pub(crate) struct Counted {
    device: Device,
    thing: Thing,
}

impl Counted {
    pub(crate) fn new(device: &Device, thing: Thing) -> Counted {
        device.add_live(thing, 1);
        Counted { device: device.clone(), thing }
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.device.sub_live(self.thing, 1);
    }
}
