//! `Extra`: what few leases have beside their block.

use std::sync::Arc;

use granule_device::{Buffer, Bytes, Device, DevicePtr, Event, LeaseMode, Suballocation};

use crate::Error;
use crate::capture::Account;
use crate::heap::HeapCore;
use crate::ladder::Found;
use crate::pool::PoolInner;
use crate::shell::Block;

/// What few leases have.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// Heaps of further streams that use it.
    pub(crate) users: Vec<Arc<HeapCore>>,
    /// While a memory checker knows of it.
    pub(crate) announced: Option<Suballocation>,
    /// The memory itself, in [`LeaseMode::Apart`]; the block lies idle.
    pub(crate) apart: Option<Apart>,
    /// Whose the memory is, where it was allocated in a capture.
    pub(crate) account: Option<Arc<Account>>,
    /// From when on other streams may use it.
    pub(crate) ready: Option<Event>,
    /// Whether it is recorded, and so its end has to be.
    pub(crate) traced: bool,
}

/// A lease's own allocation, and where in it the lease begins.
#[derive(Debug)]
pub(crate) struct Apart {
    pub(crate) buffer: Buffer,
    at: DevicePtr,
}

impl Apart {
    fn new(device: &Device, size: Bytes, align: u64) -> Result<Apart, Error> {
        let buffer = device.alloc(size)?;
        if buffer.ptr().addr().is_multiple_of(align) {
            return Ok(Apart { at: buffer.ptr(), buffer });
        }
        drop(buffer);
        let room = size.get().checked_add(align).map_or(Bytes::MAX, Bytes::new);
        let buffer = device.alloc(room)?;
        let start = buffer.ptr().addr();
        let at = buffer.ptr().add(Bytes::new(start.next_multiple_of(align) - start));
        Ok(Apart { buffer, at })
    }
}

impl Extra {
    /// What a new lease needs beside its block; none where it needs nothing.
    pub(crate) fn of(
        pool: &PoolInner,
        found: &Found,
        size: Bytes,
        align: u64,
    ) -> Result<Option<Extra>, Error> {
        let traced = pool.tracer().is_on();
        let mut extra = Extra { account: found.account.clone(), traced, ..Extra::default() };
        match pool.device().lease_mode() {
            LeaseMode::Quiet => {}
            _ if size.is_zero() => {}
            LeaseMode::Announced => extra.announced = Some(pool.device().announce(found.block.at, size)?),
            // Pinned memory is the host's, which knows allocations of its own only.
            LeaseMode::Apart if pool.is_pinned() => {}
            LeaseMode::Apart => {
                pool.collect_apart();
                extra.apart = Some(Apart::new(pool.device(), size, align)?);
            }
        }
        let Extra { announced, apart, account, .. } = &extra;
        let needed = traced || announced.is_some() || apart.is_some() || account.is_some();
        Ok(needed.then_some(extra))
    }

    /// Where the memory is: in the block, unless the lease is an allocation of its own.
    pub(crate) fn address(&self, block: &Block) -> DevicePtr {
        self.apart.as_ref().map_or(block.at, |apart| apart.at)
    }
}
