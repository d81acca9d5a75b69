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

/// The elements of a row of ggml bytes as what they are sums of: scale times quant, and minimum.
pub(crate) fn parts(dtype: DType, row: &[u8]) -> Vec<(f64, f64)> {
    let block = |b: &[u8]| (0..dtype.block_len()).map(|e| part(dtype, b, e)).collect::<Vec<_>>();
    match dtype {
        // A table of numbers has no other twin; the decoder is held to the package `gguf`.
        DType::IQ2_XXS => {
            let mut x = vec![0.0; row.len() / dtype.block_bytes() * dtype.block_len()];
            granule_quant::scalar::decode(dtype, row, &mut x).unwrap();
            x.into_iter().map(|x| (f64::from(x), 0.0)).collect()
        }
        DType::Q4_1 => {
            let m = row.chunks(20).flat_map(|b| [f16_at(b, 2); 32]);
            decode(dtype, row).into_iter().zip(m).map(|(x, m)| (x - m, m)).collect()
        }
        DType::F32 | DType::F16 | DType::BF16 | DType::Q8_0 | DType::Q4_0 => {
            decode(dtype, row).into_iter().map(|x| (x, 0.0)).collect()
        }
        _ => row.chunks(dtype.block_bytes()).flat_map(block).collect(),
    }
}

/// Element `e` of a block of the types that the products expand.
fn part(dtype: DType, b: &[u8], e: usize) -> (f64, f64) {
    // Where a block of 256 keeps an element: its half, its 32 of that half, its place in these.
    let (half, run, j) = (e / 128, e % 128 / 32, e % 32);
    let bit = |byte: u8, i: usize| byte >> i & 1;
    let nibble = |q: &[u8]| if j < 16 { q[j] & 15 } else { q[j - 16] >> 4 };
    let two = |q: &[u8]| q[32 * half + j] >> (2 * run) & 3;
    let four = |q: &[u8]| q[e / 64 * 32 + j] >> (e / 32 % 2 * 4) & 15;
    let values = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    // Scale and minimum of 6 bits.
    let six = |k: &[u8], i: usize| {
        let (s, t) = if i < 4 {
            (k[i] % 64, k[i + 4] % 64)
        } else {
            (k[i + 4] % 16 + k[i - 4] / 64 * 16, k[i + 4] / 16 + k[i] / 64 * 16)
        };
        (f64::from(s), f64::from(t))
    };
    let number = |q: u8| f64::from(q);
    match dtype {
        DType::Q5_0 => {
            let q = nibble(&b[6..]) + 16 * bit(b[2 + j / 8], j % 8);
            (f16_at(b, 0) * (number(q) - 16.0), 0.0)
        }
        DType::Q5_1 => {
            let q = nibble(&b[8..]) + 16 * bit(b[4 + j / 8], j % 8);
            (f16_at(b, 0) * number(q), f16_at(b, 2))
        }
        DType::Q2_K => {
            let s = b[e / 16];
            (f16_at(b, 80) * number(s % 16) * number(two(&b[16..])), -f16_at(b, 82) * number(s / 16))
        }
        DType::Q3_K => {
            let g = e / 16;
            let low = if g < 8 { b[96 + g] % 16 } else { b[96 + g - 8] / 16 };
            let s = low + 16 * (b[104 + g % 4] >> (2 * (g / 4)) & 3);
            let q = two(&b[32..]) + 4 * bit(b[j], e / 32);
            (f16_at(b, 108) * (number(s) - 32.0) * (number(q) - 4.0), 0.0)
        }
        DType::Q4_K => {
            let (s, t) = six(&b[4..], e / 32);
            (f16_at(b, 0) * s * number(four(&b[16..])), -f16_at(b, 2) * t)
        }
        DType::Q5_K => {
            let (s, t) = six(&b[4..], e / 32);
            let q = four(&b[48..]) + 16 * bit(b[16 + j], e / 32);
            (f16_at(b, 0) * s * number(q), -f16_at(b, 2) * t)
        }
        DType::Q6_K => {
            let low = b[64 * half + e % 64] >> (e % 128 / 64 * 4) & 15;
            let q = low + 16 * two(&b[128..]);
            (f16_at(b, 208) * f64::from(b[192 + e / 16] as i8) * (number(q) - 32.0), 0.0)
        }
        DType::IQ4_NL => (f16_at(b, 0) * f64::from(values[usize::from(nibble(&b[2..]))]), 0.0),
        DType::IQ4_XS => {
            let i = e / 32;
            let s = (b[4 + i / 2] >> (i % 2 * 4) & 15) + 16 * (b[2 + i / 4] >> (i % 4 * 2) & 3);
            let value = values[usize::from(nibble(&b[8 + 16 * i..]))];
            (f16_at(b, 0) * (number(s) - 32.0) * f64::from(value), 0.0)
        }
        _ => unreachable!("a type without a twin"),
    }
}

/// The f16 at byte `i` of a block.
fn f16_at(b: &[u8], i: usize) -> f64 {
    f16(u16::from_le_bytes([b[i], b[i + 1]]))
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
            _ => parts(dtype, b).into_iter().map(|(x, m)| x + m).collect(),
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

/// Every type that is encoded.
pub(crate) fn any_encoded_dtype() -> impl Strategy<Value = DType> {
    any_dtype().prop_filter("encoded", |dtype| dtype.is_encoded())
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
            _ => scales(dtype).iter().for_each(|&at| f16(&mut block[at])),
        }
    }
}

/// Where the upper bytes of a block's f16 scales and minimums are, or of its float.
pub(crate) fn scales(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[1, 3],
        DType::Q2_K => &[81, 83],
        DType::Q3_K => &[109],
        DType::Q6_K => &[209],
        _ => &[1],
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

/// The distance of neighbouring values of element `e` of a `Q4_K`, `Q5_K` or `Q6_K` block, and the ends of what it may be.
pub(crate) fn steps(dtype: DType, block: &[u8], e: usize) -> (f64, f64, f64) {
    // The value with all quants lowest, and that with all highest.
    let (quants, count) = match dtype {
        DType::Q4_K => (16..144, 15.0),
        DType::Q5_K => (16..176, 31.0),
        _ => (0..192, 63.0),
    };
    let with = |byte: u8| {
        let mut block = block.to_vec();
        block[quants.clone()].fill(byte);
        decode(dtype, &block)[e]
    };
    let ends = (with(0), with(255));
    ((ends.1 - ends.0).abs() / count, ends.0.min(ends.1), ends.0.max(ends.1))
}
