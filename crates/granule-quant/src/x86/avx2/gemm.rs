//! Matrix products: which kernel, in which order.

use super::float::{BF16, F16, F32, Float};
use super::pack;
use super::runs::gemm as expanded;
use super::tile::{self, Q4_0, Q4_1, Q8_0, Quants};
use crate::expand::by_block;
use crate::{DType, QuantizedMatrix, gemm::Tile};

/// Fewer columns than this are not worth the repacking of the weights.
const PACK_FROM: usize = 3;
/// Weight rows of the kernels that read them as they lie.
const ROWS: usize = 2;
/// Activation rows of the float kernel.
const COLS: usize = 4;
/// Bytes of activations to go through again and again: they stay in the second-level cache.
const CACHED: usize = 256 << 10;

/// Fills `out` (weight rows x activation rows); the lengths are right and no extent is zero.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn gemm_q8(dtype: DType, w: &[u8], x: &QuantizedMatrix<'_>, out: &mut Tile<'_>) {
    match dtype {
        DType::Q8_0 => quantized::<Q8_0>(w, x, out),
        DType::Q4_0 => quantized::<Q4_0>(w, x, out),
        DType::Q4_1 => quantized::<Q4_1>(w, x, out),
        // What is left in the end is not of this product, and refused before it gets here.
        _ => by_block!(dtype, expanded, (w, x, out), ()),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn quantized<Q: Quants>(w: &[u8], x: &QuantizedMatrix<'_>, out: &mut Tile<'_>) {
    if out.cols() >= PACK_FROM {
        return pack::gemm::<Q>(w, x, out);
    }
    let row_bytes = w.len() / out.rows();
    let blocks = row_bytes / Q::BYTES;
    for (r, row) in w.chunks_exact(row_bytes).enumerate() {
        if out.cols() == 2 {
            // SAFETY: the row has as many blocks as a row of `x`.
            let [first, second] = unsafe { tile::row::<Q, 2>(row.as_ptr(), [x.row(0), x.row(1)], blocks) };
            (out.column(0)[r], out.column(1)[r]) = (first, second);
        } else {
            // SAFETY: as above.
            [out.column(0)[r]] = unsafe { tile::row::<Q, 1>(row.as_ptr(), [x.row(0)], blocks) };
        }
    }
}

/// Fills `out` (weight rows x activation rows); the lengths are right and no extent is zero.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn gemm_f32(dtype: DType, w: &[u8], x: &[f32], out: &mut Tile<'_>) {
    match dtype {
        DType::F32 => float::<F32>(w, x, out),
        DType::F16 => float::<F16>(w, x, out),
        DType::BF16 => float::<BF16>(w, x, out),
        // Not a type of this product, and refused before it gets here.
        _ => {}
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn float<F: Float>(w: &[u8], x: &[f32], out: &mut Tile<'_>) {
    let k = x.len() / out.cols();
    if out.cols() < COLS {
        for (r, row) in w.chunks_exact(k * F::BYTES).enumerate() {
            for (c, x) in x.chunks_exact(k).enumerate() {
                // SAFETY: both slices have `k` elements.
                out.column(c)[r] = unsafe { tile::float_row::<F>(row.as_ptr(), x.as_ptr(), k) };
            }
        }
        return;
    }
    let cached = (CACHED / size_of::<f32>() / k).next_multiple_of(COLS).max(COLS);
    for c0 in (0..out.cols()).step_by(cached) {
        let cols = c0..out.cols().min(c0 + cached);
        for r in (0..out.rows()).step_by(ROWS) {
            let full_rows = r + ROWS <= out.rows();
            for c in cols.clone().step_by(COLS) {
                match (full_rows, c + COLS <= cols.end) {
                    (true, true) => float_tile::<F, ROWS, COLS>(w, x, k, r, c, out),
                    (true, false) => {
                        (c..cols.end).for_each(|c| float_tile::<F, ROWS, 1>(w, x, k, r, c, out));
                    }
                    (false, true) => {
                        (r..out.rows()).for_each(|r| float_tile::<F, 1, COLS>(w, x, k, r, c, out));
                    }
                    (false, false) => {
                        for r in r..out.rows() {
                            (c..cols.end).for_each(|c| float_tile::<F, 1, 1>(w, x, k, r, c, out));
                        }
                    }
                }
            }
        }
    }
}

/// Rows `r` to `r + R` of `w` times rows `c` to `c + C` of `x`, which both have them.
#[target_feature(enable = "avx2,fma,f16c")]
fn float_tile<F: Float, const R: usize, const C: usize>(
    w: &[u8],
    x: &[f32],
    k: usize,
    r: usize,
    c: usize,
    out: &mut Tile<'_>,
) {
    let (mut rows, mut cols) = ([w.as_ptr(); R], [x.as_ptr(); C]);
    for (i, row) in rows.iter_mut().enumerate() {
        *row = w[(r + i) * k * F::BYTES..][..k * F::BYTES].as_ptr();
    }
    for (i, col) in cols.iter_mut().enumerate() {
        *col = x[(c + i) * k..][..k].as_ptr();
    }
    // SAFETY: each row is as long as its slice.
    let sums = unsafe { tile::float::<F, R, C>(rows, cols, k) };
    for (i, sums) in sums.into_iter().enumerate() {
        for (j, sum) in sums.into_iter().enumerate() {
            out.column(c + j)[r + i] = sum;
        }
    }
}
