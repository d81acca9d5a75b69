//! Launching kernels: the arguments, what keeps their memory, and raw copies and fills of slices on a stream.

use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeBounds;
use std::sync::Arc;

use super::module::Function;
use super::stream::Resource;
use crate::region::Lender;
use crate::slice::checked_range;
use crate::{Bytes, DeviceKind, DeviceSlice, DeviceSliceMut, Error, Event, Memory, Region, Stream};

/// How many blocks of how many threads, and how much shared memory a block gets beyond what the kernel declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchShape {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory a block.
    pub shared: Bytes,
}

impl LaunchShape {
    /// `blocks` blocks of `threads` threads in a row, with no dynamic shared memory.
    pub const fn row(blocks: u32, threads: u32) -> LaunchShape {
        LaunchShape { grid: [blocks, 1, 1], block: [threads, 1, 1], shared: Bytes::ZERO }
    }

    /// With so much dynamic shared memory a block.
    pub const fn shared(self, shared: Bytes) -> LaunchShape {
        LaunchShape { shared, ..self }
    }
}

/// A value that a kernel takes by its bits.
///
/// # Safety
/// - Its bytes mean the same to a kernel's parameter of the type that stands for it; a struct is `repr(C)` and made of such
///   values.
/// - Any bytes are a value of it.
pub unsafe trait KernelArgument: Copy + 'static {}

macro_rules! kernel_arguments {
    ($($kind:ty),+) => {$(
        // SAFETY: numbers are the same on both sides.
        unsafe impl KernelArgument for $kind {}
    )+};
}

kernel_arguments!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

/// A kernel with its shape and its arguments, in the order in which it takes them.
///
/// ```no_run
/// # use granule_device::*;
/// # fn run(stream: &Stream, function: &Function, x: &Region<Buffer>, y: &mut Region<Buffer>) -> Result<(), Error> {
/// let launch = Launch::new(function, LaunchShape::row(32, 256)).read_region(x, ..).write_region(y, ..).value(8192_u32);
/// // SAFETY: the kernel takes two pointers and a count, and stays inside the first 8192 elements of both.
/// unsafe { stream.launch(launch) }
/// # }
/// ```
#[must_use = "nothing runs until Stream::launch"]
pub struct Launch<'a> {
    function: &'a Function,
    shape: LaunchShape,
    /// Each argument starts at a piece of its own, so that it is aligned as any kernel wants it.
    bytes: Vec<u128>,
    starts: Vec<usize>,
    /// The regions, and whether they are written: held from the moment when the kernel is given to a stream.
    regions: Vec<(&'a dyn Lender, bool)>,
    ready: Vec<Event>,
    /// The first thing that was wrong, told when it is launched.
    refused: Option<Error>,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Launch<'a> {
    /// A launch without arguments yet.
    pub fn new(function: &'a Function, shape: LaunchShape) -> Launch<'a> {
        Launch {
            function,
            shape,
            bytes: Vec::new(),
            starts: Vec::new(),
            regions: Vec::new(),
            ready: Vec::new(),
            refused: None,
            memory: PhantomData,
        }
    }

    /// A pointer to memory that the kernel reads.
    pub fn read(self, memory: DeviceSlice<'a>) -> Launch<'a> {
        self.pointer(memory.ptr().addr(), memory.kind())
    }

    /// A pointer to memory that the kernel writes, and may read.
    pub fn write(self, memory: DeviceSliceMut<'a>) -> Launch<'a> {
        self.pointer(memory.ptr().addr(), memory.kind())
    }

    /// A pointer into a region that the kernel reads. The region's memory lives until the kernel has run.
    pub fn read_region<M: Memory>(
        mut self,
        region: &'a Region<M>,
        range: impl RangeBounds<usize>,
    ) -> Launch<'a> {
        match checked_range(range, region.len()) {
            Ok(range) => {
                self.region(region, range.start, false);
                self
            }
            Err(error) => self.refuse(error),
        }
    }

    /// A pointer into a region that the kernel writes, and may read. The region's memory lives until the kernel has run.
    pub fn write_region<M: Memory>(
        mut self,
        region: &'a mut Region<M>,
        range: impl RangeBounds<usize>,
    ) -> Launch<'a> {
        match region.checked_write(range) {
            Ok(range) => {
                self.region(region, range.start, true);
                self
            }
            Err(error) => self.refuse(error),
        }
    }

    /// A value.
    pub fn value<T: KernelArgument>(mut self, value: T) -> Launch<'a> {
        const PIECE: usize = size_of::<u128>();
        let start = self.bytes.len();
        self.bytes.resize(start + size_of::<T>().div_ceil(PIECE).max(1), 0);
        // SAFETY: there is room for the value; bytes that it leaves undefined between its fields are copied as such.
        unsafe {
            std::ptr::copy_nonoverlapping(
                (&raw const value).cast::<u8>(),
                self.bytes[start..].as_mut_ptr().cast::<u8>(),
                size_of::<T>(),
            );
        }
        self.starts.push(start);
        self
    }

    fn region<M: Memory>(&mut self, region: &'a Region<M>, offset: usize, write: bool) {
        if let Err(error) = self.function.device().check_same(region.device(), "a region") {
            self.refused.get_or_insert(error);
        }
        self.ready.extend(region.ready().cloned());
        self.regions.push((region, write));
        let start = self.bytes.len();
        self.bytes.push(u128::from(region.ptr_at(offset).addr()));
        self.starts.push(start);
    }

    fn pointer(self, address: u64, kind: DeviceKind) -> Launch<'a> {
        if kind == DeviceKind::Cuda {
            return self.value(address);
        }
        let reason = "a slice of ordinary host memory is no argument: use pinned or registered memory";
        let kernel = self.function.name().to_owned();
        self.refuse(Error::Launch { kernel, reason })
    }

    fn refuse(mut self, error: Error) -> Launch<'a> {
        self.refused.get_or_insert(error);
        self
    }

    fn check(&mut self, stream: &Stream) -> Result<u32, Error> {
        if let Some(error) = self.refused.take() {
            return Err(error);
        }
        stream.check_device(self.function.device(), "a kernel")?;
        let refuse = |reason| Err(Error::Launch { kernel: self.function.name().to_owned(), reason });
        if self.shape.grid.contains(&0) || self.shape.block.contains(&0) {
            return refuse("it has no blocks or no threads");
        }
        match u32::try_from(self.shape.shared.get()) {
            Ok(shared) => Ok(shared),
            Err(_) => refuse("no block has so much shared memory"),
        }
    }
}

impl Stream {
    /// Runs a kernel when its turn comes.
    ///
    /// # Errors
    /// What was wrong with the arguments ([`Error::OutOfRange`], [`Error::ReadOnly`], [`Error::OtherDevice`],
    /// [`Error::Launch`]); [`Error::Capturing`] where it uses a region while the stream is captured; [`Error::Driver`].
    /// A kernel that fails while it runs is told by a later call.
    ///
    /// # Safety
    /// - The arguments are those that the kernel takes, in number, order and type.
    /// - The kernel stays inside the memory that it is given, and writes only what was given to be written.
    /// - Memory given as slices stays, and is not otherwise written (nor read, where the kernel writes it), until the stream
    ///   has passed this; in a captured graph, until every launch of the graph has run. Where somebody else captures the
    ///   stream, the same goes for the kernel's [`Module`](crate::Module), which our own [`Graph`](crate::Graph)s keep.
    pub unsafe fn launch(&self, mut launch: Launch<'_>) -> Result<(), Error> {
        let shared = launch.check(self)?;
        let queue = self.cuda_queue("a kernel")?;
        let outside = (!launch.regions.is_empty()).then_some("a kernel on a region");
        outside.map_or(Ok(()), |what| queue.refuse_in_capture(what))?;
        for ready in &launch.ready {
            self.wait(ready)?;
        }
        queue.reap();
        let context = queue.context();
        let _bound = context.bind()?;
        launch.function.allow_shared(shared)?;
        let arguments = &mut launch.bytes;
        let mut pointers: Vec<*mut c_void> =
            launch.starts.iter().map(|&start| (&raw mut arguments[start]).cast()).collect();
        let (LaunchShape { grid, block, .. }, function) = (launch.shape, launch.function);
        let module = Arc::clone(&function.module.inner) as Resource;
        let tickets = launch.regions.iter().map(|(region, write)| region.lend(*write)).collect();
        queue.give(outside, tickets, Some(module), |stream| {
            // SAFETY: the caller's promise; the module is kept until the kernel has run, the arguments are copied by
            // the call.
            unsafe {
                context.driver.cuLaunchKernel(
                    function.raw.0,
                    grid[0],
                    grid[1],
                    grid[2],
                    block[0],
                    block[1],
                    block[2],
                    shared,
                    stream,
                    pointers.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            }
        })
    }

    /// Copies between slices when its turn comes, also into a captured graph.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`]; [`Error::Launch`] for ordinary host memory, which is not there when the turn comes;
    /// [`Error::Unsupported`] on the host; [`Error::Driver`].
    ///
    /// # Safety
    /// - As of [`Stream::launch`], for a kernel that reads the one and writes the other.
    pub unsafe fn copy_slice(&self, from: DeviceSlice<'_>, to: DeviceSliceMut<'_>) -> Result<(), Error> {
        if from.len() != to.len() {
            return Err(Error::LengthMismatch { source_len: from.len(), target_len: to.len() });
        }
        let queue = self.raw_work("a copy", &[from.kind(), to.kind()])?;
        let _bound = queue.context().bind()?;
        queue.give(None, Vec::new(), None, |stream| match from.len() {
            0 => Ok(()),
            // SAFETY: the caller's promise.
            len => unsafe {
                queue.context().driver.cuMemcpyAsync(to.ptr().addr(), from.ptr().addr(), len, stream)
            },
        })
    }

    /// Sets the bytes of a slice when its turn comes, also in a captured graph.
    ///
    /// # Errors
    /// As [`Stream::copy_slice`].
    ///
    /// # Safety
    /// - As of [`Stream::launch`], for a kernel that writes the slice.
    pub unsafe fn fill_slice(&self, slice: DeviceSliceMut<'_>, value: u8) -> Result<(), Error> {
        let queue = self.raw_work("a fill", &[slice.kind()])?;
        let _bound = queue.context().bind()?;
        queue.give(None, Vec::new(), None, |stream| match slice.len() {
            0 => Ok(()),
            // SAFETY: the caller's promise.
            len => unsafe { queue.context().driver.cuMemsetD8Async(slice.ptr().addr(), value, len, stream) },
        })
    }

    fn raw_work(&self, what: &'static str, kinds: &[DeviceKind]) -> Result<&super::Queue, Error> {
        let queue = self.cuda_queue(what)?;
        if kinds.iter().any(|&kind| kind != DeviceKind::Cuda) {
            let reason =
                "ordinary host memory is not there when the turn comes: use pinned or registered memory";
            return Err(Error::Launch { kernel: what.to_owned(), reason });
        }
        queue.reap();
        Ok(queue)
    }
}

impl fmt::Debug for Launch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Launch({}, {:?}, {} arguments)", self.function.name(), self.shape, self.starts.len())
    }
}
