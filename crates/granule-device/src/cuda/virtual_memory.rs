//! Virtual memory of a CUDA device: what it can do, granules, reservations, and what stands behind their places.
//!
//! The calls are not ordered with streams; callers see to it that no work uses the places.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::{
    CUmemAccessDesc, CUmemAllocationGranularity_flags, CUmemAllocationProp, CUmemLocation,
};

use super::calls::Driver;
use super::context::{Context, attribute, explain, lock, memory};
use super::errors;
use super::ranges::{Reserved, grant};
use super::release::was_asked;
use crate::backend::{MapFailure, RawGranule, ReplaceFailure};
use crate::{Access, Bytes, DevicePtr, Error};

/// Where memory is, as the driver is told: CUmemLocation, a type and an id. Its bindings changed shape in CUDA 13.2.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Location {
    pub(super) kind: c_int,
    pub(super) id: c_int,
}

pub(super) const ON_DEVICE: c_int = 1;
const ON_HOST_NODE: c_int = 3;

/// CUmemAllocationProp.
#[repr(C)]
struct Properties {
    /// 1: pinned, the only kind there is.
    kind: c_int,
    handle_types: c_int,
    location: Location,
    windows: *mut c_void,
    flags: [u8; 8],
}

/// CUmemAccessDesc.
#[repr(C)]
pub(super) struct Grant {
    pub(super) location: Location,
    /// 0 none, 1 read, 3 read and write.
    pub(super) flags: c_int,
}

const _: () = assert!(
    size_of::<Properties>() == size_of::<CUmemAllocationProp>()
        && size_of::<Grant>() == size_of::<CUmemAccessDesc>()
        && size_of::<Location>() == size_of::<CUmemLocation>()
);

fn properties(location: Location) -> Properties {
    Properties { kind: 1, handle_types: 0, location, windows: std::ptr::null_mut(), flags: [0; 8] }
}

/// What the device can do, found out when it is opened.
#[derive(Debug)]
pub(super) struct VirtualMemory {
    /// The size of a granule; 0 where there is no virtual memory.
    pub(super) granule: usize,
    /// Whether the driver grants access that only reads. Where it does not, such places are mapped for writing and it is
    /// the types of this crate that keep them from being written. Unknown where the device was full when it was opened,
    /// until a granule is to be read only.
    read_only: OnceLock<bool>,
    /// The host's memory node whose granules the device can map; asked for when first needed.
    host_node: OnceLock<Option<c_int>>,
}

/// How much of the device's memory the driver can map at the least.
pub(super) fn granularity(driver: &Driver, device: c_int) -> Result<usize, Error> {
    let properties = properties(Location { kind: ON_DEVICE, id: device });
    let of = (&raw const properties).cast::<CUmemAllocationProp>();
    let minimum = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
    let mut granularity = 0;
    // SAFETY: the properties have the driver's shape and live through the call; it writes into a local.
    unsafe { driver.cuMemGetAllocationGranularity(&raw mut granularity, of, minimum)? };
    Ok(granularity)
}

fn create(driver: &Driver, len: usize, location: Location) -> Result<u64, Error> {
    let properties = properties(location);
    let mut handle = 0;
    // SAFETY: the properties have the driver's shape and live through the call; it writes into a local.
    unsafe { driver.cuMemCreate(&raw mut handle, len, (&raw const properties).cast(), 0)? };
    Ok(handle)
}

fn reserve(driver: &Driver, len: usize, align: usize) -> Result<u64, Error> {
    let mut base = 0;
    // SAFETY: it is written into a local.
    unsafe { driver.cuMemAddressReserve(&raw mut base, len, align, 0, 0)? };
    Ok(base)
}

impl VirtualMemory {
    pub(super) fn none() -> VirtualMemory {
        VirtualMemory { granule: 0, read_only: OnceLock::from(false), host_node: OnceLock::from(None) }
    }

    /// Asks for the granularity, and tries read-only access on a real granule if there is room for one.
    pub(super) fn probe(
        driver: &Driver,
        device: c_int,
        name: &str,
        wanted: Option<Bytes>,
    ) -> Result<VirtualMemory, Error> {
        let minimum = granularity(driver, device)?;
        let granule = wanted.unwrap_or(Bytes::from_usize(minimum));
        let size = checked_granule(granule, Bytes::from_usize(minimum))?;
        let read_only = match try_read_only(driver, size, device) {
            Err(error) if errors::code(&error) == Some(errors::OUT_OF_MEMORY) => {
                // The device is full now; but a granule that it can never hold is a mistake to be told.
                if memory(driver).is_ok_and(|(_, total)| granule > total) {
                    return Err(explain(driver, name, error, granule));
                }
                OnceLock::new()
            }
            tried => OnceLock::from(tried?),
        };
        Ok(VirtualMemory { granule: size, read_only, host_node: OnceLock::new() })
    }
}

/// The size of a granule as a number, where it can be mapped in pages of this size.
pub(super) fn checked_granule(granule: Bytes, page: Bytes) -> Result<usize, Error> {
    let fits = |size: &usize| size.is_power_of_two() && granule.get().is_multiple_of(page.get().max(1));
    granule.to_usize().filter(fits).ok_or(Error::GranuleSize { granule, page })
}

/// Whether the driver grants access that only reads, tried on a granule that is given back.
fn try_read_only(driver: &Driver, size: usize, device: c_int) -> Result<bool, Error> {
    let handle = create(driver, size, Location { kind: ON_DEVICE, id: device })?;
    let tried = try_granule(driver, handle, size, Access::ReadOnly, device);
    // SAFETY: it was made here and is mapped nowhere.
    let released = unsafe { driver.unfailing().cuMemRelease(handle) };
    released.and(granted(tried))
}

/// Maps a granule with this access for a moment.
fn try_granule(driver: &Driver, handle: u64, len: usize, access: Access, device: c_int) -> Result<(), Error> {
    let base = reserve(driver, len, len)?;
    let unfailing = driver.unfailing();
    // SAFETY: the addresses are this function's, and it gives them back whatever the driver answers.
    unsafe {
        let mapped = driver.cuMemMap(base, len, 0, handle, 0);
        let mut done = Ok(());
        if mapped.is_ok() {
            let flags = if access == Access::ReadOnly { 1 } else { 3 };
            done = grant(driver, base, len, flags, &[device]);
            done = done.and(unfailing.cuMemUnmap(base, len));
        }
        mapped.and(done).and(unfailing.cuMemAddressFree(base, len))
    }
}

/// The driver's refusal is an answer; anything else is an error.
fn granted(tried: Result<(), Error>) -> Result<bool, Error> {
    match tried {
        Ok(()) => Ok(true),
        Err(error) => match errors::code(&error) {
            Some(
                errors::INVALID_VALUE
                | errors::INVALID_DEVICE
                | errors::NOT_PERMITTED
                | errors::NOT_SUPPORTED,
            ) => Ok(false),
            _ => Err(error),
        },
    }
}

impl Context {
    fn no_virtual_memory(&self) -> Result<(), Error> {
        if self.virtual_memory.granule == 0 {
            let why = "the device or its driver has no virtual memory management";
            return Err(Error::Unsupported { what: "a reservation or a granule", why });
        }
        Ok(())
    }

    pub(super) fn create_granule(&self) -> Result<RawGranule, Error> {
        self.no_virtual_memory()?;
        self.create(Location { kind: ON_DEVICE, id: self.device })
    }

    pub(super) fn create_host_granule(&self) -> Result<RawGranule, Error> {
        self.no_virtual_memory()?;
        let why = "the driver does not map host memory behind device addresses here";
        let unsupported = Error::Unsupported { what: "a granule of host memory", why };
        let id = self.host_node()?.ok_or(unsupported)?;
        self.create(Location { kind: ON_HOST_NODE, id })
    }

    fn create(&self, location: Location) -> Result<RawGranule, Error> {
        self.refuse_in_capture("making a granule")?;
        let granule = self.virtual_memory.granule;
        let bound = self.bind()?;
        let mut made = create(&self.driver, granule, location);
        if made.as_ref().is_err_and(|error| errors::code(error) == Some(errors::OUT_OF_MEMORY)) {
            // What was refused or put off may be just the room that is missing.
            self.settle();
            made = create(&self.driver, granule, location);
        }
        drop(bound);
        made.map(RawGranule).map_err(|error| self.explain(error, Bytes::from_usize(granule)))
    }

    /// Whether the driver grants access that only reads: known, or tried on a granule of the caller's, or on a new one.
    pub(super) fn read_only(&self, granule: Option<u64>) -> Result<bool, Error> {
        let VirtualMemory { granule: size, read_only, .. } = &self.virtual_memory;
        if let Some(&known) = read_only.get() {
            return Ok(known);
        }
        self.refuse_in_capture("trying a granule")?;
        let _bound = self.bind()?;
        let tried = match granule {
            Some(handle) => granted(try_granule(&self.driver, handle, *size, Access::ReadOnly, self.device)),
            None => try_read_only(&self.driver, *size, self.device),
        };
        let tried = tried.map_err(|error| self.explain(error, Bytes::from_usize(*size)))?;
        Ok(*read_only.get_or_init(|| tried))
    }

    /// The driver's number for an access to a granule.
    fn flags(&self, access: Access, granule: u64) -> Result<c_int, Error> {
        match access {
            Access::ReadOnly if self.read_only(Some(granule))? => Ok(1),
            Access::ReadOnly | Access::ReadWrite => Ok(3),
        }
    }

    /// The host's memory node whose granules this device can map, tried once with a real one.
    pub(super) fn host_node(&self) -> Result<Option<c_int>, Error> {
        let virtual_memory = &self.virtual_memory;
        if let Some(&node) = virtual_memory.host_node.get() {
            return Ok(node);
        }
        self.refuse_in_capture("trying a granule of host memory")?;
        // Where the driver does not know the attribute, or the machine has no nodes, the first is the only one.
        let node = self.driver.attribute(attribute::HOST_NUMA_ID, self.device)?;
        let node = node.unwrap_or(0).max(0);
        let _bound = self.bind()?;
        let made = create(&self.driver, virtual_memory.granule, Location { kind: ON_HOST_NODE, id: node });
        let tried = match made {
            Ok(handle) => {
                let tried =
                    try_granule(&self.driver, handle, virtual_memory.granule, Access::ReadWrite, self.device);
                // SAFETY: it was made here and is mapped nowhere.
                tried.and(unsafe { self.driver.unfailing().cuMemRelease(handle) })
            }
            Err(error) => Err(error),
        };
        let granule = Bytes::from_usize(virtual_memory.granule);
        let node = granted(tried).map_err(|error| self.explain(error, granule))?.then_some(node);
        Ok(*virtual_memory.host_node.get_or_init(|| node))
    }

    pub(super) fn reserve(&self, len: Bytes, peers: &[c_int]) -> Result<DevicePtr, Error> {
        self.no_virtual_memory()?;
        self.refuse_in_capture("reserving addresses")?;
        let granule = self.virtual_memory.granule;
        let size = len.to_usize().unwrap_or(usize::MAX);
        let _bound = self.bind()?;
        let base = reserve(&self.driver, size, granule).map_err(|error| self.explain(error, len))?;
        let devices = std::iter::once(self.device).chain(peers.iter().copied()).collect();
        lock(&self.ranges).insert(base, Reserved::new(size / granule, devices));
        Ok(DevicePtr::new(base))
    }

    /// Has another device reach all that is and will be mapped on this one.
    pub(super) fn admit(&self, device: c_int) -> Result<(), Error> {
        if self.virtual_memory.granule == 0 {
            return Ok(());
        }
        let _bound = self.bind()?;
        let flags = |handle, access| self.flags(access, handle);
        // SAFETY: these are the flags that the places were mapped with.
        unsafe { lock(&self.ranges).admit(&self.driver, self.virtual_memory.granule, device, flags) }
    }

    /// Unmaps what is mapped and gives the addresses back; what was done stays done where the rest is refused.
    pub(super) fn free_range(&self, base: DevicePtr) -> Result<(), Error> {
        let mut ranges = lock(&self.ranges);
        let granule = self.virtual_memory.granule;
        let Some(reserved) = ranges.get_mut(base.addr()) else { return Ok(()) };
        let len = reserved.places.len();
        // SAFETY: the caller gives the reservation back, so nothing uses it.
        unsafe {
            reserved.unmap(&self.driver, base.addr(), granule, 0..len).or_else(was_asked)?;
            self.driver.cuMemAddressFree(base.addr(), len * granule).or_else(was_asked)?;
        }
        ranges.remove(base.addr());
        Ok(())
    }

    /// # Safety
    /// - As [`Backend::map`](crate::backend::Backend::map).
    pub(super) unsafe fn map(
        &self,
        at: DevicePtr,
        granules: &[RawGranule],
        access: Access,
    ) -> Result<(), MapFailure> {
        let nothing = |error| MapFailure { error, left_mapped: 0 };
        self.refuse_in_capture("mapping a granule").map_err(nothing)?;
        let _bound = self.bind().map_err(nothing)?;
        let granule = self.virtual_memory.granule;
        let Some(tried) = granules.first() else { return Ok(()) };
        let flags = self.flags(access, tried.0).map_err(nothing)?;
        let mut ranges = lock(&self.ranges);
        let (reserved, first) = ranges.find(at, granule).map_err(nothing)?;
        let mut mapped = 0;
        let mut done = Ok(());
        for (index, raw) in granules.iter().enumerate() {
            let place = at.addr() + (index * granule) as u64;
            // SAFETY: the caller owns the place, nothing is mapped there, and the granule is alive.
            done = unsafe { self.driver.cuMemMap(place, granule, 0, raw.0, 0) };
            if done.is_err() {
                break;
            }
            mapped = index + 1;
        }
        if done.is_ok() && mapped > 0 {
            // SAFETY: all of it was mapped just now, and nothing uses it yet. One call for the whole run: it is the
            // slowest of them.
            done = unsafe { grant(&self.driver, at.addr(), mapped * granule, flags, &reserved.devices) };
        }
        for (place, raw) in reserved.places[first..].iter_mut().zip(&granules[..mapped]) {
            *place = Some((raw.0, access));
        }
        let Err(error) = done else { return Ok(()) };
        // SAFETY: what was mapped just now was never used.
        let undone = unsafe { reserved.unmap(&self.driver, at.addr(), granule, first..first + mapped) };
        Err(MapFailure { error, left_mapped: if undone.is_ok() { 0 } else { mapped } })
    }

    /// # Safety
    /// - As [`Backend::replace`](crate::backend::Backend::replace).
    pub(super) unsafe fn replace(
        &self,
        at: DevicePtr,
        new: RawGranule,
        access: Access,
    ) -> Result<(), ReplaceFailure> {
        let nothing = |error| ReplaceFailure { error, gone: false };
        self.refuse_in_capture("replacing a granule").map_err(nothing)?;
        let _bound = self.bind().map_err(nothing)?;
        let granule = self.virtual_memory.granule;
        let flags = self.flags(access, new.0).map_err(nothing)?;
        let mut ranges = lock(&self.ranges);
        let (reserved, place) = ranges.find(at, granule).map_err(nothing)?;
        let Some((old, old_access)) = reserved.places[place] else {
            return Err(nothing(Error::NotMapped { place }));
        };
        // What is mapped for reading was tried then.
        let old_flags = self.flags(old_access, old).map_err(nothing)?;
        // SAFETY: the place is mapped, nothing uses it, and both granules are alive.
        unsafe {
            reserved.unmap(&self.driver, at.addr(), granule, place..place + 1).map_err(nothing)?;
            let Err(error) = reserved.put(&self.driver, at.addr(), granule, place, (new.0, access), flags)
            else {
                return Ok(());
            };
            // Putting the old one back asks for nothing that was not there, so injected faults do not stop it.
            let driver = self.driver.unfailing();
            let gone = reserved.places[place].is_some()
                || reserved.put(&driver, at.addr(), granule, place, (old, old_access), old_flags).is_err();
            Err(ReplaceFailure { error, gone })
        }
    }

    /// Unmaps whatever of these places is mapped.
    ///
    /// # Safety
    /// - As [`Backend::unmap`](crate::backend::Backend::unmap).
    pub(super) unsafe fn unmap(&self, at: DevicePtr, len: Bytes) -> Result<(), Error> {
        self.refuse_in_capture("unmapping a granule")?;
        let _bound = self.bind()?;
        let granule = self.virtual_memory.granule;
        let mut ranges = lock(&self.ranges);
        let (reserved, first) = ranges.find(at, granule)?;
        let count = len.to_usize().unwrap_or(0) / granule;
        // SAFETY: the caller's promise.
        unsafe { reserved.unmap(&self.driver, at.addr(), granule, first..first + count) }
    }

    /// # Safety
    /// - As [`Backend::set_access`](crate::backend::Backend::set_access).
    pub(super) unsafe fn set_access(&self, at: DevicePtr, len: Bytes, access: Access) -> Result<(), Error> {
        self.refuse_in_capture("changing the access to a granule")?;
        let _bound = self.bind()?;
        let granule = self.virtual_memory.granule;
        let mut ranges = lock(&self.ranges);
        let (reserved, first) = ranges.find(at, granule)?;
        let size = len.to_usize().unwrap_or(0);
        let Some((handle, _)) = reserved.places[first] else {
            return Err(Error::NotMapped { place: first });
        };
        let flags = self.flags(access, handle)?;
        // SAFETY: the caller's promise.
        unsafe { grant(&self.driver, at.addr(), size, flags, &reserved.devices)? };
        for (_, current) in reserved.places[first..first + size / granule].iter_mut().flatten() {
            *current = access;
        }
        Ok(())
    }
}
