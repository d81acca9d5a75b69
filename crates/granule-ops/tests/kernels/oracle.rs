//! What the kernels must give: the scalar reference of granule-quant row by row, `half` for the float types, and for the
//! blocks that the reference refuses what `quantize.cu` promises.

use granule_ops::RowShape;
use granule_quant::{BLOCK_LEN, DType, Error, planar_from_ggml, scalar};
use half::{bf16, f16};

use crate::machine::Placed;

pub(crate) const NOT_FINITE: u32 = 1;
pub(crate) const OVERFLOW: u32 = 2;

/// The bytes of a block of `x`, and the flag for it.
fn block(dtype: DType, x: &[f32]) -> (Vec<u8>, u32) {
    let mut bytes = vec![0; dtype.block_bytes()];
    match scalar::encode(dtype, x, &mut bytes) {
        Ok(()) => (bytes, 0),
        Err(Error::NotFinite { .. }) => {
            scalar::encode(dtype, &[0.0; BLOCK_LEN], &mut bytes).unwrap();
            bytes[..2].copy_from_slice(&0x7fff_u16.to_le_bytes());
            (bytes, NOT_FINITE)
        }
        Err(Error::Overflow { .. }) => {
            // A power of two changes the scale and no quant.
            let smaller: Vec<f32> = x.iter().map(|x| x * 2f32.powi(-120)).collect();
            scalar::encode(dtype, &smaller, &mut bytes).unwrap();
            let negative = bytes[1] & 0x80 != 0;
            let scale = if negative { f16::NEG_INFINITY } else { f16::INFINITY };
            bytes[..2].copy_from_slice(&scale.to_le_bytes());
            (bytes, OVERFLOW)
        }
        Err(error) => panic!("{error}"),
    }
}

/// The f32 values of a row of floats.
fn floats(dtype: DType, row: &[u8]) -> Vec<f32> {
    let halves = || row.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        DType::F16 => halves().map(|bits| f16::from_bits(bits).to_f32()).collect(),
        DType::BF16 => halves().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        _ => row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// A row of floats of these values.
pub(crate) fn float_row(dtype: DType, x: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F16 => x.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => x.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        _ => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// Row `i`'s quants and scales in a memory of this shape, or the whole row and nothing.
fn parts(shape: &RowShape, i: usize) -> [std::ops::Range<usize>; 2] {
    let start = i * shape.stride();
    let blocks = shape.cols() / BLOCK_LEN;
    match shape.planes() {
        None => {
            let end = start + shape.dtype().row_bytes(shape.cols()).unwrap();
            [start..end, end..end]
        }
        Some(planes) => {
            let (quants, scales) = (start + planes.quants, start + planes.scales);
            [quants..quants + blocks * (shape.dtype().block_bytes() - 2), scales..scales + blocks * 2]
        }
    }
}

/// The plain bytes of row `i`.
fn plain_row(memory: &[u8], shape: &RowShape, i: usize) -> Vec<u8> {
    let [quants, scales] = parts(shape, i).map(|range| &memory[range]);
    if shape.planes().is_none() {
        return quants.to_vec();
    }
    let width = shape.dtype().block_bytes() - 2;
    let blocks = quants.chunks(width).zip(scales.chunks(2));
    blocks.flat_map(|(quants, scale)| [scale, quants].concat()).collect()
}

/// Puts a plain row into row `i`.
fn put_row(memory: &mut [u8], shape: &RowShape, i: usize, row: &[u8]) {
    let [quants, scales] = parts(shape, i);
    if shape.planes().is_none() {
        return memory[quants].copy_from_slice(row);
    }
    let (mut q, mut d) = (vec![0; quants.len()], vec![0; scales.len()]);
    planar_from_ggml(shape.dtype(), row, &mut q, &mut d).unwrap();
    memory[quants].copy_from_slice(&q);
    memory[scales].copy_from_slice(&d);
}

/// What `to` and the flag are after quantizing.
pub(crate) fn quantize(from: &Placed, x: &RowShape, to: &Placed, y: &RowShape) -> (Placed, u32) {
    let (mut expected, mut flag) = (to.clone(), 0);
    for i in 0..x.rows() {
        let row = floats(x.dtype(), &plain_row(from.bytes(), x, i));
        let mut blocks = Vec::new();
        for x in row.chunks(BLOCK_LEN) {
            let (bytes, bits) = block(y.dtype(), x);
            blocks.extend(bytes);
            flag |= bits;
        }
        put_row(expected.bytes_mut(), y, i, &blocks);
    }
    (expected, flag)
}

/// What `to` is after dequantizing, with every NaN the same one.
pub(crate) fn dequantize(from: &Placed, x: &RowShape, to: &Placed, y: &RowShape) -> Placed {
    let mut expected = to.clone();
    for i in 0..x.rows() {
        let mut row = vec![0.0; x.cols()];
        scalar::decode(x.dtype(), &plain_row(from.bytes(), x, i), &mut row).unwrap();
        put_row(expected.bytes_mut(), y, i, &float_row(y.dtype(), &row));
    }
    one_nan(expected, y)
}

/// What `to` is after a change of layout.
pub(crate) fn relayout(from: &Placed, x: &RowShape, to: &Placed, y: &RowShape) -> Placed {
    let mut expected = to.clone();
    for i in 0..x.rows() {
        put_row(expected.bytes_mut(), y, i, &plain_row(from.bytes(), x, i));
    }
    expected
}

/// Float rows with every NaN the same one: which it is, is not promised.
pub(crate) fn one_nan(mut memory: Placed, shape: &RowShape) -> Placed {
    for i in 0..shape.rows() {
        let [row, _] = parts(shape, i);
        let x = floats(shape.dtype(), &memory.bytes()[row.clone()]);
        let x: Vec<f32> = x.iter().map(|&x| if x.is_nan() { f32::NAN } else { x }).collect();
        memory.bytes_mut()[row].copy_from_slice(&float_row(shape.dtype(), &x));
    }
    memory
}
