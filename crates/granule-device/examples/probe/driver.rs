//! The driver calls of the probe, through cudarc's raw layer, with numbers for answers: an error is a fact here.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{
    self, CUdeviceptr, CUevent, CUgraph, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationProp,
    CUmemGenericAllocationHandle, CUresult, CUstream,
};

/// What a driver call answered: nothing, or the number of its error.
pub(crate) type Answer<T = ()> = Result<T, u32>;

/// Turns the driver's answer into a number.
pub(crate) fn answer(result: CUresult) -> Answer {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(code as u32),
    }
}

/// Where physical memory is.
#[derive(Clone, Copy)]
pub(crate) enum Home {
    Device,
    HostNuma,
}

/// A device and what is asked of it again and again.
pub(crate) struct Gpu {
    /// Keeps the context, which is current on this thread.
    _context: Arc<CudaContext>,
    pub(crate) ordinal: i32,
    /// The smallest mappable size.
    pub(crate) granule: usize,
}

impl Gpu {
    pub(crate) fn open(ordinal: usize) -> Result<Gpu, Box<dyn std::error::Error>> {
        let context = CudaContext::new(ordinal).map_err(|error| format!("no context: {}", error.0 as u32))?;
        let mut gpu = Gpu { _context: context, ordinal: i32::try_from(ordinal)?, granule: 0 };
        gpu.granule = gpu.granularity(false).map_err(|code| format!("no granularity: {code}"))?;
        Ok(gpu)
    }

    pub(crate) fn granularity(&self, recommended: bool) -> Answer<usize> {
        use sys::CUmemAllocationGranularity_flags as Flags;
        let kind = if recommended {
            Flags::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
        } else {
            Flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM
        };
        let mut size = 0;
        // SAFETY: both pointers are to locals.
        answer(unsafe {
            sys::cuMemGetAllocationGranularity(&mut size, &self.properties(Home::Device), kind)
        })?;
        Ok(size)
    }

    /// `CUmemLocation` is a struct or holds a union, by version: its two numbers are written as such.
    fn location(&self, home: Home) -> [i32; 2] {
        match home {
            Home::Device => [1, self.ordinal],
            Home::HostNuma => [3, 0],
        }
    }

    fn properties(&self, home: Home) -> CUmemAllocationProp {
        // SAFETY: all fields are numbers, bit fields and null pointers: zero is one of their values.
        let mut properties: CUmemAllocationProp = unsafe { MaybeUninit::zeroed().assume_init() };
        properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        // SAFETY: a location is two 32-bit numbers in all versions.
        unsafe { (&raw mut properties.location).cast::<[i32; 2]>().write(self.location(home)) };
        properties
    }

    pub(crate) fn create(&self, home: Home, size: usize) -> Answer<CUmemGenericAllocationHandle> {
        let mut handle = 0;
        // SAFETY: both pointers are to locals.
        answer(unsafe { sys::cuMemCreate(&mut handle, size, &self.properties(home), 0) })?;
        Ok(handle)
    }

    pub(crate) fn release(&self, handle: CUmemGenericAllocationHandle) -> Answer {
        // SAFETY: the handle came from `create`.
        answer(unsafe { sys::cuMemRelease(handle) })
    }

    pub(crate) fn reserve(&self, size: usize) -> Answer<CUdeviceptr> {
        let mut base = 0;
        // SAFETY: the pointer is to a local.
        answer(unsafe { sys::cuMemAddressReserve(&mut base, size, 0, 0, 0) })?;
        Ok(base)
    }

    pub(crate) fn unreserve(&self, base: CUdeviceptr, size: usize) -> Answer {
        // SAFETY: the driver checks the range.
        answer(unsafe { sys::cuMemAddressFree(base, size) })
    }

    pub(crate) fn map(&self, at: CUdeviceptr, handle: CUmemGenericAllocationHandle) -> Answer {
        // SAFETY: the driver checks both.
        answer(unsafe { sys::cuMemMap(at, self.granule, 0, handle, 0) })
    }

    pub(crate) fn unmap(&self, at: CUdeviceptr, size: usize) -> Answer {
        // SAFETY: the driver checks the range.
        answer(unsafe { sys::cuMemUnmap(at, size) })
    }

    pub(crate) fn access(&self, at: CUdeviceptr, size: usize, write: bool) -> Answer {
        // SAFETY: all fields are numbers: zero is one of their values.
        let mut access: CUmemAccessDesc = unsafe { MaybeUninit::zeroed().assume_init() };
        access.flags = if write {
            CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        } else {
            CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READ
        };
        // SAFETY: a location is two 32-bit numbers in all versions.
        unsafe { (&raw mut access.location).cast::<[i32; 2]>().write(self.location(Home::Device)) };
        // SAFETY: the descriptor is a local.
        answer(unsafe { sys::cuMemSetAccess(at, size, &access, 1) })
    }

    /// Whether the driver says what access this device has at an address.
    pub(crate) fn access_of(&self, at: CUdeviceptr) -> Answer {
        let location = self.location(Home::Device);
        let mut flags = 0_u64;
        // SAFETY: a location is two 32-bit numbers in all versions; the flags are written to a local.
        answer(unsafe { sys::cuMemGetAccess(&mut flags, (&raw const location).cast(), at) })
    }

    /// A mapped, writable granule at an address of its own.
    pub(crate) fn mapped(&self) -> Answer<(CUdeviceptr, CUmemGenericAllocationHandle)> {
        let handle = self.create(Home::Device, self.granule)?;
        let at = self.reserve(self.granule)?;
        self.map(at, handle)?;
        self.access(at, self.granule, true)?;
        Ok((at, handle))
    }

    pub(crate) fn alloc(&self, size: usize) -> Answer<CUdeviceptr> {
        let mut ptr = 0;
        // SAFETY: the pointer is to a local.
        answer(unsafe { sys::cuMemAlloc_v2(&mut ptr, size) })?;
        Ok(ptr)
    }

    pub(crate) fn free(&self, ptr: CUdeviceptr) -> Answer {
        // SAFETY: the driver checks the address.
        answer(unsafe { sys::cuMemFree_v2(ptr) })
    }

    /// Sets bytes and waits.
    pub(crate) fn set(&self, at: CUdeviceptr, value: u8, size: usize) -> Answer {
        // SAFETY: the driver checks the range, or the context breaks and the answer says so.
        answer(unsafe { sys::cuMemsetD8_v2(at, value, size) })?;
        self.synchronize()
    }

    /// The first byte at an address.
    pub(crate) fn byte(&self, at: CUdeviceptr) -> Answer<u8> {
        let mut byte = 0_u8;
        // SAFETY: one byte is written to a local.
        answer(unsafe { sys::cuMemcpyDtoH_v2((&raw mut byte).cast(), at, 1) })?;
        Ok(byte)
    }

    pub(crate) fn synchronize(&self) -> Answer {
        // SAFETY: the context is current.
        answer(unsafe { sys::cuCtxSynchronize() })
    }

    pub(crate) fn stream(&self) -> Answer<CUstream> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: the pointer is to a local; 1 is "not blocking".
        answer(unsafe { sys::cuStreamCreate(&mut stream, 1) })?;
        Ok(stream)
    }

    pub(crate) fn wait_for(&self, stream: CUstream) -> Answer {
        // SAFETY: the stream is alive.
        answer(unsafe { sys::cuStreamSynchronize(stream) })
    }

    pub(crate) fn event(&self) -> Answer<CUevent> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the pointer is to a local; 2 is "no timing".
        answer(unsafe { sys::cuEventCreate(&mut event, 2) })?;
        Ok(event)
    }

    /// Keeps a stream busy for a while: with a function of this process that sleeps.
    pub(crate) fn busy(&self, stream: CUstream, milliseconds: u64) -> Answer {
        unsafe extern "C" fn sleep(milliseconds: *mut c_void) {
            std::thread::sleep(std::time::Duration::from_millis(milliseconds.addr() as u64));
        }
        let milliseconds = std::ptr::without_provenance_mut(usize::try_from(milliseconds).unwrap_or(0));
        // SAFETY: the function follows no pointer and makes no driver call.
        answer(unsafe { sys::cuLaunchHostFunc(stream, Some(sleep), milliseconds) })
    }

    pub(crate) fn set_async(&self, at: CUdeviceptr, value: u8, size: usize, stream: CUstream) -> Answer {
        // SAFETY: the driver checks the range, or the context breaks and a later answer says so.
        answer(unsafe { sys::cuMemsetD8Async(at, value, size, stream) })
    }

    pub(crate) fn capture(&self, stream: CUstream, relaxed: bool) -> Answer {
        use sys::CUstreamCaptureMode as Mode;
        let mode =
            if relaxed { Mode::CU_STREAM_CAPTURE_MODE_RELAXED } else { Mode::CU_STREAM_CAPTURE_MODE_GLOBAL };
        // SAFETY: the stream is alive.
        answer(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) })
    }

    pub(crate) fn end_capture(&self, stream: CUstream) -> Answer<CUgraph> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream is alive and the pointer is to a local.
        answer(unsafe { sys::cuStreamEndCapture(stream, &mut graph) })?;
        Ok(graph)
    }

    pub(crate) fn free_bytes(&self) -> Answer<usize> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both pointers are to locals.
        answer(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok(free)
    }
}
