//! One CUDA device as this crate holds it: cudarc's context as the owner, the driver behind the fault gate, what was
//! learned about the device when it was opened, and what waits to be given back.

use std::ffi::c_int;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cudarc::driver::sys::{self, CUcontext, CUevent};
use cudarc::driver::{CudaContext, CudaStream};

use super::calls::{self, Driver};
use super::errors;
use super::library::{self, Library};
use super::ranges::Ranges;
use super::release::Leftover;
use super::stream::Captures;
use super::virtual_memory::{self, VirtualMemory};
use crate::fault::Faults;
use crate::registered::Keep;
use crate::{Bytes, CudaOptions, DevicePtr, Error};

/// A handle of the driver's. It is only handed back to the driver, which takes it from any thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Raw<T>(pub(super) *mut T);

// SAFETY: the driver's handles may be used from any thread; this crate never follows them.
unsafe impl<T> Send for Raw<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Raw<T> {}

/// What a granule is a multiple of where the driver has none: the least page of any system.
const LEAST_PAGE: Bytes = Bytes::kib(4);

/// How many unused events are kept for reuse.
const SPARE_EVENTS: usize = 256;

/// Attributes of cuda.h by number, since the bindings of older toolkits lack the newer ones.
pub(super) mod attribute {
    use std::ffi::c_int;

    pub(crate) const MULTIPROCESSORS: c_int = 16;
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
    /// What keeps registered memory in place that is still to be unregistered.
    pub(super) kept: Mutex<Vec<(DevicePtr, Keep)>>,
    /// Whether some of them were only put off.
    pub(super) put_off: AtomicBool,
    /// Events without a meaning now.
    spare: Mutex<Vec<Raw<sys::CUevent_st>>>,
    captures: Arc<Captures>,
    /// For copies that are done when they return.
    copies: Arc<CudaStream>,
    owner: Arc<CudaContext>,
    /// Set when the context is dropped; after all of the above.
    leaving: Option<Leaving>,
}

/// The context is current on this thread; dropping it puts back the one that was, or none where none was.
pub(super) struct Bound<'a> {
    driver: &'a Driver,
    /// `None` where it is this one.
    before: Option<CUcontext>,
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        // Where it is refused, there is nothing to be done: the next user binds its own.
        let _ = self.end();
    }
}

impl Bound<'_> {
    /// Puts back what was current; where that is refused, dropping this tries again.
    fn end(&mut self) -> Result<(), Error> {
        if let Some(before) = self.before {
            // SAFETY: it was current when this was made, and is not this crate's.
            unsafe { self.driver.put_back(before)? };
            self.before = None;
        }
        Ok(())
    }
}

/// Puts back, once a context may have been let go of, what was current on this thread before. cudarc makes a context current
/// to open it and to let go of it, and leaves it so.
struct Leaving {
    driver: Driver,
    device: c_int,
    /// `None` once it is put back.
    before: Option<Raw<sys::CUctx_st>>,
    own: Raw<sys::CUctx_st>,
    owner: Weak<CudaContext>,
}

impl Leaving {
    fn new(driver: &Driver, owner: &Arc<CudaContext>) -> Result<Leaving, Error> {
        let before = Some(Raw(current(driver)?));
        let (device, own) = (owner.cu_device(), Raw(owner.cu_ctx()));
        Ok(Leaving { driver: driver.unfailing(), device, before, own, owner: Arc::downgrade(owner) })
    }

    /// Puts it back, unless it is the context itself and that is gone; where it is refused, dropping this tries again.
    fn end(&mut self) -> Result<(), Error> {
        let Some(Raw(before)) = self.before else { return Ok(()) };
        let is_there = before != self.own.0 || self.owner.strong_count() > 0;
        // Held until it is current.
        let held = (!is_there && self.somebody_has_it())
            .then(|| Held::new(&self.driver, self.device))
            .transpose()?
            .filter(|held| held.context.0 == before);
        let before = if is_there || held.is_some() { before } else { std::ptr::null_mut() };
        // SAFETY: it is none, or was current on this thread and somebody keeps it.
        unsafe { self.driver.put_back(before)? };
        self.before = None;
        Ok(())
    }

    fn somebody_has_it(&self) -> bool {
        let (mut flags, mut active) = (0, 0);
        // SAFETY: they are written into locals.
        let asked =
            unsafe { self.driver.cuDevicePrimaryCtxGetState(self.device, &raw mut flags, &raw mut active) };
        asked.is_ok() && active != 0
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        // Where it is refused, there is nothing to be done: the next user binds its own.
        let _ = self.end();
    }
}

/// A hold on a device's primary context.
struct Held<'a> {
    driver: &'a Driver,
    device: c_int,
    context: Raw<sys::CUctx_st>,
}

impl<'a> Held<'a> {
    fn new(driver: &'a Driver, device: c_int) -> Result<Held<'a>, Error> {
        let mut context: CUcontext = std::ptr::null_mut();
        // SAFETY: it is written into a local.
        unsafe { driver.cuDevicePrimaryCtxRetain(&raw mut context, device)? };
        Ok(Held { driver, device, context: Raw(context) })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // SAFETY: this one is given back, and nothing is used by way of it. A driver that refuses has done it, or cannot.
        let _ = unsafe { self.driver.unfailing().cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each of these is whole between any two statements that could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is current on this thread; null for none.
pub(super) fn current(driver: &Driver) -> Result<CUcontext, Error> {
    let mut current: CUcontext = std::ptr::null_mut();
    // SAFETY: it is written into a local.
    unsafe { driver.cuCtxGetCurrent(&raw mut current)? };
    Ok(current)
}

/// Makes `context` current on this thread where it is not; answers what was.
fn bind(driver: &Driver, context: CUcontext) -> Result<Option<CUcontext>, Error> {
    let current = current(driver)?;
    if current == context {
        return Ok(None);
    }
    // SAFETY: its owner is alive.
    unsafe { driver.cuCtxSetCurrent(context)? };
    Ok(Some(current))
}

/// Free and total memory of the current context's device.
pub(super) fn memory(driver: &Driver) -> Result<(Bytes, Bytes), Error> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: both are written into locals.
    unsafe { driver.cuMemGetInfo_v2(&raw mut free, &raw mut total)? };
    Ok((Bytes::from_usize(free), Bytes::from_usize(total)))
}

/// The driver's "no memory" with the figures of the current context's device; other errors as they are.
pub(super) fn explain(driver: &Driver, name: &str, error: Error, requested: Bytes) -> Error {
    if errors::code(&error) != Some(errors::OUT_OF_MEMORY) {
        return error;
    }
    let device = name.to_owned();
    match memory(driver) {
        Ok((_, capacity)) if requested > capacity => Error::TooLarge { device, requested, capacity },
        Ok((free, capacity)) => Error::OutOfMemory { device, requested, free, capacity },
        // The driver does not say how much there is: then how much was asked for has to do.
        Err(_) => Error::OutOfMemory { device, requested, free: Bytes::ZERO, capacity: Bytes::ZERO },
    }
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
        let driver = Driver::new(&library.functions, faults);
        let device = find_device(&driver, options.ordinal)?;
        let (keeper, before) = (driver.clone(), Some(current(&driver)?));
        let mut before = Bound { driver: &keeper, before };
        let owner = retain(&driver, device, options.ordinal)?;
        let context = Context::adopt(library, driver, owner, options)?;
        before.end()?;
        Ok(context)
    }

    /// Somebody's context, kept alive and used beside them.
    pub(super) fn of(
        owner: Arc<CudaContext>,
        options: &CudaOptions,
        faults: Arc<Faults>,
    ) -> Result<Arc<Context>, Error> {
        let library = library::library()?;
        let driver = Driver::new(&library.functions, faults);
        // Where this fails, the owner goes, and it may be the last.
        let mut leaving = Leaving::new(&driver, &owner)?;
        let context = Context::adopt(library, driver, owner, options)?;
        leaving.end()?;
        Ok(context)
    }

    fn adopt(
        library: &'static Library,
        driver: Driver,
        owner: Arc<CudaContext>,
        options: &CudaOptions,
    ) -> Result<Arc<Context>, Error> {
        let device = owner.cu_device();
        let has = |attribute| driver.has(attribute, device);
        let mut bound = Bound { before: bind(&driver, owner.cu_ctx())?, driver: &driver };
        let name = format!("cuda:{}", owner.ordinal());
        let copies =
            new_stream(&driver, &owner).map_err(|error| explain(&driver, &name, error, Bytes::ZERO))?;
        let virtual_memory = if has(attribute::VIRTUAL_MEMORY_MANAGEMENT)? {
            VirtualMemory::probe(&driver, device, &name, options.granule)?
        } else {
            if let Some(granule) = options.granule {
                virtual_memory::checked_granule(granule, LEAST_PAGE)?;
            }
            VirtualMemory::none()
        };
        let managed = has(attribute::MANAGED_MEMORY)? && has(attribute::CONCURRENT_MANAGED_ACCESS)?;
        let stream_ordered = has(attribute::MEMORY_POOLS)?;
        bound.end()?;
        drop(bound);
        let captures = Captures::of(owner.cu_ctx());
        Ok(Arc::new(Context {
            library,
            device,
            name,
            virtual_memory,
            managed,
            stream_ordered,
            ranges: Mutex::default(),
            leftovers: Mutex::default(),
            kept: Mutex::default(),
            put_off: AtomicBool::new(false),
            spare: Mutex::default(),
            captures,
            copies,
            owner,
            driver,
            leaving: None,
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
        memory(&self.driver)
    }

    /// The driver's "no memory" with the figures; other errors as they are.
    pub(super) fn explain(&self, error: Error, requested: Bytes) -> Error {
        let bound = self.bind();
        let error = explain(&self.driver, &self.name, error, requested);
        drop(bound);
        error
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

    /// Refuses what must not be done while a stream of this device is captured.
    pub(super) fn refuse_in_capture(&self, what: &'static str) -> Result<(), Error> {
        if self.is_capturing() { Err(Error::Capturing { what }) } else { Ok(()) }
    }

    pub(super) fn is_capturing(&self) -> bool {
        self.captures.any()
    }

    /// Refuses `what` while this crate captures a stream of this context; until the answer is dropped, none begins to be.
    #[cfg(any(feature = "cublas", feature = "nccl"))]
    pub(super) fn hold_captures_off(&self, what: &'static str) -> Result<MutexGuard<'_, ()>, Error> {
        self.captures.none_of_ours().ok_or(Error::Capturing { what })
    }
}

/// cudarc's hold on a device's primary context.
///
/// cudarc forgets to let go of the context where its question after taking hold of it fails. So what it asks is asked here
/// first, with the context held: the driver has answered each of it just now. Should it then fail cudarc all the same, the
/// context stays until the process ends: how many hold it cannot be asked, and one hold too few would destroy it under others.
fn retain(driver: &Driver, device: c_int, ordinal: usize) -> Result<Arc<CudaContext>, Error> {
    driver.attribute(attribute::MEMORY_POOLS, device)?;
    let full = |error| full(driver, device, ordinal, error);
    let _held = Held::new(driver, device).map_err(full)?;
    CudaContext::new(ordinal).map_err(|error| full(errors::error("cuDevicePrimaryCtxRetain", error.0 as u32)))
}

/// The driver's "no memory" where there is no context to ask: how much it takes to open one it does not say.
fn full(driver: &Driver, number: c_int, ordinal: usize, error: Error) -> Error {
    if errors::code(&error) != Some(errors::OUT_OF_MEMORY) {
        return error;
    }
    let mut total = 0;
    // SAFETY: it is written into a local.
    if unsafe { driver.cuDeviceTotalMem_v2(&raw mut total, number) }.is_err() {
        return error;
    }
    let (device, capacity) = (format!("cuda:{ordinal}"), Bytes::from_usize(total));
    Error::OutOfMemory { device, requested: Bytes::ZERO, free: Bytes::ZERO, capacity }
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
        self.leaving = Leaving::new(&self.driver.unfailing(), &self.owner).ok();
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({})", self.name)
    }
}
