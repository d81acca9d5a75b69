//! The naive twins: the formats and products as their definitions say it, in f64, and the numbers to try them on.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its share, and a test may panic")]

use granule_quant::DType;
use proptest::prelude::*;

/// The value of an f16, from its sign, exponent and fraction.
pub(crate) fn f16(bits: u16) -> f64 {
    let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
    };
    if sign == 0 { magnitude } else { -magnitude }
}

/// The elements of a row of ggml bytes.
pub(crate) fn decode(dtype: DType, row: &[u8]) -> Vec<f64> {
    let u16_at = |b: &[u8], i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
    let nibble = |q: &[u8], j: usize| f64::from(if j < 16 { q[j] & 15 } else { q[j - 16] >> 4 });
    let block = |b: &[u8]| -> Vec<f64> {
        match dtype {
            DType::F32 => vec![f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))],
            DType::F16 => vec![f16(u16_at(b, 0))],
            DType::BF16 => vec![f64::from(f32::from_bits(u32::from(u16_at(b, 0)) << 16))],
            DType::Q8_0 => (0..32).map(|j| f16(u16_at(b, 0)) * f64::from(b[2 + j] as i8)).collect(),
            DType::Q4_0 => (0..32).map(|j| f16(u16_at(b, 0)) * (nibble(&b[2..], j) - 8.0)).collect(),
            DType::Q4_1 => {
                (0..32).map(|j| f16(u16_at(b, 0)) * nibble(&b[4..], j) + f16(u16_at(b, 2))).collect()
            }
            _ => unreachable!("a type without a twin"),
        }
    };
    row.chunks(dtype.block_bytes()).flat_map(block).collect()
}

/// Sum of products, and the sum of their magnitudes.
pub(crate) fn dot(w: &[f64], x: &[f64]) -> (f64, f64) {
    assert_eq!(w.len(), x.len());
    w.iter().zip(x).fold((0.0, 0.0), |(sum, sizes), (w, x)| (sum + w * x, sizes + (w * x).abs()))
}

pub(crate) fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Every type.
pub(crate) fn any_dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(DType::ALL)
}

/// A finite number of some size: everyday ones, zeros, halves, powers of two, subnormals, the largest.
fn element(scale: f32) -> impl Strategy<Value = f32> {
    prop_oneof![
        20 => (-1.0f32..1.0).prop_map(move |x| x * scale),
        2 => Just(0.0f32),
        1 => Just(-0.0f32),
        2 => Just(scale),
        2 => Just(-scale),
        4 => (-254i16..=254).prop_map(move |h| half(h, scale / 127.0)),
        2 => (-16i16..=16).prop_map(move |h| half(h, scale / 8.0)),
    ]
}

/// `halves / 2 * unit`, kept finite.
fn half(halves: i16, unit: f32) -> f32 {
    (f32::from(halves) / 2.0 * unit).clamp(f32::MIN, f32::MAX)
}

/// 32 finite numbers of one order of magnitude, out of all there are.
pub(crate) fn block() -> impl Strategy<Value = Vec<f32>> {
    let scale = prop_oneof![
        6 => Just(1.0f32),
        2 => Just(127.0f32),
        2 => Just(8.0f32),
        4 => (-149i32..128).prop_map(|e| 2f32.powi(e)),
        1 => Just(f32::MAX),
        1 => Just(f32::MIN_POSITIVE),
        1 => Just(65504.0f32),
        1 => Just(65520.0f32),
        1 => Just(65519.996f32 * 8.0),
        1 => Just(65519.996f32 * 127.0),
        1 => 2.5e-39f32..3.5e-39,
        1 => (2.5e-39f32..3.5e-39).prop_map(|d| d * 127.0),
        1 => (2.5e-39f32..3.5e-39).prop_map(|d| d * 8.0),
    ];
    let finite_bits = any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |x| x.is_finite());
    prop_oneof![
        30 => scale.prop_flat_map(|s| prop::collection::vec(element(s), 32)),
        1 => prop::collection::vec(finite_bits, 32),
        1 => Just(vec![0.0; 32]),
        1 => Just(vec![-0.0; 32]),
    ]
}

/// `blocks` blocks, each of its own order of magnitude.
pub(crate) fn row(blocks: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(block(), blocks).prop_map(|blocks| blocks.concat())
}

/// `n` numbers as weights and activations have them.
pub(crate) fn ordinary(n: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(element(1.0), n)
}

/// Random ggml bytes of a row of `n` elements, all scales, minima and floats of which are finite and below 4 (floats
/// are also never so small that a product could underflow in f32).
pub(crate) fn weights(dtype: DType, n: usize) -> impl Strategy<Value = Vec<u8>> {
    let size = dtype.block_bytes();
    prop::collection::vec(any::<u8>(), dtype.row_bytes(n).unwrap()).prop_map(move |mut row| {
        let tame = |f16: &mut u8| *f16 = *f16 & 0xbf | 0x08;
        for block in row.chunks_mut(size) {
            match dtype {
                DType::F32 => block[3] = block[3] & 0x80 | (0x3f - block[3] % 4),
                DType::F16 => tame(&mut block[1]),
                DType::BF16 => block[1] = block[1] & 0x80 | (0x3f - block[1] % 4),
                DType::Q4_1 => {
                    tame(&mut block[1]);
                    tame(&mut block[3]);
                }
                _ => tame(&mut block[1]),
            }
        }
        row
    })
}
