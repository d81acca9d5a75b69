//! Memory in one piece for its whole life: plain, pinned, and a file registered with the device.

use std::ops::RangeBounds;
use std::sync::Arc;

use crate::backend::MemoryKind;
use crate::device::{Counted, Thing};
use crate::slice::checked_range;
use crate::{Bytes, Device, DevicePtr, DeviceSlice, DeviceSliceMut, Error, MappedFile};

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
        if len.is_zero() {
            return Err(Error::ZeroSize { what: "a buffer" });
        }
        let Some(size) = len.to_usize().filter(|&size| isize::try_from(size).is_ok()) else {
            let capacity = device.memory()?.total;
            return Err(Error::TooLarge { device: device.name().to_owned(), requested: len, capacity });
        };
        let ptr = device.backend().allocate(len, kind)?;
        Ok(Piece { owner: Counted::new(device, thing), ptr, len: size, kind })
    }

    fn slice(&self, range: impl RangeBounds<usize>) -> Result<DeviceSlice<'_>, Error> {
        let range = checked_range(range, self.len)?;
        // SAFETY: the allocation is this piece's alone until it is dropped, and writing it takes `&mut self`.
        Ok(unsafe {
            DeviceSlice::from_raw(self.ptr.offset(range.start), range.len(), self.owner.device().kind())
        })
    }

    fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> Result<DeviceSliceMut<'_>, Error> {
        let range = checked_range(range, self.len)?;
        // SAFETY: the allocation is this piece's alone until it is dropped, and `self` is borrowed exclusively.
        Ok(unsafe {
            DeviceSliceMut::from_raw(self.ptr.offset(range.start), range.len(), self.owner.device().kind())
        })
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

piece! {
    /// Host memory that stays in place and is never paged out, for transfers. Counted against the capacity.
    Pinned, MemoryKind::Pinned, Thing::Pinned
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
        unsafe { device.backend().register(file.slice().ptr(), file.len())? };
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
        self.file.slice()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: it was registered when this was made; work on it keeps this alive.
        unsafe { self.owner.device().backend().unregister(self.file.slice().ptr()) };
    }
}
