//! What may be done through a reservation's places, and the slices that do it.

use std::ops::{Range, RangeBounds};

use super::{Place, Reservation};
use crate::slice::{Home, checked_range};
use crate::{Access, Bytes, DeviceSlice, DeviceSliceMut, Error};

impl Reservation {
    /// One past the last of the places from `place` on that can be written without a gap; `place` itself where it cannot.
    pub fn writable_to(&self, place: usize) -> usize {
        let all = place.min(self.places.len())..self.places.len();
        let mapped = self.mapped.first_outside(all).unwrap_or(self.places.len());
        self.read_only.first_inside(place.min(mapped)..mapped).unwrap_or(mapped)
    }

    /// The first run of these places that can be written; `None` where none of them can.
    pub fn next_writable(&self, places: Range<usize>) -> Option<Range<usize>> {
        let end = places.end.min(self.places.len());
        let mut from = places.start;
        loop {
            let mapped = self.mapped.first_inside(from..end.max(from))?;
            from = self.read_only.first_outside(mapped..end)?;
            if from == mapped {
                return Some(from..self.writable_to(from).min(end));
            }
        }
    }

    /// Changes what may be done through these places.
    ///
    /// # Errors
    /// [`Error::NoSuchPlace`], [`Error::NotMapped`]; [`Error::Aliased`] where a granule that is to be written stands behind
    /// another place too; [`Error::Os`].
    pub fn set_access(&mut self, places: Range<usize>, access: Access) -> Result<(), Error> {
        let places = self.checked_mapped(places)?;
        if places.is_empty() {
            return Ok(());
        }
        let changed = self.change_uses(places.clone(), access)?;
        // SAFETY: the places are mapped, and `&mut self` says that no slice of them exists.
        let done = unsafe {
            self.device().backend().set_access(self.address(places.start), self.size_of(&places), access)
        };
        if let Err(error) = done {
            for &(place, before) in &changed {
                if let Some((granule, _)) = self.mapped(place) {
                    granule.change_use(access, before);
                }
                let (at, len) = (self.address(place), Bytes::from_usize(self.granule));
                // The system may have changed the first few of several mappings before it failed.
                // SAFETY: as above.
                let _ = unsafe { self.device().backend().set_access(at, len, before) };
            }
            return Err(error);
        }
        for place in &mut self.places[places.clone()] {
            if let Place::Mapped { access: current, .. } = place {
                *current = access;
            }
        }
        self.note_mapped(places, access);
        Ok(())
    }

    /// The bytes at `range`, to read.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::NotMapped`] where nothing stands behind some of them.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<DeviceSlice<'_>, Error> {
        let range = checked_range(range, self.places.len() * self.granule)?;
        self.check_mapped(self.places_of(&range))?;
        // SAFETY: all places are mapped and stay so while `self` is borrowed. No mapping of these granules can write
        // during that: one that can is this one, which takes `&mut self`.
        Ok(unsafe { DeviceSlice::from_raw(self.core.base.offset(range.start), range.len(), self.home()) })
    }

    /// The bytes at `range`, to write.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::NotMapped`]; [`Error::ReadOnly`] where some of them may only be read here.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> Result<DeviceSliceMut<'_>, Error> {
        let range = checked_range(range, self.places.len() * self.granule)?;
        let places = self.places_of(&range);
        self.check_mapped(places.clone())?;
        if self.read_only.meets(places) {
            return Err(Error::ReadOnly { what: "a place that is shared" });
        }
        // SAFETY: all places are mapped for writing, which makes each the only mapping of its granule, and `self` is
        // borrowed exclusively.
        Ok(unsafe { DeviceSliceMut::from_raw(self.core.base.offset(range.start), range.len(), self.home()) })
    }

    fn home(&self) -> Home {
        Home::of(self.device().kind())
    }

    /// Gives the places' granules their new use, all or none; answers which were changed and from what.
    fn change_uses(&self, places: Range<usize>, access: Access) -> Result<Vec<(usize, Access)>, Error> {
        let mut changed: Vec<(usize, Access)> = Vec::with_capacity(places.len());
        for place in places {
            let Some((granule, before)) = self.mapped(place) else { continue };
            if granule.change_use(before, access) {
                changed.push((place, before));
                continue;
            }
            for (place, before) in changed {
                if let Some((granule, _)) = self.mapped(place) {
                    granule.change_use(access, before);
                }
            }
            return Err(Error::Aliased { place });
        }
        Ok(changed)
    }

    /// The places that a range of bytes touches.
    fn places_of(&self, bytes: &Range<usize>) -> Range<usize> {
        if bytes.is_empty() { 0..0 } else { bytes.start / self.granule..bytes.end.div_ceil(self.granule) }
    }
}
