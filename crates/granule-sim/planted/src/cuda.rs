//! The few things that every planted bug needs of CUDA, through cudarc's thin layer.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use anyhow::{Result, bail};
use cudarc::driver::CudaContext;
use cudarc::driver::result::{launch_kernel, module};
use cudarc::driver::sys::{self, CUdeviceptr, CUresult};

const KERNELS: &str = include_str!("../planted.ptx");

/// Device 0 with the planted kernels.
pub(crate) struct Cuda {
    module: sys::CUmodule,
    pub(crate) context: Arc<CudaContext>,
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // A context that a bug has broken refuses; the module goes with it.
        // SAFETY: the module was loaded in `open` and no kernel of it is used any more.
        let _ = unsafe { module::unload(self.module) };
    }
}

/// What a driver call answered, as an error that says which call it was.
pub(crate) fn check(call: &str, result: CUresult) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => bail!("{call}: {}", code as u32),
    }
}

impl Cuda {
    pub(crate) fn open() -> Result<Cuda> {
        // The typed probe of the library comes first: it says what is missing, where cudarc would panic.
        drop(granule_device::cuda_devices()?);
        let context = CudaContext::new(0)?;
        let image = CString::new(KERNELS)?;
        // SAFETY: the image is PTX that ends in a zero.
        let module = unsafe { module::load_data(image.as_ptr().cast()) }?;
        Ok(Cuda { module, context })
    }

    /// Plain device memory.
    pub(crate) fn alloc(&self, bytes: usize) -> Result<CUdeviceptr> {
        let mut ptr = 0;
        // SAFETY: a local is written.
        check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut ptr, bytes) })?;
        Ok(ptr)
    }

    pub(crate) fn free(&self, ptr: CUdeviceptr) -> Result<()> {
        // SAFETY: the callers free what they allocated, once.
        check("cuMemFree", unsafe { sys::cuMemFree_v2(ptr) })
    }

    /// Runs a kernel on the default stream and waits for it. What the device says of a bug is no error here.
    pub(crate) fn launch(
        &self,
        name: &str,
        blocks: u32,
        threads: u32,
        args: &mut [*mut c_void],
    ) -> Result<()> {
        self.launch_on(std::ptr::null_mut(), name, blocks, threads, args)?;
        let _ = self.context.synchronize();
        Ok(())
    }

    /// Gives a kernel to a stream.
    pub(crate) fn launch_on(
        &self,
        stream: sys::CUstream,
        name: &str,
        blocks: u32,
        threads: u32,
        args: &mut [*mut c_void],
    ) -> Result<()> {
        // SAFETY: the module is loaded.
        let function = unsafe { module::get_function(self.module, CString::new(name)?) }?;
        let (grid, block) = ((blocks, 1, 1), (threads, 1, 1));
        // SAFETY: the arguments are those of the kernel; what it does with them is the point.
        unsafe { launch_kernel(function, grid, block, 0, stream, args) }?;
        Ok(())
    }
}

/// A kernel's argument.
pub(crate) fn arg<T>(value: &mut T) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}
