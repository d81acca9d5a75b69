//! Dot products of one row with one row: products of one by one.

use super::float::{BF16, F16, F32};
use super::runs::dot;
use super::tile;
use crate::expand::by_block;
use crate::{DType, QuantizedRow};

/// Dot product of two rows whose lengths [`crate::Isa::dot_q8`] has checked.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_q8(dtype: DType, row: &[u8], x: QuantizedRow<'_>) -> f32 {
    let blocks = x.d.len();
    // SAFETY: the row has as many blocks of its type as `x`.
    let [sum] = unsafe {
        match dtype {
            DType::Q8_0 => tile::row::<tile::Q8_0, 1>(row.as_ptr(), [x], blocks),
            DType::Q4_0 => tile::row::<tile::Q4_0, 1>(row.as_ptr(), [x], blocks),
            DType::Q4_1 => tile::row::<tile::Q4_1, 1>(row.as_ptr(), [x], blocks),
            // What is left in the end is not of this product, and refused before it gets here.
            _ => by_block!(dtype, dot, (row, x), [f32::NAN]),
        }
    };
    sum
}

/// Dot product of two rows whose lengths [`crate::Isa::dot_f32`] has checked.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_f32(dtype: DType, row: &[u8], x: &[f32]) -> f32 {
    // SAFETY: the row has as many elements as `x`.
    unsafe {
        match dtype {
            DType::F32 => tile::float_row::<F32>(row.as_ptr(), x.as_ptr(), x.len()),
            DType::F16 => tile::float_row::<F16>(row.as_ptr(), x.as_ptr(), x.len()),
            DType::BF16 => tile::float_row::<BF16>(row.as_ptr(), x.as_ptr(), x.len()),
            // Not a type of this product, and refused before it gets here.
            _ => f32::NAN,
        }
    }
}
