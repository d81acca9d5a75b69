//! Products of a few tokens: weights drawn as they lie on a device, activations in their form, the same product in f64, and how
//! far from it a result may be.

use granule_quant::{DType, quantize_fixed};

use crate::random::Random;
use crate::weights::Weights;

/// Matrices of one type and one length of rows, and the tokens that they meet.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) cols: usize,
    pub(crate) tokens: usize,
    pub(crate) weights: Vec<Weights>,
    /// What the results are added to, of those that are added.
    pub(crate) before: Vec<Option<Vec<f32>>>,
    /// Tokens x cols.
    pub(crate) x: Vec<f32>,
    /// A token whose first number, or the scale of its first numbers, is NaN.
    pub(crate) spoiled: Option<usize>,
    /// The numbers that the kernel meets: `x`, or what fixed point makes of it.
    met: Vec<f64>,
}

/// Activations as a kernel reads them: parts at multiples of 256 bytes.
pub(crate) struct Parts {
    words: Vec<u128>,
    pub(crate) starts: [usize; 4],
    /// Elements from one row of floats to the next.
    pub(crate) stride: usize,
}

impl Parts {
    fn of(parts: &[Vec<u8>], stride: usize) -> Parts {
        let (mut bytes, mut starts) = (Vec::new(), [0; 4]);
        for (part, start) in parts.iter().zip(&mut starts) {
            *start = bytes.len();
            bytes.extend_from_slice(part);
            // NaNs, of what is read as floats.
            bytes.resize(bytes.len().next_multiple_of(256), 0xff);
        }
        let mut words = vec![0; bytes.len() / 16];
        bytemuck::cast_slice_mut::<u128, u8>(&mut words).copy_from_slice(&bytes);
        Parts { words, starts, stride }
    }

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
        // Stretches of 32 differ in size, and some are nothing but zeros.
        let mut size = 1.0;
        let x: Vec<f32> = (0..tokens * cols)
            .map(|i| {
                if i % 32 == 0 {
                    size = [0.0, 1.0, 1.0, 7.0, 0.01][random.below(5)];
                }
                random.signed() * size
            })
            .collect();
        let mut case = Case {
            cols,
            tokens,
            weights,
            before,
            spoiled: None,
            met: x.iter().map(|&x| x.into()).collect(),
            x,
        };
        if dtype.is_quantized() {
            let (high, low, d, _) = case.fixed();
            let number = |i: usize| f64::from(i32::from(high[i]) * 256 + i32::from(low[i]));
            case.met = (0..high.len()).map(|i| f64::from(d[i / 32]) * number(i)).collect();
        }
        case
    }

    /// The same activations with one matrix of another type, whose form is the same.
    pub(crate) fn with(&self, dtype: DType, rows: usize, seed: u64) -> Case {
        let weights = vec![Weights::draw(dtype, rows, self.cols, seed)];
        Case { weights, before: vec![None], ..self.clone() }
    }

    fn fixed(&self) -> (Vec<i8>, Vec<i8>, Vec<f32>, Vec<[i32; 2]>) {
        let n = self.x.len();
        let (mut high, mut low) = (vec![0; n], vec![0; n]);
        let (mut d, mut sums) = (vec![0.0; n / 32], vec![[0; 2]; n / 32]);
        quantize_fixed(&self.x, &mut high, &mut low, &mut d, &mut sums).unwrap();
        (high, low, d, sums)
    }

    /// The activations in the form for these weights.
    pub(crate) fn parts(&self) -> Parts {
        if self.weights[0].dtype.is_quantized() {
            let (high, low, mut d, sums) = self.fixed();
            self.spoiled.into_iter().for_each(|token| d[token * self.cols / 32] = f32::NAN);
            let parts = [
                bytemuck::cast_slice(&high),
                bytemuck::cast_slice(&low),
                bytemuck::cast_slice(&d),
                bytemuck::cast_slice(&sums),
            ];
            return Parts::of(&parts.map(|part: &[u8]| part.to_vec()), self.cols);
        }
        let stride = self.cols.next_multiple_of(4);
        let mut rows = vec![0f32; self.tokens * stride];
        for (row, x) in rows.chunks_mut(stride).zip(self.x.chunks(self.cols)) {
            row[..self.cols].copy_from_slice(x);
        }
        self.spoiled.into_iter().for_each(|token| rows[token * stride] = f32::NAN);
        Parts::of(&[bytemuck::cast_slice(&rows).to_vec()], stride)
    }

    /// Holds the result of job `i`, tokens x rows, to the bound that `granule_ops::product` states.
    pub(crate) fn check(&self, i: usize, out: &[f32]) {
        let (weights, before) = (&self.weights[i], &self.before[i]);
        let bound = (self.cols / 32 + 32) as f64 * 2f64.powi(-24);
        assert_eq!(out.len(), self.tokens * weights.rows);
        for (at, &got) in out.iter().enumerate() {
            let (token, row) = (at / weights.rows, at % weights.rows);
            if self.spoiled == Some(token) {
                assert!(got.is_nan(), "{}, token {token}, row {row}: {got}", weights.dtype);
                continue;
            }
            let x = &self.met[token * self.cols..][..self.cols];
            let values = &weights.values[row * self.cols..][..self.cols];
            let sizes = &weights.sizes[row * self.cols..][..self.cols];
            let was = before.as_ref().map_or(0.0, |before| f64::from(before[at]));
            let want = was + x.iter().zip(values).map(|(x, &w)| x * f64::from(w)).sum::<f64>();
            let size = was.abs() + x.iter().zip(sizes).map(|(x, &w)| x.abs() * f64::from(w)).sum::<f64>();
            let off = (f64::from(got) - want).abs();
            let what = format!("{}, {} columns, token {token}, row {row}", weights.dtype, self.cols);
            assert!(off <= bound * size, "{what}: {got} instead of {want}, {off:e} of {:e}", bound * size);
        }
    }
}
