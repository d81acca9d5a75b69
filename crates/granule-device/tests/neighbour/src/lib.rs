//! A small engine on cudarc, with a context, a stream and memory of its own, that takes Granule in.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError};
use granule_device::{Buffer, Device, Region, Stream};

/// What the engine had before Granule came.
pub struct Engine {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
}

impl Engine {
    /// Device 0. Ask [`granule_device::cuda_devices`] first: without a driver cudarc panics.
    pub fn new() -> Result<Engine, DriverError> {
        let context = CudaContext::new(0)?;
        let stream = context.new_stream()?;
        Ok(Engine { context, stream })
    }

    /// The engine's sum, by way of the host: it takes any of cudarc's slices, and so Granule's views.
    pub fn sum(&self, values: &impl DevicePtr<u32>) -> Result<u32, DriverError> {
        Ok(self.stream.clone_dtoh(values)?.iter().sum())
    }

    /// Memory of the engine's own.
    pub fn upload(&self, values: &[u32]) -> Result<CudaSlice<u32>, DriverError> {
        self.stream.clone_htod(values)
    }

    /// Granule's device and stream, which are the engine's.
    pub fn granule(&self) -> Result<(Device, Stream), granule_device::Error> {
        let device = Device::from_cuda(Arc::clone(&self.context))?;
        let stream = Stream::from_cuda(&device, Arc::clone(&self.stream))?;
        Ok((device, stream))
    }

    /// The sum of a region of Granule's, with no copy of it made for the engine.
    pub fn sum_of(&self, stream: &Stream, region: &Region<Buffer>) -> Result<u32, Box<dyn std::error::Error>> {
        Ok(self.sum(&stream.lend::<u32, _>(region, ..)?)?)
    }
}
