//! Planar rows, the form of a KV cache: a row's quants in one plane, its scales in another.
//!
//! ```text
//! ggml    | d0 q0[32] | d1 q1[32] | d2 q2[32] |           34-byte blocks: 2-byte loads on a GPU
//! planar  | q0[32] q1[32] q2[32] |   | d0 d1 d2 |         two planes: 16-byte loads
//! ```
//!
//! It is a permutation of the ggml bytes, exact both ways. The float types have one plane, and an empty one of scales.

use crate::error::check_len;
use crate::isa::by_isa;
use crate::{BLOCK_LEN, DType, Error, Isa};

/// Bytes of the two planes of a row, without the padding between planes that a cache adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanarBytes {
    /// Bytes of the quants (or of the floats).
    pub quants: usize,
    /// Bytes of the scales: one f16 per block, none for the float types.
    pub scales: usize,
}

/// Bytes of the planes of a row of `n` elements.
///
/// # Errors
/// [`Error::NotPlanar`] for the types that are for weights only, [`Error::RowLength`] and [`Error::TooLarge`] as [`DType::row_bytes`].
pub fn planar_bytes(dtype: DType, n: usize) -> Result<PlanarBytes, Error> {
    let row = dtype.row_bytes(n)?;
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => Ok(PlanarBytes { quants: row, scales: 0 }),
        DType::Q8_0 | DType::Q4_0 => {
            let scales = n / BLOCK_LEN * 2;
            Ok(PlanarBytes { quants: row - scales, scales })
        }
        _ => Err(Error::NotPlanar { dtype }),
    }
}

fn check_planes(dtype: DType, n: usize, quants: usize, scales: usize) -> Result<(), Error> {
    let bytes = planar_bytes(dtype, n)?;
    check_len("quants", bytes.quants, quants)?;
    check_len("scales", bytes.scales, scales)
}

/// Encodes a row into planes: the bytes of [`encode`](crate::encode), with the scales set apart.
///
/// # Errors
/// [`Error::NotPlanar`], and those of [`encode`](crate::encode). The planes are then as they were.
pub fn encode_planar(dtype: DType, src: &[f32], quants: &mut [u8], scales: &mut [u8]) -> Result<(), Error> {
    Isa::best().encode_planar(dtype, src, quants, scales)
}

/// Decodes a planar row: the numbers of [`decode`](crate::decode).
///
/// # Errors
/// [`Error::NotPlanar`], [`Error::RowLength`] and [`Error::Length`] where lengths disagree. `dst` is then as it was.
pub fn decode_planar(dtype: DType, quants: &[u8], scales: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    Isa::best().decode_planar(dtype, quants, scales, dst)
}

/// Sets the scales of a ggml row apart.
///
/// # Errors
/// [`Error::NotPlanar`], [`Error::RowLength`] and [`Error::Length`]: `src` decides the number of elements.
pub fn planar_from_ggml(dtype: DType, src: &[u8], quants: &mut [u8], scales: &mut [u8]) -> Result<(), Error> {
    let n = src.len() / dtype.block_bytes() * dtype.block_len();
    check_len("src", dtype.row_bytes(n)?, src.len())?;
    check_planes(dtype, n, quants.len(), scales.len())?;
    if !dtype.is_quantized() {
        quants.copy_from_slice(src);
        return Ok(());
    }
    let blocks = src.chunks_exact(dtype.block_bytes());
    let planes = quants.chunks_exact_mut(dtype.block_bytes() - 2).zip(scales.chunks_exact_mut(2));
    for (block, (q, d)) in blocks.zip(planes) {
        d.copy_from_slice(&block[..2]);
        q.copy_from_slice(&block[2..]);
    }
    Ok(())
}

/// Puts the scales of a planar row back into their blocks.
///
/// # Errors
/// [`Error::NotPlanar`], [`Error::RowLength`] and [`Error::Length`]: `dst` decides the number of elements.
pub fn ggml_from_planar(dtype: DType, quants: &[u8], scales: &[u8], dst: &mut [u8]) -> Result<(), Error> {
    let n = dst.len() / dtype.block_bytes() * dtype.block_len();
    check_len("dst", dtype.row_bytes(n)?, dst.len())?;
    check_planes(dtype, n, quants.len(), scales.len())?;
    if !dtype.is_quantized() {
        dst.copy_from_slice(quants);
        return Ok(());
    }
    let planes = quants.chunks_exact(dtype.block_bytes() - 2).zip(scales.chunks_exact(2));
    for (block, (q, d)) in dst.chunks_exact_mut(dtype.block_bytes()).zip(planes) {
        block[..2].copy_from_slice(d);
        block[2..].copy_from_slice(q);
    }
    Ok(())
}

impl Isa {
    /// [`encode_planar`] by this path.
    ///
    /// # Errors
    /// As [`encode_planar`].
    pub fn encode_planar(
        self,
        dtype: DType,
        src: &[f32],
        quants: &mut [u8],
        scales: &mut [u8],
    ) -> Result<(), Error> {
        check_planes(dtype, src.len(), quants.len(), scales.len())?;
        self.check_encodable(dtype, src)?;
        by_isa!(self, planar::encode_planar(dtype, src, quants, scales));
        Ok(())
    }

    /// [`decode_planar`] by this path.
    ///
    /// # Errors
    /// As [`decode_planar`].
    pub fn decode_planar(
        self,
        dtype: DType,
        quants: &[u8],
        scales: &[u8],
        dst: &mut [f32],
    ) -> Result<(), Error> {
        check_planes(dtype, dst.len(), quants.len(), scales.len())?;
        by_isa!(self, planar::decode_planar(dtype, quants, scales, dst));
        Ok(())
    }
}
