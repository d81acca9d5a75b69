//! Quantizing rows on the host.

use granule_quant::{DType, decode, encode_planar};

use crate::rows::{Rows, RowsMut};
use crate::{Error, quantize};

/// Elements converted at once: few enough for the stack, enough for the vector paths.
const PIECE: usize = 256;

/// Quantizes every row of `from` (f32, f16, bf16) into that of `to` (Q8_0, Q4_0), by the bytes of
/// `granule_quant::scalar`.
///
/// # Errors
/// [`Error::Types`], [`Error::Shape`], [`Error::NotOnHost`]: nothing is written. [`Error::Quant`] where a number is not
/// finite or too large for the type; rows of the call may then be written in part. Its index is that in the row's piece of
/// 256.
pub fn cpu(from: Rows<'_>, mut to: RowsMut<'_>) -> Result<(), Error> {
    quantize::check(from.shape(), to.shape())?;
    let (dtype, floats) = (to.shape().dtype(), from.shape().dtype());
    let planar = to.shape().planes().is_some();
    let (source, mut target) = (from.host()?, to.host()?);
    let mut x = [0.0; PIECE];
    for i in 0..from.shape().rows() {
        let [row, _] = source.row(i);
        let [quants, scales] = target.row(i);
        let (row, quants) =
            (row.chunks(PIECE * floats.block_bytes()), quants.chunks_mut(bytes(dtype, planar)));
        let mut scales = scales.chunks_mut(PIECE / 32 * 2);
        for (row, quants) in row.zip(quants) {
            let x = &mut x[..row.len() / floats.block_bytes()];
            decode(floats, row, x)?;
            match scales.next() {
                Some(scales) => encode_planar(dtype, x, quants, scales)?,
                None => granule_quant::encode(dtype, x, quants)?,
            }
        }
    }
    Ok(())
}

/// Bytes that a piece takes in its row, or in the quants plane of its row.
fn bytes(dtype: DType, planar: bool) -> usize {
    PIECE / 32 * (dtype.block_bytes() - if planar { 2 } else { 0 })
}
