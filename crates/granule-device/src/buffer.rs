//! Memory in one piece for its whole life: plain, pinned, managed, and a stream's.

use std::ops::RangeBounds;
use std::sync::Arc;

use crate::backend::{Ending, MemoryKind, RawStream};
use crate::live::{Counted, Thing};
use crate::slice::{Home, checked_range};
use crate::{Bytes, Device, DevicePtr, DeviceSlice, DeviceSliceMut, Error, Event, Memory};

/// One allocation of either kind, freed on drop.
#[derive(Debug)]
struct Piece {
    owner: Counted,
    ptr: DevicePtr,
    len: usize,
    kind: MemoryKind,
}

impl Piece {
    fn new(device: &Device, len: Bytes, kind: MemoryKind, thing: Thing) -> Result<Piece, Error> {
        let size = checked_size(device, len)?;
        let ptr = device.backend().allocate(len, kind)?;
        Ok(Piece { owner: Counted::new(device, thing), ptr, len: size, kind })
    }

    fn home(&self) -> Home {
        match self.kind {
            MemoryKind::Plain => Home::of(self.owner.device().kind()),
            MemoryKind::Pinned | MemoryKind::Managed => Home::shared(self.owner.device().kind()),
        }
    }

    fn slice(&self, range: impl RangeBounds<usize>) -> Result<DeviceSlice<'_>, Error> {
        let range = checked_range(range, self.len)?;
        // SAFETY: the allocation is this piece's alone until it is dropped, and writing it takes `&mut self`.
        Ok(unsafe { DeviceSlice::from_raw(self.ptr.offset(range.start), range.len(), self.home()) })
    }

    fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> Result<DeviceSliceMut<'_>, Error> {
        let range = checked_range(range, self.len)?;
        // SAFETY: the allocation is this piece's alone until it is dropped, and `self` is borrowed exclusively.
        Ok(unsafe { DeviceSliceMut::from_raw(self.ptr.offset(range.start), range.len(), self.home()) })
    }
}

fn checked_size(device: &Device, len: Bytes) -> Result<usize, Error> {
    if len.is_zero() {
        return Err(Error::ZeroSize { what: "a buffer" });
    }
    match len.to_usize().filter(|&size| isize::try_from(size).is_ok()) {
        Some(size) => Ok(size),
        None => {
            let capacity = device.memory()?.total;
            Err(Error::TooLarge { device: device.name().to_owned(), requested: len, capacity })
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: these are what `allocate` was asked and answered, and no slice outlives the piece.
        unsafe { self.owner.device().backend().free(self.ptr, Bytes::from_usize(self.len), self.kind) };
    }
}

macro_rules! piece {
    ($(#[$docs:meta])* $name:ident, $kind:expr, $thing:expr) => {
        $(#[$docs])*
        #[derive(Debug)]
        pub struct $name(Piece);

        impl $name {
            pub(crate) fn new(device: &Device, len: Bytes) -> Result<$name, Error> {
                Piece::new(device, len, $kind, $thing).map($name)
            }

            /// The device whose memory it is.
            pub fn device(&self) -> &Device {
                self.0.owner.device()
            }

            /// Where it starts.
            pub fn ptr(&self) -> DevicePtr {
                self.0.ptr
            }

            /// How large it is.
            pub fn len(&self) -> Bytes {
                Bytes::from_usize(self.0.len)
            }

            /// Never: there is no allocation of zero bytes.
            pub fn is_empty(&self) -> bool {
                self.0.len == 0
            }

            /// The bytes at `range`, to read.
            ///
            /// # Errors
            /// [`Error::OutOfRange`].
            pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<DeviceSlice<'_>, Error> {
                self.0.slice(range)
            }

            /// The bytes at `range`, to write.
            ///
            /// # Errors
            /// [`Error::OutOfRange`].
            pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> Result<DeviceSliceMut<'_>, Error> {
                self.0.slice_mut(range)
            }
        }
    };
}

piece! {
    /// Device memory in one piece. On the host: private anonymous memory with huge pages advised, counted against the
    /// capacity from the start, backed by the system when first touched.
    Buffer, MemoryKind::Plain, Thing::Buffer
}

impl Buffer {
    /// All of it, to read.
    pub(crate) fn all(&self) -> DeviceSlice<'_> {
        // SAFETY: the allocation is this buffer's alone until it is dropped, and writing it takes `&mut self`.
        unsafe { DeviceSlice::from_raw(self.0.ptr, self.0.len, self.0.home()) }
    }

    /// All of it, to write.
    pub(crate) fn all_mut(&mut self) -> DeviceSliceMut<'_> {
        // SAFETY: the allocation is this buffer's alone until it is dropped, and `self` is borrowed exclusively.
        unsafe { DeviceSliceMut::from_raw(self.0.ptr, self.0.len, self.0.home()) }
    }
}

piece! {
    /// Host memory that stays in place and is never paged out, for transfers. Counted against the capacity.
    Pinned, MemoryKind::Pinned, Thing::Pinned
}

piece! {
    /// Memory that the device and this process address alike and that moves between them by itself. On the host: as a
    /// buffer. Reads as zeros.
    Managed, MemoryKind::Managed, Thing::Managed
}

/// Device memory made and freed in the order of a [`Stream`](crate::Stream::alloc)'s work. It is used as a
/// [`Region`](crate::Region) and freed after the last work on it.
pub struct StreamBuffer {
    memory: StreamMemory,
    len: usize,
}

enum StreamMemory {
    Plain(Buffer),
    Ordered { owner: Counted, ptr: DevicePtr, ready: Event, free: Option<Ending> },
}

impl StreamBuffer {
    pub(crate) fn new(
        device: &Device,
        stream: &Arc<dyn RawStream>,
        len: Bytes,
    ) -> Result<StreamBuffer, Error> {
        let size = checked_size(device, len)?;
        let memory = match device.backend().allocate_on(stream, len)? {
            None => StreamMemory::Plain(Buffer::new(device, len)?),
            Some(ordered) => StreamMemory::Ordered {
                owner: Counted::new(device, Thing::Buffer),
                ptr: ordered.ptr,
                ready: Event::new(ordered.ready, device),
                free: Some(ordered.free),
            },
        };
        Ok(StreamBuffer { memory, len: size })
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Device {
        match &self.memory {
            StreamMemory::Plain(buffer) => buffer.device(),
            StreamMemory::Ordered { owner, .. } => owner.device(),
        }
    }

    /// How large it is.
    pub fn len(&self) -> Bytes {
        Bytes::from_usize(self.len)
    }

    /// Never: there is no allocation of zero bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// From when on work of other streams, and this process, may use it.
    pub(crate) fn ready(&self) -> Option<&Event> {
        match &self.memory {
            StreamMemory::Plain(_) => None,
            StreamMemory::Ordered { ready, .. } => Some(ready),
        }
    }

    fn ptr(&self) -> DevicePtr {
        match &self.memory {
            StreamMemory::Plain(buffer) => buffer.ptr(),
            StreamMemory::Ordered { ptr, .. } => *ptr,
        }
    }
}

// SAFETY: the bytes are the buffer's own and stay in place until it is dropped; only a region makes slices of them, and
// writing them takes `&mut`. They are there once `ready` is.
unsafe impl Memory for StreamBuffer {
    fn device(&self) -> &Device {
        self.device()
    }

    fn readable(&self) -> Result<DeviceSlice<'_>, Error> {
        // SAFETY: the allocation is this buffer's alone until it is dropped.
        Ok(unsafe { DeviceSlice::from_raw(self.ptr(), self.len, Home::of(self.device().kind())) })
    }

    fn writable(&mut self) -> Result<DeviceSliceMut<'_>, Error> {
        // SAFETY: as above, and `self` is borrowed exclusively.
        Ok(unsafe { DeviceSliceMut::from_raw(self.ptr(), self.len, Home::of(self.device().kind())) })
    }

    fn ready(&self) -> Option<&Event> {
        self.ready()
    }
}

impl Drop for StreamBuffer {
    fn drop(&mut self) {
        if let StreamMemory::Ordered { free, .. } = &mut self.memory
            && let Some(free) = free.take()
        {
            free();
        }
    }
}

impl std::fmt::Debug for StreamBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StreamBuffer({}, {})", self.device().name(), self.len())
    }
}
