//! `Suballocation`: a piece of a larger allocation that memory checkers know of.

use std::fmt;

use crate::backend::Ending;
use crate::live::{Counted, Thing};
use crate::{Bytes, Device, DevicePtr, Error};

/// An announced piece of memory, see [`Device::announce`]. Dropping it takes the announcement back.
#[must_use = "dropping it takes the announcement back"]
pub struct Suballocation {
    end: Option<Ending>,
    owner: Counted,
    at: DevicePtr,
    len: Bytes,
}

impl Suballocation {
    pub(crate) fn new(device: &Device, at: DevicePtr, len: Bytes) -> Result<Suballocation, Error> {
        let end = device.backend().announce(at, len)?;
        Ok(Suballocation { end, owner: Counted::new(device, Thing::Suballocation), at, len })
    }

    /// Where the piece is.
    pub fn ptr(&self) -> DevicePtr {
        self.at
    }

    /// How large it is.
    pub fn len(&self) -> Bytes {
        self.len
    }

    /// True for a piece of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len.is_zero()
    }

    /// Whether anybody listens.
    pub fn is_heard(&self) -> bool {
        self.end.is_some()
    }
}

impl Drop for Suballocation {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}

impl fmt::Debug for Suballocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Suballocation({}, {:#x}, {})", self.owner.device().name(), self.at.addr(), self.len)
    }
}
