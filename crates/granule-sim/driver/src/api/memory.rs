//! Memory of devices and hosts; copies and fills.

use super::enter::{driver, put};
use crate::code::Code;
use crate::machine::Extent;
use crate::model::{Holder, Manner};
use std::ffi::c_void;

/// Memory that a call names, by a pointer of either kind.
///
/// # Safety
/// What the driver asks of its callers: `len` bytes at `at` are the caller's to use until the copy is done, unless the
/// driver knows the address.
unsafe fn named(at: u64, len: usize) -> Extent {
    // SAFETY: passed on.
    unsafe { Extent::of_program(at, len as u64) }
}

macro_rules! copies {
    ($($name:ident($to:ident: $to_type:ty, $from:ident: $from_type:ty $(, $stream:ident)?) = $manner:ident;)*) => {
        driver! {
            $($name($to: $to_type, $from: $from_type, len: usize $(, $stream: u64)?) = Initialized, |state, caller| {
                let (_, stream) = ((), 0_u64 $(+ $stream)?);
                let stream = state.sim.stream_of(caller, stream)?;
                // SAFETY: the caller's promise to a copy.
                let ends = unsafe { (named($to as u64, len), named($from as u64, len)) };
                state.sim.copy(caller, stream, ends, Manner::$manner, false)
            };)*
        }
    };
}

copies! {
    cuMemcpy(to: u64, from: u64) = Blocking;
    cuMemcpyAsync(to: u64, from: u64, stream) = Async;
    cuMemcpyHtoD_v2(to: u64, from: *const c_void) = Blocking;
    cuMemcpyDtoH_v2(to: *mut c_void, from: u64) = Blocking;
    cuMemcpyDtoD_v2(to: u64, from: u64) = Blocking;
    cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, stream) = Async;
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, stream) = Async;
    cuMemcpyDtoDAsync_v2(to: u64, from: u64, stream) = Async;
}

macro_rules! fills {
    ($($name:ident($value:ident: $type:ty $(, $stream:ident)?) = $manner:ident;)*) => {
        driver! {
            $($name(to: u64, $value: $type, count: usize $(, $stream: u64)?) = Initialized, |state, caller| {
                let (_, stream) = ((), 0_u64 $(+ $stream)?);
                let stream = state.sim.stream_of(caller, stream)?;
                state.sim.fill(caller, stream, to, &$value.to_ne_bytes(), count as u64, Manner::$manner)
            };)*
        }
    };
}

fills! {
    cuMemsetD8_v2(value: u8) = Blocking;
    cuMemsetD16_v2(value: u16) = Blocking;
    cuMemsetD32_v2(value: u32) = Blocking;
    cuMemsetD8Async(value: u8, stream) = Async;
    cuMemsetD16Async(value: u16, stream) = Async;
    cuMemsetD32Async(value: u32, stream) = Async;
}

driver! {
    cuMemcpyPeerAsync(to: u64, to_context: u64, from: u64, from_context: u64, len: usize, stream: u64) = Initialized,
    |state, caller| {
        state.sim.context_info(to_context)?;
        state.sim.context_info(from_context)?;
        let stream = state.sim.stream_of(caller, stream)?;
        // SAFETY: the caller's promise to a copy.
        let ends = unsafe { (named(to, len), named(from, len)) };
        state.sim.copy(caller, stream, ends, Manner::Async, true)
    };

    cuMemcpyPeer(to: u64, to_context: u64, from: u64, from_context: u64, len: usize) = Initialized, |state, caller| {
        state.sim.context_info(to_context)?;
        state.sim.context_info(from_context)?;
        let stream = state.sim.stream_of(caller, 0)?;
        // SAFETY: the caller's promise to a copy.
        let ends = unsafe { (named(to, len), named(from, len)) };
        state.sim.copy(caller, stream, ends, Manner::Blocking, true)
    };

    cuMemAlloc_v2(pointer: *mut u64, len: usize) = Initialized, |state, caller| {
        if pointer.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let at = state.sim.allocate(caller, len as u64)?;
        // SAFETY: the caller's pointer.
        unsafe { put(pointer, at) }
    };

    cuMemFree_v2(pointer: u64) = Release, |state, caller| state.sim.free(caller, pointer);

    cuMemAllocManaged(pointer: *mut u64, len: usize, flags: u32) = Initialized, |state, caller| {
        if pointer.is_null() || !matches!(flags, 1 | 2) {
            return Err(Code::INVALID_VALUE);
        }
        if !state.sim.config.managed {
            return Err(Code::NOT_SUPPORTED);
        }
        let at = state.sim.allocate_on_host(caller, len as u64, Holder::Managed)?;
        // SAFETY: the caller's pointer.
        unsafe { put(pointer, at) }
    };

    cuMemHostAlloc(pointer: *mut u64, len: usize, flags: u32) = Initialized, |state, caller| {
        if pointer.is_null() || flags > 7 {
            return Err(Code::INVALID_VALUE);
        }
        let at = state.sim.allocate_on_host(caller, len as u64, Holder::Pinned(flags))?;
        // SAFETY: the caller's pointer.
        unsafe { put(pointer, at) }
    };

    cuMemAllocHost_v2(pointer: *mut u64, len: usize) = Initialized, |state, caller| {
        if pointer.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let at = state.sim.allocate_on_host(caller, len as u64, Holder::Pinned(0))?;
        // SAFETY: the caller's pointer.
        unsafe { put(pointer, at) }
    };

    cuMemFreeHost(pointer: u64) = Release, |state, caller| state.sim.free_on_host(caller, pointer, false);

    cuMemHostRegister_v2(pointer: u64, len: usize, flags: u32) = Initialized, |state, caller| {
        if flags > 15 {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller's promise: the memory stays until it is unregistered.
        let memory = unsafe { named(pointer, len) };
        state.sim.register(caller, memory, flags)
    };

    cuMemHostUnregister(pointer: u64) = Release, |state, caller| state.sim.free_on_host(caller, pointer, true);

    cuMemHostGetDevicePointer_v2(device: *mut u64, pointer: u64, flags: u32) = Initialized, |state, caller| {
        let known = state.sim.host_flags(pointer)?;
        if flags != 0 || known.is_none() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller's pointer.
        unsafe { put(device, pointer) }
    };

    cuMemHostGetFlags(flags: *mut u32, pointer: u64) = Initialized, |state, caller| {
        let found = state.sim.host_flags(pointer)?.ok_or(Code::INVALID_VALUE)?;
        // SAFETY: the caller's pointer.
        unsafe { put(flags, found) }
    };

    cuMemGetAddressRange_v2(base: *mut u64, len: *mut usize, pointer: u64) = Initialized, |state, caller| {
        let (start, size) = state.sim.address_range(pointer)?;
        // SAFETY: the caller's pointers, both of which may be null.
        unsafe {
            if !base.is_null() {
                put(base, start)?;
            }
            if len.is_null() { Ok(()) } else { put(len, size as usize) }
        }
    };

    cuPointerGetAttribute(data: *mut c_void, attribute: i32, pointer: u64) = Initialized, |state, caller| {
        let value = state.sim.pointer_attribute(attribute, pointer)?;
        // SAFETY: the caller's pointer, to as many bytes as the attribute has.
        unsafe { value.write(data) }
    };

    cuPointerGetAttributes(count: u32, attributes: *const i32, data: *mut *mut c_void, pointer: u64) = Initialized,
    |state, caller| {
        if attributes.is_null() || data.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        for n in 0..count as usize {
            // SAFETY: the caller says that both lists have `count` entries.
            let (attribute, to) = unsafe { (attributes.add(n).read(), data.add(n).read()) };
            // "The function will not fail for unknown pointers": unknown ones get zeros.
            let value = state.sim.pointer_attribute_or_none(attribute, pointer)?;
            // SAFETY: the caller's pointer, to as many bytes as the attribute has.
            unsafe { value.write(to)? };
        }
        Ok(())
    };

    cuMemPrefetchAsync(pointer: u64, len: usize, _device: i32, stream: u64) = Initialized, |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        state.sim.hint(caller, stream, pointer, len as u64)
    };

    cuMemPrefetchAsync_v2(pointer: u64, len: usize, _location: super::virtual_memory::Location, _flags: u32, stream: u64) = Initialized,
    |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        state.sim.hint(caller, stream, pointer, len as u64)
    };

    cuMemAdvise(pointer: u64, len: usize, _advice: i32, _device: i32) = Initialized, |state, caller| {
        state.sim.managed_range(pointer, len as u64)
    };

    cuMemAdvise_v2(pointer: u64, len: usize, _advice: i32, _location: super::virtual_memory::Location) = Initialized, |state, caller| {
        state.sim.managed_range(pointer, len as u64)
    };

    cuStreamAttachMemAsync(stream: u64, pointer: u64, len: usize, _flags: u32) = Initialized, |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        state.sim.hint(caller, stream, pointer, len as u64)
    };
}
