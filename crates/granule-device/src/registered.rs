//! Memory of this process that a device reaches where it is: mapped files, and an engine's own memory.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::live::{Counted, Thing};
use crate::slice::Home;
use crate::{Access, Bytes, Device, DevicePtr, DeviceSlice, DeviceSliceMut, Error, MappedFile, Memory};

impl Device {
    /// Makes a mapped file reachable by this device's streams.
    ///
    /// # Errors
    /// [`Error::ZeroSize`] for an empty file; [`Error::CannotRegister`] where the driver does not take a file's pages.
    pub fn register(&self, file: Arc<MappedFile>) -> Result<Registered, Error> {
        Registered::new(self, file)
    }

    /// Makes memory of the caller's own, such as a `Vec` or a mapping, reachable by this device's streams where it is. `keep`
    /// is whatever keeps it there: it is dropped once the memory is no longer registered, so that dropping the answer, or a
    /// [`Region`](crate::Region) of it, while work on it is under way does not pull the memory away.
    ///
    /// For memory that may be written ask for [`Access::ReadWrite`]. [`Access::ReadOnly`] takes any: a mapping that cannot be
    /// written needs a driver that registers such memory ([`Features::register_read_only`](crate::Features)); one that
    /// can be is registered as writable where the driver knows no other way, and it is the types of this crate that keep
    /// it from being written then.
    ///
    /// A CUDA driver locks whole pages: memory that begins or ends inside one locks all of it, and some drivers refuse
    /// memory that shares a page with other registered memory.
    ///
    /// ```
    /// use granule_device::{Access, Bytes, Device, HostOptions, Region};
    /// # use std::ptr::NonNull;
    /// # let device = Device::host_with(HostOptions::new().capacity(Bytes::mib(8)))?;
    /// let mut weights = vec![7_u8; 4096].into_boxed_slice();
    /// let at = NonNull::from(&mut weights[..]);
    /// // SAFETY: the box keeps its memory where it is, is given away, and nothing else points to it.
    /// let weights = unsafe { device.register_memory(at, Access::ReadWrite, weights)? };
    /// let (stream, weights) = (device.stream()?, Region::new(weights)?);
    /// let mut copy = Region::new(device.alloc(Bytes::kib(4))?)?;
    /// stream.copy(&weights, .., &mut copy, ..)?;
    /// assert_eq!(copy.slice(..2)?.as_host(), Some(&[7, 7][..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ZeroSize`]; [`Error::Unsupported`] where the memory cannot be written and the driver does not register such;
    /// [`Error::Driver`] where the driver does not take it.
    ///
    /// # Safety
    /// - The memory is initialized and stays mapped where it is until `keep` is dropped.
    /// - Until then nothing writes it but by way of the answer, and with [`Access::ReadWrite`] nothing else reads it.
    /// - With [`Access::ReadWrite`] it may be written.
    pub unsafe fn register_memory(
        &self,
        memory: NonNull<[u8]>,
        access: Access,
        keep: impl Any + Send + Sync,
    ) -> Result<RegisteredMemory, Error> {
        if memory.is_empty() {
            return Err(Error::ZeroSize { what: "registered memory" });
        }
        let ptr = DevicePtr::new(memory.cast::<u8>().as_ptr().expose_provenance() as u64);
        // SAFETY: the caller's promise; it is unregistered before `keep` goes.
        unsafe { register(self, ptr, Bytes::from_usize(memory.len()), access)? };
        let owner = Counted::new(self, Thing::Registered);
        Ok(RegisteredMemory { owner, ptr, len: memory.len(), access, keep: Some(Box::new(keep)) })
    }
}

/// What keeps registered memory in place.
pub(crate) type Keep = Box<dyn Any + Send + Sync>;

/// # Safety
/// - The memory was registered, no work on it is left, and `keep` keeps it in place.
unsafe fn unregister(device: &Device, at: DevicePtr, keep: Keep) {
    #[cfg(feature = "cuda")]
    if let Some(cuda) = device.backend().as_cuda() {
        // SAFETY: the caller's promise.
        return unsafe { cuda.unregister_kept(at, keep) };
    }
    // SAFETY: the caller's promise.
    unsafe { device.backend().unregister(at) };
    drop(keep);
}

/// # Safety
/// - The memory is mapped, and stays so until it is unregistered.
unsafe fn register(device: &Device, at: DevicePtr, len: Bytes, access: Access) -> Result<(), Error> {
    #[cfg(feature = "cuda")]
    if let (Some(cuda), Access::ReadWrite) = (device.backend().as_cuda(), access) {
        // SAFETY: the caller's promise.
        return unsafe { cuda.register_writable(at, len) };
    }
    // To this process itself all of its memory is what it is.
    let _ = access;
    // SAFETY: the caller's promise.
    unsafe { device.backend().register(at, len) }
}

/// Memory of the caller's own that a device's streams can reach: [`Device::register_memory`].
pub struct RegisteredMemory {
    owner: Counted,
    ptr: DevicePtr,
    len: usize,
    access: Access,
    /// Dropped after the memory is unregistered.
    keep: Option<Keep>,
}

impl RegisteredMemory {
    /// The device that can reach it.
    pub fn device(&self) -> &Device {
        self.owner.device()
    }

    /// Where it starts, for this process and the device alike.
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// How large it is.
    pub fn len(&self) -> Bytes {
        Bytes::from_usize(self.len)
    }

    /// Never: memory of zero bytes is not registered.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What may be done with it.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The bytes, to read.
    pub fn slice(&self) -> DeviceSlice<'_> {
        // SAFETY: whoever registered it said that it stays, and is written by way of `&mut self` alone.
        unsafe { DeviceSlice::from_raw(self.ptr, self.len, self.home()) }
    }

    /// The bytes, to write.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] where it was registered to be read.
    pub fn slice_mut(&mut self) -> Result<DeviceSliceMut<'_>, Error> {
        match self.access {
            Access::ReadOnly => Err(Error::ReadOnly { what: "memory that was registered to be read" }),
            // SAFETY: as above, it may be written, and `self` is borrowed exclusively.
            Access::ReadWrite => Ok(unsafe { DeviceSliceMut::from_raw(self.ptr, self.len, self.home()) }),
        }
    }

    fn home(&self) -> Home {
        Home::shared(self.owner.device().kind())
    }
}

// SAFETY: whoever registered the bytes said that they stay where they are until this is dropped, and that nothing else writes
// them, nor reads them where they may be written here; writing them takes `&mut`.
unsafe impl Memory for RegisteredMemory {
    fn device(&self) -> &Device {
        self.device()
    }

    fn readable(&self) -> Result<DeviceSlice<'_>, Error> {
        Ok(self.slice())
    }

    fn writable(&mut self) -> Result<DeviceSliceMut<'_>, Error> {
        self.slice_mut()
    }
}

impl Drop for RegisteredMemory {
    fn drop(&mut self) {
        // SAFETY: it was registered when this was made; work on it keeps this alive.
        unsafe { unregister(self.owner.device(), self.ptr, self.keep.take().unwrap_or(Box::new(()))) };
    }
}

impl fmt::Debug for RegisteredMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegisteredMemory({}, {}, {:?})", self.device().name(), self.len(), self.access)
    }
}

/// A mapped file that a device's streams can read. It keeps the file.
#[derive(Debug)]
pub struct Registered {
    owner: Counted,
    file: Arc<MappedFile>,
}

impl Registered {
    pub(crate) fn new(device: &Device, file: Arc<MappedFile>) -> Result<Registered, Error> {
        if file.is_empty() {
            return Err(Error::ZeroSize { what: "registered memory" });
        }
        // SAFETY: the file stays mapped as long as this has it, and drop unregisters first.
        unsafe { device.backend().register(file.slice().ptr(), file.len()) }
            .map_err(|source| refused(&file, source))?;
        Ok(Registered { owner: Counted::new(device, Thing::Registered), file })
    }

    /// The device that can reach it.
    pub fn device(&self) -> &Device {
        self.owner.device()
    }

    /// The file.
    pub fn file(&self) -> &Arc<MappedFile> {
        &self.file
    }

    /// The file's bytes.
    pub fn slice(&self) -> DeviceSlice<'_> {
        let bytes = self.file.slice();
        // SAFETY: the file stays mapped while this has it, and is never written; registering has made the same addresses
        // the device's.
        unsafe { DeviceSlice::from_raw(bytes.ptr(), bytes.len(), Home::shared(self.owner.device().kind())) }
    }
}

/// A driver that does not take a file's pages says so by a code; the reader wants to know which file, and what to do.
fn refused(file: &MappedFile, source: Error) -> Error {
    match source {
        Error::Driver { .. } | Error::Unsupported { .. } => {
            Error::CannotRegister { path: file.path().to_owned(), source: Box::new(source) }
        }
        other => other,
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: it was registered when this was made; work on it keeps this alive.
        unsafe { unregister(self.owner.device(), self.file.slice().ptr(), Box::new(Arc::clone(&self.file))) };
    }
}
