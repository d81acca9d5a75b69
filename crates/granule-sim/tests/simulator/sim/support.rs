//! Driver calls in short, and what every test here begins with.

use cudarc::driver::sys::{self, CUdeviceptr, CUevent, CUresult, CUstream};
use granule_sim::Sim;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

pub(super) const LEN: usize = 4096;

/// The simulator, just switched on, with a context of device 0 current on this thread.
pub(super) struct Bench {
    pub(super) sim: Sim,
    pub(super) context: sys::CUcontext,
}

pub(super) fn ok(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

impl Bench {
    pub(super) fn new() -> Bench {
        let sim = Sim::find().unwrap();
        sim.reset();
        ok(unsafe { sys::cuInit(0) });
        let mut context = null_mut();
        ok(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, 0) });
        ok(unsafe { sys::cuCtxSetCurrent(context) });
        Bench { sim, context }
    }

    /// Releases the context; what was reported since the last look, the kinds only.
    pub(super) fn end(self) -> Vec<String> {
        ok(unsafe { sys::cuDevicePrimaryCtxRelease_v2(0) });
        self.kinds()
    }

    /// Kinds of what was reported since the last look.
    pub(super) fn kinds(&self) -> Vec<String> {
        self.sim.take_reports().into_iter().map(|r| r.kind).collect()
    }
}

pub(super) fn alloc(len: usize) -> CUdeviceptr {
    let mut at = 0;
    ok(unsafe { sys::cuMemAlloc_v2(&mut at, len) });
    at
}

pub(super) fn free(at: CUdeviceptr) {
    ok(unsafe { sys::cuMemFree_v2(at) });
}

pub(super) fn pinned(len: usize) -> *mut u8 {
    let mut at = null_mut();
    ok(unsafe { sys::cuMemHostAlloc(&mut at, len, 0) });
    at.cast()
}

pub(super) fn free_pinned(at: *mut u8) {
    ok(unsafe { sys::cuMemFreeHost(at.cast()) });
}

pub(super) fn stream() -> CUstream {
    let mut stream = null_mut();
    ok(unsafe { sys::cuStreamCreate(&mut stream, 1) });
    stream
}

pub(super) fn event() -> CUevent {
    let mut event = null_mut();
    ok(unsafe { sys::cuEventCreate(&mut event, 2) });
    event
}

pub(super) fn fill(to: CUdeviceptr, value: u8, len: usize, stream: CUstream) {
    ok(unsafe { sys::cuMemsetD8Async(to, value, len, stream) });
}

pub(super) fn copy(to: CUdeviceptr, from: CUdeviceptr, len: usize, stream: CUstream) {
    ok(unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, len, stream) });
}

pub(super) fn record(event: CUevent, stream: CUstream) {
    ok(unsafe { sys::cuEventRecord(event, stream) });
}

pub(super) fn wait(stream: CUstream, event: CUevent) {
    ok(unsafe { sys::cuStreamWaitEvent(stream, event, 0) });
}

pub(super) fn synchronize(stream: CUstream) {
    ok(unsafe { sys::cuStreamSynchronize(stream) });
}

/// Bytes of device memory, after a blocking copy.
pub(super) fn read(from: CUdeviceptr, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ok(unsafe { sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), from, len) });
    bytes
}

pub(super) fn destroy(streams: &[CUstream], events: &[CUevent]) {
    streams.iter().for_each(|&s| ok(unsafe { sys::cuStreamDestroy_v2(s) }));
    events.iter().for_each(|&e| ok(unsafe { sys::cuEventDestroy_v2(e) }));
}

/// A launch's arguments.
pub(super) fn arg<T>(value: &mut T) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}

/// `CUmemAllocationProp` for a place, as the raw words that every version of the header agrees on.
pub(super) fn properties(kind: c_int, id: c_int) -> sys::CUmemAllocationProp {
    let mut p: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    p.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    unsafe { (&raw mut p.location).cast::<[c_int; 2]>().write([kind, id]) };
    p
}

pub(super) fn granularity() -> usize {
    let mut size = 0;
    let option = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
    ok(unsafe { sys::cuMemGetAllocationGranularity(&mut size, &properties(1, 0), option) });
    size
}

pub(super) fn access(at: CUdeviceptr, len: usize, device: c_int, flags: c_int) -> CUresult {
    let descriptor = [1, device, flags];
    unsafe { sys::cuMemSetAccess(at, len, descriptor.as_ptr().cast(), 1) }
}

/// One granule at an address of its own, to be read and written by device 0.
pub(super) struct Range {
    pub(super) at: CUdeviceptr,
    pub(super) len: usize,
    pub(super) handle: u64,
}

impl Range {
    pub(super) fn new() -> Range {
        let len = granularity();
        let (mut at, mut handle) = (0, 0);
        ok(unsafe { sys::cuMemCreate(&mut handle, len, &properties(1, 0), 0) });
        ok(unsafe { sys::cuMemAddressReserve(&mut at, len, 0, 0, 0) });
        ok(unsafe { sys::cuMemMap(at, len, 0, handle, 0) });
        ok(access(at, len, 0, 3));
        Range { at, len, handle }
    }
}
