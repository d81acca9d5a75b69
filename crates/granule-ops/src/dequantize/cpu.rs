//! Dequantizing rows on the host.

use granule_quant::{DType, decode, decode_planar};
use half::{bf16, f16};

use crate::rows::{Rows, RowsMut};
use crate::{Error, dequantize};

/// Elements converted at once: few enough for the stack, enough for the vector paths.
const PIECE: usize = 256;

/// Dequantizes every row of `from` (Q8_0, Q4_0) into that of `to` (f32, f16, bf16): the numbers of
/// `granule_quant::scalar::decode`, rounded to nearest even where the target is narrower, beyond its range to infinity.
///
/// # Errors
/// [`Error::Types`], [`Error::Shape`], [`Error::NotOnHost`]. Nothing is written. No byte of `from` is an error.
pub fn cpu(from: Rows<'_>, mut to: RowsMut<'_>) -> Result<(), Error> {
    dequantize::check(from.shape(), to.shape())?;
    let (dtype, floats) = (from.shape().dtype(), to.shape().dtype());
    let planar = from.shape().planes().is_some();
    let (source, mut target) = (from.host()?, to.host()?);
    let block = dtype.block_bytes() - if planar { 2 } else { 0 };
    let mut x = [0.0; PIECE];
    for i in 0..from.shape().rows() {
        let [quants, scales] = source.row(i);
        let [row, _] = target.row(i);
        let mut scales = scales.chunks(PIECE / 32 * 2);
        let pieces = quants.chunks(PIECE / 32 * block).zip(row.chunks_mut(PIECE * floats.block_bytes()));
        for (quants, row) in pieces {
            let x = &mut x[..row.len() / floats.block_bytes()];
            match scales.next() {
                Some(scales) => decode_planar(dtype, quants, scales, x)?,
                None => decode(dtype, quants, x)?,
            }
            store(floats, x, row);
        }
    }
    Ok(())
}

/// Writes numbers as floats of type `dtype`: to nearest even, too large ones as infinity.
fn store(dtype: DType, x: &[f32], to: &mut [u8]) {
    let halves = to.as_chunks_mut::<2>().0;
    match dtype {
        DType::F16 => halves.iter_mut().zip(x).for_each(|(to, &x)| *to = f16::from_f32(x).to_le_bytes()),
        DType::BF16 => halves.iter_mut().zip(x).for_each(|(to, &x)| *to = bf16::from_f32(x).to_le_bytes()),
        _ => to.as_chunks_mut().0.iter_mut().zip(x).for_each(|(to, &x)| *to = x.to_le_bytes()),
    }
}
