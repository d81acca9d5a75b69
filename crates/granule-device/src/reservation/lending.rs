//! Places that leave a reservation's hands for a while: retired, for device work that still uses them, or lent, to be mapped on
//! another thread or to be given back by somebody else.

use std::ops::Range;
use std::sync::Arc;

use super::{Place, Reservation};
use crate::lent::{Back, Lent};
use crate::live::Thing;
use crate::retired::{Fate, Retired};
use crate::{Access, Error};

impl Reservation {
    /// Takes these places out of use without unmapping them yet: device work that is under way may go on with them. They are
    /// empty places again once the answer is [finished](Retired::finish).
    ///
    /// # Errors
    /// [`Error::NoSuchPlace`]; [`Error::NotMapped`] where one of them has nothing behind it.
    pub fn retire(&mut self, places: Range<usize>) -> Result<Retired, Error> {
        let places = self.checked_mapped(places)?;
        let fate = Arc::new(Fate::default());
        let mut granules = Vec::with_capacity(places.len());
        for place in &mut self.places[places.clone()] {
            if let Place::Mapped { granule, access } =
                std::mem::replace(place, Place::Retiring(Arc::clone(&fate)))
            {
                granules.push((granule, access));
            }
        }
        self.device().sub_live(Thing::Mapping, granules.len());
        self.note_unmapped(places.clone());
        Ok(Retired::new(Arc::clone(&self.core), places.start, granules, fate))
    }

    /// Lends empty places, to be mapped on another thread. Until they are taken back, or the loan is dropped, they can be
    /// neither used nor mapped here.
    ///
    /// # Errors
    /// [`Error::NoSuchPlace`], [`Error::AlreadyMapped`], [`Error::Retiring`], [`Error::Lent`]; [`Error::Os`] where an earlier
    /// call left something there that has to go first.
    pub fn lend(&mut self, places: Range<usize>) -> Result<Lent, Error> {
        let places = self.checked_places(places)?;
        if let Some(taken) = places.clone().find(|&place| self.mapped(place).is_some()) {
            return Err(Error::AlreadyMapped { place: taken });
        }
        self.clear_stale(places.clone())?;
        let fate = Arc::new(Fate::default());
        for place in &mut self.places[places.clone()] {
            *place = Place::Lent(Arc::clone(&fate));
        }
        Ok(Lent::new(&self.core, places.start, places.len(), &fate))
    }

    /// Lends places that are mapped for writing, with what stands behind them: for memory that is nobody's at the moment, which
    /// whoever holds the loan may give back by dropping it, on any thread. It makes no call to the system.
    ///
    /// # Errors
    /// [`Error::NoSuchPlace`], [`Error::NotMapped`]; [`Error::ReadOnly`] where one of them may only be read here.
    pub fn lend_mapped(&mut self, places: Range<usize>) -> Result<Lent, Error> {
        let places = self.checked_mapped(places)?;
        if self.read_only.meets(places.clone()) {
            return Err(Error::ReadOnly { what: "a place that is shared" });
        }
        let fate = Arc::new(Fate::default());
        let mut lent = Lent::new(&self.core, places.start, places.len(), &fate);
        for place in &mut self.places[places.clone()] {
            if let Place::Mapped { granule, .. } = std::mem::replace(place, Place::Lent(Arc::clone(&fate))) {
                lent.put_mapped(granule);
            }
        }
        self.note_unmapped(places);
        Ok(lent)
    }

    /// Takes lent places back, mapped or not; it makes no call to the system. One that was lent by another reservation is
    /// dropped, as if nobody had taken it back.
    ///
    /// # Errors
    /// [`Error::OtherReservation`].
    pub fn take_back(&mut self, mut lent: Lent) -> Result<(), Error> {
        let places = lent.places();
        self.take_back_first(&mut lent, places)
    }

    /// As [`Reservation::take_back`], of the first `count` of the places, or of all where there are fewer; the others stay lent.
    ///
    /// # Errors
    /// [`Error::OtherReservation`].
    pub fn take_back_first(&mut self, lent: &mut Lent, count: usize) -> Result<(), Error> {
        if !Arc::ptr_eq(&self.core, lent.core()) {
            return Err(Error::OtherReservation { what: "a loan of places" });
        }
        let first = lent.first();
        let mut mapped = first..first;
        for place in first..first + count.min(lent.places()) {
            self.places[place] = match lent.next() {
                Back::Mapped(granule) => {
                    mapped.end = place + 1;
                    Place::Mapped { granule, access: Access::ReadWrite }
                }
                Back::Stale(granule) => Place::Stale { granule },
                Back::Empty => Place::Empty,
            };
        }
        if !mapped.is_empty() {
            self.note_mapped(mapped, Access::ReadWrite);
        }
        Ok(())
    }
}
