//! Activations in the form in which products on a CUDA device read them, made in the pass that makes the activations: from numbers
//! as they are, through the root mean square norm, or through SwiGLU.
//!
//! ```text
//! F32   | x: rows x stride f32                |
//! Fixed | high: rows x cols i8                | low: rows x cols i8                | d: rows x cols/32 f32 | sums: rows x cols/32 x 2 i32 |
//! F16   | x times a power of two of the row's, rows x stride f16 | its inverse: rows f32 |
//! Bf16  | high: rows x stride bf16            | low: rows x stride bf16            |
//! ```
//!
//! Each part begins at a multiple of 256 bytes. The stride is `cols` rounded up to whole pieces of 16 bytes, with zeros behind the
//! row: rows of any length are read 16 bytes at a time.

#[cfg(feature = "cuda")]
mod cuda;

#[cfg(feature = "cuda")]
pub use cuda::{CudaActivations, Source, cuda};

use granule_quant::{BLOCK_LEN, DType};

use crate::Error;

/// What the parts of a form, and its end, are at a multiple of, in bytes.
pub const PART_ALIGN: usize = 256;

/// Tokens up to which products read a weight row once and meet all of them by vectors; more meet it on tensor cores.
pub const FEW_TOKENS: usize = 8;

/// How activations are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// As they are: few tokens, float weights.
    F32,
    /// Numbers of 16 bits with a scale for each 32, by the rule of [`granule_quant::quantize_fixed`]: few tokens, quantized weights.
    Fixed,
    /// f16 times a power of two of the row's, with which its largest magnitude is from 2^14 to below 2^15: many tokens, quantized
    /// and `F16` weights.
    F16,
    /// Two bf16 whose sum is the number, within 2^-16 of it: many tokens, `BF16` and `F32` weights.
    Bf16,
}

/// Where the parts of a form are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormLayout {
    /// Elements from the start of one row to that of the next: `cols` and the zeros behind them. Of [`Form::Fixed`] `cols`.
    pub stride: usize,
    /// Bytes from the start to each part, in the order of the module's drawing; the end for parts that the form does not have.
    pub parts: [usize; 4],
    /// Bytes of all of it, a multiple of [`PART_ALIGN`].
    pub bytes: usize,
}

impl Form {
    /// The form in which `tokens` rows of activations meet weights of type `dtype`.
    ///
    /// ```
    /// use granule_ops::activate::Form;
    /// use granule_quant::DType;
    ///
    /// assert_eq!(Form::of(DType::Q4_K, 1), Form::Fixed);
    /// assert_eq!(Form::of(DType::Q4_K, 512), Form::F16);
    /// assert_eq!(Form::of(DType::BF16, 512), Form::Bf16);
    /// ```
    #[must_use]
    pub fn of(dtype: DType, tokens: usize) -> Form {
        match (dtype, tokens <= FEW_TOKENS) {
            (DType::F32 | DType::F16 | DType::BF16, true) => Form::F32,
            (_, true) => Form::Fixed,
            (DType::F32 | DType::BF16, false) => Form::Bf16,
            (_, false) => Form::F16,
        }
    }

    /// Where the parts of `rows` rows of `cols` elements are.
    ///
    /// # Errors
    /// [`Error::Dimension`] where `cols` is 2^24 or more, or the number of elements 2^31 or more, or `cols` is no multiple of 32
    /// and the form is [`Form::Fixed`].
    pub fn layout(self, rows: usize, cols: usize) -> Result<FormLayout, Error> {
        if self == Form::Fixed && !cols.is_multiple_of(BLOCK_LEN) {
            let what = "the columns of fixed-point activations";
            return Err(Error::Dimension { what, must: "a multiple of 32", got: cols });
        }
        // A piece of 16 bytes has so many elements.
        let piece = match self {
            Form::F32 => 4,
            Form::Fixed => 1,
            Form::F16 | Form::Bf16 => 8,
        };
        if cols >= 1 << 24 {
            let what = "the columns of activations";
            return Err(Error::Dimension { what, must: "below 2^24", got: cols });
        }
        let stride = cols.next_multiple_of(piece);
        let Some(n) = rows.checked_mul(stride).filter(|&n| n < 1 << 31) else {
            let what = "the elements of activations";
            return Err(Error::Dimension { what, must: "below 2^31", got: rows.saturating_mul(cols) });
        };
        let blocks = rows * (cols / BLOCK_LEN);
        let sizes = match self {
            Form::F32 => [4 * n, 0, 0, 0],
            Form::Fixed => [n, n, 4 * blocks, 8 * blocks],
            Form::F16 => [2 * n, 4 * rows, 0, 0],
            Form::Bf16 => [2 * n, 2 * n, 0, 0],
        };
        let mut bytes = 0;
        let parts = sizes.map(|size: usize| {
            let start = bytes;
            bytes += size.next_multiple_of(PART_ALIGN);
            start
        });
        Ok(FormLayout { stride, parts, bytes })
    }

    /// Bytes that `rows` rows of `cols` elements take.
    ///
    /// # Errors
    /// As [`Form::layout`].
    pub fn bytes(self, rows: usize, cols: usize) -> Result<usize, Error> {
        Ok(self.layout(rows, cols)?.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_one_another_at_multiples_of_256() {
        let layout = |form: Form, rows, cols| form.layout(rows, cols).unwrap();
        let fixed = layout(Form::Fixed, 3, 96);
        assert_eq!((fixed.stride, fixed.parts, fixed.bytes), (96, [0, 512, 1024, 1280], 1536));
        let f16 = layout(Form::F16, 3, 33);
        assert_eq!((f16.stride, f16.parts, f16.bytes), (40, [0, 256, 512, 512], 512));
        let bf16 = layout(Form::Bf16, 16, 8);
        assert_eq!((bf16.stride, bf16.parts, bf16.bytes), (8, [0, 256, 512, 512], 512));
        let f32 = layout(Form::F32, 1, 65);
        assert_eq!((f32.stride, f32.parts, f32.bytes), (68, [0, 512, 512, 512], 512));
        assert_eq!(Form::F16.bytes(0, 64).unwrap(), 0);
    }

    #[test]
    fn what_no_kernel_can_count_is_refused() {
        assert!(matches!(Form::Fixed.layout(1, 48), Err(Error::Dimension { got: 48, .. })));
        for (rows, cols) in [(1, usize::MAX), (usize::MAX, 2), (1 << 20, 1 << 11), (0, 1 << 24)] {
            assert!(matches!(Form::F32.layout(rows, cols), Err(Error::Dimension { .. })), "{rows} {cols}");
        }
        Form::F32.layout((1 << 20) - 1, 1 << 11).unwrap();
    }
}
