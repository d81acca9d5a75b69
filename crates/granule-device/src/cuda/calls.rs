//! The one place that calls the driver: each function as thin as it can be, counted, faultable, its answer made a result.
//!
//! The functions are looked up here and answer a number. cudarc's own answer an enum, and a driver newer than its bindings
//! has codes that are no values of it. The types of arguments are cudarc's.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::{Arc, LazyLock};

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUfunction_attribute, CUgraph, CUgraphExec,
    CUgraphNode, CUhostFn, CUjit_option, CUmemAccessDesc, CUmemAllocationGranularity_flags,
    CUmemAllocationProp, CUmemGenericAllocationHandle, CUmemLocation, CUmodule, CUpointer_attribute,
    CUstream, CUstreamCaptureMode, CUstreamCaptureStatus, CUuuid,
};

use super::errors::{self, check};
use crate::Error;
use crate::fault::Faults;

thread_local! {
    /// True while this thread runs a function that was given to a stream: the driver may not be called from there.
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is one of the driver's, running a function that was given to a stream.
pub(super) fn in_host_function() -> bool {
    IN_HOST_FUNCTION.get()
}

/// Runs a function that was given to a stream.
pub(super) fn as_host_function<T>(function: impl FnOnce() -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            IN_HOST_FUNCTION.set(false);
        }
    }
    let leave = Leave;
    IN_HOST_FUNCTION.set(true);
    let answer = function();
    drop(leave);
    answer
}

/// The driver, with one device's fault gate before it.
#[derive(Debug, Clone)]
pub(super) struct Driver {
    functions: &'static Functions,
    faults: Arc<Faults>,
}

impl Driver {
    pub(super) fn new(functions: &'static Functions, faults: Arc<Faults>) -> Driver {
        Driver { functions, faults }
    }

    /// Stands before every call.
    pub(super) fn gate(&self, call: &'static str) -> Result<(), Error> {
        if in_host_function() {
            return Err(Error::InHostFunction { call });
        }
        self.faults.gate(call)
    }

    /// The same driver without injected faults: for what must not be refused, such as waiting before memory is freed.
    pub(super) fn unfailing(&self) -> Driver {
        /// Nobody's, so that no plan is ever made for them.
        static NONE: LazyLock<Arc<Faults>> = LazyLock::new(Arc::default);
        Driver { functions: self.functions, faults: Arc::clone(&NONE) }
    }

    /// Makes the context current that was before this crate's own, or none. It is neither counted nor made to fail: the next
    /// call of somebody else's would go to the wrong device.
    ///
    /// # Safety
    /// - It is null or was current on this thread and is still there.
    pub(super) unsafe fn put_back(&self, context: CUcontext) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        check("cuCtxSetCurrent", unsafe { (self.functions.cuCtxSetCurrent)(context) })
    }

    /// A device's attribute; `None` where the driver is too old to know it.
    pub(super) fn attribute(&self, attribute: c_int, device: CUdevice) -> Result<Option<c_int>, Error> {
        let mut value = 0;
        // SAFETY: the function writes one int, and takes any numbers.
        match unsafe { self.cuDeviceGetAttribute(&raw mut value, attribute, device) } {
            Err(error) if errors::code(&error) == Some(errors::INVALID_VALUE) => Ok(None),
            done => done.map(|()| Some(value)),
        }
    }

    /// Whether a device has what an attribute of 0 or 1 stands for.
    pub(super) fn has(&self, attribute: c_int, device: CUdevice) -> Result<bool, Error> {
        self.attribute(attribute, device).map(|value| value == Some(1))
    }
}

/// What cudarc's safe layer calls where this crate uses it. It panics where one is missing, so they are looked for first.
pub(super) const CUDARC_CALLS: &[&str] = &[
    "cuInit",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
];

macro_rules! driver {
    ($(fn $name:ident($($argument:ident: $kind:ty),*);)*) => {
        /// The driver's functions, each looked up once. Their answer, an enum in cuda.h, is read as the number that it is.
        #[derive(Debug)]
        #[expect(non_snake_case, reason = "the driver's names, so that they are found by searching")]
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($kind),*) -> c_uint,)*
        }

        impl Functions {
            /// Looks all of them up; answers the first that is missing.
            pub(super) fn find(library: &libloading::Library) -> Result<Functions, &'static str> {
                Ok(Functions {
                    // SAFETY: the library is NVIDIA's driver or stands for it, and these are cuda.h's signatures.
                    $($name: *unsafe { library.get(stringify!($name).as_bytes()) }.map_err(|_| stringify!($name))?,)*
                })
            }

            /// Functions that answer `CUDA_ERROR_UNKNOWN`, for tests to put their own in the place of some.
            #[cfg(test)]
            pub(super) fn refusing() -> Functions {
                Functions {
                    $($name: {
                        #[expect(non_snake_case, reason = "the driver's")]
                        unsafe extern "C" fn $name($(_: $kind),*) -> c_uint {
                            999
                        }
                        $name
                    },)*
                }
            }
        }

        #[expect(non_snake_case, reason = "the driver's names, so that they are found by searching")]
        #[expect(clippy::too_many_arguments, reason = "the driver's")]
        impl Driver {
            $(
                /// # Safety
                /// - As cuda.h's documentation of the function says; pointers are valid for what it reads and writes.
                pub(super) unsafe fn $name(&self, $($argument: $kind),*) -> Result<(), Error> {
                    self.gate(stringify!($name))?;
                    // SAFETY: the caller's promise.
                    check(stringify!($name), unsafe { (self.functions.$name)($($argument),*) })
                }
            )*
        }
    };
}

driver! {
    fn cuDeviceGetCount(count: *mut c_int);
    fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    fn cuDeviceGetName(name: *mut c_char, len: c_int, device: CUdevice);
    fn cuDeviceGetUuid_v2(uuid: *mut CUuuid, device: CUdevice);
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: CUdevice);
    fn cuDeviceCanAccessPeer(can: *mut c_int, device: CUdevice, peer: CUdevice);
    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    fn cuDevicePrimaryCtxGetState(device: CUdevice, flags: *mut c_uint, active: *mut c_int);

    fn cuCtxGetCurrent(context: *mut CUcontext);
    fn cuCtxSetCurrent(context: CUcontext);
    fn cuCtxEnablePeerAccess(peer: CUcontext, flags: c_uint);

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    fn cuMemAlloc_v2(ptr: *mut CUdeviceptr, len: usize);
    fn cuMemFree_v2(ptr: CUdeviceptr);
    fn cuMemHostAlloc(ptr: *mut *mut c_void, len: usize, flags: c_uint);
    fn cuMemFreeHost(ptr: *mut c_void);
    fn cuMemAllocManaged(ptr: *mut CUdeviceptr, len: usize, flags: c_uint);
    fn cuMemHostRegister_v2(ptr: *mut c_void, len: usize, flags: c_uint);
    fn cuMemHostUnregister(ptr: *mut c_void);
    fn cuMemHostGetDevicePointer_v2(device: *mut CUdeviceptr, host: *mut c_void, flags: c_uint);
    fn cuMemAllocAsync(ptr: *mut CUdeviceptr, len: usize, stream: CUstream);
    fn cuMemFreeAsync(ptr: CUdeviceptr, stream: CUstream);

    fn cuMemcpyAsync(to: CUdeviceptr, from: CUdeviceptr, len: usize, stream: CUstream);
    fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, len: usize, stream: CUstream);
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, len: usize, stream: CUstream);
    fn cuMemcpyPeerAsync(
        to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, len: usize, stream: CUstream
    );
    fn cuMemsetD8Async(at: CUdeviceptr, value: u8, len: usize, stream: CUstream);

    fn cuMemGetAllocationGranularity(
        granularity: *mut usize, of: *const CUmemAllocationProp, option: CUmemAllocationGranularity_flags
    );
    fn cuMemAddressReserve(ptr: *mut CUdeviceptr, len: usize, align: usize, at: CUdeviceptr, flags: c_ulonglong);
    fn cuMemAddressFree(ptr: CUdeviceptr, len: usize);
    fn cuMemCreate(
        handle: *mut CUmemGenericAllocationHandle, len: usize, of: *const CUmemAllocationProp, flags: c_ulonglong
    );
    fn cuMemRelease(handle: CUmemGenericAllocationHandle);
    fn cuMemMap(
        at: CUdeviceptr, len: usize, offset: usize, handle: CUmemGenericAllocationHandle, flags: c_ulonglong
    );
    fn cuMemUnmap(at: CUdeviceptr, len: usize);
    fn cuMemGetAccess(flags: *mut c_ulonglong, location: *const CUmemLocation, at: CUdeviceptr);
    fn cuMemSetAccess(at: CUdeviceptr, len: usize, for_whom: *const CUmemAccessDesc, count: usize);

    fn cuPointerGetAttribute(value: *mut c_void, attribute: CUpointer_attribute, ptr: CUdeviceptr);

    fn cuStreamSynchronize(stream: CUstream);
    fn cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
    fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    fn cuStreamIsCapturing(stream: CUstream, status: *mut CUstreamCaptureStatus);
    fn cuThreadExchangeStreamCaptureMode(mode: *mut CUstreamCaptureMode);
    fn cuLaunchHostFunc(stream: CUstream, function: CUhostFn, data: *mut c_void);
    fn cuEventCreate(event: *mut CUevent, flags: c_uint);
    fn cuEventDestroy_v2(event: CUevent);
    fn cuEventRecord(event: CUevent, stream: CUstream);
    fn cuEventQuery(event: CUevent);
    fn cuEventSynchronize(event: CUevent);

    fn cuModuleLoadDataEx(
        module: *mut CUmodule, image: *const c_void, count: c_uint, options: *mut CUjit_option,
        values: *mut *mut c_void
    );
    fn cuModuleUnload(module: CUmodule);
    fn cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    fn cuFuncGetAttribute(value: *mut c_int, attribute: CUfunction_attribute, function: CUfunction);
    fn cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int);
    fn cuLaunchKernel(
        function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: CUstream, arguments: *mut *mut c_void, extra: *mut *mut c_void
    );
    fn cuGraphInstantiateWithFlags(exec: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    fn cuGraphLaunch(exec: CUgraphExec, stream: CUstream);
    fn cuGraphGetNodes(graph: CUgraph, nodes: *mut CUgraphNode, count: *mut usize);
    fn cuGraphDestroy(graph: CUgraph);
    fn cuGraphExecDestroy(exec: CUgraphExec);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A code that no version of cuda.h has.
    unsafe extern "C" fn newer(_: *mut c_int) -> c_uint {
        4242
    }

    #[test]
    fn a_code_that_the_bindings_do_not_have_is_told_by_its_number() {
        let functions = Functions { cuDeviceGetCount: newer, ..Functions::refusing() };
        let driver = Driver::new(Box::leak(Box::new(functions)), Arc::default());
        // SAFETY: the function above does not look at it.
        let answer = unsafe { driver.cuDeviceGetCount(std::ptr::null_mut()) };
        assert!(
            matches!(answer, Err(Error::Driver { call: "cuDeviceGetCount", code: 4242, .. })),
            "{answer:?}"
        );
        assert_eq!(driver.attribute(1, 0).map_err(|error| errors::code(&error)), Err(Some(999)));
    }
}
