//! The kernels on one device: modules loaded when first used, and the flag that quantizing raises.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use granule_device::{Bytes, Device, DeviceKind, Function, Module, Pinned};

use crate::Error;

/// What the launchers (`quantize::cuda` and its like) take their kernels from. Make one for each device and keep it.
///
/// A module is loaded, and compiled by the driver, when a kernel of its operation is first launched, not before. Nothing can
/// be loaded while a stream is captured: launch what a graph is to hold once before.
///
/// A kernel cannot refuse a number. Where it meets one that the host's encoder refuses, it raises a flag in memory that
/// the host can see; [`Kernels::check`] asks.
pub struct Kernels {
    device: Device,
    compute_capability: (u32, u32),
    driver_version: u32,
    loaded: Mutex<Loaded>,
    /// One word, to be touched atomically alone: kernels set bits while the host looks.
    flag: Pinned,
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
    /// no pinned memory left.
    pub fn new(device: &Device) -> Result<Kernels, Error> {
        if device.kind() != DeviceKind::Cuda {
            return Err(Error::NotOnDevice { what: "a device for kernels" });
        }
        let info = device.cuda_info()?;
        let flag = device.alloc_pinned(Bytes::from_usize(size_of::<u32>()))?;
        let kernels = Kernels {
            device: device.clone(),
            compute_capability: (info.compute_capability.major, info.compute_capability.minor),
            driver_version: info.driver_version,
            loaded: Mutex::default(),
            flag,
        };
        kernels.flag().store(0, Ordering::Relaxed);
        Ok(kernels)
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether everything that was quantized since the last call could be encoded. Looks at what has run: synchronize with
    /// the streams first. Lowers the flag.
    ///
    /// # Errors
    /// [`Error::Flagged`] where it could not.
    pub fn check(&self) -> Result<(), Error> {
        match self.flag().swap(0, Ordering::AcqRel) {
            0 => Ok(()),
            bits => Err(Error::Flagged {
                device: self.device.name().to_owned(),
                not_finite: bits & granule_kernels::FLAG_NOT_FINITE != 0,
                overflow: bits & granule_kernels::FLAG_OVERFLOW != 0,
            }),
        }
    }

    /// Where kernels find the flag.
    pub(crate) fn flag_address(&self) -> u64 {
        self.flag.ptr().addr()
    }

    fn flag(&self) -> &AtomicU32 {
        // SAFETY: pinned memory is at the same address for the host and the device, begins at a page, has room for the word
        // and stays as long as `self`; host and kernels touch it atomically alone.
        unsafe { AtomicU32::from_ptr(std::ptr::with_exposed_provenance_mut(self.flag_address() as usize)) }
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

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut loaded: Vec<_> = self.loaded().modules.keys().copied().collect();
        loaded.sort_unstable();
        write!(f, "Kernels({}, loaded: {})", self.device.name(), loaded.join(", "))
    }
}
