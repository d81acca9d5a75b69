//! AVX-512: F, BW, DQ, VL and VNNI (Ice Lake, Zen 4 and later; also Cascade Lake).
//!
//! Tails of float rows are handled by masks: a masked load does not touch, and so does not fault on, what is behind
//! the end.

pub(crate) mod activation;
pub(crate) mod attend;
pub(crate) mod bf16;
mod block;
pub(crate) mod codec;
pub(crate) mod dot;
mod float;
pub(crate) mod gemm;
mod pack;
pub(crate) mod packed;
pub(crate) mod planar;
mod runs;
mod tile;

use std::arch::x86_64::{__mmask16, _cvtu32_mask16};

/// Floats in one register.
const LANES: usize = 16;

/// The mask of the first `n` lanes; all of them where `n` is 16 or more.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn first(n: usize) -> __mmask16 {
    _cvtu32_mask16(if n >= LANES { 0xffff } else { (1 << n) - 1 })
}
