//! `Lent`: places of a reservation in somebody else's hands, to be mapped there, on another thread.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::backend::RawGranule;
use crate::live::Thing;
use crate::reservation::Core;
use crate::retired::{Fate, REFUSED, Retired, UNMAPPED};
use crate::{Access, Bytes, Device, Error, Granule};

/// Empty places that a [`Reservation`](crate::Reservation) has [lent](crate::Reservation::lend): only the holder of this can
/// map them, and nobody can read or write them before they are [taken back](crate::Reservation::take_back). So memory can be
/// mapped on one thread while another uses the rest of the reservation. Dropping it unmaps what was mapped; the places are
/// the reservation's again. Places that are [lent with their memory](crate::Reservation::lend_mapped) are such a loan too.
#[must_use = "dropping it unmaps the places and ends the loan"]
#[derive(Debug)]
pub struct Lent {
    /// For all places, or none.
    granules: VecDeque<Granule>,
    /// What mapping left behind the first so many places when it failed and could not be undone either.
    stale: VecDeque<Granule>,
    fate: Arc<Fate>,
    first: usize,
    places: usize,
    core: Arc<Core>,
}

impl Lent {
    pub(crate) fn new(core: &Arc<Core>, first: usize, places: usize, fate: &Arc<Fate>) -> Lent {
        let (core, fate) = (Arc::clone(core), Arc::clone(fate));
        Lent { granules: VecDeque::new(), stale: VecDeque::new(), fate, first, places, core }
    }

    /// The next of the places has this behind it, mapped for writing: for a loan of places that are mapped.
    pub(crate) fn put_mapped(&mut self, granule: Granule) {
        self.granules.push_back(granule);
    }

    /// The number of the first place.
    pub fn first(&self) -> usize {
        self.first
    }

    /// How many places they are.
    pub fn places(&self) -> usize {
        self.places
    }

    /// The device whose addresses they are.
    pub fn device(&self) -> &Device {
        self.core.device()
    }

    /// True once memory stands behind all of them.
    pub fn is_mapped(&self) -> bool {
        self.places > 0 && self.granules.len() == self.places
    }

    /// Puts granules behind the places, for writing: as many as there are places, and all of them or none. On the host the
    /// system's tables are filled in here too, so that whoever touches the memory first does not wait for it.
    ///
    /// # Errors
    /// [`Error::LentPlaces`], [`Error::AlreadyMapped`], [`Error::OtherDevice`]; [`Error::Aliased`] where a granule stands
    /// behind another place; [`Error::Os`].
    pub fn map(&mut self, granules: &[Granule]) -> Result<(), Error> {
        if granules.len() != self.places {
            return Err(Error::LentPlaces { granules: granules.len(), places: self.places });
        }
        if self.is_mapped() {
            return Err(Error::AlreadyMapped { place: self.first });
        }
        if granules.iter().any(|granule| !granule.device().is_same(self.device())) {
            return Err(Error::OtherDevice { what: "a granule" });
        }
        if !self.stale.is_empty() {
            self.unmap(self.stale.len())?;
            self.stale.clear();
        }
        for (index, granule) in granules.iter().enumerate() {
            if !granule.begin_use(Access::ReadWrite) {
                granules[..index].iter().for_each(|granule| granule.end_use(Access::ReadWrite));
                return Err(Error::Aliased { place: self.first + index });
            }
        }
        if let Err((error, left_mapped)) = self.put(granules) {
            granules.iter().for_each(|granule| granule.end_use(Access::ReadWrite));
            self.stale.extend(granules[..left_mapped].iter().cloned());
            return Err(error);
        }
        self.granules.extend(granules.iter().cloned());
        self.device().add_live(Thing::Mapping, granules.len());
        Ok(())
    }

    /// Maps and populates; where that fails answers how many leading places stay mapped all the same.
    fn put(&self, granules: &[Granule]) -> Result<(), (Error, usize)> {
        let raw: Vec<RawGranule> = granules.iter().map(Granule::raw).collect();
        let (at, backend) = (self.core.place(self.first), self.device().backend());
        // SAFETY: the places lie in the reservation, which the core keeps; they are lent to this alone, and none is mapped.
        unsafe { backend.map(at, &raw, Access::ReadWrite) }
            .map_err(|failure| (failure.error, failure.left_mapped))?;
        // SAFETY: they were mapped for writing just now, and nobody else can touch them before they are taken back.
        let populated = unsafe { backend.populate(at, self.size(granules.len())) };
        populated.map_err(|error| {
            let left = if self.unmap(granules.len()).is_ok() { 0 } else { granules.len() };
            (error, left)
        })
    }

    fn unmap(&self, places: usize) -> Result<(), Error> {
        // SAFETY: the places lie in the reservation, which the core keeps, and it makes no slice of them while they are lent.
        unsafe { self.device().backend().unmap(self.core.place(self.first), self.size(places)) }
    }

    fn size(&self, places: usize) -> Bytes {
        Bytes::from_usize(places * self.core.granule())
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Takes the first place out of the loan: the reservation that lent it says itself what it is from here on.
    pub(crate) fn next(&mut self) -> Back {
        self.first += 1;
        self.places -= 1;
        let (granule, stale) = (self.granules.pop_front(), self.stale.pop_front());
        granule.map(Back::Mapped).or(stale.map(Back::Stale)).unwrap_or(Back::Empty)
    }

    /// Gives the places back without unmapping them yet, where they are mapped: device work that is under way may go on with
    /// them. They are empty places of their reservation once the answer is [finished](Retired::finish).
    pub fn retire(mut self) -> Retired {
        let granules = std::mem::take(&mut self.granules);
        self.device().sub_live(Thing::Mapping, granules.len());
        let mut fate = Arc::<Fate>::default();
        if !granules.is_empty() {
            // What comes of the places is the answer's to say.
            std::mem::swap(&mut fate, &mut self.fate);
            fate.retire();
        }
        let granules = granules.into_iter().map(|granule| (granule, Access::ReadWrite)).collect();
        Retired::new(Arc::clone(&self.core), self.first, granules, fate)
    }
}

/// What a place is that comes back.
#[derive(Debug)]
pub(crate) enum Back {
    Mapped(Granule),
    Stale(Granule),
    Empty,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mapped = self.granules.len().max(self.stale.len());
        // Where the system refuses, the reservation clears the places before it uses them again.
        let gone = mapped == 0 || self.unmap(mapped).is_ok();
        self.granules.iter().for_each(|granule| granule.end_use(Access::ReadWrite));
        self.device().sub_live(Thing::Mapping, self.granules.len());
        self.fate.end(if gone { UNMAPPED } else { REFUSED });
    }
}
