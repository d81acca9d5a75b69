//! `Retired`: places that are out of use here and may still be in use by work on the device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::reservation::Core;
use crate::{Access, Bytes, Error, Granule};

/// Places taken out of a [`Reservation`](crate::Reservation) with [`retire`](crate::Reservation::retire): nobody can read or
/// write them from here, and they stay mapped for device work that is under way, also when the reservation is dropped.
/// [`finish`](Retired::finish) unmaps them, once an event says that the work is done; dropping does it at once.
#[must_use = "dropping it unmaps the places at once"]
#[derive(Debug)]
pub struct Retired {
    granules: Vec<(Granule, Access)>,
    fate: Arc<Fate>,
    first: usize,
    core: Arc<Core>,
}

/// What became of places that were retired or lent, told to their reservation.
#[derive(Debug, Default)]
pub(crate) struct Fate(AtomicU8);

const WAITING: u8 = 0;
/// Nothing is mapped there any more.
pub(crate) const UNMAPPED: u8 = 1;
/// The system did not unmap it.
pub(crate) const REFUSED: u8 = 2;
/// Lent until now, and waiting for device work.
const RETIRING: u8 = 3;

impl Fate {
    /// True until the places are out of use altogether.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.0.load(Ordering::Acquire), WAITING | RETIRING)
    }

    /// True where places that were lent are out of use, and wait for device work.
    pub(crate) fn is_retiring(&self) -> bool {
        self.0.load(Ordering::Acquire) == RETIRING
    }

    /// Says that whoever had them lent wants them no more; they wait for device work.
    pub(crate) fn retire(&self) {
        self.0.store(RETIRING, Ordering::Release);
    }

    /// True where nothing is mapped any more.
    pub(crate) fn is_unmapped(&self) -> bool {
        self.0.load(Ordering::Acquire) == UNMAPPED
    }

    /// Says what became of them; from here on the places are the reservation's.
    pub(crate) fn end(&self, fate: u8) {
        self.0.store(fate, Ordering::Release);
    }
}

impl Retired {
    pub(crate) fn new(
        core: Arc<Core>,
        first: usize,
        granules: Vec<(Granule, Access)>,
        fate: Arc<Fate>,
    ) -> Retired {
        Retired { granules, fate, first, core }
    }

    /// How many places they are.
    pub fn len(&self) -> usize {
        self.granules.len()
    }

    /// True where there are none: before finishing only where none were retired.
    pub fn is_empty(&self) -> bool {
        self.granules.is_empty()
    }

    /// Unmaps the places and answers with their granules. Afterwards they are empty places of their reservation again.
    ///
    /// # Errors
    /// [`Error::Os`]: they stay as they are.
    pub fn finish(&mut self) -> Result<Vec<Granule>, Error> {
        if !self.granules.is_empty() {
            self.unmap()?;
        }
        Ok(self.end(UNMAPPED))
    }

    fn unmap(&self) -> Result<(), Error> {
        let len = Bytes::from_usize(self.granules.len() * self.core.granule());
        let at = self.core.base().offset(self.first * self.core.granule());
        // SAFETY: the places lie in the reservation, which the core keeps, and it makes no slice of them.
        unsafe { self.core.device().backend().unmap(at, len) }
    }

    fn end(&mut self, fate: u8) -> Vec<Granule> {
        let granules = std::mem::take(&mut self.granules);
        for (granule, access) in &granules {
            granule.end_use(*access);
        }
        self.fate.end(fate);
        granules.into_iter().map(|(granule, _)| granule).collect()
    }
}

impl Drop for Retired {
    fn drop(&mut self) {
        if !self.granules.is_empty() {
            // Where the system refuses, the reservation clears the places before it uses them again.
            let fate = if self.unmap().is_ok() { UNMAPPED } else { REFUSED };
            self.end(fate);
        }
    }
}
