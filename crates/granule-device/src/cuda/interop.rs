//! Lending memory to cudarc: views that its launches, copies and libraries take where they take its own slices.
//!
//! The views own nothing. cudarc's own slices free themselves with `cuMemFreeAsync` and drag two events along; these do
//! neither.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{self, CudaStream, DeviceRepr, LaunchArgs, PushKernelArg, SyncOnDrop};

use crate::{DeviceKind, DeviceSlice, DeviceSliceMut, Error};

/// Memory that cudarc's calls may read, as `T`s.
pub struct CudaView<'a, T> {
    ptr: CUdeviceptr,
    len: usize,
    stream: Arc<CudaStream>,
    memory: PhantomData<&'a [T]>,
}

/// Memory that cudarc's calls may read and write, as `T`s.
pub struct CudaViewMut<'a, T> {
    ptr: CUdeviceptr,
    len: usize,
    stream: Arc<CudaStream>,
    memory: PhantomData<&'a mut [T]>,
}

/// How many whole and aligned `T`s the memory is.
fn elements<T>(address: u64, bytes: usize, kind: DeviceKind) -> Result<usize, Error> {
    let refuse = |reason| Err(Error::Launch { kernel: "a view for cudarc".to_owned(), reason });
    if kind != DeviceKind::Cuda {
        return refuse("ordinary host memory is not the device's: use pinned or registered memory");
    }
    if size_of::<T>() == 0 || !bytes.is_multiple_of(size_of::<T>()) {
        return refuse("the memory is no whole number of elements");
    }
    if !address.is_multiple_of(align_of::<T>() as u64) {
        return refuse("the memory is not aligned as its elements are");
    }
    Ok(bytes / size_of::<T>())
}

impl<'a> DeviceSlice<'a> {
    /// The memory for cudarc's calls on `stream`.
    ///
    /// # Errors
    /// [`Error::Launch`] where the memory is not the device's, or is no whole number of aligned `T`s.
    ///
    /// # Safety
    /// - The memory stays, and nothing writes it, until all work that was given this view has run, also after the view
    ///   itself is gone.
    /// - It holds `T`s, where the work reads them as such.
    pub unsafe fn for_cudarc<T: DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
    ) -> Result<CudaView<'a, T>, Error> {
        let len = elements::<T>(self.ptr().addr(), self.len(), self.kind())?;
        Ok(CudaView { ptr: self.ptr().addr(), len, stream: Arc::clone(stream), memory: PhantomData })
    }
}

impl<'a> DeviceSliceMut<'a> {
    /// The memory for cudarc's calls on `stream`.
    ///
    /// # Errors
    /// As [`DeviceSlice::for_cudarc`].
    ///
    /// # Safety
    /// - The memory stays, and nothing else reads or writes it, until all work that was given this view has run, also after
    ///   the view itself is gone.
    /// - It holds `T`s, where the work reads them as such.
    pub unsafe fn for_cudarc<T: DeviceRepr>(
        self,
        stream: &Arc<CudaStream>,
    ) -> Result<CudaViewMut<'a, T>, Error> {
        let len = elements::<T>(self.ptr().addr(), self.len(), self.kind())?;
        Ok(CudaViewMut { ptr: self.ptr().addr(), len, stream: Arc::clone(stream), memory: PhantomData })
    }
}

macro_rules! view {
    ($name:ident) => {
        impl<T> $name<'_, T> {
            /// How many elements.
            pub fn len(&self) -> usize {
                self.len
            }

            /// True where there are none.
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }
        }

        impl<T> driver::DeviceSlice<T> for $name<'_, T> {
            fn len(&self) -> usize {
                self.len
            }

            fn stream(&self) -> &Arc<CudaStream> {
                &self.stream
            }
        }

        // The maker of the view has promised that the memory stays and is nobody else's: there is nothing to wait for.
        impl<T> driver::DevicePtr<T> for $name<'_, T> {
            fn device_ptr<'s>(&'s self, _: &'s CudaStream) -> (CUdeviceptr, SyncOnDrop<'s>) {
                (self.ptr, SyncOnDrop::Record(None))
            }
        }

        impl<T> fmt::Debug for $name<'_, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x}, {} elements)", stringify!($name), self.ptr, self.len)
            }
        }
    };
}

view!(CudaView);
view!(CudaViewMut);

impl<T> driver::DevicePtrMut<T> for CudaViewMut<'_, T> {
    fn device_ptr_mut<'s>(&'s mut self, _: &'s CudaStream) -> (CUdeviceptr, SyncOnDrop<'s>) {
        (self.ptr, SyncOnDrop::Record(None))
    }
}

// SAFETY: the argument is a pointer in the view, which lives as long as the launch's arguments do.
unsafe impl<'a, 'b: 'a, T> PushKernelArg<&'b CudaView<'_, T>> for LaunchArgs<'a> {
    #[inline(always)]
    fn arg(&mut self, view: &'b CudaView<'_, T>) -> &mut Self {
        self.arg(&view.ptr)
    }
}

// SAFETY: as above.
unsafe impl<'a, 'b: 'a, T> PushKernelArg<&'b mut CudaViewMut<'_, T>> for LaunchArgs<'a> {
    #[inline(always)]
    fn arg(&mut self, view: &'b mut CudaViewMut<'_, T>) -> &mut Self {
        self.arg(&view.ptr)
    }
}
