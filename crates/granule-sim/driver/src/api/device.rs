//! Initialization, devices and their attributes.

use super::enter::{driver, put};
use crate::code::Code;
use std::ffi::{c_char, c_void};

driver! {
    cuInit(flags: u32) = Always, |state, caller| {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        if state.sim.config.devices == 0 {
            return Err(Code::NO_DEVICE);
        }
        state.initialized = true;
        Ok(())
    };

    cuDriverGetVersion(version: *mut i32) = Always, |state, caller| {
        // SAFETY: the caller's pointer.
        unsafe { put(version, state.sim.config.driver) }
    };

    cuDeviceGetCount(count: *mut i32) = Initialized, |state, caller| {
        // SAFETY: the caller's pointer.
        unsafe { put(count, state.sim.config.devices as i32) }
    };

    cuDeviceGet(device: *mut i32, ordinal: i32) = Initialized, |state, caller| {
        state.sim.device(ordinal)?;
        // SAFETY: the caller's pointer.
        unsafe { put(device, ordinal) }
    };

    cuDeviceGetName(name: *mut c_char, len: i32, device: i32) = Initialized, |state, caller| {
        let device = state.sim.device(device)?;
        let text = state.sim.device_name(device);
        let room = usize::try_from(len).ok().filter(|&n| n > 0 && !name.is_null()).ok_or(Code::INVALID_VALUE)?;
        let used = text.len().min(room - 1);
        // SAFETY: the caller says that `len` bytes may be written; at most that many are, the last one a zero.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, used);
            name.add(used).write(0);
        }
        Ok(())
    };

    cuDeviceGetUuid(uuid: *mut [u8; 16], device: i32) = Initialized, |state, caller| {
        let device = state.sim.device(device)?;
        // SAFETY: the caller's pointer.
        unsafe { put(uuid, state.sim.device_uuid(device)) }
    };

    cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: i32) = Initialized, |state, caller| {
        let device = state.sim.device(device)?;
        // SAFETY: the caller's pointer.
        unsafe { put(uuid, state.sim.device_uuid(device)) }
    };

    cuDeviceGetPCIBusId(id: *mut c_char, len: i32, device: i32) = Initialized, |state, caller| {
        let device = state.sim.device(device)?;
        let text = format!("0000:{:02X}:00.0\0", device + 1);
        if id.is_null() || (len as usize) < text.len() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller says that `len` bytes may be written, and they are enough.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), id, text.len()) };
        Ok(())
    };

    cuDeviceTotalMem_v2(bytes: *mut usize, device: i32) = Initialized, |state, caller| {
        state.sim.device(device)?;
        // SAFETY: the caller's pointer.
        unsafe { put(bytes, state.sim.config.memory as usize) }
    };

    cuDeviceGetAttribute(value: *mut i32, attribute: i32, device: i32) = Initialized, |state, caller| {
        let found = state.sim.attribute(attribute, device)?;
        // SAFETY: the caller's pointer.
        unsafe { put(value, found) }
    };

    cuDeviceComputeCapability(major: *mut i32, minor: *mut i32, device: i32) = Initialized, |state, caller| {
        state.sim.device(device)?;
        let (a, b) = state.sim.config.compute_capability;
        // SAFETY: the caller's pointers.
        unsafe { put(major, a).and_then(|()| put(minor, b)) }
    };

    cuDeviceCanAccessPeer(can: *mut i32, device: i32, peer: i32) = Initialized, |state, caller| {
        let peers = state.sim.peers(device, peer)?;
        // SAFETY: the caller's pointer.
        unsafe { put(can, peers.into()) }
    };

    cuDeviceGetP2PAttribute(value: *mut i32, attribute: i32, device: i32, peer: i32) = Initialized, |state, caller| {
        let peers = state.sim.peers(device, peer)?;
        // 1 performance rank, 2 access, 3 native atomics, 4 arrays.
        // SAFETY: the caller's pointer.
        unsafe { put(value, i32::from(peers && (2..=3).contains(&attribute))) }
    };

    cuProfilerStart() = Always, |state, caller| Ok(());

    cuProfilerStop() = Always, |state, caller| Ok(());

    cuMemGetInfo_v2(free: *mut usize, total: *mut usize) = Initialized, |state, caller| {
        let device = state.sim.context_device(caller)?;
        // SAFETY: the caller's pointers.
        unsafe {
            put(free, state.sim.free_memory(device) as usize)
                .and_then(|()| put(total, state.sim.config.memory as usize))
        }
    };
}

/// Undocumented tables between NVIDIA's own libraries: this driver has none of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetExportTable(table: *mut *const c_void, _id: *const c_void) -> u32 {
    if !table.is_null() {
        // SAFETY: not null; the caller gives a place for one pointer.
        unsafe { table.write(std::ptr::null()) };
    }
    Code::NOT_FOUND.0
}
