//! The element types of weights, caches and activations: names, ids and sizes.

use std::{fmt, str::FromStr};

use crate::{BlockQ4_0, BlockQ4_1, BlockQ8_0, Error};

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
}

impl DType {
    /// Every type, in the order of declaration.
    pub const ALL: &[DType] = &[DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1];

    /// Elements in one block: 32, or 1 for the float types.
    pub const fn block_len(self) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::BF16 => 1,
            DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => crate::BLOCK_LEN,
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
        }
    }

    /// The type that a GGUF file means by this `ggml_type` number, if it is one of ours.
    pub const fn from_ggml_id(id: u32) -> Option<DType> {
        match id {
            0 => Some(DType::F32),
            1 => Some(DType::F16),
            2 => Some(DType::Q4_0),
            3 => Some(DType::Q4_1),
            8 => Some(DType::Q8_0),
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
            DType::Q8_0 => 8,
            DType::BF16 => 30,
        }
    }

    /// Whether elements come in blocks with a scale.
    pub const fn is_quantized(self) -> bool {
        self.block_len() != 1
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
        assert_eq!(DType::from_ggml_id(6), None);
        assert_eq!("q5_0".parse::<DType>(), Err(Error::UnknownType { name: "q5_0".into() }));
        assert_eq!(format!("{:>6}", DType::Q4_0), "  q4_0");
    }

    #[test]
    fn rows_are_whole_blocks() {
        let bytes: Vec<_> = DType::ALL.iter().map(|d| d.row_bytes(64)).collect();
        assert_eq!(bytes, [Ok(256), Ok(128), Ok(128), Ok(68), Ok(36), Ok(40)]);
        assert_eq!(DType::BF16.row_bytes(7), Ok(14));
        assert_eq!(
            DType::Q8_0.row_bytes(33),
            Err(Error::RowLength { dtype: DType::Q8_0, len: 33, block: 32 })
        );
        assert_eq!(
            DType::F32.row_bytes(usize::MAX),
            Err(Error::TooLarge { dtype: DType::F32, len: usize::MAX })
        );
        assert!(DType::Q8_0.row_bytes(usize::MAX - 31).is_err());
    }
}
