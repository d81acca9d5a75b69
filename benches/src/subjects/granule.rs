//! The pool, on a host device of its own.

use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, HostOptions, Stream};
use granule_pool::{Heap, Lease, Pool, PoolOptions};

use crate::subject::Last;
use crate::{Footprint, Handle, Subject};

/// A pool and the streams that its heaps are for.
pub struct Granule {
    pool: Pool,
    device: Device,
    streams: Vec<Arc<Stream>>,
    calls_before: u64,
}

impl Granule {
    /// With granules of 2 MiB, for so many streams.
    pub fn new(streams: usize) -> Granule {
        Granule::with(streams, 2 << 20)
    }

    /// With granules of `granule` bytes.
    pub fn with(streams: usize, granule: u64) -> Granule {
        let options = HostOptions::new().granule(Bytes::new(granule));
        let device = Device::host_with(options).expect("a host");
        let bank = Bank::new(device.clone(), BankOptions::new()).expect("a bank");
        let pool = Pool::new(&bank, PoolOptions::new().owner("bench")).expect("a pool");
        let streams = (0..streams).map(|_| Arc::new(device.stream().expect("a stream"))).collect();
        Granule { pool, streams, calls_before: device.calls_made(), device }
    }

    /// The pool itself.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}

impl Subject for Granule {
    type Block = Lease;
    type Handle<'a> = Heap;

    fn name(&self) -> &'static str {
        "granule-pool"
    }

    fn handle(&self, stream: usize) -> Heap {
        self.pool.heap(&self.streams[stream]).expect("a heap")
    }

    fn footprint(&self) -> Footprint {
        let calls = self.device.calls_made() - self.calls_before;
        Footprint { reserved: Some(self.pool.stats().reserved.get()), calls: Some(calls) }
    }

    fn trim(&self) {
        self.pool.trim().expect("a trim");
    }
}

impl Handle for Heap {
    type Block = Lease;

    #[inline(always)]
    fn alloc(&mut self, size: u32) -> Lease {
        Heap::alloc(self, Bytes::new(u64::from(size))).expect("room in the pool")
    }

    #[inline(always)]
    fn free(&mut self, block: Last<'_, Lease>) {
        block.drop_in_place();
    }

    #[inline]
    fn address(block: &Lease) -> u64 {
        block.ptr().addr()
    }
}
