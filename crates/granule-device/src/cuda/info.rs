//! What CUDA devices there are, learned without making a context on any of them.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys::CUuuid;

use super::calls::Driver;
use super::context::{attribute, count, find_device};
use super::library::{self, Library};
use super::virtual_memory;
use crate::{Bytes, Device, Error};

/// A device's generation, as kernels are compiled for: 8.0 is an A100, 9.0 an H100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComputeCapability {
    /// Before the point.
    pub major: u32,
    /// After it.
    pub minor: u32,
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// One CUDA device, as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CudaInfo {
    /// Its number, for [`Device::cuda`](crate::Device::cuda).
    pub ordinal: usize,
    /// What NVIDIA calls it.
    pub name: String,
    /// What it is called in nvidia-smi: "GPU-" and 32 hexadecimal digits in groups.
    pub uuid: String,
    /// Its generation.
    pub compute_capability: ComputeCapability,
    /// The newest CUDA that the driver knows, like "12.4".
    pub driver: String,
    /// The same as the driver counts: 12040 is CUDA 12.4.
    pub driver_version: u32,
    /// Its multiprocessors: how many thread blocks run side by side, times what each of them takes at once.
    pub multiprocessors: u32,
    /// All of its memory.
    pub total: Bytes,
    /// The least that can be mapped: a granule; `None` where there is no virtual memory.
    pub granularity: Option<Bytes>,
    /// Whether host memory can be mapped behind its addresses; `None` where the driver does not say, before CUDA 12.8:
    /// [`Features::host_granules`](crate::Features::host_granules) tries it.
    pub host_granules: Option<bool>,
    /// Whether host and device may use managed memory at the same time.
    pub managed: bool,
    /// Whether it has pools for stream-ordered memory.
    pub stream_ordered: bool,
    /// For each device, by number, whether this one can reach its memory; true of itself.
    pub peers: Vec<bool>,
}

/// All CUDA devices.
///
/// # Errors
/// [`Error::NoCudaDriver`], [`Error::BrokenCudaDriver`], [`Error::CudaDriverTooOld`], [`Error::NoCudaDevice`]: each says what
/// to do. [`Error::Driver`].
pub fn cuda_devices() -> Result<Vec<CudaInfo>, Error> {
    let library = library::library()?;
    let driver = Driver::new(&library.functions, Arc::default());
    let devices = all(&driver)?;
    (0..devices.len()).map(|ordinal| describe(library, &driver, ordinal, &devices)).collect()
}

impl Device {
    /// What the driver says of this device.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on the host; [`Error::Driver`].
    pub fn cuda_info(&self) -> Result<CudaInfo, Error> {
        let context = self.cuda_context("a description by the CUDA driver")?;
        describe(context.library, &context.driver, context.owner().ordinal(), &all(&context.driver)?)
    }
}

/// The driver's numbers of all devices.
fn all(driver: &Driver) -> Result<Vec<c_int>, Error> {
    let count = usize::try_from(count(driver)?).unwrap_or(0);
    (0..count).map(|ordinal| find_device(driver, ordinal)).collect()
}

fn describe(library: &Library, driver: &Driver, ordinal: usize, all: &[c_int]) -> Result<CudaInfo, Error> {
    let device = all[ordinal];
    let mut name: [c_char; 256] = [0; 256];
    let mut uuid = CUuuid { bytes: [0; 16] };
    let mut total = 0;
    // SAFETY: they are written into locals, the name into no more than it has; the driver ends it with a zero.
    let name = unsafe {
        driver.cuDeviceGetName(name.as_mut_ptr(), 255, device)?;
        driver.cuDeviceGetUuid_v2(&raw mut uuid, device)?;
        driver.cuDeviceTotalMem_v2(&raw mut total, device)?;
        CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
    };
    let number = |attribute| -> Result<Option<u32>, Error> {
        Ok(driver.attribute(attribute, device)?.and_then(|value| u32::try_from(value).ok()))
    };
    let has = |attribute| driver.has(attribute, device);
    let mut peers = Vec::with_capacity(all.len());
    for &other in all {
        let mut can = c_int::from(other == device);
        if other != device {
            // SAFETY: it is written into a local.
            unsafe { driver.cuDeviceCanAccessPeer(&raw mut can, device, other)? };
        }
        peers.push(can == 1);
    }
    let virtual_memory = has(attribute::VIRTUAL_MEMORY_MANAGEMENT)?;
    let granularity = virtual_memory.then(|| virtual_memory::granularity(driver, device)).transpose()?;
    Ok(CudaInfo {
        ordinal,
        name,
        uuid: uuid_text(uuid.bytes.map(|byte| byte.to_ne_bytes()[0])),
        compute_capability: ComputeCapability {
            major: number(attribute::COMPUTE_CAPABILITY_MAJOR)?.unwrap_or(0),
            minor: number(attribute::COMPUTE_CAPABILITY_MINOR)?.unwrap_or(0),
        },
        driver: library::words(library.version),
        driver_version: u32::try_from(library.version).unwrap_or(0),
        multiprocessors: number(attribute::MULTIPROCESSORS)?.unwrap_or(0),
        total: Bytes::from_usize(total),
        granularity: granularity.map(Bytes::from_usize),
        host_granules: number(attribute::HOST_NUMA_VIRTUAL_MEMORY)?.map(|value| value == 1),
        managed: has(attribute::MANAGED_MEMORY)? && has(attribute::CONCURRENT_MANAGED_ACCESS)?,
        stream_ordered: has(attribute::MEMORY_POOLS)?,
        peers,
    })
}

fn uuid_text(bytes: [u8; 16]) -> String {
    let mut text = String::from("GPU");
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 0 | 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_reads_as_nvidia_smi_prints_it() {
        let bytes = std::array::from_fn(|i| i as u8 * 17);
        assert_eq!(uuid_text(bytes), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }
}
