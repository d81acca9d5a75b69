//! Weights in planes: a naive reader of the layout against the decoder of the ggml bytes, and what packing leaves alone.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod naive;

use granule_quant::{DType, Error, WeightPlanes, decode, decode_planes, pack_planes, pack_planes_rows};
use proptest::prelude::*;

/// What bytes are before anything is packed.
const UNTOUCHED: u8 = 0xa5;

/// What a type is, as the documentation of its block and of the planes has it.
struct Kind {
    /// Bits in `low` and in `high`.
    bits: [usize; 2],
    /// What each code stands for.
    values: Vec<f32>,
    /// Bytes of scales and minimums of a run.
    scales: usize,
    /// Whether there are minimums.
    minimum: bool,
    /// Runs of a block.
    runs: usize,
}

fn kind(dtype: DType) -> Kind {
    let less = |offset: i16| (0..256i16).map(|code| f32::from(code - offset)).collect::<Vec<_>>();
    let uneven = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113_i8];
    let uneven: Vec<f32> = uneven.map(f32::from).to_vec();
    let grid = vec![8.0, 25.0, 43.0, f32::NAN, -8.0, -25.0, -43.0, f32::NAN];
    let (bits, values, scales, minimum, runs) = match dtype {
        DType::Q8_0 => ([8, 0], less(128), 0, false, 1),
        DType::Q4_0 => ([4, 0], less(8), 0, false, 1),
        DType::Q4_1 => ([4, 0], less(0), 0, true, 1),
        DType::Q5_0 => ([4, 1], less(16), 0, false, 1),
        DType::Q5_1 => ([4, 1], less(0), 0, true, 1),
        DType::Q2_K => ([2, 0], less(0), 2, true, 8),
        DType::Q3_K => ([2, 1], less(4), 2, false, 8),
        DType::Q4_K => ([4, 0], less(0), 2, true, 8),
        DType::Q5_K => ([4, 1], less(0), 2, true, 8),
        DType::Q6_K => ([4, 2], less(32), 2, false, 8),
        DType::IQ4_NL => ([4, 0], uneven, 0, false, 1),
        DType::IQ4_XS => ([4, 0], uneven, 1, false, 8),
        DType::IQ2_XXS => ([2, 1], grid, 1, false, 8),
        _ => unreachable!("{dtype} has no codes"),
    };
    Kind { bits, values, scales, minimum, runs }
}

/// The next multiple of 256.
fn whole(n: usize) -> usize {
    n.div_ceil(256) * 256
}

/// Where each plane begins, and the end.
fn starts(kind: &Kind, rows: usize, cols: usize) -> [usize; 5] {
    let runs = rows * cols / 32;
    let high = whole(runs * 4 * kind.bits[0]);
    let scales = high + whole(runs * 4 * kind.bits[1]);
    let d = scales + whole(runs * kind.scales);
    let bytes_of_d = if kind.minimum { 4 } else { 2 };
    [0, high, scales, d, d + whole(runs / kind.runs * bytes_of_d)]
}

/// Bit by bit: the `n` bits of element `e`, 0 to 31, in the words of a run.
fn bits(words: &[u8], n: usize, e: usize) -> usize {
    let (word, place) = (e / 4, e % 4);
    (0..n)
        .map(|bit| {
            let at = word / n * n + bit; // of the byte
            usize::from(words[word % n * 4 + place] >> at & 1) << bit
        })
        .sum()
}

fn f16(bytes: &[u8]) -> f32 {
    naive::f16(u16::from_le_bytes([bytes[0], bytes[1]])) as f32
}

/// Element (`row`, `col`), read as the documentation of the planes says.
fn element(dtype: DType, [rows, cols]: [usize; 2], planes: &[u8], [row, col]: [usize; 2]) -> f32 {
    let size = dtype.block_bytes();
    if !dtype.is_quantized() {
        let b = &planes[row * (cols * size).div_ceil(16) * 16 + col * size..];
        return match dtype {
            DType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            DType::F16 => f16(b),
            _ => f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16),
        };
    }
    let kind = kind(dtype);
    let [low, high, scales, d, _] = starts(&kind, rows, cols);
    let (run, e) = ((row * cols + col) / 32, col % 32);
    let [l, h] = kind.bits;
    let mut code = bits(&planes[low + run * 4 * l..], l, e);
    if h > 0 {
        code += bits(&planes[high + run * 4 * h..], h, e) << l;
    }
    let q = kind.values[code];
    let (of_run, half) = (&planes[scales + run * kind.scales..], e / 16);
    let of_block = &planes[d + run / kind.runs * if kind.minimum { 4 } else { 2 }..];
    let d = f16(of_block);
    let signed = |byte: u8| f32::from(byte.cast_signed());
    match dtype {
        DType::Q4_1 | DType::Q5_1 => d * q + f16(&of_block[2..]),
        DType::Q2_K => {
            let (s, t) = (of_run[half] % 16, of_run[half] / 16);
            d * f32::from(s) * q - f16(&of_block[2..]) * f32::from(t)
        }
        DType::Q4_K | DType::Q5_K => {
            d * f32::from(of_run[0]) * q - f16(&of_block[2..]) * f32::from(of_run[1])
        }
        DType::Q3_K | DType::Q6_K => d * signed(of_run[half]) * q,
        DType::IQ4_XS => d * signed(of_run[0]) * q,
        DType::IQ2_XXS => d / 8.0 * signed(of_run[0]) * q,
        _ => d * q,
    }
}

/// Bits, with every NaN the same: which NaN comes out is not promised.
fn same(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

/// A type, rows and columns, and any bytes for them, at an odd address.
fn case() -> impl Strategy<Value = (DType, [usize; 2], Vec<u8>)> {
    (naive::any_dtype(), 0usize..7, 0usize..5).prop_flat_map(|(dtype, rows, blocks)| {
        // Of floats also odd columns.
        let cols = if dtype.is_quantized() { blocks * dtype.block_len() } else { blocks * 9 };
        let len = 1 + rows * dtype.row_bytes(cols).unwrap();
        (Just(dtype), Just([rows, cols]), prop::collection::vec(any::<u8>(), len))
    })
}

fn packed(dtype: DType, [rows, cols]: [usize; 2], ggml: &[u8]) -> Vec<u8> {
    let mut planes = vec![UNTOUCHED; WeightPlanes::of(dtype, rows, cols).unwrap().bytes];
    pack_planes(dtype, rows, cols, ggml, &mut planes).unwrap();
    planes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 20 } else { 600 }))]

    #[test]
    fn planes_hold_the_numbers_of_the_ggml_bytes((dtype, shape, ggml) in case()) {
        let [rows, cols] = shape;
        let ggml = &ggml[1..];
        let planes = packed(dtype, shape, ggml);
        let mut expected = vec![0.0; rows * cols];
        decode(dtype, ggml, &mut expected).unwrap();
        for (row, expected) in expected.chunks(cols.max(1)).enumerate() {
            let mut decoded = vec![f32::NAN; cols];
            decode_planes(dtype, rows, cols, &planes, row, &mut decoded).unwrap();
            for (col, &expected) in expected.iter().enumerate() {
                let got = element(dtype, shape, &planes, [row, col]);
                prop_assert_eq!(same(got), same(expected), "{} ({}, {})", dtype, row, col);
                prop_assert_eq!(same(decoded[col]), same(expected), "{} ({}, {})", dtype, row, col);
            }
        }
    }

    #[test]
    fn rows_can_be_packed_in_pieces((dtype, shape, ggml) in case(), cut in 0usize..8) {
        let [rows, cols] = shape;
        let ggml = &ggml[1..];
        let cut = cut.min(rows);
        let whole = packed(dtype, shape, ggml);
        let (first, second) = ggml.split_at(cut * dtype.row_bytes(cols).unwrap());
        let mut pieces = vec![UNTOUCHED; whole.len()];
        pack_planes_rows(dtype, rows, cols, cut..rows, second, &mut pieces).unwrap();
        pack_planes_rows(dtype, rows, cols, 0..cut, first, &mut pieces).unwrap();
        prop_assert_eq!(pieces, whole);
    }

    #[test]
    fn planes_lie_where_the_documentation_says((dtype, [rows, cols], _) in case()) {
        let planes = WeightPlanes::of(dtype, rows, cols).unwrap();
        let WeightPlanes { low, high, scales, d, low_stride, bytes, .. } = planes;
        if dtype.is_quantized() {
            let kind = kind(dtype);
            prop_assert_eq!([low, high, scales, d, bytes], starts(&kind, rows, cols));
            prop_assert_eq!(low_stride, cols / 32 * 4 * kind.bits[0]);
        } else {
            prop_assert_eq!(low_stride, (cols * dtype.block_bytes()).div_ceil(16) * 16);
            prop_assert_eq!((low, bytes), (0, whole(rows * low_stride)));
            prop_assert_eq!([high, scales, d], [bytes; 3]);
        }
    }
}

#[test]
fn only_planes_and_their_padding_of_floats_are_written() {
    for &dtype in DType::ALL {
        let (rows, cols) = (3, if dtype.is_quantized() { dtype.block_len() } else { 3 });
        let ggml = naive::bytes(rows * dtype.row_bytes(cols).unwrap());
        let planes = packed(dtype, [rows, cols], &ggml);
        let mut other = vec![!UNTOUCHED; planes.len()];
        pack_planes(dtype, rows, cols, &ggml, &mut other).unwrap();
        let written: Vec<_> = planes.iter().zip(&other).map(|(a, b)| a == b).collect();
        // Lengths of the planes: what is written comes first in each, then what is not.
        let at = WeightPlanes::of(dtype, rows, cols).unwrap();
        let ends = [at.high, at.scales, at.d, at.bytes];
        for (start, end) in [at.low, at.high, at.scales, at.d].into_iter().zip(ends) {
            let plane = &written[start..end];
            let len = plane.iter().position(|written| !written).unwrap_or(plane.len());
            assert!(plane[len..].iter().all(|written| !written), "{dtype}");
        }
        let expected = if dtype.is_quantized() {
            let k = kind(dtype);
            let of_run = 4 * (k.bits[0] + k.bits[1]) + k.scales;
            rows * (cols / 32 * of_run + cols / 32 / k.runs * if k.minimum { 4 } else { 2 })
        } else {
            rows * 16
        };
        assert_eq!(written.iter().filter(|&&written| written).count(), expected, "{dtype}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let length = |what, expected, got| Err(Error::Length { what, expected, got });
    let of = WeightPlanes::of;
    assert_eq!(of(DType::Q4_K, 1, 128), Err(Error::RowLength { dtype: DType::Q4_K, len: 128, block: 256 }));
    for (dtype, rows, cols) in [
        (DType::Q8_0, 1 << 60, 32),
        (DType::F32, 1 << 62, 4),
        (DType::F16, 2, usize::MAX / 2),
        (DType::BF16, usize::MAX, 1),
    ] {
        assert_eq!(of(dtype, rows, cols), Err(Error::TooLarge { dtype, len: cols }));
    }
    let (ggml, mut planes) = ([7; 36], vec![UNTOUCHED; 512]);
    assert_eq!(pack_planes(DType::Q4_0, 2, 32, &ggml[1..], &mut planes), length("ggml", 36, 35));
    assert_eq!(pack_planes(DType::Q4_0, 2, 32, &ggml, &mut planes[1..]), length("planes", 512, 511));
    let backwards = std::ops::Range { start: planes.len() / 256, end: 1 };
    for piece in [1..3, backwards, 3..3] {
        let got = pack_planes_rows(DType::Q4_0, 2, 32, piece, &ggml[..18], &mut planes);
        assert!(matches!(got, Err(Error::Length { what: "rows", .. })), "{got:?}");
    }
    assert!(planes.iter().all(|&byte| byte == UNTOUCHED));
    let mut row = [1.0; 32];
    assert_eq!(decode_planes(DType::Q4_0, 2, 32, &planes, 2, &mut row), length("rows", 2, 2));
    assert_eq!(decode_planes(DType::Q4_0, 2, 32, &planes, 0, &mut row[1..]), length("dst", 32, 31));
    assert_eq!(decode_planes(DType::Q4_0, 2, 32, &planes[1..], 0, &mut row), length("planes", 512, 511));
    assert_eq!(row, [1.0; 32]);
}
