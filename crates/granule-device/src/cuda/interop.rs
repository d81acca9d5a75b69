//! Lending memory to cudarc: views that its launches, copies and libraries take where they take its own slices.
//!
//! What is lent is held until the work that was given to the stream has run. That is not so for what cudarc *captures*: its
//! graphs hold nothing, of cudarc's own slices either, and their launch is a safe call there. Memory in such a graph is its
//! maker's business; [`Stream::begin_capture`] refuses what this crate could not hold.
//!
//! The views own nothing. cudarc's own slices free themselves with `cuMemFreeAsync` and drag two events along; these do
//! neither.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Range, RangeBounds};
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{self, CudaStream, DeviceRepr, LaunchArgs, PushKernelArg, SyncOnDrop};

use super::launch::KernelArgument;
use crate::backend::RawStream;
use crate::region::Ticket;
use crate::slice::checked_range;
use crate::{DeviceKind, DeviceSlice, DeviceSliceMut, Error, Memory, Region, Stream};

/// Who lends a view: the stream that other streams are ordered behind, and the region's memory, held until what was given to
/// the stream with the view has run.
struct Hold {
    stream: Arc<dyn RawStream>,
    /// `None` for a slice, and once it was handed to the stream.
    ticket: Option<Ticket>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let (Some(queue), Some(ticket)) = (self.stream.as_cuda(), self.ticket.take()) {
            queue.hold(ticket);
        }
    }
}

impl Stream {
    /// A region's memory for cudarc's calls on this stream, to be read. The region's memory lives until what was given to the
    /// stream while the view lived has run; looking at the region waits for that.
    ///
    /// cudarc's copies may use it on another stream too: that one first waits for this one, and each use is waited for. A
    /// launch that takes it as an argument has to be on this stream, which is for the maker of the launch to see to.
    ///
    /// Not held is what cudarc captures with the view: its graphs keep none of their memory. Whoever captures with cudarc
    /// keeps the region, and neither looks at it nor gives it to other work, for as long as the graph is launched.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::OtherDevice`], [`Error::Capturing`]; [`Error::Launch`] where the bytes are no whole
    /// number of aligned `T`s; [`Error::Unsupported`] on the host.
    pub fn lend<'a, T: DeviceRepr + KernelArgument, M: Memory>(
        &self,
        region: &'a Region<M>,
        range: impl RangeBounds<usize>,
    ) -> Result<CudaView<'a, T>, Error> {
        let range = checked_range(range, region.len())?;
        let (ptr, len, stream, hold) = self.lent::<T, M>(region, range, false)?;
        Ok(CudaView { ptr, len, stream, hold: Some(hold), memory: PhantomData })
    }

    /// As [`Stream::lend`], to be written too.
    ///
    /// # Errors
    /// As [`Stream::lend`]; [`Error::ReadOnly`].
    pub fn lend_mut<'a, T: DeviceRepr + KernelArgument, M: Memory>(
        &self,
        region: &'a mut Region<M>,
        range: impl RangeBounds<usize>,
    ) -> Result<CudaViewMut<'a, T>, Error> {
        let range = region.checked_write(range)?;
        let (ptr, len, stream, hold) = self.lent::<T, M>(region, range, true)?;
        Ok(CudaViewMut { ptr, len, stream, hold: Some(hold), memory: PhantomData })
    }

    /// Memory of a slice for cudarc's calls, to be read: on this stream without any wait, on another one as with
    /// [`Stream::lend`]. Nothing is held; it may be lent while the stream is captured.
    ///
    /// # Errors
    /// [`Error::Launch`] where the bytes are no whole number of aligned `T`s; [`Error::Unsupported`] on the host.
    ///
    /// # Safety
    /// - The memory stays, and nothing writes it, until all work that this stream was given with the view has run, also after
    ///   the view itself is gone. Giving it to other work of this stream, behind that, is fine.
    /// - It holds `T`s, where the work reads them as such.
    pub unsafe fn lend_slice<'a, T: DeviceRepr>(
        &self,
        slice: DeviceSlice<'a>,
    ) -> Result<CudaView<'a, T>, Error> {
        let (ptr, len, stream, hold) = self.lent_slice::<T>(slice)?;
        Ok(CudaView { ptr, len, stream, hold: Some(hold), memory: PhantomData })
    }

    /// As [`Stream::lend_slice`], to be written too.
    ///
    /// # Errors
    /// As [`Stream::lend_slice`].
    ///
    /// # Safety
    /// - As [`Stream::lend_slice`], and nothing else reads the memory meanwhile either.
    pub unsafe fn lend_slice_mut<'a, T: DeviceRepr>(
        &self,
        slice: DeviceSliceMut<'a>,
    ) -> Result<CudaViewMut<'a, T>, Error> {
        let (ptr, len, stream, hold) = self.lent_slice::<T>(slice.as_slice())?;
        Ok(CudaViewMut { ptr, len, stream, hold: Some(hold), memory: PhantomData })
    }

    fn lent_slice<T>(
        &self,
        slice: DeviceSlice<'_>,
    ) -> Result<(CUdeviceptr, usize, Arc<CudaStream>, Hold), Error> {
        let queue = self.cuda_queue("a view for cudarc")?;
        let ptr = slice.ptr().addr();
        let len = elements::<T>(ptr, slice.len(), slice.kind())?;
        let hold = Hold { stream: Arc::clone(self.raw()), ticket: None };
        Ok((ptr, len, Arc::clone(queue.share()), hold))
    }

    fn lent<T, M: Memory>(
        &self,
        region: &Region<M>,
        range: Range<usize>,
        write: bool,
    ) -> Result<(CUdeviceptr, usize, Arc<CudaStream>, Hold), Error> {
        self.check_device(region.device(), "a region")?;
        let queue = self.cuda_queue("a view for cudarc")?;
        queue.refuse_in_capture("lending a region")?;
        self.wait_until_ready(region)?;
        let ptr = region.ptr_at(range.start).addr();
        let len = elements::<T>(ptr, range.len(), region.home().kind)?;
        queue.lend()?;
        let hold = Hold { stream: Arc::clone(self.raw()), ticket: Some(region.ticket(write)) };
        Ok((ptr, len, Arc::clone(queue.share()), hold))
    }
}

/// Memory that cudarc's calls may read, as `T`s.
pub struct CudaView<'a, T> {
    ptr: CUdeviceptr,
    len: usize,
    stream: Arc<CudaStream>,
    hold: Option<Hold>,
    memory: PhantomData<&'a [T]>,
}

/// Memory that cudarc's calls may read and write, as `T`s.
pub struct CudaViewMut<'a, T> {
    ptr: CUdeviceptr,
    len: usize,
    stream: Arc<CudaStream>,
    hold: Option<Hold>,
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
        Ok(CudaView {
            ptr: self.ptr().addr(),
            len,
            stream: Arc::clone(stream),
            hold: None,
            memory: PhantomData,
        })
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
        Ok(CudaViewMut {
            ptr: self.ptr().addr(),
            len,
            stream: Arc::clone(stream),
            hold: None,
            memory: PhantomData,
        })
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

        impl<T> $name<'_, T> {
            /// Before a use on `stream`: what the view's own stream was given comes first. For a slice that is for the maker
            /// of the view to see to.
            fn before(&self, stream: &CudaStream) {
                let lender = self.hold.as_ref().filter(|_| stream.cu_stream() != self.stream.cu_stream());
                if let Some(queue) = lender.and_then(|hold| hold.stream.as_cuda()) {
                    queue.order_before(stream);
                }
            }

            /// What cudarc does after a use on `stream`. For a slice, the maker of the view has promised that the memory
            /// stays and is nobody else's. A region is held on the stream that it was lent on; on another one each use is
            /// waited for.
            fn after<'s>(&self, stream: &'s CudaStream) -> SyncOnDrop<'s> {
                if self.hold.is_some() && stream.cu_stream() != self.stream.cu_stream() {
                    SyncOnDrop::Sync(Some(stream))
                } else {
                    SyncOnDrop::Record(None)
                }
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

        impl<T> driver::DevicePtr<T> for $name<'_, T> {
            fn device_ptr<'s>(&'s self, stream: &'s CudaStream) -> (CUdeviceptr, SyncOnDrop<'s>) {
                self.before(stream);
                (self.ptr, self.after(stream))
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
    fn device_ptr_mut<'s>(&'s mut self, stream: &'s CudaStream) -> (CUdeviceptr, SyncOnDrop<'s>) {
        self.before(stream);
        (self.ptr, self.after(stream))
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
