//! Contexts: primary and created, current on a thread, limits, peers.

use super::enter::{self, driver, put, take};
use crate::code::Code;
use std::ffi::c_void;

driver! {
    cuDevicePrimaryCtxRetain(context: *mut u64, device: i32) = Initialized, |state, caller| {
        if context.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let handle = state.sim.retain_primary(caller, device)?;
        // SAFETY: the caller's pointer.
        unsafe { put(context, handle) }
    };

    cuDevicePrimaryCtxRelease_v2(device: i32) = Release, |state, caller| state.sim.release_primary(caller, device);

    cuDevicePrimaryCtxRelease(device: i32) = Release, |state, caller| state.sim.release_primary(caller, device);

    cuDevicePrimaryCtxReset_v2(device: i32) = Release, |state, caller| state.sim.reset_primary(caller, device);

    cuDevicePrimaryCtxGetState(device: i32, flags: *mut u32, active: *mut i32) = Initialized, |state, caller| {
        let (set, is_active) = state.sim.primary_state(device)?;
        // SAFETY: the caller's pointers.
        unsafe { put(flags, set).and_then(|()| put(active, is_active.into())) }
    };

    cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) = Initialized, |state, caller| {
        state.sim.set_primary_flags(device, flags)
    };

    cuCtxCreate_v2(context: *mut u64, flags: u32, device: i32) = Initialized, |state, caller| {
        let handle = state.sim.create_context(caller, device, flags)?;
        enter::push_current(handle);
        // SAFETY: the caller's pointer.
        unsafe { put(context, handle) }
    };

    cuCtxCreate_v3(context: *mut u64, _affinity: *mut c_void, _count: i32, flags: u32, device: i32) = Initialized,
    |state, caller| {
        let handle = state.sim.create_context(caller, device, flags)?;
        enter::push_current(handle);
        // SAFETY: the caller's pointer.
        unsafe { put(context, handle) }
    };

    cuCtxCreate_v4(context: *mut u64, _parameters: *mut c_void, flags: u32, device: i32) = Initialized,
    |state, caller| {
        let handle = state.sim.create_context(caller, device, flags)?;
        enter::push_current(handle);
        // SAFETY: the caller's pointer.
        unsafe { put(context, handle) }
    };

    cuCtxDestroy_v2(context: u64) = Release, |state, caller| {
        state.sim.destroy_context(caller, context)?;
        if enter::current() == Some(context) {
            enter::pop_current()?;
        }
        Ok(())
    };

    cuCtxGetCurrent(context: *mut u64) = Initialized, |state, caller| {
        // SAFETY: the caller's pointer.
        unsafe { put(context, caller.context.unwrap_or(0)) }
    };

    cuCtxSetCurrent(context: u64) = Initialized, |state, caller| {
        if context != 0 && !state.sim.context_exists(context) {
            return Err(Code::INVALID_CONTEXT);
        }
        enter::set_current(context);
        Ok(())
    };

    cuCtxPushCurrent_v2(context: u64) = Initialized, |state, caller| {
        if !state.sim.context_exists(context) {
            return Err(Code::INVALID_CONTEXT);
        }
        enter::push_current(context);
        Ok(())
    };

    cuCtxPopCurrent_v2(context: *mut u64) = Initialized, |state, caller| {
        let popped = enter::pop_current()?;
        if context.is_null() {
            return Ok(());
        }
        // SAFETY: the caller's pointer.
        unsafe { put(context, popped) }
    };

    cuCtxGetDevice(device: *mut i32) = Initialized, |state, caller| {
        let found = state.sim.context_device(caller)?;
        // SAFETY: the caller's pointer.
        unsafe { put(device, found as i32) }
    };

    cuCtxGetFlags(flags: *mut u32) = Initialized, |state, caller| {
        let handle = state.sim.context(caller)?;
        // SAFETY: the caller's pointer.
        unsafe { put(flags, state.sim.context_info(handle)?.flags) }
    };

    cuCtxSetFlags(flags: u32) = Initialized, |state, caller| {
        let handle = state.sim.context(caller)?;
        state.sim.context_info_mut(handle)?.flags = flags;
        Ok(())
    };

    cuCtxGetId(context: u64, id: *mut u64) = Initialized, |state, caller| {
        let handle = if context == 0 { state.sim.context(caller)? } else { context };
        state.sim.context_info(handle)?;
        // SAFETY: the caller's pointer.
        unsafe { put(id, handle) }
    };

    cuCtxGetApiVersion(context: u64, version: *mut u32) = Initialized, |state, caller| {
        state.sim.context_info(if context == 0 { state.sim.context(caller)? } else { context })?;
        // SAFETY: the caller's pointer.
        unsafe { put(version, 3020) }
    };

    cuCtxSynchronize() = Initialized, |state, caller| state.sim.synchronize_context(caller);

    cuCtxGetLimit(value: *mut usize, limit: i32) = Initialized, |state, caller| {
        let handle = state.sim.context(caller)?;
        let found = state.sim.context_info(handle)?.limits.get(&limit).copied().ok_or(Code::UNSUPPORTED_LIMIT)?;
        // SAFETY: the caller's pointer.
        unsafe { put(value, found as usize) }
    };

    cuCtxSetLimit(limit: i32, value: usize) = Initialized, |state, caller| {
        let handle = state.sim.context(caller)?;
        let limits = &mut state.sim.context_info_mut(handle)?.limits;
        *limits.get_mut(&limit).ok_or(Code::UNSUPPORTED_LIMIT)? = value as u64;
        Ok(())
    };

    cuCtxGetCacheConfig(config: *mut i32) = Initialized, |state, caller| {
        state.sim.context(caller)?;
        // SAFETY: the caller's pointer.
        unsafe { put(config, 0) }
    };

    cuCtxSetCacheConfig(_config: i32) = Initialized, |state, caller| state.sim.context(caller).map(|_| ());

    cuCtxGetStreamPriorityRange(least: *mut i32, greatest: *mut i32) = Initialized, |state, caller| {
        state.sim.context(caller)?;
        // SAFETY: the caller's pointers.
        unsafe {
            if !least.is_null() {
                put(least, 0)?;
            }
            if greatest.is_null() { Ok(()) } else { put(greatest, -5) }
        }
    };

    cuCtxEnablePeerAccess(peer: u64, flags: u32) = Initialized, |state, caller| {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        state.sim.enable_peer_access(caller, peer)
    };

    cuCtxDisablePeerAccess(peer: u64) = Release, |state, caller| state.sim.disable_peer_access(caller, peer);

    cuThreadExchangeStreamCaptureMode(mode: *mut i32) = Initialized, |state, caller| {
        // SAFETY: the caller's pointer, read and written.
        unsafe {
            let new = crate::model::Mode::from_number(take(mode)?)?;
            put(mode, state.sim.exchange_mode(caller, new).number())
        }
    };
}
