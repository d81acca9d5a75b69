//! The element types of weights, caches and activations: names, ids and sizes.

use std::{fmt, str::FromStr};

use crate::block::*;
use crate::{BLOCK_LEN, Error, SUPER_BLOCK_LEN};

/// An element type of a tensor or of a cache, named as ggml names it.
///
/// ```
/// use granule_quant::DType;
/// assert_eq!(DType::Q4_0.row_bytes(4096)?, 2304); // 4.5 bits an element
/// assert_eq!("q8_0".parse::<DType>()?, DType::Q8_0);
/// # Ok::<(), granule_quant::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(non_camel_case_types, reason = "ggml's names")]
pub enum DType {
    /// IEEE 754 binary32, little-endian.
    F32,
    /// IEEE 754 binary16, little-endian.
    F16,
    /// The upper half of a binary32, little-endian.
    BF16,
    /// 8-bit blocks of 32: [`BlockQ8_0`].
    Q8_0,
    /// 4-bit blocks of 32: [`BlockQ4_0`].
    Q4_0,
    /// 4-bit blocks of 32 with a minimum, for weights only: [`BlockQ4_1`].
    Q4_1,
    /// 5-bit blocks of 32, for weights only: [`BlockQ5_0`].
    Q5_0,
    /// 5-bit blocks of 32 with a minimum, for weights only: [`BlockQ5_1`].
    Q5_1,
    /// 2-bit blocks of 256, with a scale and a minimum for each 16, for weights only: [`BlockQ2_K`].
    Q2_K,
    /// 3-bit blocks of 256, with a scale for each 16, for weights only: [`BlockQ3_K`].
    Q3_K,
    /// 4-bit blocks of 256, with a scale and a minimum for each 32, for weights only: [`BlockQ4_K`].
    Q4_K,
    /// 5-bit blocks of 256, with a scale and a minimum for each 32, for weights only: [`BlockQ5_K`].
    Q5_K,
    /// 6-bit blocks of 256, with a scale for each 16, for weights only: [`BlockQ6_K`].
    Q6_K,
    /// 4-bit blocks of 32 whose quants are uneven steps, for weights only: [`BlockIQ4_NL`].
    IQ4_NL,
    /// 4-bit blocks of 256 whose quants are uneven steps, with a scale for each 32, for weights only: [`BlockIQ4_XS`].
    IQ4_XS,
    /// 2-bit blocks of 256 whose quants are points of a grid, for weights only: [`BlockIQ2_XXS`].
    IQ2_XXS,
}

impl DType {
    /// Every type, in the order of declaration.
    pub const ALL: &[DType] = &[
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q2_K,
        DType::Q3_K,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
        DType::IQ4_NL,
        DType::IQ4_XS,
        DType::IQ2_XXS,
    ];

    /// Elements in one block: 32, 256 for `Q2_K` to `Q6_K`, `IQ4_XS` and `IQ2_XXS`, 1 for the float types.
    pub const fn block_len(self) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::BF16 => 1,
            DType::Q8_0 | DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 | DType::IQ4_NL => BLOCK_LEN,
            DType::Q2_K
            | DType::Q3_K
            | DType::Q4_K
            | DType::Q5_K
            | DType::Q6_K
            | DType::IQ4_XS
            | DType::IQ2_XXS => SUPER_BLOCK_LEN,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::Q8_0 => size_of::<BlockQ8_0>(),
            DType::Q4_0 => size_of::<BlockQ4_0>(),
            DType::Q4_1 => size_of::<BlockQ4_1>(),
            DType::Q5_0 => size_of::<BlockQ5_0>(),
            DType::Q5_1 => size_of::<BlockQ5_1>(),
            DType::Q2_K => size_of::<BlockQ2_K>(),
            DType::Q3_K => size_of::<BlockQ3_K>(),
            DType::Q4_K => size_of::<BlockQ4_K>(),
            DType::Q5_K => size_of::<BlockQ5_K>(),
            DType::Q6_K => size_of::<BlockQ6_K>(),
            DType::IQ4_NL => size_of::<BlockIQ4_NL>(),
            DType::IQ4_XS => size_of::<BlockIQ4_XS>(),
            DType::IQ2_XXS => size_of::<BlockIQ2_XXS>(),
        }
    }

    /// Bytes of a row of `n` elements.
    ///
    /// # Errors
    /// [`Error::RowLength`] where `n` is not a whole number of blocks, [`Error::TooLarge`] where the bytes
    /// overflow `usize`.
    pub fn row_bytes(self, n: usize) -> Result<usize, Error> {
        let block = self.block_len();
        if !n.is_multiple_of(block) {
            return Err(Error::RowLength { dtype: self, len: n, block });
        }
        (n / block).checked_mul(self.block_bytes()).ok_or(Error::TooLarge { dtype: self, len: n })
    }

    /// The name in lower case, as flags and reports write it: `"q8_0"`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::Q8_0 => "q8_0",
            DType::Q4_0 => "q4_0",
            DType::Q4_1 => "q4_1",
            DType::Q5_0 => "q5_0",
            DType::Q5_1 => "q5_1",
            DType::Q2_K => "q2_k",
            DType::Q3_K => "q3_k",
            DType::Q4_K => "q4_k",
            DType::Q5_K => "q5_k",
            DType::Q6_K => "q6_k",
            DType::IQ4_NL => "iq4_nl",
            DType::IQ4_XS => "iq4_xs",
            DType::IQ2_XXS => "iq2_xxs",
        }
    }

    /// The type that a GGUF file means by this `ggml_type` number, if it is one of ours.
    pub const fn from_ggml_id(id: u32) -> Option<DType> {
        match id {
            0 => Some(DType::F32),
            1 => Some(DType::F16),
            2 => Some(DType::Q4_0),
            3 => Some(DType::Q4_1),
            6 => Some(DType::Q5_0),
            7 => Some(DType::Q5_1),
            8 => Some(DType::Q8_0),
            10 => Some(DType::Q2_K),
            11 => Some(DType::Q3_K),
            12 => Some(DType::Q4_K),
            13 => Some(DType::Q5_K),
            14 => Some(DType::Q6_K),
            16 => Some(DType::IQ2_XXS),
            20 => Some(DType::IQ4_NL),
            23 => Some(DType::IQ4_XS),
            30 => Some(DType::BF16),
            _ => None,
        }
    }

    /// The `ggml_type` number of a GGUF file.
    pub const fn ggml_id(self) -> u32 {
        match self {
            DType::F32 => 0,
            DType::F16 => 1,
            DType::Q4_0 => 2,
            DType::Q4_1 => 3,
            DType::Q5_0 => 6,
            DType::Q5_1 => 7,
            DType::Q8_0 => 8,
            DType::Q2_K => 10,
            DType::Q3_K => 11,
            DType::Q4_K => 12,
            DType::Q5_K => 13,
            DType::Q6_K => 14,
            DType::IQ2_XXS => 16,
            DType::IQ4_NL => 20,
            DType::IQ4_XS => 23,
            DType::BF16 => 30,
        }
    }

    /// Whether elements come in blocks with a scale.
    pub const fn is_quantized(self) -> bool {
        self.block_len() != 1
    }

    /// Whether [`encode`](crate::encode) makes rows of this type. The others are read only: files bring them.
    pub const fn is_encoded(self) -> bool {
        match self {
            DType::F32 | DType::F16 | DType::BF16 => true,
            DType::Q8_0 | DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 => true,
            DType::Q4_K | DType::Q5_K | DType::Q6_K => true,
            DType::Q2_K | DType::Q3_K | DType::IQ4_NL | DType::IQ4_XS | DType::IQ2_XXS => false,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    /// Reads a name in either case: `q8_0` and `Q8_0` are the same type.
    fn from_str(name: &str) -> Result<Self, Error> {
        DType::ALL
            .iter()
            .copied()
            .find(|dtype| dtype.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| Error::UnknownType { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_read_back() {
        for &dtype in DType::ALL {
            assert_eq!(DType::from_ggml_id(dtype.ggml_id()), Some(dtype));
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
            assert_eq!(dtype.to_string().to_uppercase().parse(), Ok(dtype));
        }
        assert_eq!(DType::from_ggml_id(9), None);
        let error = Error::UnknownType { name: "q8_1".into() };
        assert_eq!("q8_1".parse::<DType>(), Err(error.clone()));
        let types: Vec<_> = DType::ALL.iter().map(|dtype| dtype.name()).collect();
        assert!(error.to_string().ends_with(&types.join(", ")), "{error}");
        assert_eq!(format!("{:>6}", DType::Q4_0), "  q4_0");
    }

    #[test]
    fn rows_are_whole_blocks() {
        let bytes: Vec<_> = DType::ALL.iter().map(|d| d.row_bytes(256).unwrap_or(0)).collect();
        let quantized = [272, 144, 160, 176, 192, 84, 110, 144, 176, 210, 144, 136, 66];
        assert_eq!(bytes, [&[1024, 512, 512], &quantized[..]].concat());
        assert_eq!(DType::BF16.row_bytes(7), Ok(14));
        assert_eq!(
            DType::Q8_0.row_bytes(33),
            Err(Error::RowLength { dtype: DType::Q8_0, len: 33, block: 32 })
        );
        assert_eq!(
            DType::Q4_K.row_bytes(288),
            Err(Error::RowLength { dtype: DType::Q4_K, len: 288, block: 256 })
        );
        assert_eq!(
            DType::F32.row_bytes(usize::MAX),
            Err(Error::TooLarge { dtype: DType::F32, len: usize::MAX })
        );
        assert!(DType::Q8_0.row_bytes(usize::MAX - 31).is_err());
    }
}
