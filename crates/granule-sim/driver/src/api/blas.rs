//! cuBLAS's functions: what a program finds that opens this library under cuBLAS's name. Only what Granule calls.

use super::enter::{Rule, State, call, put, take};
use crate::code::Code;
use crate::model::{Caller, Factor, Gemm, Result, Rows};
use std::ffi::{c_int, c_void};

/// Numbers of the library's headers.
const PLAIN: c_int = 0;
const TRANSPOSED: c_int = 1;
const F16: c_int = 2;
const F32: c_int = 0;
const BF16: c_int = 14;
const SUMS_IN_F32: c_int = 68;
const ANY_ALGORITHM: c_int = -1;

/// One call; the driver's code as a `cublasStatus_t`.
fn blas(name: &'static str, rule: Rule, work: impl FnMut(&mut State, &Caller) -> Result<()>) -> u32 {
    match Code(call(name, rule, work)) {
        Code(0) => 0,
        Code::NOT_INITIALIZED | Code::INVALID_HANDLE | Code::INVALID_CONTEXT => 1,
        Code::OUT_OF_MEMORY => 3,
        Code::INVALID_VALUE => 7,
        Code::NOT_SUPPORTED => 15,
        _ => 13,
    }
}

/// Rows of a row-major matrix whose elements have `size` bytes.
fn rows(at: u64, (count, len, stride): (c_int, c_int, c_int), size: u64) -> Result<Rows> {
    let count_of = |n: c_int| u64::try_from(n).map_err(|_| Code::INVALID_VALUE);
    let (count, len, stride) = (count_of(count)?, count_of(len)?, count_of(stride)?);
    if stride < len.max(1) {
        return Err(Code::INVALID_VALUE);
    }
    Ok(Rows { at, count, len: len * size, stride: stride * size })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasCreate_v2(handle: *mut u64) -> u32 {
    blas("cublasCreate_v2", Rule::Initialized, |state, caller| {
        let made = state.sim.create_blas(caller)?;
        // SAFETY: the caller's pointer.
        unsafe { put(handle, made) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasDestroy_v2(handle: u64) -> u32 {
    blas("cublasDestroy_v2", Rule::Release, |state, caller| state.sim.destroy_blas(caller, handle))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasSetStream_v2(handle: u64, stream: u64) -> u32 {
    blas("cublasSetStream_v2", Rule::Initialized, |state, caller| {
        state.sim.set_blas_stream(caller, handle, stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasSetWorkspace_v2(handle: u64, workspace: u64, len: usize) -> u32 {
    blas("cublasSetWorkspace_v2", Rule::Initialized, |state, caller| {
        state.sim.set_blas_workspace(caller, handle, workspace, len as u64)
    })
}

/// Column-major, as the library has it: `c` is m x n, `a` the transpose of k x m, `b` k x n.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasGemmEx(
    handle: u64,
    on_a: c_int,
    on_b: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const c_void,
    a: u64,
    a_type: c_int,
    a_stride: c_int,
    b: u64,
    b_type: c_int,
    b_stride: c_int,
    beta: *const c_void,
    c: u64,
    c_type: c_int,
    c_stride: c_int,
    sums: c_int,
    algorithm: c_int,
) -> u32 {
    blas("cublasGemmEx", Rule::Initialized, |state, caller| {
        let factor = match (a_type, b_type, c_type) {
            (F16, F16, F32) => Factor::F16,
            (BF16, BF16, F32) => Factor::Bf16,
            _ => return Err(Code::NOT_SUPPORTED),
        };
        if (on_a, on_b, sums, algorithm) != (TRANSPOSED, PLAIN, SUMS_IN_F32, ANY_ALGORITHM) {
            return Err(Code::NOT_SUPPORTED);
        }
        // SAFETY: the caller's pointers, to host memory.
        let (alpha, beta) = unsafe { (take(alpha.cast())?, take(beta.cast())?) };
        let (x, w) = (rows(b, (n, k, b_stride), 2)?, rows(a, (m, k, a_stride), 2)?);
        let out = rows(c, (n, m, c_stride), 4)?;
        state.sim.gemm(caller, handle, Gemm { factor, x, w, out, alpha, beta, workspace: None })
    })
}
