//! The reference codec: what each format is, as the simplest code that says it.

use bytemuck::{bytes_of, pod_read_unaligned};
use half::f16;

use crate::expand::{by_block, decode as decode_runs};
use crate::fit;
use crate::{BLOCK_LEN, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, DType};

/// `1/d`, or 0 where that is not finite: what an encoder multiplies by.
pub(crate) fn inverse(d: f32) -> f32 {
    let inverse = 1.0 / d;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The first element of largest magnitude, with its index.
pub(crate) fn largest(x: &[f32]) -> (usize, f32) {
    let mut found = (0, x[0]);
    for (i, &v) in x.iter().enumerate() {
        if v.abs() > found.1.abs() {
            found = (i, v);
        }
    }
    found
}

/// The smallest and the largest element, each the first of its value.
fn range(x: &[f32; BLOCK_LEN]) -> (f32, f32) {
    let mut found = (x[0], x[0]);
    for &v in x {
        if v < found.0 {
            found.0 = v;
        }
        if v > found.1 {
            found.1 = v;
        }
    }
    found
}

/// The scale of a Q8_0 block, before it is rounded to f16.
pub(crate) fn scale_q8_0(x: &[f32; BLOCK_LEN]) -> f32 {
    largest(x).1.abs() / 127.0
}

/// The scale of a Q4_0 block, before it is rounded to f16.
pub(crate) fn scale_q4_0(x: &[f32; BLOCK_LEN]) -> f32 {
    largest(x).1 / -8.0
}

/// Scale and minimum of a Q4_1 block, before they are rounded to f16.
pub(crate) fn scale_q4_1(x: &[f32; BLOCK_LEN]) -> (f32, f32) {
    let (min, max) = range(x);
    ((max - min) / 15.0, min)
}

/// The scale of a Q5_0 block, before it is rounded to f16.
pub(crate) fn scale_q5_0(x: &[f32; BLOCK_LEN]) -> f32 {
    largest(x).1 / -16.0
}

/// Scale and minimum of a Q5_1 block, before they are rounded to f16.
pub(crate) fn scale_q5_1(x: &[f32; BLOCK_LEN]) -> (f32, f32) {
    let (min, max) = range(x);
    ((max - min) / 31.0, min)
}

/// The quants of a Q8_0 block with scale `d`.
pub(crate) fn quants_q8_0(x: &[f32; BLOCK_LEN], d: f32) -> [i8; BLOCK_LEN] {
    let id = inverse(d);
    x.map(|v| (v * id).round() as i8)
}

/// The nibbles of a block whose element `j` has the quant `quant(x[j])`, 0 to 15.
fn nibbles(x: &[f32; BLOCK_LEN], quant: impl Fn(f32) -> u8) -> [u8; BLOCK_LEN / 2] {
    std::array::from_fn(|j| quant(x[j]) | (quant(x[j + BLOCK_LEN / 2]) << 4))
}

pub(crate) fn encode_q8_0(x: &[f32; BLOCK_LEN]) -> BlockQ8_0 {
    let d = scale_q8_0(x);
    BlockQ8_0 { d: f16::from_f32(d), q: quants_q8_0(x, d) }
}

pub(crate) fn encode_q4_0(x: &[f32; BLOCK_LEN]) -> BlockQ4_0 {
    let d = scale_q4_0(x);
    let id = inverse(d);
    BlockQ4_0 { d: f16::from_f32(d), q: nibbles(x, |v| ((v * id + 8.5) as u8).min(15)) }
}

pub(crate) fn encode_q4_1(x: &[f32; BLOCK_LEN]) -> BlockQ4_1 {
    let (d, m) = scale_q4_1(x);
    let id = inverse(d);
    BlockQ4_1 {
        d: f16::from_f32(d),
        m: f16::from_f32(m),
        q: nibbles(x, |v| (((v - m) * id + 0.5) as u8).min(15)),
    }
}

/// The low four bits of the quants, 0 to 31, and the fifth bits.
fn five_bits(q: &[u8; BLOCK_LEN]) -> ([u8; BLOCK_LEN / 2], [u8; 4]) {
    let high = q.iter().enumerate().fold(0, |bits, (j, q)| bits | u32::from(q >> 4) << j);
    (std::array::from_fn(|j| q[j] & 15 | q[j + BLOCK_LEN / 2] << 4), high.to_le_bytes())
}

pub(crate) fn encode_q5_0(x: &[f32; BLOCK_LEN]) -> BlockQ5_0 {
    let d = scale_q5_0(x);
    let id = inverse(d);
    let (q, h) = five_bits(&x.map(|v| ((v * id + 16.5) as u8).min(31)));
    BlockQ5_0 { d: f16::from_f32(d), h, q }
}

pub(crate) fn encode_q5_1(x: &[f32; BLOCK_LEN]) -> BlockQ5_1 {
    let (d, m) = scale_q5_1(x);
    let id = inverse(d);
    let (q, h) = five_bits(&x.map(|v| (((v - m) * id + 0.5) as u8).min(31)));
    BlockQ5_1 { d: f16::from_f32(d), m: f16::from_f32(m), h, q }
}

/// Encodes a row of a type that has no code of its own for any instruction set.
#[inline(always)]
pub(crate) fn encode_plainly(dtype: DType, src: &[f32], dst: &mut [u8]) {
    let blocks = src.as_chunks().0.iter().zip(dst.chunks_exact_mut(dtype.block_bytes()));
    match dtype {
        DType::Q5_0 => blocks.for_each(|(s, d)| d.copy_from_slice(bytes_of(&encode_q5_0(s)))),
        DType::Q5_1 => blocks.for_each(|(s, d)| d.copy_from_slice(bytes_of(&encode_q5_1(s)))),
        _ => fit::encode(dtype, src, dst),
    }
}

/// Upper half of an f32, rounded to nearest even; the caller knows that `v` is finite.
pub(crate) fn encode_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

pub(crate) fn decode_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

pub(crate) fn decode_q8_0(block: &BlockQ8_0) -> [f32; BLOCK_LEN] {
    let d = block.d.to_f32();
    block.q.map(|q| d * f32::from(q))
}

/// Element `j` of a block's nibbles, 0 to 15.
pub(crate) fn nibble(q: &[u8; BLOCK_LEN / 2], j: usize) -> u8 {
    if j < BLOCK_LEN / 2 { q[j] & 15 } else { q[j - BLOCK_LEN / 2] >> 4 }
}

pub(crate) fn decode_q4_0(block: &BlockQ4_0) -> [f32; BLOCK_LEN] {
    let d = block.d.to_f32();
    std::array::from_fn(|j| d * (f32::from(nibble(&block.q, j)) - 8.0))
}

pub(crate) fn decode_q4_1(block: &BlockQ4_1) -> [f32; BLOCK_LEN] {
    let (d, m) = (block.d.to_f32(), block.m.to_f32());
    std::array::from_fn(|j| d * f32::from(nibble(&block.q, j)) + m)
}

/// Encodes a row that [`crate::Isa::encode`] has checked: lengths agree, every element can be encoded.
pub(crate) fn encode(dtype: DType, src: &[f32], dst: &mut [u8]) {
    let blocks = src.as_chunks().0.iter().zip(dst.chunks_exact_mut(dtype.block_bytes()));
    match dtype {
        DType::F32 => dst.as_chunks_mut().0.iter_mut().zip(src).for_each(|(d, s)| *d = s.to_le_bytes()),
        DType::F16 => {
            let dst = dst.as_chunks_mut().0.iter_mut();
            dst.zip(src).for_each(|(d, &s)| *d = f16::from_f32(s).to_le_bytes());
        }
        DType::BF16 => {
            let dst = dst.as_chunks_mut().0.iter_mut();
            dst.zip(src).for_each(|(d, &s)| *d = encode_bf16(s).to_le_bytes());
        }
        DType::Q8_0 => blocks.for_each(|(s, d)| d.copy_from_slice(bytes_of(&encode_q8_0(s)))),
        DType::Q4_0 => blocks.for_each(|(s, d)| d.copy_from_slice(bytes_of(&encode_q4_0(s)))),
        DType::Q4_1 => blocks.for_each(|(s, d)| d.copy_from_slice(bytes_of(&encode_q4_1(s)))),
        _ => encode_plainly(dtype, src, dst),
    }
}

/// Decodes a row whose lengths [`crate::Isa::decode`] has checked.
pub(crate) fn decode(dtype: DType, src: &[u8], dst: &mut [f32]) {
    match dtype {
        DType::F32 => dst.iter_mut().zip(src.as_chunks().0).for_each(|(d, &s)| *d = f32::from_le_bytes(s)),
        DType::F16 => {
            dst.iter_mut().zip(src.as_chunks().0).for_each(|(d, &s)| *d = f16::from_le_bytes(s).to_f32());
        }
        DType::BF16 => {
            dst.iter_mut().zip(src.as_chunks().0).for_each(|(d, &s)| *d = decode_bf16(u16::from_le_bytes(s)));
        }
        DType::Q8_0 => decode_blocks(src, dst, decode_q8_0),
        DType::Q4_0 => decode_blocks(src, dst, decode_q4_0),
        DType::Q4_1 => decode_blocks(src, dst, decode_q4_1),
        _ => by_block!(dtype, decode_runs, (src, dst), ()),
    }
}

fn decode_blocks<B: bytemuck::Pod>(src: &[u8], dst: &mut [f32], decode: impl Fn(&B) -> [f32; BLOCK_LEN]) {
    let blocks = src.chunks_exact(size_of::<B>()).map(pod_read_unaligned::<B>);
    for (block, dst) in blocks.zip(dst.as_chunks_mut::<BLOCK_LEN>().0) {
        *dst = decode(&block);
    }
}

/// The bits of the largest magnitude: ordered like the magnitudes, with infinity and then NaN above all.
pub(crate) fn max_magnitude_bits(x: &[f32]) -> u32 {
    x.iter().fold(0, |max, v| max.max(v.abs().to_bits()))
}
