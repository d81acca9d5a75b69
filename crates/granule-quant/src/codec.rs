//! Rows of the ggml formats to and from f32.

use half::f16;

use crate::error::check_len;
use crate::isa::by_isa;
use crate::scalar::codec::{
    encode_bf16, largest, scale_q4_0, scale_q4_1, scale_q5_0, scale_q5_1, scale_q8_0,
};
use crate::{BLOCK_LEN, DType, Error, Isa};

/// Encodes `src` (n elements) into `dst` (`dtype.row_bytes(n)` bytes), by the fastest path of this CPU; the bytes are
/// those of [`scalar::encode`](crate::scalar::encode).
///
/// `F16` and `BF16` round to nearest even. The quantized types are defined with their blocks; `Q4_K` to `Q6_K` look for the
/// scales that come nearest to the numbers, and take some hundred times as long as the others.
///
/// # Errors
/// [`Error::NotEncoded`] for the types that are decoded only ([`DType::is_encoded`]); [`Error::NotFinite`] for NaN and
/// infinity, whatever the type; [`Error::Overflow`] where an element (`F16`, `BF16`) or
/// a block's scale or minimum rounds to infinity; [`Error::RowLength`] and [`Error::Length`] where lengths disagree.
/// `dst` is then as it was.
pub fn encode(dtype: DType, src: &[f32], dst: &mut [u8]) -> Result<(), Error> {
    Isa::best().encode(dtype, src, dst)
}

/// Decodes `src` (`dtype.row_bytes(n)` bytes, at any address) into `dst` (n elements), by the fastest path of this CPU;
/// the numbers are those of [`scalar::decode`](crate::scalar::decode).
///
/// Nothing in `src` is an error: NaN and infinity come out as such (which NaN it is, is not promised).
///
/// # Errors
/// [`Error::RowLength`] and [`Error::Length`] where lengths disagree. `dst` is then as it was.
pub fn decode(dtype: DType, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    Isa::best().decode(dtype, src, dst)
}

impl Isa {
    /// [`encode`] by this path.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn encode(self, dtype: DType, src: &[f32], dst: &mut [u8]) -> Result<(), Error> {
        check_len("dst", dtype.row_bytes(src.len())?, dst.len())?;
        self.check_encodable(dtype, src)?;
        by_isa!(self, codec::encode(dtype, src, dst));
        Ok(())
    }

    /// [`decode`] by this path.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn decode(self, dtype: DType, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
        check_len("src", dtype.row_bytes(dst.len())?, src.len())?;
        by_isa!(self, codec::decode(dtype, src, dst));
        Ok(())
    }

    /// Checks that every element can be encoded, before anything is written.
    pub(crate) fn check_encodable(self, dtype: DType, src: &[f32]) -> Result<(), Error> {
        if !dtype.is_encoded() {
            return Err(Error::NotEncoded { dtype });
        }
        // No magnitude below f16's largest overflows any type, so one cheap pass settles nearly every row.
        if by_isa!(self, codec::max_magnitude_bits(src)) < f16::MAX.to_f32().to_bits() {
            return Ok(());
        }
        check_finite(src)?;
        let overflow = |index| Err(Error::Overflow { index, dtype });
        let is_inf = |v: f32| f16::from_f32(v).is_infinite();
        let block_is_inf = |x: &[f32; BLOCK_LEN]| match dtype {
            DType::Q8_0 => is_inf(scale_q8_0(x)),
            DType::Q4_0 => is_inf(scale_q4_0(x)),
            DType::Q4_1 => is_inf(scale_q4_1(x).0) || is_inf(scale_q4_1(x).1),
            DType::Q5_0 => is_inf(scale_q5_0(x)),
            DType::Q5_1 => is_inf(scale_q5_1(x).0) || is_inf(scale_q5_1(x).1),
            _ => false,
        };
        let element = match dtype {
            DType::F16 => src.iter().position(|&v| is_inf(v)),
            DType::BF16 => src.iter().position(|&v| encode_bf16(v) & 0x7fff == 0x7f80),
            DType::Q8_0 | DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 => {
                let mut blocks = src.as_chunks().0.iter().enumerate();
                blocks.find(|(_, x)| block_is_inf(x)).map(|(b, x)| b * BLOCK_LEN + largest(x).0)
            }
            _ => return crate::fit::check(dtype, src),
        };
        element.map_or(Ok(()), overflow)
    }

    /// Checks that no element is NaN or infinite.
    pub(crate) fn check_finite(self, src: &[f32]) -> Result<(), Error> {
        if by_isa!(self, codec::max_magnitude_bits(src)) < f32::INFINITY.to_bits() {
            return Ok(());
        }
        check_finite(src)
    }
}

fn check_finite(src: &[f32]) -> Result<(), Error> {
    src.iter().position(|v| !v.is_finite()).map_or(Ok(()), |index| Err(Error::NotFinite { index }))
}
