//! Matrix products by NVIDIA's cuBLAS, where it is installed: the library is found when a handle is first asked for, as the
//! driver is. Written after its documentation; nothing here has met the library itself yet.

mod library;
mod status;

use std::ffi::{c_int, c_void};
use std::fmt;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::CUstream;

use self::library::Functions;
use self::status::check;
use super::ComputeCapability;
use super::context::{Context, Raw, lock};
use super::release::Leftover;
use super::stream::{Relaxed, Resource};
use crate::live::{Counted, Thing};
use crate::{Bytes, Device, DeviceKind, DeviceSlice, DeviceSliceMut, Error, Stream};

/// What cuBLAS wants the address of a workspace to be a multiple of.
const WORKSPACE_ALIGN: u64 = 256;
/// The least workspace with which it promises that no product fails for want of it.
const LEAST_WORKSPACE: usize = 16 << 10;
/// Numbers of cuBLAS's headers: an operation on a factor, types of elements, of sums, and the choice of an algorithm.
const PLAIN: c_int = 0;
const TRANSPOSED: c_int = 1;
const F16: c_int = 2;
const F32: c_int = 0;
const BF16: c_int = 14;
const SUMS_IN_F32: c_int = 68;
const ANY_ALGORITHM: c_int = -1;

/// A handle of cuBLAS on a device, for all of its streams. Cheap to clone.
///
/// Making one takes milliseconds, and memory of the device and the host that is the library's own (`CUBLAS_WORKSPACE_CONFIG`
/// has a say in how much): make one for each device and keep it. [`Blas::gemm`] takes no memory but what it is handed.
///
/// Giving one back, when the last of its clones and of the work and graphs that use it goes, waits for the device. Beside a capture of this
/// crate's that is put off until the capture is over, and none begins meanwhile. A capture of somebody else's is spoilt by it, unless
/// it is of a stream that this crate shares and in progress then: drop the last clone when no such capture can be.
#[derive(Clone)]
pub struct Blas {
    inner: Arc<Handle>,
}

struct Handle {
    raw: Raw<c_void>,
    functions: &'static Functions,
    context: Arc<Context>,
    /// Held while the library is told of a stream and given a product: of two threads, neither gets the other's.
    telling: Mutex<()>,
    owner: Counted,
}

/// The type of both factors of a [`Gemm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GemmType {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// A product of two matrices in 16 bits, with sums in f32: `out[t][r] (+)= sum_c x[t][c] * w[r][c]`. All are row-major; strides
/// are elements from the start of one row to that of the next.
#[derive(Debug)]
pub struct Gemm<'a> {
    /// The type of `x` and `w`.
    pub factors: GemmType,
    /// Rows of `x`, and of `out`.
    pub tokens: usize,
    /// Rows of `w`, and columns of `out`.
    pub rows: usize,
    /// Columns of `x` and of `w`, at least one.
    pub cols: usize,
    /// Tokens x cols. Fastest at a multiple of 16 bytes, with a stride of a multiple of 8; so is `w`.
    pub x: DeviceSlice<'a>,
    /// Of `x`.
    pub x_stride: usize,
    /// Rows x cols.
    pub w: DeviceSlice<'a>,
    /// Of `w`.
    pub w_stride: usize,
    /// Tokens x rows, f32.
    pub out: DeviceSliceMut<'a>,
    /// Of `out`.
    pub out_stride: usize,
    /// Whether the product is added to what `out` holds, instead of taking its place.
    pub adds: bool,
}

impl Blas {
    /// A handle on `device`. Looks for the library the first time that anybody asks: the one of the driver's own major version
    /// of CUDA first, then older ones, from 12 on.
    ///
    /// # Errors
    /// [`Error::NoCublas`] where it is not installed, or broken; [`Error::Cublas`] where it refuses (it has no memory left, say);
    /// [`Error::Unsupported`] on the host; [`Error::Capturing`].
    pub fn new(device: &Device) -> Result<Blas, Error> {
        const MAKING: &str = "making a handle of cuBLAS";
        let context = device.cuda_context("cuBLAS")?;
        let functions = library::functions(context.library.version)?;
        context.refuse_in_capture(MAKING)?;
        let _bound = context.bind()?;
        // It allocates, and may wait for the device: beside others' captures in the mode that they forbid the least.
        let _none = context.hold_captures_off(MAKING)?;
        let _relaxed = Relaxed::enter(&context.driver);
        let mut raw = std::ptr::null_mut();
        context.driver.gate("cublasCreate_v2")?;
        // SAFETY: it is written into a local; the context is current, and alive as long as the handle.
        check("cublasCreate_v2", unsafe { (functions.cublasCreate_v2)(&raw mut raw) })?;
        let inner = Handle {
            raw: Raw(raw),
            functions,
            context: Arc::clone(context),
            telling: Mutex::default(),
            owner: Counted::new(device, Thing::Blas),
        };
        Ok(Blas { inner: Arc::new(inner) })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.inner.owner.device()
    }

    /// What NVIDIA recommends as the workspace of a product on such a device: with less the library may choose slower ways.
    pub fn workspace(of: ComputeCapability) -> Bytes {
        match of.major {
            9 | 10 => Bytes::mib(32),
            12 => Bytes::mib(12),
            _ => Bytes::mib(4),
        }
    }

    /// Computes a product when the stream's turn comes, also in a captured graph. `workspace` is at least 16 KiB at a multiple of
    /// 256 bytes, better [`Blas::workspace`]; products of one stream may share it. Takes no memory of its own. As with kernels,
    /// what a graph is to hold should have run once before.
    ///
    /// How the library adds up, and so the last bits of a result, is its own affair, and may depend on the whole shape.
    ///
    /// # Errors
    /// [`Error::Launch`] for shapes, strides and memory that no product can have; [`Error::OtherDevice`], [`Error::Cublas`],
    /// [`Error::Driver`]. Nothing is given to the stream, but for [`Error::Cublas`]: a product may be several kernels, and some of them
    /// may have been given when a later one was refused. Then `out` is anybody's guess once the stream has passed, and a capture
    /// in progress is not to be used.
    ///
    /// # Safety
    /// - As of [`Stream::launch`], for a kernel that reads `x` and `w` and writes `out` (reads it too, where the product is added)
    ///   and the workspace. What lies between rows is not touched. The memory stays after [`Error::Cublas`] too.
    pub unsafe fn gemm(
        &self,
        stream: &Stream,
        gemm: Gemm<'_>,
        workspace: DeviceSliceMut<'_>,
    ) -> Result<(), Error> {
        let sizes = gemm.check(&workspace)?;
        stream.check_device(self.device(), "a handle of cuBLAS")?;
        if gemm.tokens == 0 || gemm.rows == 0 {
            return Ok(());
        }
        let queue = stream.cuda_queue("a product")?;
        queue.reap();
        let _bound = queue.context().bind()?;
        let handle = Arc::clone(&self.inner) as Resource;
        let mut refused = Ok(());
        queue.give(None, Vec::new(), Some(handle), |stream| {
            // SAFETY: the caller's promise; the handle is kept until the product is computed.
            match unsafe { self.inner.gemm(stream, &gemm, sizes, &workspace) } {
                // Part of it may have been given, so that the handle is kept all the same.
                Err(error @ Error::Cublas { .. }) => {
                    refused = Err(error);
                    Ok(())
                }
                done => done,
            }
        })?;
        refused
    }
}

impl Handle {
    /// # Safety
    /// - The stream is alive, the context current, and the product checked; the rest as of [`Blas::gemm`].
    unsafe fn gemm(
        &self,
        stream: CUstream,
        gemm: &Gemm<'_>,
        sizes: Sizes,
        workspace: &DeviceSliceMut<'_>,
    ) -> Result<(), Error> {
        let driver = &self.context.driver;
        let _telling = lock(&self.telling);
        let _relaxed = Relaxed::enter(driver);
        // Every time: that a stream has the address of the one before does not say that it is the same.
        driver.gate("cublasSetStream_v2")?;
        // SAFETY: the handle and the stream are alive.
        check("cublasSetStream_v2", unsafe { (self.functions.cublasSetStream_v2)(self.raw.0, stream) })?;
        // After the stream, with which the library forgets it.
        let (at, len) = (workspace.ptr().addr() as *mut c_void, workspace.len());
        driver.gate("cublasSetWorkspace_v2")?;
        // SAFETY: the handle is alive; the memory is only noted here.
        let code = unsafe { (self.functions.cublasSetWorkspace_v2)(self.raw.0, at, len) };
        check("cublasSetWorkspace_v2", code)?;
        let kind = match gemm.factors {
            GemmType::F16 => F16,
            GemmType::Bf16 => BF16,
        };
        let [one, before] = [1.0_f32, if gemm.adds { 1.0 } else { 0.0 }];
        let Sizes { tokens, rows, cols, x_stride, w_stride, out_stride } = sizes;
        driver.gate("cublasGemmEx")?;
        // The library's matrices are column-major: out is rows x tokens to it, w is the transpose of cols x rows, and x is cols
        // x tokens.
        // SAFETY: the caller's promise, for memory that was checked to be of this shape; the factors are read by the call.
        let code = unsafe {
            (self.functions.cublasGemmEx)(
                self.raw.0,
                TRANSPOSED,
                PLAIN,
                rows,
                tokens,
                cols,
                (&raw const one).cast(),
                gemm.w.ptr().addr() as *const c_void,
                kind,
                w_stride,
                gemm.x.ptr().addr() as *const c_void,
                kind,
                x_stride,
                (&raw const before).cast(),
                gemm.out.ptr().addr() as *mut c_void,
                F32,
                out_stride,
                SUMS_IN_F32,
                ANY_ALGORITHM,
            )
        };
        check("cublasGemmEx", code)
    }
}

/// What the library counts in its ints.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: c_int,
    rows: c_int,
    cols: c_int,
    x_stride: c_int,
    w_stride: c_int,
    out_stride: c_int,
}

fn refuse<T>(reason: &'static str) -> Result<T, Error> {
    Err(Error::Launch { kernel: "cublasGemmEx".to_owned(), reason })
}

/// A matrix is in memory that the device reaches, at an address of its elements, and all of it is there.
fn check_matrix(
    (at, len, kind): (u64, usize, DeviceKind),
    (rows, cols, stride): (usize, usize, usize),
    size: usize,
) -> Result<(), Error> {
    if kind != DeviceKind::Cuda {
        return refuse("a matrix lies in ordinary host memory");
    }
    if !at.is_multiple_of(size as u64) {
        return refuse("a matrix does not begin at a multiple of its elements' size");
    }
    if stride < cols {
        return refuse("the rows of a matrix overlap");
    }
    let elements = |rows: usize| (rows - 1).checked_mul(stride).and_then(|n| n.checked_add(cols));
    let needed = if rows == 0 { Some(0) } else { elements(rows).and_then(|n| n.checked_mul(size)) };
    if needed.is_none_or(|needed| len < needed) {
        return refuse("a matrix has fewer bytes than its shape asks for");
    }
    Ok(())
}

impl Gemm<'_> {
    fn check(&self, workspace: &DeviceSliceMut<'_>) -> Result<Sizes, Error> {
        let Gemm { tokens, rows, cols, x_stride, w_stride, out_stride, .. } = *self;
        if cols == 0 {
            return refuse("it has no columns");
        }
        let memory = |slice: &DeviceSlice<'_>| (slice.ptr().addr(), slice.len(), slice.kind());
        check_matrix(memory(&self.x), (tokens, cols, x_stride), size_of::<u16>())?;
        check_matrix(memory(&self.w), (rows, cols, w_stride), size_of::<u16>())?;
        check_matrix(memory(&self.out.as_slice()), (tokens, rows, out_stride), size_of::<f32>())?;
        if workspace.kind() != DeviceKind::Cuda {
            return refuse("the workspace lies in ordinary host memory");
        }
        if workspace.len() < LEAST_WORKSPACE || !workspace.ptr().addr().is_multiple_of(WORKSPACE_ALIGN) {
            return refuse("the workspace is not 16 KiB or more at a multiple of 256 bytes");
        }
        let count = |n: usize| {
            c_int::try_from(n).or_else(|_| refuse("cuBLAS counts rows, columns and strides below 2^31"))
        };
        Ok(Sizes {
            tokens: count(tokens)?,
            rows: count(rows)?,
            cols: count(cols)?,
            x_stride: count(x_stride)?,
            w_stride: count(w_stride)?,
            out_stride: count(out_stride)?,
        })
    }
}

/// A handle that nobody has any more.
pub(super) struct Abandoned {
    raw: Raw<c_void>,
    functions: &'static Functions,
}

impl Abandoned {
    /// Gives it back. The library waits for the device while it does.
    ///
    /// # Safety
    /// - The context is current, and none of its streams is captured.
    /// - It is called once, and nothing uses the handle any more.
    pub(super) unsafe fn give_back(&self) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        check("cublasDestroy_v2", unsafe { (self.functions.cublasDestroy_v2)(self.raw.0) })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let handle = Abandoned { raw: Raw(self.raw.0), functions: self.functions };
        self.context.release(Leftover::Blas(handle));
    }
}

impl fmt::Debug for Blas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blas({})", self.device().name())
    }
}
