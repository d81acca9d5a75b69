//! The naive twins: the formats and products as their definitions say it, in f64, and the numbers to try them on.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its share, and a test may panic")]

use granule_quant::DType;
use proptest::prelude::*;

/// A power of two, exactly (Miri's `powi` is off on purpose).
pub(crate) fn two_to(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

/// The value of an f16, from its sign, exponent and fraction.
pub(crate) fn f16(bits: u16) -> f64 {
    let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * two_to(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * two_to(exponent - 15),
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

/// Random ggml bytes of a row of `n` elements, tamed.
pub(crate) fn weights(dtype: DType, n: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), dtype.row_bytes(n).unwrap()).prop_map(move |mut row| {
        tame(dtype, &mut row);
        row
    })
}

/// Makes all scales, minima and floats of a row of ggml bytes finite and smaller than 4, and none so small that a product
/// could underflow in f32.
pub(crate) fn tame(dtype: DType, row: &mut [u8]) {
    let f16 = |upper: &mut u8| *upper = (*upper & 0xbf) | 0x08;
    let f32 = |upper: &mut u8| *upper = (*upper & 0x80) | (0x3f - *upper % 4);
    for block in row.chunks_mut(dtype.block_bytes()) {
        match dtype {
            DType::F32 => f32(&mut block[3]),
            DType::BF16 => f32(&mut block[1]),
            DType::Q4_1 => {
                f16(&mut block[1]);
                f16(&mut block[3]);
            }
            _ => f16(&mut block[1]),
        }
    }
}

/// Random bytes, the same in every run.
pub(crate) fn bytes(n: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..n).map(|_| next()).collect()
}
