//! CUDA devices, through cudarc's bindings of the driver.
//!
//! cudarc's safe layer is used for what other engines share with us: contexts and streams are its [`CudaContext`] and
//! [`CudaStream`]. Everything else goes to the driver by way of [`calls`], because the safe layer has no virtual memory,
//! keeps the errors of drops for a later call that has nothing to do with them, and panics where the driver is missing.

mod announce;
mod backend;
#[cfg(feature = "cublas")]
mod blas;
mod calls;
mod context;
mod context_cost;
mod errors;
mod graph;
mod info;
mod interop;
mod launch;
mod library;
mod module;
mod moment;
#[cfg(feature = "nccl")]
mod nccl;
mod nvtx;
mod ranges;
mod registration;
mod release;
mod stream;
mod virtual_memory;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};

#[cfg(feature = "cublas")]
pub use self::blas::{Blas, Gemm, GemmType};
pub use self::graph::{ExecutableGraph, Graph};
pub use self::info::{ComputeCapability, CudaInfo, cuda_devices};
pub use self::interop::{CudaView, CudaViewMut};
pub use self::launch::{KernelArgument, Launch, LaunchShape};
pub use self::module::{Function, FunctionAttributes, Module};
#[cfg(feature = "nccl")]
pub use self::nccl::{Nccl, NcclId, NcclPart};
pub use self::nvtx::NvtxRange;

pub(crate) use self::backend::Cuda;
pub(crate) use self::moment::CudaMoment;
pub(crate) use self::stream::Queue;

use self::context::Context;
use crate::backend::RawStream;
use crate::fault::Faults;
use crate::{Bytes, Device, Error, Stream};

/// Which CUDA device, and how it is set up.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct CudaOptions {
    /// The device's number, as the driver counts the devices that CUDA_VISIBLE_DEVICES leaves.
    pub ordinal: usize,
    /// The size of a granule: a power of two and a multiple of the least that the driver maps, which is the default.
    pub granule: Option<Bytes>,
}

impl CudaOptions {
    /// Device `ordinal` with the driver's own figures.
    pub fn new(ordinal: usize) -> CudaOptions {
        CudaOptions { ordinal, granule: None }
    }

    /// With granules of this size.
    pub fn granule(self, granule: Bytes) -> CudaOptions {
        CudaOptions { granule: Some(granule), ..self }
    }
}

impl Device {
    /// An NVIDIA GPU, by its number.
    ///
    /// # Errors
    /// [`Error::NoCudaDriver`], [`Error::BrokenCudaDriver`], [`Error::CudaDriverTooOld`], [`Error::NoCudaDevice`],
    /// [`Error::NoSuchDevice`]: each says what to do. [`Error::OutOfMemory`] where there is no room for a context; a full
    /// device that has one can be opened. [`Error::Driver`].
    pub fn cuda(ordinal: usize) -> Result<Device, Error> {
        Device::cuda_with(CudaOptions::new(ordinal))
    }

    /// An NVIDIA GPU. It uses the device's primary context, as every CUDA library does by default, so that memory and streams
    /// can be shared with them.
    ///
    /// # Errors
    /// As [`Device::cuda`]; [`Error::GranuleSize`] for a granule that cannot be mapped, [`Error::TooLarge`] for one that is
    /// larger than the device.
    pub fn cuda_with(options: CudaOptions) -> Result<Device, Error> {
        let faults = Arc::new(Faults::default());
        let context = Context::open(&options, Arc::clone(&faults))?;
        Ok(Device::of(Box::new(Cuda::new(context)), faults))
    }

    /// The device of an engine that has a context already. The context is kept alive and shared, not changed.
    ///
    /// # Errors
    /// As [`Device::cuda`].
    pub fn from_cuda(context: Arc<CudaContext>) -> Result<Device, Error> {
        let faults = Arc::new(Faults::default());
        let options = CudaOptions::new(context.ordinal());
        let context = Context::of(context, &options, Arc::clone(&faults))?;
        Ok(Device::of(Box::new(Cuda::new(context)), faults))
    }

    /// The context, where this is a CUDA device.
    pub fn as_cuda(&self) -> Option<&Arc<CudaContext>> {
        Some(self.backend().as_cuda()?.context().owner())
    }

    fn cuda_context(&self, what: &'static str) -> Result<&Arc<Context>, Error> {
        match self.backend().as_cuda() {
            Some(cuda) => Ok(cuda.context()),
            None => Err(Error::Unsupported { what, why: "the device is not a CUDA device" }),
        }
    }
}

impl Stream {
    /// A stream of an engine's own, to be used by both. Dropping the answer waits for the stream and leaves it as it is.
    ///
    /// # Errors
    /// [`Error::OtherDevice`] where the stream is of another context; [`Error::Unsupported`] on the host.
    pub fn from_cuda(device: &Device, stream: Arc<CudaStream>) -> Result<Stream, Error> {
        let context = device.cuda_context("a CUDA stream")?;
        if stream.context().cu_ctx() != context.raw() {
            return Err(Error::OtherDevice { what: "a stream" });
        }
        let queue = Queue::new(Arc::clone(context), stream, false);
        Ok(Stream::of(device, queue as Arc<dyn RawStream>))
    }

    /// The stream for cudarc's calls, where this is a CUDA stream. Work given to it there is not seen by this crate's
    /// [`Region`](crate::Region)s.
    pub fn as_cuda(&self) -> Option<&Arc<CudaStream>> {
        Some(self.raw().as_cuda()?.share())
    }

    fn cuda_queue(&self, what: &'static str) -> Result<&Queue, Error> {
        let why = "the stream is not a CUDA device's";
        self.raw().as_cuda().ok_or(Error::Unsupported { what, why })
    }
}
