//! One CUDA device as this crate holds it: cudarc's context as the owner, the driver behind the fault gate, what was
//! learned about the device when it was opened, and what waits to be given back.

use std::ffi::c_int;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cudarc::driver::sys::{self, CUcontext, CUevent};
use cudarc::driver::{CudaContext, CudaStream};

use super::calls::{self, Driver};
use super::errors;
use super::library::{self, Library};
use super::release::Leftover;
use super::stream::Queue;
use super::virtual_memory::{Ranges, VirtualMemory};
use crate::fault::Faults;
use crate::{Bytes, CudaOptions, Error};

/// A handle of the driver's. It is only handed back to the driver, which takes it from any thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Raw<T>(pub(super) *mut T);

// SAFETY: the driver's handles may be used from any thread; this crate never follows them.
unsafe impl<T> Send for Raw<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Raw<T> {}

/// How many unused events are kept for reuse.
const SPARE_EVENTS: usize = 256;

/// Attributes of cuda.h by number, since the bindings of older toolkits lack the newer ones.
pub(super) mod attribute {
    use std::ffi::c_int;

    pub(crate) const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
    pub(crate) const COMPUTE_CAPABILITY_MINOR: c_int = 76;
    pub(crate) const MANAGED_MEMORY: c_int = 83;
    pub(crate) const CONCURRENT_MANAGED_ACCESS: c_int = 89;
    pub(crate) const VIRTUAL_MEMORY_MANAGEMENT: c_int = 102;
    pub(crate) const READ_ONLY_HOST_REGISTER: c_int = 113;
    pub(crate) const MEMORY_POOLS: c_int = 115;
    /// Since 12.2.
    pub(crate) const HOST_NUMA_ID: c_int = 134;
    /// Since 12.8.
    pub(crate) const HOST_NUMA_VIRTUAL_MEMORY: c_int = 141;
}

pub(crate) struct Context {
    pub(super) driver: Driver,
    pub(super) library: &'static Library,
    /// The driver's number of the device.
    pub(super) device: c_int,
    pub(super) name: String,
    pub(super) virtual_memory: VirtualMemory,
    pub(super) managed: bool,
    pub(super) stream_ordered: bool,
    /// Reservations and what is mapped in them.
    pub(super) ranges: Mutex<Ranges>,
    /// What the driver refused to take back, or could not be asked to.
    pub(super) leftovers: Mutex<Vec<Leftover>>,
    /// Whether some of them were only put off.
    pub(super) put_off: AtomicBool,
    /// Events without a meaning now.
    spare: Mutex<Vec<Raw<sys::CUevent_st>>>,
    /// How many streams are being captured by this crate.
    pub(super) captures: AtomicUsize,
    /// Streams that somebody else may capture.
    shared_streams: Mutex<Vec<Weak<Queue>>>,
    /// For copies that are done when they return.
    copies: Arc<CudaStream>,
    owner: Arc<CudaContext>,
}

/// The context is current on this thread; dropping it puts back the one that was.
pub(super) struct Bound<'a> {
    driver: &'a Driver,
    before: CUcontext,
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        if !self.before.is_null() {
            // SAFETY: it was current when this was made. Where it is refused, the next user binds its own.
            let _ = unsafe { self.driver.cuCtxSetCurrent(self.before) };
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each of these is whole between any two statements that could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes `context` current on this thread where it is not.
fn bind(driver: &Driver, context: CUcontext) -> Result<CUcontext, Error> {
    let mut current: CUcontext = std::ptr::null_mut();
    // SAFETY: it is written into a local.
    unsafe { driver.cuCtxGetCurrent(&raw mut current)? };
    if current == context {
        return Ok(std::ptr::null_mut());
    }
    // SAFETY: its owner is alive.
    unsafe { driver.cuCtxSetCurrent(context)? };
    Ok(current)
}

/// The number of devices and the number of one of them.
pub(super) fn find_device(driver: &Driver, ordinal: usize) -> Result<c_int, Error> {
    let count = count(driver)?;
    let number = c_int::try_from(ordinal).ok().filter(|&number| number < count);
    let Some(number) = number else {
        return Err(Error::NoSuchDevice { ordinal, count: usize::try_from(count).unwrap_or(0) });
    };
    let mut device = 0;
    // SAFETY: it is written into a local.
    unsafe { driver.cuDeviceGet(&raw mut device, number)? };
    Ok(device)
}

/// How many devices there are: at least one.
pub(super) fn count(driver: &Driver) -> Result<c_int, Error> {
    let mut count = 0;
    // SAFETY: it is written into a local.
    unsafe { driver.cuDeviceGetCount(&raw mut count)? };
    if count < 1 {
        return Err(Error::NoCudaDevice {
            reason: "the driver counts none; CUDA_VISIBLE_DEVICES may hide them",
        });
    }
    Ok(count)
}

impl Context {
    /// The device's primary context, retained.
    pub(super) fn open(options: &CudaOptions, faults: Arc<Faults>) -> Result<Arc<Context>, Error> {
        let library = library::library()?;
        let driver = Driver::new(faults);
        find_device(&driver, options.ordinal)?;
        driver.gate("cuDevicePrimaryCtxRetain")?;
        let owner = CudaContext::new(options.ordinal)
            .map_err(|error| errors::error("cuDevicePrimaryCtxRetain", error.0 as u32))?;
        Context::adopt(library, driver, owner, options)
    }

    /// Somebody's context, kept alive and used beside them.
    pub(super) fn of(
        owner: Arc<CudaContext>,
        options: &CudaOptions,
        faults: Arc<Faults>,
    ) -> Result<Arc<Context>, Error> {
        Context::adopt(library::library()?, Driver::new(faults), owner, options)
    }

    fn adopt(
        library: &'static Library,
        driver: Driver,
        owner: Arc<CudaContext>,
        options: &CudaOptions,
    ) -> Result<Arc<Context>, Error> {
        let device = owner.cu_device();
        let has = |attribute| library.has(&driver, attribute, device);
        let bound = Bound { before: bind(&driver, owner.cu_ctx())?, driver: &driver };
        let copies = new_stream(&driver, &owner)?;
        let name = format!("cuda:{}", owner.ordinal());
        let virtual_memory = if has(attribute::VIRTUAL_MEMORY_MANAGEMENT)? {
            VirtualMemory::probe(&driver, device, options.granule)?
        } else {
            VirtualMemory::none()
        };
        let managed = has(attribute::MANAGED_MEMORY)? && has(attribute::CONCURRENT_MANAGED_ACCESS)?;
        let stream_ordered = has(attribute::MEMORY_POOLS)?;
        drop(bound);
        Ok(Arc::new(Context {
            library,
            device,
            name,
            virtual_memory,
            managed,
            stream_ordered,
            ranges: Mutex::default(),
            leftovers: Mutex::default(),
            put_off: AtomicBool::new(false),
            spare: Mutex::default(),
            captures: AtomicUsize::new(0),
            shared_streams: Mutex::default(),
            copies,
            owner,
            driver,
        }))
    }

    pub(super) fn owner(&self) -> &Arc<CudaContext> {
        &self.owner
    }

    pub(super) fn raw(&self) -> CUcontext {
        self.owner.cu_ctx()
    }

    pub(super) fn copies(&self) -> sys::CUstream {
        self.copies.cu_stream()
    }

    /// Makes this context current on this thread, until the answer is dropped.
    pub(super) fn bind(&self) -> Result<Bound<'_>, Error> {
        Ok(Bound { before: bind(&self.driver, self.raw())?, driver: &self.driver })
    }

    /// As [`Context::bind`], past injected faults.
    pub(super) fn bind_unfailing(&self) -> Result<Bound<'_>, Error> {
        Ok(Bound { before: bind(&self.driver.unfailing(), self.raw())?, driver: &self.driver })
    }

    /// A stream of cudarc's, which it destroys when nobody has it any more.
    pub(super) fn new_stream(&self) -> Result<Arc<CudaStream>, Error> {
        let _bound = self.bind()?;
        new_stream(&self.driver, &self.owner)
    }

    /// Free and total memory as the driver counts them.
    pub(super) fn memory(&self) -> Result<(Bytes, Bytes), Error> {
        let _bound = self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are written into locals.
        unsafe { self.driver.cuMemGetInfo_v2(&raw mut free, &raw mut total)? };
        Ok((Bytes::from_usize(free), Bytes::from_usize(total)))
    }

    /// The driver's "no memory" with the figures; other errors as they are.
    pub(super) fn explain(&self, error: Error, requested: Bytes) -> Error {
        if errors::code(&error) != Some(errors::OUT_OF_MEMORY) {
            return error;
        }
        let device = self.name.clone();
        match self.memory() {
            Ok((_, capacity)) if requested > capacity => Error::TooLarge { device, requested, capacity },
            Ok((free, capacity)) => Error::OutOfMemory { device, requested, free, capacity },
            // The driver does not say how much there is: then how much was asked for has to do.
            Err(_) => Error::OutOfMemory { device, requested, free: Bytes::ZERO, capacity: Bytes::ZERO },
        }
    }

    /// An event for one use.
    pub(super) fn take_event(&self) -> Result<Raw<sys::CUevent_st>, Error> {
        if let Some(event) = lock(&self.spare).pop() {
            return Ok(event);
        }
        let mut event: CUevent = std::ptr::null_mut();
        let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: it is written into a local; a context of this device's is current (callers bind).
        unsafe { self.driver.cuEventCreate(&raw mut event, flags)? };
        Ok(Raw(event))
    }

    /// Takes an event back. Streams that wait for it go on waiting for the point it meant when they were told to.
    pub(super) fn put_event(&self, event: Raw<sys::CUevent_st>) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE_EVENTS {
            spare.push(event);
        } else {
            drop(spare);
            self.release(Leftover::Event(event));
        }
    }

    /// Remembers a stream that somebody else can reach, and so can capture.
    pub(super) fn remember_shared(&self, stream: Weak<Queue>) {
        let mut streams = lock(&self.shared_streams);
        streams.retain(|other| other.strong_count() > 0);
        if !streams.iter().any(|other| other.ptr_eq(&stream)) {
            streams.push(stream);
        }
    }

    /// Refuses what must not be done while a stream of this device is captured.
    pub(super) fn refuse_in_capture(&self, what: &'static str) -> Result<(), Error> {
        if self.is_capturing() { Err(Error::Capturing { what }) } else { Ok(()) }
    }

    pub(super) fn is_capturing(&self) -> bool {
        if self.captures.load(Ordering::Acquire) > 0 {
            return true;
        }
        let shared: Vec<_> = lock(&self.shared_streams).iter().filter_map(Weak::upgrade).collect();
        shared.iter().any(|stream| stream.is_captured_by_others())
    }
}

/// A non-blocking stream. cudarc answers with an error that an earlier drop has left: that is put back for whoever asks.
fn new_stream(driver: &Driver, owner: &Arc<CudaContext>) -> Result<Arc<CudaStream>, Error> {
    driver.gate("cuStreamCreate")?;
    let earlier = owner.check_err();
    let made = owner.new_stream();
    owner.record_err(earlier);
    made.map_err(|error| errors::error("cuStreamCreate", error.0 as u32))
}

impl Drop for Context {
    fn drop(&mut self) {
        if calls::in_host_function() {
            // The last handle went inside a function that runs on a stream, where the driver may not be called: the
            // context stays until the process ends.
            std::mem::forget(Arc::clone(&self.owner));
            std::mem::forget(Arc::clone(&self.copies));
            return;
        }
        for event in std::mem::take(&mut *lock(&self.spare)) {
            self.release(Leftover::Event(event));
        }
        self.settle();
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({})", self.name)
    }
}
