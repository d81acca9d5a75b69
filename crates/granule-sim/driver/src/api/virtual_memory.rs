//! Virtual memory: granularity, reservations, handles, mappings, access.

use super::enter::{driver, put, take};
use crate::code::Code;
use crate::model::{Access, Properties};
use std::ffi::c_void;

/// `CUmemLocation`: its type and, whatever the version of the header calls it, one number.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Location {
    kind: i32,
    id: i32,
}

impl Location {
    pub(super) fn pair(self) -> (i32, i32) {
        (self.kind, self.id)
    }
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AllocationProperties {
    kind: i32,
    shared_as: i32,
    location: Location,
    windows: *mut c_void,
    flags: [u8; 8],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AccessDescriptor {
    location: Location,
    flags: i32,
}

impl AllocationProperties {
    /// # Safety
    /// `from` is null or points to properties.
    unsafe fn read(from: *const AllocationProperties) -> Result<Properties, Code> {
        // SAFETY: the caller's promise.
        let raw = unsafe { take(from) }?;
        Ok(Properties {
            kind: raw.kind,
            shared_as: raw.shared_as,
            location: raw.location.pair(),
            flags: raw.flags,
        })
    }
}

/// The entries of a list of access descriptors.
///
/// # Safety
/// `access` is null or has `count` entries.
pub(super) unsafe fn access_list(access: *const AccessDescriptor, count: usize) -> Result<Vec<Access>, Code> {
    // SAFETY: the caller's promise.
    (0..count)
        .map(|n| unsafe { take(access.wrapping_add(n)) }.map(|one| (one.location.pair(), one.flags)))
        .collect()
}

driver! {
    cuMemGetAllocationGranularity(granularity: *mut usize, properties: *const AllocationProperties, option: i32) = Initialized,
    |state, caller| {
        if !matches!(option, 0 | 1) {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller's pointers.
        unsafe {
            let size = state.sim.granularity(&AllocationProperties::read(properties)?)?;
            put(granularity, size as usize)
        }
    };

    cuMemAddressReserve(pointer: *mut u64, size: usize, alignment: usize, _wished: u64, flags: u64) = Initialized,
    |state, caller| {
        if pointer.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let at = state.sim.reserve(caller, size as u64, alignment as u64, flags)?;
        // SAFETY: the caller's pointer.
        unsafe { put(pointer, at) }
    };

    cuMemAddressFree(pointer: u64, size: usize) = Release, |state, caller| {
        state.sim.unreserve(caller, pointer, size as u64)
    };

    cuMemCreate(handle: *mut u64, size: usize, properties: *const AllocationProperties, flags: u64) = Initialized,
    |state, caller| {
        if handle.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller's pointers.
        unsafe {
            let made = state.sim.create(caller, size as u64, &AllocationProperties::read(properties)?, flags)?;
            put(handle, made)
        }
    };

    cuMemRelease(handle: u64) = Release, |state, caller| state.sim.release(caller, handle);

    cuMemMap(pointer: u64, size: usize, offset: usize, handle: u64, flags: u64) = Initialized, |state, caller| {
        state.sim.map(caller, (pointer, size as u64), offset as u64, handle, flags)
    };

    cuMemUnmap(pointer: u64, size: usize) = Release, |state, caller| state.sim.unmap(caller, pointer, size as u64);

    cuMemSetAccess(pointer: u64, size: usize, access: *const AccessDescriptor, count: usize) = Initialized,
    |state, caller| {
        // SAFETY: the caller's list.
        let list = unsafe { access_list(access, count) }?;
        state.sim.set_access(caller, (pointer, size as u64), &list)
    };

    cuMemGetAccess(flags: *mut u64, location: *const Location, pointer: u64) = Initialized, |state, caller| {
        // SAFETY: the caller's pointers.
        unsafe {
            let location = take(location)?.pair();
            put(flags, state.sim.get_access(location, pointer)?)
        }
    };

    cuMemRetainAllocationHandle(handle: *mut u64, pointer: u64) = Initialized, |state, caller| {
        if handle.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let held = state.sim.retain(caller, pointer)?;
        // SAFETY: the caller's pointer.
        unsafe { put(handle, held) }
    };

    cuMemGetAllocationPropertiesFromHandle(properties: *mut AllocationProperties, handle: u64) = Initialized,
    |state, caller| {
        let Properties { kind, shared_as, location: (place, id), flags } = state.sim.properties(handle)?;
        let location = Location { kind: place, id };
        // SAFETY: the caller's pointer.
        unsafe {
            put(properties, AllocationProperties { kind, shared_as, location, windows: std::ptr::null_mut(), flags })
        }
    };
}
