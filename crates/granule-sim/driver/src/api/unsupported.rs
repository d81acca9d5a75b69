//! Functions that programs look for and that no simulated device offers: they exist, and say so.

use super::enter::driver;
use crate::code::Code;
use std::ffi::c_void;

driver! {
    cuImportExternalMemory(_memory: *mut u64, _description: *const c_void) = Initialized, |state, caller| {
        Err(Code::NOT_SUPPORTED)
    };

    cuExternalMemoryGetMappedBuffer(_pointer: *mut u64, _memory: u64, _description: *const c_void) = Initialized,
    |state, caller| Err(Code::NOT_SUPPORTED);

    cuDestroyExternalMemory(_memory: u64) = Initialized, |state, caller| Err(Code::NOT_SUPPORTED);

    cuOccupancyMaxActiveClusters(_clusters: *mut i32, _function: u64, _config: *const c_void) = Initialized,
    |state, caller| Err(Code::NOT_SUPPORTED);

    cuOccupancyMaxPotentialClusterSize(_size: *mut i32, _function: u64, _config: *const c_void) = Initialized,
    |state, caller| Err(Code::NOT_SUPPORTED);

    cuMemExportToShareableHandle(_shared: *mut c_void, _handle: u64, _kind: i32, _flags: u64) = Initialized,
    |state, caller| Err(Code::NOT_SUPPORTED);

    cuMemImportFromShareableHandle(_handle: *mut u64, _shared: *mut c_void, _kind: i32) = Initialized,
    |state, caller| Err(Code::NOT_SUPPORTED);

    cuIpcGetMemHandle(_handle: *mut c_void, _pointer: u64) = Initialized, |state, caller| Err(Code::NOT_SUPPORTED);

    cuIpcGetEventHandle(_handle: *mut c_void, _event: u64) = Initialized, |state, caller| Err(Code::NOT_SUPPORTED);
}
