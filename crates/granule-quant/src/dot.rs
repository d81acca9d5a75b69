//! Dot products of one row of weights with one row of activations.

use crate::isa::by_isa;
use crate::{BLOCK_LEN, DType, Isa, QuantizedRow};

/// Dot product of a quantized weight row (n elements of any type with blocks, at any address) with quantized activations
/// (n elements).
///
/// Products inside a block are summed exactly in integers; these sums are scaled and added in f32, in an order that
/// depends on the path, and a path may take what makes nibbles signed (the 8 of `Q4_0`) off at the end. With the products
/// `dw*qw * dx*qx` and, in types with minimums, `m*s` for each 32 elements (16 in `Q2_K`) that share one, the result is within `(n/32 + 8) * 2^-23 * t` of the exact sum, where `t` is
/// the sum of the magnitudes of all these, and of `8 * dw * dx*qx` for `Q4_0`.
///
/// The caller has checked the shapes: where `row` does not fit `x`, or the type is another, the result is NaN (and a
/// debug assertion fails).
pub fn dot_q8(dtype: DType, row: &[u8], x: QuantizedRow<'_>) -> f32 {
    Isa::best().dot_q8(dtype, row, x)
}

/// Dot product of a float weight row (n elements of `F32`, `F16` or `BF16`, at any address) with f32 activations
/// (n elements, any n).
///
/// Computed in f32, in an order that depends on the path: within `(n + 8) * 2^-23 * sum |w*x|` of the exact sum.
///
/// The caller has checked the shapes: where `row` does not fit `x`, or the type is another, the result is NaN (and a
/// debug assertion fails).
pub fn dot_f32(dtype: DType, row: &[u8], x: &[f32]) -> f32 {
    Isa::best().dot_f32(dtype, row, x)
}

impl Isa {
    /// [`dot_q8`] by this path.
    pub fn dot_q8(self, dtype: DType, row: &[u8], x: QuantizedRow<'_>) -> f32 {
        let (n, blocks) = (x.q.len(), x.q.len() / BLOCK_LEN);
        let fits = dtype.is_quantized() && dtype.row_bytes(n) == Ok(row.len());
        if !fits || x.d.len() != blocks || x.s.len() != blocks {
            debug_assert!(false, "dot_q8: {} bytes of {dtype} against {n} activations", row.len());
            return f32::NAN;
        }
        by_isa!(self, dot::dot_q8(dtype, row, x))
    }

    /// [`dot_f32`] by this path.
    pub fn dot_f32(self, dtype: DType, row: &[u8], x: &[f32]) -> f32 {
        if dtype.is_quantized() || dtype.row_bytes(x.len()) != Ok(row.len()) {
            debug_assert!(false, "dot_f32: {} bytes of {dtype} against {} activations", row.len(), x.len());
            return f32::NAN;
        }
        by_isa!(self, dot::dot_f32(dtype, row, x))
    }
}
