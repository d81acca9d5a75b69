//! What is mapped where in a CUDA device's reservations.
//!
//! It is remembered here, because the driver wants to be told exactly: it unmaps what is mapped and nothing else, and a
//! replaced mapping can only be put back by one who knows what it was.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::ops::Range;

use super::calls::Driver;
use super::errors;
use super::virtual_memory::{Grant, Location, ON_DEVICE};
use crate::{Access, DevicePtr, Error};

/// Every reservation by its base.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    all: BTreeMap<u64, Reserved>,
    /// The other devices that reach all of them.
    admitted: Vec<c_int>,
}

/// One reservation.
#[derive(Debug)]
pub(super) struct Reserved {
    /// What is mapped behind each place.
    pub(super) places: Vec<Option<(u64, Access)>>,
    /// The devices that can reach it, its own first.
    pub(super) devices: Vec<c_int>,
}

/// Gives devices access to mapped memory.
///
/// # Safety
/// - The addresses are mapped, and nothing uses them that the change would be wrong for.
pub(super) unsafe fn grant(
    driver: &Driver,
    at: u64,
    len: usize,
    flags: c_int,
    devices: &[c_int],
) -> Result<(), Error> {
    let grants: Vec<Grant> =
        devices.iter().map(|&id| Grant { location: Location { kind: ON_DEVICE, id }, flags }).collect();
    // SAFETY: the caller's promise; the grants have the driver's shape and live through the call.
    unsafe { driver.cuMemSetAccess(at, len, grants.as_ptr().cast(), grants.len()) }
}

impl Ranges {
    /// Has another device reach all that is and will be mapped. Where a grant fails those before it stay, and doing it again goes on.
    ///
    /// # Safety
    /// - `flags` are those of places as they are mapped.
    pub(super) unsafe fn admit(
        &mut self,
        driver: &Driver,
        granule: usize,
        device: c_int,
        flags: impl Fn(u64, Access) -> Result<c_int, Error>,
    ) -> Result<(), Error> {
        for (&base, reserved) in &mut self.all {
            if reserved.devices.contains(&device) {
                continue;
            }
            for (place, what) in reserved.places.iter().enumerate() {
                let Some((handle, access)) = *what else { continue };
                let at = base + (place * granule) as u64;
                // SAFETY: the place is mapped, and what its own device may do there stays as it is.
                unsafe { grant(driver, at, granule, flags(handle, access)?, &[device])? };
            }
            reserved.devices.push(device);
        }
        if !self.admitted.contains(&device) {
            self.admitted.push(device);
        }
        Ok(())
    }

    /// A reservation for these devices, and those that reach all.
    pub(super) fn insert(&mut self, base: u64, mut reserved: Reserved) {
        for device in &self.admitted {
            if !reserved.devices.contains(device) {
                reserved.devices.push(*device);
            }
        }
        self.all.insert(base, reserved);
    }

    pub(super) fn get_mut(&mut self, base: u64) -> Option<&mut Reserved> {
        self.all.get_mut(&base)
    }

    pub(super) fn remove(&mut self, base: u64) {
        self.all.remove(&base);
    }

    /// The addresses of the reservation that one of them lies in.
    pub(super) fn around(&self, at: DevicePtr, granule: usize) -> Option<Range<u64>> {
        let (&base, reserved) = self.all.range(..=at.addr()).next_back()?;
        let range = base..base + (reserved.places.len() * granule) as u64;
        range.contains(&at.addr()).then_some(range)
    }

    /// The reservation that an address lies in, and the number of its place.
    pub(super) fn find(&mut self, at: DevicePtr, granule: usize) -> Result<(&mut Reserved, usize), Error> {
        let found = self.all.range_mut(..=at.addr()).next_back();
        let place = |base: u64| usize::try_from(at.addr() - base).ok().map(|offset| offset / granule.max(1));
        match found.and_then(|(&base, reserved)| Some((place(base)?, reserved))) {
            Some((place, reserved)) if place < reserved.places.len() => Ok((reserved, place)),
            _ => Err(Error::NoSuchPlace { range: 0..0, places: 0 }),
        }
    }
}

impl Reserved {
    pub(super) fn new(places: usize, devices: Vec<c_int>) -> Reserved {
        Reserved { places: vec![None; places], devices }
    }

    /// What the driver itself says, where that is an answer. What it says after earlier work has failed is none.
    fn is_mapped(&self, driver: &Driver, at: u64) -> Option<bool> {
        let location = Location { kind: ON_DEVICE, id: self.devices[0] };
        let mut flags = 0;
        // SAFETY: the location has the driver's shape and lives through the call; it writes into a local.
        match unsafe { driver.unfailing().cuMemGetAccess(&raw mut flags, (&raw const location).cast(), at) } {
            Ok(()) => (flags != 0).then_some(true),
            Err(error) => match errors::code(&error) {
                Some(errors::INVALID_VALUE | errors::NOT_MAPPED) => Some(false),
                _ => None,
            },
        }
    }

    /// Maps a granule where nothing is mapped. Where the access to it is refused it is taken away again; if that is refused
    /// too, it stays recorded, for [`Reserved::unmap`].
    ///
    /// # Safety
    /// - Nothing is mapped at the place, whose address is `at`, and nothing uses it; the granule is alive.
    pub(super) unsafe fn put(
        &mut self,
        driver: &Driver,
        at: u64,
        granule: usize,
        place: usize,
        what: (u64, Access),
        flags: c_int,
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { driver.cuMemMap(at, granule, 0, what.0, 0)? };
        self.places[place] = Some(what);
        // SAFETY: it was mapped just now, and nothing uses it yet.
        let granted = unsafe { grant(driver, at, granule, flags, &self.devices) };
        if granted.is_err() {
            // SAFETY: as above.
            let _ = unsafe { self.unmap(&driver.unfailing(), at, granule, place..place + 1) };
        }
        granted
    }

    /// Unmaps what is mapped of these places, each run of them in one call; `at` is where the first one is.
    ///
    /// # Safety
    /// - Nothing uses the places.
    pub(super) unsafe fn unmap(
        &mut self,
        driver: &Driver,
        at: u64,
        granule: usize,
        places: Range<usize>,
    ) -> Result<(), Error> {
        let first = places.start;
        let mut next = places.start;
        while next < places.end {
            let run = self.places[next..places.end].iter().take_while(|place| place.is_some()).count();
            if run > 0 {
                let start = at + ((next - first) * granule) as u64;
                // SAFETY: these places are mapped, each as a whole, and the caller says that nothing uses them.
                match unsafe { driver.cuMemUnmap(start, run * granule) } {
                    // Drivers answer with the error of earlier work too, after having done it.
                    Err(Error::Driver { .. }) if self.is_mapped(driver, start) == Some(false) => {}
                    done => done?,
                }
                self.places[next..next + run].fill(None);
            }
            next += run.max(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::{c_uint, c_ulonglong};
    use std::sync::Arc;

    use cudarc::driver::sys::{CUdeviceptr, CUmemAccessDesc, CUmemGenericAllocationHandle, CUmemLocation};

    use super::super::calls::Functions;
    use super::*;

    const LOST: c_uint = 719;

    unsafe extern "C" fn map(
        _: CUdeviceptr,
        _: usize,
        _: usize,
        _: CUmemGenericAllocationHandle,
        _: c_ulonglong,
    ) -> c_uint {
        0
    }

    unsafe extern "C" fn lost(_: CUdeviceptr, _: usize) -> c_uint {
        LOST
    }

    unsafe extern "C" fn no_access(_: CUdeviceptr, _: usize, _: *const CUmemAccessDesc, _: usize) -> c_uint {
        errors::OUT_OF_MEMORY
    }

    /// Answers for `cuMemGetAccess`: a code and flags.
    macro_rules! access {
        ($code:expr, $flags:expr) => {{
            unsafe extern "C" fn access(
                flags: *mut c_ulonglong,
                _: *const CUmemLocation,
                _: CUdeviceptr,
            ) -> c_uint {
                // SAFETY: the caller gives the address of a local.
                unsafe { flags.write($flags) };
                $code
            }
            access
        }};
    }

    fn driver(functions: Functions) -> Driver {
        Driver::new(Box::leak(Box::new(functions)), Arc::default())
    }

    #[test]
    fn a_refused_unmap_is_done_only_where_the_driver_says_so() {
        let answers: [(unsafe extern "C" fn(_, _, _) -> c_uint, bool); 6] = [
            (access!(errors::INVALID_VALUE, 0), true),
            (access!(errors::NOT_MAPPED, 0), true),
            // It is mapped.
            (access!(0, 3), false),
            // No answer: mapped without access, or not at all.
            (access!(0, 0), false),
            // The error of earlier work, which every call answers.
            (access!(LOST, 0), false),
            (access!(999, 0), false),
        ];
        for (index, (get_access, gone)) in answers.into_iter().enumerate() {
            let driver =
                driver(Functions { cuMemUnmap: lost, cuMemGetAccess: get_access, ..Functions::refusing() });
            let mut reserved = Reserved::new(2, vec![0]);
            reserved.places[1] = Some((7, Access::ReadWrite));
            // SAFETY: the driver does nothing.
            let done = unsafe { reserved.unmap(&driver, 0, 1, 0..2) };
            assert_eq!((done.is_ok(), reserved.places[1].is_none()), (gone, gone), "{index}: {done:?}");
        }
    }

    #[test]
    fn what_cannot_be_taken_away_again_stays_recorded() {
        let get_access = access!(LOST, 0);
        let functions = Functions { cuMemMap: map, cuMemSetAccess: no_access, ..Functions::refusing() };
        let driver = driver(Functions { cuMemUnmap: lost, cuMemGetAccess: get_access, ..functions });
        let mut reserved = Reserved::new(1, vec![0]);
        // SAFETY: the driver does nothing.
        let done = unsafe { reserved.put(&driver, 0, 1, 0, (7, Access::ReadOnly), 1) };
        assert_eq!(done.map_err(|error| errors::code(&error)), Err(Some(errors::OUT_OF_MEMORY)));
        assert_eq!(reserved.places, [Some((7, Access::ReadOnly))]);
    }
}
