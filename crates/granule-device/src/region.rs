//! `Region`: memory lent to streams. It lives until the last operation that may touch it has run.

use std::any::Any;
use std::fmt;
use std::ops::RangeBounds;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::backend::RawStream;
use crate::slice::{Home, checked_range};
use crate::{
    Buffer, Device, DevicePtr, DeviceSlice, DeviceSliceMut, Error, Event, Managed, Pinned, Registered,
};

/// Memory that a [`Region`] can be made of.
///
/// # Safety
/// - [`Memory::readable`] and, where it answers, [`Memory::writable`] are the same bytes at each call, for as long as the
///   value lives and is not borrowed exclusively; moving the value does not move them.
/// - Nothing else writes them while the value lives, and where `writable` answers nothing else reads them.
pub unsafe trait Memory: Send + Sync + 'static {
    /// The device it is on, or that can reach it.
    fn device(&self) -> &Device;

    /// All of it, to read.
    ///
    /// # Errors
    /// Whatever keeps it from being read.
    fn readable(&self) -> Result<DeviceSlice<'_>, Error>;

    /// All of it, to write.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] where it may only be read.
    fn writable(&mut self) -> Result<DeviceSliceMut<'_>, Error>;

    /// From when on it may be used, where that is not at once: streams and [`Region::slice`] wait for it.
    fn ready(&self) -> Option<&Event> {
        None
    }
}

macro_rules! memory {
    ($($name:ident),+) => {$(
        // SAFETY: its bytes are its own, stay in place until it is dropped, and writing them takes `&mut`.
        unsafe impl Memory for $name {
            fn device(&self) -> &Device {
                self.device()
            }

            fn readable(&self) -> Result<DeviceSlice<'_>, Error> {
                self.slice(..)
            }

            fn writable(&mut self) -> Result<DeviceSliceMut<'_>, Error> {
                self.slice_mut(..)
            }
        }
    )+};
}

memory!(Buffer, Pinned, Managed);

// SAFETY: a mapped file stays in place until the last that has it lets go, and is never written.
unsafe impl Memory for Registered {
    fn device(&self) -> &Device {
        self.device()
    }

    fn readable(&self) -> Result<DeviceSlice<'_>, Error> {
        Ok(self.slice())
    }

    fn writable(&mut self) -> Result<DeviceSliceMut<'_>, Error> {
        Err(Error::ReadOnly { what: "a mapped file" })
    }
}

/// Memory that streams may read and write. Looking at it from here waits for the operations that are in its way.
///
/// ```
/// use granule_device::{Bytes, Device, HostOptions, Region};
/// # let device = Device::host_with(HostOptions::new().capacity(Bytes::mib(8)))?;
/// let stream = device.stream()?;
/// let mut from = Region::new(device.alloc(Bytes::kib(4))?)?;
/// let mut to = Region::new(device.alloc_pinned(Bytes::kib(4))?)?;
/// stream.fill(&mut from, .., 7)?;
/// stream.copy(&from, .., &mut to, ..)?;
/// drop(from); // its memory stays until the copy has run
/// assert_eq!(to.slice(..3)?.as_host(), Some(&[7, 7, 7][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Region<M> {
    memory: Arc<M>,
    pending: Arc<Pending>,
    device: Device,
    ptr: DevicePtr,
    len: usize,
    home: Home,
    writable: bool,
}

/// How long a waiting region lets streams be between two questions.
const MOMENT: Duration = Duration::from_millis(1);

/// How many operations on a region were given to streams and have not run.
#[derive(Default)]
pub(crate) struct Pending {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Default)]
struct Counts {
    reads: usize,
    writes: usize,
    /// Streams that let go of finished work only when they are asked.
    lazy: Vec<Weak<dyn RawStream>>,
    /// Whether there ever were any.
    asked: bool,
}

impl Pending {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, device: &Device, busy: impl Fn(&Counts) -> bool) -> Result<(), Error> {
        loop {
            let (lazy, asked) = {
                let mut counts = self.counts();
                if !busy(&counts) {
                    return Ok(());
                }
                counts.lazy.retain(|stream| stream.strong_count() > 0);
                (counts.lazy.iter().filter_map(Weak::upgrade).collect::<Vec<_>>(), counts.asked)
            };
            if !asked {
                // The others let go by themselves.
                let waited = self.changed.wait_while(self.counts(), |counts| busy(counts));
                drop(waited.unwrap_or_else(PoisonError::into_inner));
                return Ok(());
            }
            lazy.iter().try_for_each(|stream| stream.finish(self))?;
            if lazy.is_empty() {
                self.let_go(device)?;
            }
            // Not asked again at once where others hold the rest, such as one who is dropping a stream now.
            let waited = self.changed.wait_timeout_while(self.counts(), MOMENT, |counts| busy(counts));
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Asks the device for what streams that are gone could not let go of.
    fn let_go(&self, device: &Device) -> Result<(), Error> {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = device.backend().as_cuda() {
            return cuda.context().let_go(self);
        }
        let _ = device;
        Ok(())
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.counts();
        write!(f, "Pending({} reads, {} writes)", counts.reads, counts.writes)
    }
}

/// A region of any memory, for what holds several of them.
#[cfg(feature = "cuda")]
pub(crate) trait Lender {
    fn lend(&self, write: bool) -> Ticket;
}

#[cfg(feature = "cuda")]
impl<M: Memory> Lender for Region<M> {
    fn lend(&self, write: bool) -> Ticket {
        self.ticket(write)
    }
}

/// One operation's hold on a region: its memory, and its place in the counts.
pub(crate) struct Ticket {
    // Dropped before the count goes down, so that whoever waits for that has the memory alone.
    memory: Option<Arc<dyn Any + Send + Sync>>,
    pending: Arc<Pending>,
    write: bool,
}

impl Ticket {
    /// Says that a stream keeps this ticket until it is [asked](RawStream::finish).
    #[cfg(feature = "cuda")]
    pub(crate) fn held_by(&self, stream: Weak<dyn RawStream>) {
        let mut counts = self.pending.counts();
        counts.asked = true;
        if !counts.lazy.iter().any(|other| other.ptr_eq(&stream)) {
            counts.lazy.retain(|other| other.strong_count() > 0);
            counts.lazy.push(stream);
        }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn is_of(&self, region: &Pending) -> bool {
        std::ptr::eq(&raw const *self.pending, region)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.memory = None;
        let mut counts = self.pending.counts();
        let count = if self.write { &mut counts.writes } else { &mut counts.reads };
        *count = count.saturating_sub(1);
        drop(counts);
        self.pending.changed.notify_all();
    }
}

impl<M: Memory> Region<M> {
    /// Lends memory to streams.
    ///
    /// # Errors
    /// Whatever keeps the memory from being read, or from being written for another reason than that it is read only.
    pub fn new(mut memory: M) -> Result<Region<M>, Error> {
        let (writable, (ptr, len, home)) = match memory.writable() {
            Ok(slice) => (true, (slice.ptr(), slice.len(), slice.home())),
            Err(Error::ReadOnly { .. }) => {
                (false, memory.readable().map(|slice| (slice.ptr(), slice.len(), slice.home()))?)
            }
            Err(error) => return Err(error),
        };
        let device = memory.device().clone();
        Ok(Region { memory: Arc::new(memory), pending: Arc::default(), device, ptr, len, home, writable })
    }

    /// The device that can reach it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True where it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes at `range`, to read, after the operations that write this region have run.
    ///
    /// Called from a function that itself runs on a stream, it waits forever where such an operation is behind it; on a CUDA
    /// device, where such a function may wait for nothing, it is an error.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::InHostFunction`]; [`Error::Capturing`] where somebody else captures a stream that uses
    /// the region, which then cannot be waited for; [`Error::Driver`] where the driver does not say whether they have run.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<DeviceSlice<'_>, Error> {
        let range = checked_range(range, self.len)?;
        self.wait_until_ready();
        self.pending.wait_while(&self.device, |counts| counts.writes > 0)?;
        // SAFETY: `Memory` promises the bytes to this value. No operation writes them, and giving one to a stream takes
        // `&mut self`.
        Ok(unsafe { DeviceSlice::from_raw(self.ptr.offset(range.start), range.len(), self.home) })
    }

    /// The bytes at `range`, to write, after the operations that read or write this region have run.
    ///
    /// # Errors
    /// As [`Region::slice`]; [`Error::ReadOnly`].
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> Result<DeviceSliceMut<'_>, Error> {
        let range = self.checked_write(range)?;
        self.pending.wait_while(&self.device, |counts| counts.reads + counts.writes > 0)?;
        self.wait_until_ready();
        // SAFETY: `Memory` promises the bytes to this value. No operation is left that touches them, and giving one to a
        // stream takes a borrow of `self`, which is borrowed exclusively.
        Ok(unsafe { DeviceSliceMut::from_raw(self.ptr.offset(range.start), range.len(), self.home) })
    }

    /// The memory itself, after all operations on it have run.
    ///
    /// # Errors
    /// [`Error::InHostFunction`] and [`Error::Capturing`], as [`Region::slice`]. Never on a region whose operations have run;
    /// [`Error::Busy`] is there for what cannot be ruled out.
    pub fn into_inner(self) -> Result<M, Error> {
        self.pending.wait_while(&self.device, |counts| counts.reads + counts.writes > 0)?;
        Arc::try_unwrap(self.memory).map_err(|_| Error::Busy { by: "an operation on a stream" })
    }

    fn wait_until_ready(&self) {
        if let Some(ready) = self.memory.ready() {
            ready.synchronize();
        }
    }

    /// From when on streams may use it, where that is still to come.
    pub(crate) fn ready(&self) -> Option<&Event> {
        self.memory.ready().filter(|ready| !ready.is_done())
    }

    pub(crate) fn checked_write(
        &self,
        range: impl RangeBounds<usize>,
    ) -> Result<std::ops::Range<usize>, Error> {
        if !self.writable {
            return Err(Error::ReadOnly { what: "the region's memory" });
        }
        checked_range(range, self.len)
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn home(&self) -> Home {
        self.home
    }

    pub(crate) fn ptr_at(&self, offset: usize) -> DevicePtr {
        self.ptr.offset(offset)
    }

    /// Counts one operation and keeps the memory for it.
    pub(crate) fn ticket(&self, write: bool) -> Ticket {
        let mut counts = self.pending.counts();
        let count = if write { &mut counts.writes } else { &mut counts.reads };
        *count += 1;
        drop(counts);
        let memory: Arc<dyn Any + Send + Sync> = Arc::clone(&self.memory) as _;
        Ticket { memory: Some(memory), pending: Arc::clone(&self.pending), write }
    }
}
