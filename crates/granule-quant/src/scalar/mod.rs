//! The reference: every operation of this crate in plain Rust, one element after the other.
//!
//! It defines what the formats mean; the vector paths equal it bit for bit where they encode or decode, and
//! within a stated bound where they sum. It is also the path of every CPU without one of its own, and of Miri.
//! The functions here have the signatures of those at the root of the crate.

pub(crate) mod activation;
pub(crate) mod attend;
pub(crate) mod codec;
pub(crate) mod dot;
pub(crate) mod gemm;
pub(crate) mod planar;

use crate::{DType, Error, Isa, QuantizedMatrix, QuantizedRow, Tile};

/// [`crate::encode`], by the reference.
///
/// # Errors
/// As [`crate::encode`].
pub fn encode(dtype: DType, src: &[f32], dst: &mut [u8]) -> Result<(), Error> {
    Isa::SCALAR.encode(dtype, src, dst)
}

/// [`crate::decode`], by the reference.
///
/// # Errors
/// As [`crate::decode`].
pub fn decode(dtype: DType, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    Isa::SCALAR.decode(dtype, src, dst)
}

/// [`crate::encode_planar`], by the reference.
///
/// # Errors
/// As [`crate::encode_planar`].
pub fn encode_planar(dtype: DType, src: &[f32], quants: &mut [u8], scales: &mut [u8]) -> Result<(), Error> {
    Isa::SCALAR.encode_planar(dtype, src, quants, scales)
}

/// [`crate::decode_planar`], by the reference.
///
/// # Errors
/// As [`crate::decode_planar`].
pub fn decode_planar(dtype: DType, quants: &[u8], scales: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    Isa::SCALAR.decode_planar(dtype, quants, scales, dst)
}

/// [`crate::quantize_row`], by the reference.
///
/// # Errors
/// As [`crate::quantize_row`].
pub fn quantize_row(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32]) -> Result<(), Error> {
    Isa::SCALAR.quantize_row(x, q, d, s)
}

/// [`crate::dot_q8`], by the reference.
pub fn dot_q8(dtype: DType, row: &[u8], x: QuantizedRow<'_>) -> f32 {
    Isa::SCALAR.dot_q8(dtype, row, x)
}

/// [`crate::dot_f32`], by the reference.
pub fn dot_f32(dtype: DType, row: &[u8], x: &[f32]) -> f32 {
    Isa::SCALAR.dot_f32(dtype, row, x)
}

/// [`crate::gemm_q8`], by the reference.
///
/// # Errors
/// As [`crate::gemm_q8`].
pub fn gemm_q8(
    dtype: DType,
    w: &[u8],
    rows: usize,
    k: usize,
    x: &QuantizedMatrix<'_>,
    out: &mut [f32],
    out_stride: usize,
) -> Result<(), Error> {
    Isa::SCALAR.gemm_q8(dtype, w, k, x, Tile::new(out, rows, x.rows(), out_stride)?)
}

/// [`crate::gemm_f32`], by the reference.
///
/// # Errors
/// As [`crate::gemm_f32`].
#[expect(
    clippy::too_many_arguments,
    reason = "a matrix product has two matrices and a result, with their shapes"
)]
pub fn gemm_f32(
    dtype: DType,
    w: &[u8],
    rows: usize,
    k: usize,
    x: &[f32],
    c: usize,
    out: &mut [f32],
    out_stride: usize,
) -> Result<(), Error> {
    Isa::SCALAR.gemm_f32(dtype, w, k, x, Tile::new(out, rows, c, out_stride)?)
}
