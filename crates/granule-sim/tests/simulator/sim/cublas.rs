//! cuBLAS's functions, as a program finds them that opens the library by its own name: what they refuse, and what is reported.

use super::support::{Bench, LEN, alloc, copy, destroy, fill, free, ok, read, stream, synchronize};
use cudarc::driver::sys::{self, CUdeviceptr, CUstream};
use granule_sim::Report;
use libloading::Library;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

type Handle = *mut c_void;
type Gemm = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const f32,
    CUdeviceptr,
    c_int,
    c_int,
    CUdeviceptr,
    c_int,
    c_int,
    *const f32,
    CUdeviceptr,
    c_int,
    c_int,
    c_int,
    c_int,
) -> u32;

/// The library, and the numbers of its headers that are used here.
struct Blas(Library);

const F16: c_int = 2;
const F32: c_int = 0;

impl Blas {
    fn open() -> Blas {
        Blas(unsafe { Library::new("libcublas.so.12") }.unwrap())
    }

    fn create(&self) -> (u32, Handle) {
        let mut handle = null_mut();
        let create: unsafe extern "C" fn(*mut Handle) -> u32 =
            *unsafe { self.0.get(b"cublasCreate_v2") }.unwrap();
        (unsafe { create(&mut handle) }, handle)
    }

    fn destroy(&self, handle: Handle) -> u32 {
        let destroy: unsafe extern "C" fn(Handle) -> u32 =
            *unsafe { self.0.get(b"cublasDestroy_v2") }.unwrap();
        unsafe { destroy(handle) }
    }

    fn set_stream(&self, handle: Handle, stream: CUstream) -> u32 {
        let set: unsafe extern "C" fn(Handle, CUstream) -> u32 =
            *unsafe { self.0.get(b"cublasSetStream_v2") }.unwrap();
        unsafe { set(handle, stream) }
    }

    fn set_workspace(&self, handle: Handle, at: CUdeviceptr, len: usize) -> u32 {
        let set: unsafe extern "C" fn(Handle, CUdeviceptr, usize) -> u32 =
            *unsafe { self.0.get(b"cublasSetWorkspace_v2") }.unwrap();
        unsafe { set(handle, at, len) }
    }

    /// `c` (n x m, f32) = `b` (n x k) times the transpose of `a` (m x k), row-major, of these types.
    fn gemm(&self, handle: Handle, [m, n, k]: [c_int; 3], [a, b, c]: [CUdeviceptr; 3], kind: c_int) -> u32 {
        let gemm: Gemm = *unsafe { self.0.get(b"cublasGemmEx") }.unwrap();
        let (one, zero) = (1.0, 0.0);
        unsafe { gemm(handle, 1, 0, m, n, k, &one, a, kind, k, b, kind, k, &zero, c, F32, m, 68, -1) }
    }
}

/// Copies bytes to device memory.
fn upload(to: CUdeviceptr, bytes: &[u8]) {
    ok(unsafe { sys::cuMemcpyHtoD_v2(to, bytes.as_ptr().cast(), bytes.len()) });
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_product_runs_in_its_streams_order() {
    for seed in 0..20 {
        let (bench, blas) = (Bench::new(), Blas::open());
        bench.sim.set_seed(seed);
        let (code, handle) = blas.create();
        let (stream, [a, b, c, w]) = (stream(), [alloc(LEN), alloc(LEN), alloc(LEN), alloc(LEN)]);
        assert_eq!((code, blas.set_stream(handle, stream), blas.set_workspace(handle, w, LEN)), (0, 0, 0));
        // 1, 2 and 3 in f16; as the transpose of a column and as a row.
        upload(a, &[0, 0x3c, 0, 0x40, 0, 0x42]);
        synchronize(null_mut());
        copy(b, a, 6, stream);
        assert_eq!(blas.gemm(handle, [3, 1, 1], [a, b, c], F16), 0);
        assert_eq!(blas.gemm(handle, [1, 1, 3], [a, b, c + 12], F16), 0);
        fill(b, 0, LEN, stream);
        synchronize(stream);
        let got: Vec<f32> = read(c, 16).as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect();
        assert_eq!(got, [1.0, 2.0, 3.0, 14.0]);
        assert_eq!(read(w, LEN), [0xb1; LEN], "the workspace is the library's");
        assert_eq!(blas.destroy(handle), 0);
        [a, b, c, w].into_iter().for_each(free);
        destroy(&[stream], &[]);
        assert!(bench.end().is_empty(), "seed {seed}");
    }
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn what_is_wrong_is_refused_or_reported() {
    let (bench, blas) = (Bench::new(), Blas::open());
    let ((_, handle), memory) = (blas.create(), alloc(LEN));
    fill(memory, 0, LEN, null_mut());
    assert_eq!(blas.set_workspace(handle, memory + 128, 256), 7, "not at a multiple of 256");
    assert_eq!(blas.gemm(handle, [1, 1, 1], [memory; 3], F32), 15, "a product of f32 is not simulated");
    assert_eq!(blas.gemm(handle, [1, 1, -1], [memory; 3], F16), 7);
    let fault = bench.sim.fail_nth(1, 2);
    assert_eq!(blas.create().0, 3, "out of memory");
    drop(fault);
    assert!(bench.kinds().is_empty());
    // Beyond the allocation.
    assert_ne!(blas.gemm(handle, [64, 64, 64], [memory; 3], F16), 0);
    assert_eq!(bench.kinds(), ["OutOfBounds"]);
    assert_eq!(blas.destroy(null_mut()), 1);
    assert_eq!(bench.kinds(), ["BadHandle"]);
    free(memory);
    let held = |report: &Report| report.message.contains("handle of cuBLAS");
    ok(unsafe { sys::cuDevicePrimaryCtxRelease_v2(0) });
    let reports = bench.sim.take_reports();
    assert!(reports.len() == 1 && held(&reports[0]), "{reports:?}");
}
