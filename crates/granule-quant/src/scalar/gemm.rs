//! The reference matrix products: one dot product after the other.

use super::dot::{dot_f32, dot_q8};
use crate::{DType, QuantizedMatrix, gemm::Tile};

/// Fills `out` (weight rows x activation rows); the lengths are right and no extent is zero.
pub(crate) fn gemm_q8(dtype: DType, w: &[u8], x: &QuantizedMatrix<'_>, out: &mut Tile<'_>) {
    let row_bytes = w.len() / out.rows();
    for (r, row) in w.chunks_exact(row_bytes).enumerate() {
        for c in 0..out.cols() {
            out.column(c)[r] = dot_q8(dtype, row, x.row(c));
        }
    }
}

/// Fills `out` (weight rows x activation rows); the lengths are right and no extent is zero.
pub(crate) fn gemm_f32(dtype: DType, w: &[u8], x: &[f32], out: &mut Tile<'_>) {
    let (row_bytes, k) = (w.len() / out.rows(), x.len() / out.cols());
    for (r, row) in w.chunks_exact(row_bytes).enumerate() {
        for (c, x) in x.chunks_exact(k).enumerate() {
            out.column(c)[r] = dot_f32(dtype, row, x);
        }
    }
}
