//! The kernels on one device: modules loaded when first used, and the flag that quantizing raises.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use granule_device::{Buffer, Bytes, CudaInfo, Device, DeviceKind, DeviceSliceMut, Function, Module, Stream};

use crate::Error;

/// What the launchers (`quantize::cuda` and its like) take their kernels from. Make one for each device and keep it.
///
/// A module is loaded, and compiled by the driver, when a kernel of its operation is first launched, not before. Nothing can
/// be loaded while a stream is captured: launch what a graph is to hold once before.
///
/// A kernel cannot refuse a number. Where it meets one that the host's encoder refuses, it raises a flag on the device, which
/// stays up until [`Kernels::check`] asks, or [`Kernels::collect`] comes. Who computes beside others has a flag of its own:
/// [`Kernels::sharing`].
pub struct Kernels {
    device: Device,
    compute_capability: (u32, u32),
    driver_version: u32,
    facts: DeviceFacts,
    loaded: Arc<Mutex<Loaded>>,
    /// One word of device memory. Not of the host's: there, an atomic access from behind a bus need not be one to the host.
    flag: Mutex<Buffer>,
    flag_address: u64,
}

/// What the cuts of launches, and with them the sizes of scratch, depend on beside shapes: enough for who plans for a device and
/// computes nothing there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Multiprocessors, at least one.
    pub(crate) multiprocessors: usize,
    /// Bytes of shared memory of a multiprocessor.
    pub(crate) shared: usize,
}

impl DeviceFacts {
    /// Those of this device.
    #[must_use]
    pub fn of(info: &CudaInfo) -> DeviceFacts {
        let capability = (info.compute_capability.major, info.compute_capability.minor);
        DeviceFacts::new(info.multiprocessors as usize, capability)
    }

    /// Those of a device with so many multiprocessors, of this compute capability, major and minor: one that is not at hand.
    #[must_use]
    pub fn new(multiprocessors: usize, compute_capability: (u32, u32)) -> DeviceFacts {
        DeviceFacts { multiprocessors: multiprocessors.max(1), shared: shared_memory(compute_capability) }
    }
}

/// Bytes of shared memory of a multiprocessor, by its compute capability (CUDA C++ Programming Guide, "Technical Specifications per
/// Compute Capability"); the least of all that kernels run on where it is not known.
fn shared_memory(compute_capability: (u32, u32)) -> usize {
    match compute_capability {
        (8, 0 | 7) => 164 << 10,
        (9 | 10, _) => 228 << 10,
        _ => 100 << 10,
    }
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, Module>,
    functions: HashMap<String, Function>,
}

impl Kernels {
    /// The kernels on `device`. Loads nothing yet.
    ///
    /// # Errors
    /// [`Error::NotOnDevice`] for a device that is not CUDA's; [`Error::Device`] where the driver does not answer or has
    /// no memory left.
    pub fn new(device: &Device) -> Result<Kernels, Error> {
        if device.kind() != DeviceKind::Cuda {
            return Err(Error::NotOnDevice { what: "a device for kernels" });
        }
        let info = device.cuda_info()?;
        let flag = new_flag(device)?;
        Ok(Kernels {
            device: device.clone(),
            compute_capability: (info.compute_capability.major, info.compute_capability.minor),
            driver_version: info.driver_version,
            facts: DeviceFacts::of(&info),
            loaded: Arc::default(),
            flag_address: flag.ptr().addr(),
            flag: Mutex::new(flag),
        })
    }

    /// The same kernels, with a flag of their own: what one of the two loads the other has loaded, and what is raised by launches
    /// of one, the other never hears of.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no memory for the flag.
    pub fn sharing(&self) -> Result<Kernels, Error> {
        let flag = new_flag(&self.device)?;
        Ok(Kernels {
            device: self.device.clone(),
            loaded: Arc::clone(&self.loaded),
            flag_address: flag.ptr().addr(),
            flag: Mutex::new(flag),
            ..*self
        })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Copies the flag to `to`, 4 bytes for [`Kernels::judge`], and lowers it, when the stream's turn comes, also in a captured
    /// graph: what [`Kernels::check`] does without a call of its own.
    ///
    /// # Errors
    /// [`Error::Shape`] where `to` has another length, [`Error::OtherDevice`], [`Error::Device`].
    ///
    /// # Safety
    /// - `to`, and `self`, stay until the stream has passed this, in a captured graph until it has been launched for the last time;
    ///   until then nothing else touches `to`.
    pub unsafe fn collect(&self, stream: &Stream, to: DeviceSliceMut<'_>) -> Result<(), Error> {
        crate::error::expect_len("bytes for the flag", to.len(), size_of::<u32>())?;
        crate::launch::check_stream(self, stream)?;
        let mut flag = self.flag.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the flag stays with `self`; kernels access it atomically and in the stream's order. The rest is the caller's
        // promise.
        unsafe {
            stream.copy_slice(flag.slice(..)?, to)?;
            stream.fill_slice(flag.slice_mut(..)?, 0)?;
        }
        Ok(())
    }

    /// What a word says that [`Kernels::collect`] has left.
    ///
    /// # Errors
    /// [`Error::Flagged`].
    pub fn judge(&self, word: [u8; 4]) -> Result<(), Error> {
        match u32::from_ne_bytes(word) {
            0 => Ok(()),
            bits => Err(Error::Flagged {
                device: self.device.name().to_owned(),
                not_finite: bits & granule_kernels::FLAG_NOT_FINITE != 0,
                overflow: bits & granule_kernels::FLAG_OVERFLOW != 0,
            }),
        }
    }

    /// Whether everything that was quantized since the last call could be encoded. Looks at what has run: synchronize with
    /// the streams first. Lowers the flag where it was up; what a kernel raises just then is part of the same answer.
    ///
    /// # Errors
    /// [`Error::Flagged`] where it could not; [`Error::Device`] where the flag cannot be read, or not be lowered: then it is
    /// as it was.
    pub fn check(&self) -> Result<(), Error> {
        let mut flag = self.flag.lock().unwrap_or_else(PoisonError::into_inner);
        let mut word = [0; size_of::<u32>()];
        self.device.copy(flag.slice(..)?, (&mut word[..]).into())?;
        if word == [0; 4] {
            return Ok(());
        }
        lower(&self.device, &mut flag)?;
        self.judge(word)
    }

    /// What sizes depend on that are this device's own.
    #[must_use]
    pub fn facts(&self) -> DeviceFacts {
        self.facts
    }

    /// The device's generation.
    #[cfg(feature = "cublas")]
    pub(crate) fn compute_capability(&self) -> granule_device::ComputeCapability {
        let (major, minor) = self.compute_capability;
        granule_device::ComputeCapability { major, minor }
    }

    /// Where kernels find the flag.
    pub(crate) fn flag_address(&self) -> u64 {
        self.flag_address
    }

    /// The kernel `name` of operation `op`, whose module is loaded where it is not yet.
    pub(crate) fn function(&self, op: &'static str, name: &str) -> Result<Function, Error> {
        let mut loaded = self.loaded();
        if let Some(function) = loaded.functions.get(name) {
            return Ok(function.clone());
        }
        let module = match loaded.modules.get(op) {
            Some(module) => module.clone(),
            None => {
                let module = self.load(op)?;
                loaded.modules.insert(op, module.clone());
                module
            }
        };
        let function = module.function(name)?;
        loaded.functions.insert(name.to_owned(), function.clone());
        Ok(function)
    }

    fn load(&self, op: &'static str) -> Result<Module, Error> {
        let found = granule_kernels::find(op, self.compute_capability, self.driver_version);
        let module =
            found.map_err(|source| Error::NoKernel { device: self.device.name().to_owned(), source })?;
        Ok(Module::load(&self.device, module.image)?)
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_flag(device: &Device) -> Result<Buffer, Error> {
    let mut flag = device.alloc(Bytes::from_usize(size_of::<u32>()))?;
    lower(device, &mut flag)?;
    Ok(flag)
}

fn lower(device: &Device, flag: &mut Buffer) -> Result<(), Error> {
    let zeros = [0; size_of::<u32>()];
    Ok(device.copy(zeros[..].into(), flag.slice_mut(..)?)?)
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut loaded: Vec<_> = self.loaded().modules.keys().copied().collect();
        loaded.sort_unstable();
        write!(f, "Kernels({}, loaded: {})", self.device.name(), loaded.join(", "))
    }
}
