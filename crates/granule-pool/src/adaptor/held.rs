//! `Held`: what an adaptor lends: what it was lent itself, and what is to happen when that goes back.

use std::ops::{Deref, DerefMut};

use granule_device::{Device, DeviceSlice, DeviceSliceMut, Error, Event, Memory};

/// Memory that was lent through an adaptor. It is used like what it holds; when it is dropped the memory goes back first, and
/// then the adaptor hears of it.
#[derive(Debug)]
#[must_use = "dropping it gives the memory back"]
pub struct Held<L, N> {
    // In this order: memory is given back before it is counted as such.
    lent: L,
    _note: N,
}

impl<L, N> Held<L, N> {
    pub(super) fn new(lent: L, note: N) -> Held<L, N> {
        Held { lent, _note: note }
    }
}

impl<L, N> Deref for Held<L, N> {
    type Target = L;

    fn deref(&self) -> &L {
        &self.lent
    }
}

impl<L, N> DerefMut for Held<L, N> {
    fn deref_mut(&mut self) -> &mut L {
        &mut self.lent
    }
}

// SAFETY: all of it is what the memory it holds says of itself; it stays in the same value for as long as this one lives.
unsafe impl<L: Memory, N: Send + Sync + 'static> Memory for Held<L, N> {
    fn device(&self) -> &Device {
        self.lent.device()
    }

    fn readable(&self) -> Result<DeviceSlice<'_>, Error> {
        self.lent.readable()
    }

    fn writable(&mut self) -> Result<DeviceSliceMut<'_>, Error> {
        self.lent.writable()
    }

    fn ready(&self) -> Option<&Event> {
        self.lent.ready()
    }
}
