//! `Reservation`: a range of device addresses, with granules behind any of its places.

mod access;
mod lending;
mod runs;

use std::ops::Range;
use std::sync::Arc;

use self::runs::Runs;
use crate::backend::RawGranule;
use crate::live::{Counted, Thing};
use crate::retired::Fate;
use crate::{Access, Bytes, Device, DevicePtr, Error, Granule};

/// A range of addresses cut into granule-sized places, numbered from 0, with a granule behind some of them.
///
/// Its base never changes. It keeps the granules that it maps; unmapping or dropping lets go of them. Reading and writing
/// borrow it, so nothing can be unmapped under a slice.
#[derive(Debug)]
pub struct Reservation {
    // Dropped before the granules behind its places.
    core: Arc<Core>,
    granule: usize,
    places: Vec<Place>,
    /// The places that are mapped: the common question, answered without a walk.
    mapped: Runs,
    /// Those of them that may only be read.
    read_only: Runs,
}

/// The addresses themselves, kept by the reservation and by what was [retired](Retired) from it.
#[derive(Debug)]
pub(crate) struct Core {
    base: DevicePtr,
    places: usize,
    granule: usize,
    owner: Counted,
}

impl Core {
    pub(crate) fn base(&self) -> DevicePtr {
        self.base
    }

    pub(crate) fn granule(&self) -> usize {
        self.granule
    }

    pub(crate) fn place(&self, place: usize) -> DevicePtr {
        self.base.offset(place * self.granule)
    }

    pub(crate) fn device(&self) -> &Device {
        self.owner.device()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let len = Bytes::from_usize(self.places * self.granule);
        // SAFETY: these are the addresses that `reserve` answered; no slice of them outlives the reservation, and nothing
        // that was retired from it is left.
        unsafe { self.device().backend().free_reservation(self.base, len) };
    }
}

#[derive(Debug)]
enum Place {
    Empty,
    Mapped {
        granule: Granule,
        access: Access,
    },
    /// Mapping failed and so did taking it back: not usable, but the system may still hold the memory.
    Stale {
        granule: Granule,
    },
    /// Replacing failed halfway: one of the two may still be mapped.
    Halfway {
        #[expect(dead_code, reason = "held, so that memory still mapped is not given to others")]
        granules: [Granule; 2],
    },
    /// Mapped still, for device work.
    Retiring(Arc<Fate>),
    /// In the hands of somebody who maps it.
    Lent(Arc<Fate>),
}

impl Reservation {
    pub(crate) fn new(device: &Device, len: Bytes, peers: &[&Device]) -> Result<Reservation, Error> {
        let granularity = device.granularity();
        if len.is_zero() {
            return Err(Error::ZeroSize { what: "a reservation" });
        }
        if granularity.is_zero() {
            let why = "the device or its driver has no virtual memory management";
            return Err(Error::Unsupported { what: "a reservation", why });
        }
        let too_large = || Error::TooLarge {
            device: device.name().to_owned(),
            requested: len,
            capacity: Bytes::from_usize(isize::MAX as usize),
        };
        let whole = len.checked_next_multiple_of(granularity).ok_or_else(too_large)?;
        if whole > Bytes::from_usize(isize::MAX as usize) {
            return Err(too_large());
        }
        let (Some(places), Some(granule)) = (whole.pieces_of(granularity), granularity.to_usize()) else {
            return Err(too_large());
        };
        let base = device.backend().reserve(whole, peers)?;
        let core = Core { base, places, granule, owner: Counted::new(device, Thing::Reservation) };
        let places = std::iter::repeat_with(|| Place::Empty).take(places).collect();
        let (mapped, read_only) = (Runs::default(), Runs::default());
        Ok(Reservation { core: Arc::new(core), granule, places, mapped, read_only })
    }

    /// The device whose addresses they are.
    pub fn device(&self) -> &Device {
        self.core.device()
    }

    /// Where it starts; aligned to a granule. Only mapped places may be followed.
    pub fn base(&self) -> DevicePtr {
        self.core.base
    }

    /// How many places there are.
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// The size of the whole range: places times the granule.
    pub fn len(&self) -> Bytes {
        Bytes::from_usize(self.places.len() * self.granule)
    }

    /// Never: a reservation has at least one place.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The granule behind a place, and what may be done with it there; `None` where nothing is, or no such place.
    pub fn mapped(&self, place: usize) -> Option<(&Granule, Access)> {
        match self.places.get(place) {
            Some(Place::Mapped { granule, access }) => Some((granule, *access)),
            _ => None,
        }
    }

    /// Puts granules behind the places from `place` on: all of them or none.
    ///
    /// # Errors
    /// [`Error::NoSuchPlace`], [`Error::AlreadyMapped`], [`Error::Retiring`], [`Error::Lent`], [`Error::OtherDevice`];
    /// [`Error::Aliased`] where the access does not go together with where a granule is mapped already; [`Error::Os`].
    pub fn map(&mut self, place: usize, granules: &[Granule], access: Access) -> Result<(), Error> {
        let range = self.checked_places(place..place.saturating_add(granules.len()))?;
        if let Some(taken) = range.clone().find(|&place| self.mapped(place).is_some()) {
            return Err(Error::AlreadyMapped { place: taken });
        }
        if granules.iter().any(|granule| !granule.device().is_same(self.device())) {
            return Err(Error::OtherDevice { what: "a granule" });
        }
        self.clear_stale(range.clone())?;
        for (index, granule) in granules.iter().enumerate() {
            if !granule.begin_use(access) {
                granules[..index].iter().for_each(|granule| granule.end_use(access));
                return Err(Error::Aliased { place: place + index });
            }
        }
        let raw: Vec<RawGranule> = granules.iter().map(Granule::raw).collect();
        // SAFETY: the places lie in this reservation, and none is mapped, so no slice of them exists.
        let mapped = unsafe { self.device().backend().map(self.address(place), &raw, access) };
        if let Err(failure) = mapped {
            granules.iter().for_each(|granule| granule.end_use(access));
            for (index, granule) in granules.iter().take(failure.left_mapped).enumerate() {
                self.places[place + index] = Place::Stale { granule: granule.clone() };
            }
            return Err(failure.error);
        }
        for (index, granule) in granules.iter().enumerate() {
            self.places[place + index] = Place::Mapped { granule: granule.clone(), access };
        }
        self.device().add_live(Thing::Mapping, granules.len());
        self.note_mapped(range, access);
        Ok(())
    }

    /// Takes the granules from behind these places and answers with them, in order. Dropping a granule that nothing else
    /// holds or maps frees its memory.
    ///
    /// # Errors
    /// [`Error::NoSuchPlace`]; [`Error::NotMapped`] where one of them has nothing behind it; [`Error::Os`].
    pub fn unmap(&mut self, places: Range<usize>) -> Result<Vec<Granule>, Error> {
        let places = self.checked_mapped(places)?;
        if places.is_empty() {
            return Ok(Vec::new());
        }
        // SAFETY: the places lie in this reservation, and `&mut self` says that no slice of them exists.
        unsafe { self.device().backend().unmap(self.address(places.start), self.size_of(&places))? };
        let mut granules = Vec::with_capacity(places.len());
        for place in &mut self.places[places.clone()] {
            if let Place::Mapped { granule, access } = std::mem::replace(place, Place::Empty) {
                granule.end_use(access);
                granules.push(granule);
            }
        }
        self.device().sub_live(Thing::Mapping, granules.len());
        self.note_unmapped(places);
        Ok(granules)
    }

    /// As [`Reservation::unmap`], for undoing: it cannot fail, and places with nothing behind them are passed over. Where
    /// the system refuses, the place counts as empty all the same and is cleared before anything is mapped there.
    pub fn evict(&mut self, places: Range<usize>) -> Vec<Granule> {
        let places = places.start.min(self.places.len())..places.end.min(self.places.len());
        let mut granules = Vec::new();
        for place in places.clone() {
            if self.mapped(place).is_none() {
                continue;
            }
            // SAFETY: the place lies in this reservation, and `&mut self` says that no slice of it exists.
            let gone = unsafe {
                self.device().backend().unmap(self.address(place), Bytes::from_usize(self.granule))
            };
            if let Place::Mapped { granule, access } =
                std::mem::replace(&mut self.places[place], Place::Empty)
            {
                granule.end_use(access);
                if gone.is_err() {
                    self.places[place] = Place::Stale { granule: granule.clone() };
                }
                granules.push(granule);
            }
        }
        self.device().sub_live(Thing::Mapping, granules.len());
        self.note_unmapped(places);
        granules
    }

    /// Puts another granule behind a mapped place, at the same address, and answers with the one that was there. A CUDA
    /// device does it in two steps; where both the second and undoing the first are refused, the place is left empty.
    ///
    /// # Errors
    /// [`Error::NoSuchPlace`], [`Error::NotMapped`], [`Error::OtherDevice`], [`Error::Aliased`], [`Error::Os`].
    pub fn replace(&mut self, place: usize, granule: &Granule, access: Access) -> Result<Granule, Error> {
        self.checked_mapped(place..place.saturating_add(1))?;
        if !granule.device().is_same(self.device()) {
            return Err(Error::OtherDevice { what: "a granule" });
        }
        if !granule.begin_use(access) {
            return Err(Error::Aliased { place });
        }
        let at = self.address(place);
        // SAFETY: the place lies in this reservation, and `&mut self` says that no slice of it exists.
        let done = unsafe { self.device().backend().replace(at, granule.raw(), access) };
        if let Err(failure) = done {
            granule.end_use(access);
            if failure.gone {
                self.evict(place..place + 1);
                // Which of the two is left, if one is, the driver did not say.
                if let Place::Stale { granule: old } = &self.places[place] {
                    self.places[place] = Place::Halfway { granules: [old.clone(), granule.clone()] };
                }
            }
            return Err(failure.error);
        }
        let new = Place::Mapped { granule: granule.clone(), access };
        let before = std::mem::replace(&mut self.places[place], new);
        self.note_mapped(place..place + 1, access);
        match before {
            Place::Mapped { granule, access } => {
                granule.end_use(access);
                Ok(granule)
            }
            Place::Empty
            | Place::Stale { .. }
            | Place::Halfway { .. }
            | Place::Retiring(_)
            | Place::Lent(_) => Err(Error::NotMapped { place }),
        }
    }

    fn address(&self, place: usize) -> DevicePtr {
        self.core.place(place)
    }

    fn size_of(&self, places: &Range<usize>) -> Bytes {
        Bytes::from_usize(places.len() * self.granule)
    }

    fn checked_places(&self, range: Range<usize>) -> Result<Range<usize>, Error> {
        let places = self.places.len();
        if range.start <= range.end && range.end <= places {
            Ok(range)
        } else {
            Err(Error::NoSuchPlace { range, places })
        }
    }

    fn checked_mapped(&self, range: Range<usize>) -> Result<Range<usize>, Error> {
        let range = self.checked_places(range)?;
        self.check_mapped(range.clone())?;
        Ok(range)
    }

    fn check_mapped(&self, places: Range<usize>) -> Result<(), Error> {
        match self.mapped.first_outside(places) {
            Some(place) => Err(Error::NotMapped { place }),
            None => Ok(()),
        }
    }

    /// Makes sure that nothing stands behind these places, which are not in use.
    fn clear_stale(&mut self, places: Range<usize>) -> Result<(), Error> {
        for place in places {
            let left = match &self.places[place] {
                Place::Retiring(fate) if fate.is_waiting() => return Err(Error::Retiring { place }),
                Place::Lent(fate) if fate.is_retiring() => return Err(Error::Retiring { place }),
                Place::Lent(fate) if fate.is_waiting() => return Err(Error::Lent { place }),
                Place::Retiring(fate) | Place::Lent(fate) => !fate.is_unmapped(),
                Place::Stale { .. } | Place::Halfway { .. } => true,
                Place::Empty | Place::Mapped { .. } => continue,
            };
            if left {
                // SAFETY: the place lies in this reservation and is not usable, so nothing uses its memory.
                unsafe {
                    self.device().backend().unmap(self.address(place), Bytes::from_usize(self.granule))?;
                }
            }
            self.places[place] = Place::Empty;
        }
        Ok(())
    }

    /// These places are mapped now, with this access.
    fn note_mapped(&mut self, places: Range<usize>, access: Access) {
        match access {
            Access::ReadOnly => self.read_only.insert(places.clone()),
            Access::ReadWrite => self.read_only.remove(places.clone()),
        }
        self.mapped.insert(places);
    }

    /// These places are not mapped any more.
    fn note_unmapped(&mut self, places: Range<usize>) {
        self.read_only.remove(places.clone());
        self.mapped.remove(places);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // No slice is left, so nothing goes through these mappings any more. The core unmaps them all in one go, unless it
        // stays for what was retired: then they must not wait for that, because their granules are anybody's now.
        if Arc::strong_count(&self.core) > 1 {
            for places in self.mapped.iter() {
                // What is refused goes with the core.
                // SAFETY: the places lie in this reservation, and no slice of them exists.
                let _ = unsafe {
                    self.device().backend().unmap(self.address(places.start), self.size_of(&places))
                };
            }
        }
        for place in &self.places {
            if let Place::Mapped { granule, access } = place {
                granule.end_use(*access);
                self.device().sub_live(Thing::Mapping, 1);
            }
        }
    }
}
