//! `PoolSlice`: a lease of so many values.

use std::fmt;
use std::marker::PhantomData;

use bytemuck::Pod;
#[cfg(feature = "cuda")]
use granule_device::{CudaView, CudaViewMut};
use granule_device::{DevicePtr, DeviceSlice, DeviceSliceMut};

use crate::{Error, Heap, Lease};

/// A [`Lease`] of `len` values of a type. Its contents are whatever they were: any bytes are a value.
///
/// [`PoolSlice::view`] and [`PoolSlice::view_mut`] go into cudarc's launches where its own slices go.
pub struct PoolSlice<T> {
    lease: Lease,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Pod> PoolSlice<T> {
    pub(crate) fn new(lease: Lease, len: usize) -> PoolSlice<T> {
        PoolSlice { lease, len, values: PhantomData }
    }

    /// How many values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it starts.
    pub fn ptr(&self) -> DevicePtr {
        self.lease.ptr()
    }

    /// The lease, without the type.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The lease, without the type.
    pub fn into_lease(self) -> Lease {
        self.lease
    }

    /// As [`Lease::used_by`].
    ///
    /// # Errors
    /// As [`Lease::used_by`].
    pub fn used_by(&mut self, heap: &Heap) -> Result<(), Error> {
        self.lease.used_by(heap)
    }

    /// The bytes, to read: as [`Lease::slice`].
    ///
    /// # Errors
    /// As [`Lease::slice`].
    pub fn slice(&self) -> Result<DeviceSlice<'_>, Error> {
        self.lease.slice()
    }

    /// The bytes, to write: as [`Lease::slice_mut`].
    ///
    /// # Errors
    /// As [`Lease::slice_mut`].
    pub fn slice_mut(&mut self) -> Result<DeviceSliceMut<'_>, Error> {
        self.lease.slice_mut()
    }

    /// The values, to read, once all has run that the lease's streams were given.
    ///
    /// # Errors
    /// [`Error::NotAddressable`] where they are in a GPU's own memory; else as [`Lease::slice`].
    pub fn as_slice(&self) -> Result<&[T], Error> {
        let bytes = self.lease.slice()?.as_host().ok_or_else(|| self.not_addressable())?;
        // Of the right length and aligned: both were asked for.
        bytemuck::try_cast_slice(bytes).map_err(|_| self.not_addressable())
    }

    /// The values, to write, once all has run that the lease's streams were given.
    ///
    /// # Errors
    /// As [`PoolSlice::as_slice`].
    pub fn as_mut_slice(&mut self) -> Result<&mut [T], Error> {
        let device = self.lease.device().clone();
        let refused = || Error::NotAddressable { device: device.name().to_owned() };
        let bytes = self.lease.slice_mut()?.into_host_mut().ok_or_else(refused)?;
        bytemuck::try_cast_slice_mut(bytes).map_err(|_| refused())
    }

    fn not_addressable(&self) -> Error {
        Error::NotAddressable { device: self.lease.device().name().to_owned() }
    }
}

#[cfg(feature = "cuda")]
macro_rules! views {
    ($($value:ty),+) => {$(
impl PoolSlice<$value> {
    /// The values for cudarc's calls on the heap's stream, to read. Nothing is waited for, and the lease may be dropped as soon as the
    /// call was made. cudarc's copies on another stream first wait for this one.
    ///
    /// # Errors
    /// [`Error::NoStream`] of a local heap; [`Error::Device`] on the host device.
    pub fn view(&self) -> Result<CudaView<'_, $value>, Error> {
        let stream = self.lease.stream("a view")?;
        // SAFETY: whoever has the memory next, has it after what the stream was given; any bytes are a value. While this is
        // borrowed nobody writes it but work of the same stream.
        Ok(unsafe { stream.lend_slice(self.lease.stream_slice()) }?)
    }

    /// As [`PoolSlice::view`], to write too.
    ///
    /// # Errors
    /// As [`PoolSlice::view`].
    pub fn view_mut(&mut self) -> Result<CudaViewMut<'_, $value>, Error> {
        let stream = self.lease.stream("a view")?;
        // SAFETY: as above, and the lease is borrowed exclusively.
        Ok(unsafe { stream.lend_slice_mut(self.lease.stream_slice_mut()) }?)
    }
}
    )+};
}

#[cfg(feature = "cuda")]
views!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

impl<T> fmt::Debug for PoolSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolSlice({:#x}, {} values)", self.lease.ptr().addr(), self.len)
    }
}
