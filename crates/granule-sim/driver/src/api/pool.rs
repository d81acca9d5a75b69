//! Stream-ordered allocation and its pools.

use super::enter::{driver, put, take};
use super::virtual_memory::{AccessDescriptor, Location, access_list};
use crate::code::Code;
use crate::model::PoolAttribute;
use std::ffi::c_void;

/// `CUmemPoolProps`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PoolProperties {
    kind: i32,
    shared_as: i32,
    location: Location,
    windows: *mut c_void,
    most: usize,
    rest: [u8; 56],
}

driver! {
    cuMemAllocAsync(pointer: *mut u64, len: usize, stream: u64) = Initialized, |state, caller| {
        if pointer.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let stream = state.sim.stream_of(caller, stream)?;
        let at = state.sim.allocate_async(caller, len as u64, None, stream)?;
        // SAFETY: the caller's pointer.
        unsafe { put(pointer, at) }
    };

    cuMemAllocFromPoolAsync(pointer: *mut u64, len: usize, pool: u64, stream: u64) = Initialized, |state, caller| {
        if pointer.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let stream = state.sim.stream_of(caller, stream)?;
        let at = state.sim.allocate_async(caller, len as u64, Some(pool), stream)?;
        // SAFETY: the caller's pointer.
        unsafe { put(pointer, at) }
    };

    cuMemFreeAsync(pointer: u64, stream: u64) = Release, |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        state.sim.free_async(caller, pointer, stream)
    };

    cuDeviceGetDefaultMemPool(pool: *mut u64, device: i32) = Initialized, |state, caller| {
        let found = state.sim.default_pool(caller, device)?;
        // SAFETY: the caller's pointer.
        unsafe { put(pool, found) }
    };

    cuDeviceGetMemPool(pool: *mut u64, device: i32) = Initialized, |state, caller| {
        let found = state.sim.current_pool(caller, device)?;
        // SAFETY: the caller's pointer.
        unsafe { put(pool, found) }
    };

    cuDeviceSetMemPool(device: i32, pool: u64) = Initialized, |state, caller| {
        state.sim.set_current_pool(caller, device, pool)
    };

    cuMemPoolCreate(pool: *mut u64, properties: *const PoolProperties) = Initialized, |state, caller| {
        // SAFETY: the caller's pointers.
        unsafe {
            let p = take(properties)?;
            if pool.is_null() || p.kind != 1 {
                return Err(Code::INVALID_VALUE);
            }
            let made = state.sim.create_pool(caller, p.location.pair(), p.most as u64)?;
            put(pool, made)
        }
    };

    cuMemPoolDestroy(pool: u64) = Release, |state, caller| state.sim.destroy_pool(caller, pool);

    cuMemPoolTrimTo(pool: u64, _keep: usize) = Initialized, |state, caller| state.sim.trim_pool(caller, pool);

    cuMemPoolSetAttribute(pool: u64, attribute: i32, value: *const c_void) = Initialized, |state, caller| {
        // SAFETY: the caller's pointer, to a number whose size the attribute says.
        let value = unsafe {
            match attribute {
                1..=3 => PoolAttribute::Switch(take(value.cast::<i32>())?),
                _ => PoolAttribute::Bytes(take(value.cast::<u64>())?),
            }
        };
        state.sim.set_pool_attribute(caller, pool, attribute, value)
    };

    cuMemPoolGetAttribute(pool: u64, attribute: i32, value: *mut c_void) = Initialized, |state, caller| {
        let found = state.sim.pool_attribute(caller, pool, attribute)?;
        // SAFETY: the caller's pointer, to a number whose size the attribute says.
        unsafe {
            match found {
                PoolAttribute::Switch(on) => put(value.cast::<i32>(), on),
                PoolAttribute::Bytes(bytes) => put(value.cast::<u64>(), bytes),
            }
        }
    };

    cuMemPoolSetAccess(pool: u64, access: *const AccessDescriptor, count: usize) = Initialized, |state, caller| {
        // SAFETY: the caller's list.
        let list = unsafe { access_list(access, count) }?;
        state.sim.set_pool_access(caller, pool, &list)
    };

    cuMemPoolGetAccess(flags: *mut i32, pool: u64, location: *const Location) = Initialized, |state, caller| {
        // SAFETY: the caller's pointers.
        unsafe {
            let location = take(location)?.pair();
            put(flags, state.sim.pool_access(caller, pool, location)?)
        }
    };
}
