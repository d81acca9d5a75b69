//! `Lease`: a piece of a larger allocation, handed out as if it were an allocation of its own.

use std::marker::PhantomData;

use crate::suballocation::Suballocation;
use crate::{Buffer, Bytes, Device, DevicePtr, DeviceSlice, DeviceSliceMut, Error};

/// How leases are shown to memory checkers, which by themselves know of whole allocations only: a write past a lease that
/// stays inside the allocation it was cut from is no error to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LeaseMode {
    /// Not at all: a lease is an address and a length and costs nothing.
    #[default]
    Quiet = 0,
    /// Each is [announced](Device::announce) while it lives.
    Announced = 1,
    /// Each is an allocation of its own, and the piece that it was to be cut from lies idle. Slow, and it takes memory twice;
    /// for checkers that do not hear announcements.
    Apart = 2,
}

/// A piece of memory on loan from a larger one, see [`Device::lease`].
///
/// ```
/// use granule_device::{Bytes, Device, HostOptions, LeaseMode};
/// # let device = Device::host_with(HostOptions::new().capacity(Bytes::mib(8)))?;
/// let mut slab = device.alloc(Bytes::kib(4))?;
/// let base = slab.ptr();
/// let mut lease = device.lease(slab.slice_mut(256..512)?)?;
/// lease.slice_mut().as_host_mut().ok_or("on the host")?.fill(7);
/// assert_eq!(lease.ptr().addr(), base.addr() + 256);
///
/// device.set_lease_mode(LeaseMode::Apart); // the same program, its leases allocated one by one
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Lease<'a> {
    memory: Cut<'a>,
}

#[derive(Debug)]
enum Cut<'a> {
    Piece { slice: DeviceSliceMut<'a>, _announced: Option<Suballocation> },
    Apart { buffer: Buffer, len: usize, _idle: PhantomData<DeviceSliceMut<'a>> },
}

impl<'a> Lease<'a> {
    pub(crate) fn new(device: &Device, piece: DeviceSliceMut<'a>) -> Result<Lease<'a>, Error> {
        let (at, len) = (piece.ptr(), Bytes::from_usize(piece.len()));
        let memory = match device.lease_mode() {
            _ if piece.is_empty() => Cut::Piece { slice: piece, _announced: None },
            LeaseMode::Quiet => Cut::Piece { slice: piece, _announced: None },
            LeaseMode::Announced => Cut::Piece { slice: piece, _announced: Some(device.announce(at, len)?) },
            LeaseMode::Apart => {
                Cut::Apart { buffer: device.alloc(len)?, len: piece.len(), _idle: PhantomData }
            }
        };
        Ok(Lease { memory })
    }

    /// Where it starts.
    pub fn ptr(&self) -> DevicePtr {
        match &self.memory {
            Cut::Piece { slice, .. } => slice.ptr(),
            Cut::Apart { buffer, .. } => buffer.ptr(),
        }
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        match &self.memory {
            Cut::Piece { slice, .. } => slice.len(),
            Cut::Apart { len, .. } => *len,
        }
    }

    /// True where it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it, to read.
    pub fn slice(&self) -> DeviceSlice<'_> {
        match &self.memory {
            Cut::Piece { slice, .. } => slice.as_slice(),
            Cut::Apart { buffer, .. } => buffer.all(),
        }
    }

    /// All of it, to write.
    pub fn slice_mut(&mut self) -> DeviceSliceMut<'_> {
        match &mut self.memory {
            Cut::Piece { slice, .. } => slice.reborrow(),
            Cut::Apart { buffer, .. } => buffer.all_mut(),
        }
    }
}
