//! `Granule`: the smallest piece of physical memory that can be mapped, owned by whoever holds or maps it.

use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};

use crate::backend::{GranulePlace, RawGranule};
use crate::live::{Counted, Thing};
use crate::{Access, Device, Error};

/// One granule of physical memory. Clones are the same memory; the last one to go, in a hand or behind a place, frees it.
///
/// Memory has no address until it is mapped with [`Reservation::map`](crate::Reservation::map). It may stand behind one
/// place that writes, or behind any number that only read, never both: so no byte changes under a reader.
#[derive(Clone, Debug)]
pub struct Granule {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    owner: Counted,
    raw: RawGranule,
    /// How many places read it; -1 where one place writes it.
    uses: AtomicIsize,
}

const WRITER: isize = -1;

impl Granule {
    pub(crate) fn create(device: &Device, place: GranulePlace) -> Result<Granule, Error> {
        let raw = device.backend().create_granule(place)?;
        let owner = Counted::new(device, Thing::Granule);
        Ok(Granule { inner: Arc::new(Inner { owner, raw, uses: AtomicIsize::new(0) }) })
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Device {
        self.inner.owner.device()
    }

    /// True where both handles are the same memory.
    pub fn is_same(&self, other: &Granule) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// How many places it stands behind, in all reservations.
    pub fn mappings(&self) -> usize {
        self.inner.uses.load(Ordering::Acquire).unsigned_abs()
    }

    pub(crate) fn raw(&self) -> RawGranule {
        self.inner.raw
    }

    /// Counts one more place; false where the access does not go together with the places there are.
    pub(crate) fn begin_use(&self, access: Access) -> bool {
        let step = |uses: isize| match access {
            Access::ReadOnly => (uses >= 0).then(|| uses + 1),
            Access::ReadWrite => (uses == 0).then_some(WRITER),
        };
        self.inner.uses.fetch_update(Ordering::AcqRel, Ordering::Acquire, step).is_ok()
    }

    pub(crate) fn end_use(&self, access: Access) {
        match access {
            Access::ReadOnly => self.inner.uses.fetch_sub(1, Ordering::AcqRel),
            Access::ReadWrite => self.inner.uses.swap(0, Ordering::AcqRel),
        };
    }

    /// Turns one place's use into another; false where the places there are do not allow it.
    pub(crate) fn change_use(&self, from: Access, to: Access) -> bool {
        let count = |access| if access == Access::ReadOnly { 1 } else { WRITER };
        if from == to {
            return true;
        }
        let (from, to) = (count(from), count(to));
        self.inner.uses.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: the last handle is gone, and each mapping holds one, so nothing reads or writes this memory.
        unsafe { self.owner.device().backend().release_granule(self.raw) };
    }
}
