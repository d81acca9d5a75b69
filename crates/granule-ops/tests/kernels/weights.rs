//! Weights on a device, drawn as they lie there: every bit of every plane put in its place by itself, after the table in
//! `kernels/include/weights.cuh`, with the number that it stands for beside it.

use granule_quant::{DType, WeightPlanes, decode, pack_planes};
use half::{bf16, f16};

use crate::random::Random;

/// The types whose rows are blocks.
pub(crate) const QUANTIZED: [DType; 13] = [
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::IQ4_NL,
    DType::IQ4_XS,
    DType::IQ2_XXS,
];

/// So many columns, or the next number of them that the type can have.
pub(crate) fn cols(dtype: DType, cols: usize) -> usize {
    if dtype.is_quantized() { cols.next_multiple_of(dtype.block_len()) } else { cols }
}

const UNEVEN: [i32; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
const GRID: [i32; 8] = [8, 25, 43, 0, -8, -25, -43, 0];

/// What one type's planes hold.
struct Spec {
    /// Bits of a code in the low and in the high plane.
    bits: [usize; 2],
    /// Runs of a block, and scales of a run beside the block's.
    runs: usize,
    scales: usize,
    minimum: bool,
    /// What is taken off a code, where it is not looked up.
    offset: i32,
    table: &'static [i32],
    unit: f32,
}

fn spec(dtype: DType) -> Spec {
    let of = |low, high, runs, scales, minimum, offset| Spec {
        bits: [low, high],
        runs,
        scales,
        minimum,
        offset,
        table: &[],
        unit: 1.0,
    };
    match dtype {
        DType::Q8_0 => of(8, 0, 1, 0, false, 128),
        DType::Q4_0 => of(4, 0, 1, 0, false, 8),
        DType::Q4_1 => of(4, 0, 1, 0, true, 0),
        DType::Q5_0 => of(4, 1, 1, 0, false, 16),
        DType::Q5_1 => of(4, 1, 1, 0, true, 0),
        DType::Q2_K => of(2, 0, 8, 2, true, 0),
        DType::Q3_K => of(2, 1, 8, 2, false, 4),
        DType::Q4_K => of(4, 0, 8, 1, true, 0),
        DType::Q5_K => of(4, 1, 8, 1, true, 0),
        DType::Q6_K => of(4, 2, 8, 2, false, 32),
        DType::IQ4_NL => Spec { table: &UNEVEN, ..of(4, 0, 1, 0, false, 0) },
        DType::IQ4_XS => Spec { table: &UNEVEN, ..of(4, 0, 8, 1, false, 0) },
        DType::IQ2_XXS => Spec { table: &GRID, unit: 0.125, ..of(2, 1, 8, 1, false, 0) },
        other => panic!("{other} has no blocks"),
    }
}

/// A matrix as it lies on a device, and its numbers.
#[derive(Clone)]
pub(crate) struct Weights {
    pub(crate) dtype: DType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// The tensor, from a multiple of 16.
    words: Vec<u128>,
    /// Where the planes low, high, scales and d begin in it.
    pub(crate) planes: [usize; 4],
    /// Rows x cols. In types with minimums each is rounded once, as decoding does.
    pub(crate) values: Vec<f32>,
    /// Their magnitudes, with that of what the minimum is added to beside that of the minimum: of such sizes are the terms that a
    /// product adds up.
    pub(crate) sizes: Vec<f32>,
}

impl Weights {
    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }

    fn set(&mut self, at: usize, bits: u8) {
        bytemuck::cast_slice_mut::<u128, u8>(&mut self.words)[at] |= bits;
    }

    /// Random numbers of about 1.
    pub(crate) fn draw(dtype: DType, rows: usize, cols: usize, seed: u64) -> Weights {
        let mut random = Random(seed);
        if dtype.is_quantized() {
            Weights::blocks(dtype, rows, cols, &mut random)
        } else {
            Weights::floats(dtype, rows, cols, &mut random)
        }
    }

    /// What `granule_quant::pack_planes` makes of blocks of random bytes, with what `decode` makes of them; nothing for products.
    pub(crate) fn packed(dtype: DType, rows: usize, cols: usize, seed: u64) -> Weights {
        let mut random = Random(seed);
        let row = dtype.row_bytes(cols).unwrap();
        let ggml: Vec<u8> = (0..rows * row).map(|_| random.next() as u8).collect();
        let WeightPlanes { low, high, scales, d, bytes, .. } = WeightPlanes::of(dtype, rows, cols).unwrap();
        let mut words = vec![0; bytes / 16];
        pack_planes(dtype, rows, cols, &ggml, bytemuck::cast_slice_mut::<u128, u8>(&mut words)).unwrap();
        let mut values = vec![0.0; rows * cols];
        decode(dtype, &ggml, &mut values).unwrap();
        Weights { dtype, rows, cols, words, planes: [low, high, scales, d], values, sizes: Vec::new() }
    }

    fn floats(dtype: DType, rows: usize, cols: usize, random: &mut Random) -> Weights {
        let size = dtype.block_bytes();
        let stride = (cols * size).next_multiple_of(16);
        let words = vec![0; (rows * stride).next_multiple_of(256) / 16];
        let mut weights =
            Weights { dtype, rows, cols, words, planes: [0; 4], values: Vec::new(), sizes: Vec::new() };
        for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
            let x = random.signed() * random.below(3) as f32;
            let (bytes, value) = match dtype {
                DType::F16 => (f16::from_f32(x).to_le_bytes().to_vec(), f16::from_f32(x).to_f32()),
                DType::BF16 => (bf16::from_f32(x).to_le_bytes().to_vec(), bf16::from_f32(x).to_f32()),
                _ => (x.to_le_bytes().to_vec(), x),
            };
            let at = row * stride + col * size;
            bytes.iter().enumerate().for_each(|(i, &byte)| weights.set(at + i, byte));
            weights.values.push(value);
        }
        weights.sizes = weights.values.iter().map(|x| x.abs()).collect();
        weights
    }

    fn blocks(dtype: DType, rows: usize, cols: usize, random: &mut Random) -> Weights {
        let Spec { bits, runs, scales, minimum, offset, table, unit } = spec(dtype);
        let narrow = dtype == DType::Q2_K;
        let scale_bytes = if narrow { 2 } else { scales * (1 + usize::from(minimum)) };
        let n = rows * cols / 32;
        let mut planes = [0; 4];
        let mut end = 0;
        let sizes =
            [4 * bits[0] * n, 4 * bits[1] * n, scale_bytes * n, (2 + 2 * usize::from(minimum)) * n / runs];
        for (plane, size) in planes.iter_mut().zip(sizes) {
            *plane = end;
            end = (end + size).next_multiple_of(256);
        }
        let (words, numbers) = (vec![0; end / 16], Vec::with_capacity(rows * cols));
        let mut weights =
            Weights { dtype, rows, cols, words, planes, values: numbers.clone(), sizes: numbers };
        let (mut d, mut dmin) = (f16::ZERO, f16::ZERO);
        for run in 0..n {
            if run % runs == 0 {
                // Scales are up to 15 (Q2_K), 63 (K types) or 127 (Q6_K), codes up to 127.
                let about = if scales == 0 { 0.05 } else { 0.002 };
                d = f16::from_f32(random.signed() * about);
                dmin = f16::from_f32(random.signed() * about * 8.0);
                if random.below(50) == 0 {
                    d = f16::from_bits(random.below(1024) as u16); // subnormal
                }
                let at = planes[3] + run / runs * (2 + 2 * usize::from(minimum));
                d.to_le_bytes().iter().enumerate().for_each(|(i, &byte)| weights.set(at + i, byte));
                if minimum {
                    dmin.to_le_bytes()
                        .iter()
                        .enumerate()
                        .for_each(|(i, &byte)| weights.set(at + 2 + i, byte));
                }
            }
            let mut factors = [(1, 1); 2];
            if narrow {
                for (half, (s, t)) in factors.iter_mut().enumerate() {
                    (*s, *t) = (random.below(16) as i32, random.below(16) as i32);
                    weights.set(planes[2] + 2 * run + half, (*s | *t << 4) as u8);
                }
            } else {
                for (i, (factor, _)) in factors.iter_mut().enumerate().take(scales) {
                    let s = random.below(256) as u8;
                    *factor = i32::from(s.cast_signed());
                    weights.set(planes[2] + scale_bytes * run + i, s);
                }
                if scales == 1 {
                    factors[1].0 = factors[0].0;
                    if minimum {
                        let t = random.below(256) as u8;
                        (factors[0].1, factors[1].1) = (i32::from(t), i32::from(t));
                        weights.set(planes[2] + scale_bytes * run + 1, t);
                    }
                }
            }
            for element in 0..32 {
                let code = random.below(1 << (bits[0] + bits[1]));
                for (plane, (width, part)) in
                    [(bits[0], code & ((1 << bits[0]) - 1)), (bits[1], code >> bits[0])]
                        .into_iter()
                        .enumerate()
                {
                    if width > 0 {
                        let word = element / 4;
                        let at = planes[plane] + run * 4 * width + word % width * 4 + element % 4;
                        weights.set(at, (part << (word / width * width)) as u8);
                    }
                }
                let q = table.get(code).copied().unwrap_or(code as i32 - offset);
                let (s, t) = factors[element / 16];
                let product = d.to_f32() * unit * s as f32 * q as f32;
                let added = match (minimum, scales) {
                    (false, _) => -0.0,
                    (true, 0) => dmin.to_f32(),
                    (true, _) => -(dmin.to_f32() * t as f32),
                };
                weights.values.push(product + added);
                weights.sizes.push(product.abs() + added.abs());
            }
        }
        weights
    }
}
