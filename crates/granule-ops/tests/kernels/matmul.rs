//! Products of prompts: weights as they lie on a device, activations in their form, the same product in f64, and how far from it
//! a result may be.

use granule_quant::DType;
use half::{bf16, f16};

use crate::random::Random;
use crate::weights::Weights;

/// How far the f16 that meets tensor cores may be from an element `w` of a quantized type, in a run whose largest is `most`.
pub(crate) fn half_error(dtype: DType, w: f64, most: f64) -> f64 {
    let exact = matches!(dtype, DType::Q8_0 | DType::Q4_0 | DType::Q5_0 | DType::IQ4_NL);
    w.abs() * 2f64.powi(-11) + 2f64.powi(-25) + if exact { 0.0 } else { most * 2f64.powi(-16) }
}

/// Matrices of one type and one length of rows, and the tokens that they meet.
pub(crate) struct Case {
    pub(crate) dtype: DType,
    pub(crate) cols: usize,
    pub(crate) tokens: usize,
    pub(crate) weights: Vec<Weights>,
    /// What the results are added to, of those that are added.
    pub(crate) before: Vec<Option<Vec<f32>>>,
    /// Tokens x cols.
    pub(crate) x: Vec<f32>,
}

/// Activations as the kernel reads them: the 16-bit numbers, rows of a multiple of 8 with what is not to be read behind; then, from a multiple of
/// 256 bytes on, the tokens' factors or the second terms.
pub(crate) struct Activations {
    words: Vec<u128>,
    pub(crate) rest: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
}

impl Activations {
    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }
}

impl Case {
    /// A job for each of `rows`; every second one is added to what is there.
    pub(crate) fn draw(dtype: DType, rows: &[usize], cols: usize, tokens: usize, seed: u64) -> Case {
        let mut random = Random(seed);
        let weights: Vec<Weights> =
            rows.iter().map(|&rows| Weights::draw(dtype, rows, cols, random.next())).collect();
        let before = weights.iter().enumerate().map(|(i, weights)| {
            (i % 2 == 1).then(|| (0..tokens * weights.rows).map(|_| random.signed() * 9.0).collect())
        });
        let before = before.collect();
        // Tokens differ in size by all that an f16 has no room for, and some are nothing but zeros.
        let mut x = Vec::with_capacity(tokens * cols);
        for token in 0..tokens {
            let size = [1.0, 1e-6, 3e7, 0.0, 0.2][if token == 0 { 0 } else { random.below(5) }];
            x.extend((0..cols).map(|_| random.signed() * size * [1.0, 1.0, 0.001][random.below(3)]));
        }
        Case { dtype, cols, tokens, weights, before, x }
    }

    fn is_f16(&self) -> bool {
        !matches!(self.dtype, DType::BF16 | DType::F32)
    }

    /// The power of two that brings a row's largest magnitude to between 2^14 and 2^15; 1 for zeros.
    fn factor(row: &[f32]) -> f32 {
        let most = row.iter().fold(0f32, |most, x| most.max(x.abs()));
        if most == 0.0 { 1.0 } else { 2f32.powi(14 - most.log2().floor() as i32) }
    }

    /// The activations in the form for these weights.
    pub(crate) fn activations(&self) -> Activations {
        let stride = self.cols.next_multiple_of(8);
        let (mut first, mut rest) = (Vec::new(), Vec::new());
        for row in self.x.chunks(self.cols) {
            let padded = row.iter().copied().chain([f32::NAN; 8]).take(stride);
            if self.is_f16() {
                let factor = Case::factor(row);
                first.extend(padded.flat_map(|x| f16::from_f32(x * factor).to_le_bytes()));
                rest.extend((1.0 / factor).to_le_bytes());
            } else {
                for x in padded {
                    let high = bf16::from_f32(x);
                    first.extend(high.to_le_bytes());
                    rest.extend(bf16::from_f32(x - high.to_f32()).to_le_bytes());
                }
            }
        }
        let start = first.len().next_multiple_of(256);
        first.resize(start, 0xff);
        first.extend(rest);
        first.resize(first.len().next_multiple_of(256), 0xff);
        let mut words = vec![0; first.len() / 16];
        bytemuck::cast_slice_mut::<u128, u8>(&mut words).copy_from_slice(&first);
        Activations { words, rest: start, stride }
    }

    /// How far each of a job's weights may be from what meets tensor cores.
    fn weights_off(&self, weights: &Weights) -> Vec<f64> {
        let off = |(values, sizes): (&[f32], &[f32])| -> Vec<f64> {
            let most = sizes.iter().fold(0f64, |most, &x| most.max(x.into()));
            let off = |&w: &f32| match self.dtype {
                DType::F16 | DType::BF16 => 0.0,
                DType::F32 => f64::from(w).abs() * 2f64.powi(-15),
                dtype => half_error(dtype, w.into(), most),
            };
            values.iter().map(off).collect()
        };
        // Rows of blocks are whole runs.
        weights.values.chunks(32).zip(weights.sizes.chunks(32)).flat_map(off).collect()
    }

    /// And each activation of a token.
    fn activations_off(&self, x: &[f32]) -> Vec<f64> {
        let largest = x.iter().fold(0f64, |most, &x| most.max(f64::from(x).abs()));
        let off = |&x: &f32| match self.is_f16() {
            true => f64::from(x).abs() * 2f64.powi(-11) + largest * 2f64.powi(-38),
            false => f64::from(x).abs() * 2f64.powi(-16),
        };
        x.iter().map(off).collect()
    }

    /// Holds the result of job `i`, tokens x rows, to the bound that `granule_ops::product` states.
    pub(crate) fn check(&self, i: usize, out: &[f32]) {
        let (weights, before) = (&self.weights[i], &self.before[i]);
        let terms = match self.dtype {
            DType::F32 => 3.0,
            DType::BF16 => 2.0,
            _ => 1.0,
        };
        let sums = (terms * self.cols as f64 + 64.0) * 2f64.powi(-23);
        let w_offs = self.weights_off(weights);
        assert_eq!(out.len(), self.tokens * weights.rows);
        for (token, x) in self.x.chunks(self.cols).enumerate() {
            let x_offs = self.activations_off(x);
            for row in 0..weights.rows {
                let at = token * weights.rows + row;
                let was = before.as_ref().map_or(0.0, |before| f64::from(before[at]));
                let (mut want, mut bound) = (was, was.abs() * 2f64.powi(-23));
                let range = row * self.cols..(row + 1) * self.cols;
                let w = weights.values[range.clone()].iter().zip(&w_offs[range]);
                for ((&x, &x_off), (&w, &w_off)) in x.iter().zip(&x_offs).zip(w) {
                    let (x, w) = (f64::from(x), f64::from(w));
                    want += x * w;
                    let (x, w) = (x.abs(), w.abs());
                    bound += x * w_off + w * x_off + x_off * w_off + sums * (x + x_off) * (w + w_off);
                }
                bound += want.abs() * 2f64.powi(-22);
                let (got, off) = (out[at], (f64::from(out[at]) - want).abs());
                let what = format!("{}, {} columns, token {token}, row {row}", self.dtype, self.cols);
                assert!(off <= bound, "{what}: {got} instead of {want}, {off:e} of {bound:e}");
            }
        }
    }
}
