//! Prompts for attention on tensor cores: caches of random rows, the same attention in f64 on what the rows decode to, and how
//! far from it a result may be.

use granule_ops::{KvFold, Rope};
use granule_quant::{DType, decode_planar, planar_bytes};
use half::f16;

use crate::random::Random;

/// The types of K and V.
pub(crate) const TYPES: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0];

/// Rows that are kept once more in f16.
pub(crate) const SINKS: usize = 4;

/// The base of the rotation.
const BASE: f64 = 100.0;

/// Tokens at rows that follow one another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) row: usize,
    pub(crate) len: usize,
    pub(crate) turn: i32,
}

/// One sequence of a batch: its runs of rows, and how many of its tokens are queries.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) runs: Vec<Run>,
    pub(crate) queries: usize,
}

impl Sequence {
    /// One run of `rows` rows from row 0 on.
    pub(crate) fn of(rows: usize, queries: usize) -> Sequence {
        Sequence { runs: vec![Run { row: 0, len: rows, turn: 0 }], queries }
    }

    pub(crate) fn rows(&self) -> usize {
        self.runs.iter().map(|run| run.len).sum()
    }
}

/// What is attended to, before its numbers are drawn.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) k_type: DType,
    pub(crate) v_type: DType,
    pub(crate) head_dim: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) group: usize,
    pub(crate) sequences: Vec<Sequence>,
    /// Rows below [`SINKS`] are read from elsewhere, and keys and values are transformed.
    pub(crate) transform: bool,
    /// Magnitude of keys and of values in each row of a sequence.
    pub(crate) sizes: fn(usize) -> (f32, f32),
}

impl Shape {
    pub(crate) fn new(k_type: DType, v_type: DType, head_dim: usize) -> Shape {
        let sequences = vec![Sequence::of(70, 5)];
        Shape {
            k_type,
            v_type,
            head_dim,
            n_kv_heads: 1,
            group: 3,
            sequences,
            transform: false,
            sizes: |_| (1.0, 1.0),
        }
    }

    pub(crate) fn n_heads(&self) -> usize {
        self.n_kv_heads * self.group
    }

    pub(crate) fn queries(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.queries).sum()
    }
}

/// Where one plane is in a row, and its type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plane {
    pub(crate) dtype: DType,
    pub(crate) quants: usize,
    pub(crate) scales: usize,
}

/// A batch with all its numbers.
pub(crate) struct Prompt {
    pub(crate) shape: Shape,
    pub(crate) planes: [Plane; 2],
    pub(crate) row_stride: usize,
    /// Byte of K's and V's sinks, and of row 0, from a sequence's base.
    pub(crate) sinks: [usize; 2],
    pub(crate) rows_at: usize,
    /// Each sequence's memory, from its base on; 16-byte aligned.
    pub(crate) memories: Vec<Vec<u128>>,
    pub(crate) q: Vec<f32>,
    pub(crate) scale: f32,
    pub(crate) folds: Option<[KvFold; 2]>,
    /// Radians a position for each pair of rotated channels, the first half of a head.
    freqs: Vec<f64>,
}

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(16)
}

fn gaussian(random: &mut Random) -> f32 {
    // The sum of twelve is near enough (Box and Muller is exact, and no better here).
    (0..12).map(|_| (random.next() >> 40) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
}

/// Random bytes of a plane: elements of about `size`, drawn in the type itself.
fn draw(random: &mut Random, dtype: DType, n: usize, size: f32, quants: &mut [u8], scales: &mut [u8]) {
    match dtype {
        DType::F32 => quants
            .chunks_exact_mut(4)
            .for_each(|x| x.copy_from_slice(&(gaussian(random) * size).to_le_bytes())),
        DType::F16 => quants
            .chunks_exact_mut(2)
            .for_each(|x| x.copy_from_slice(&f16::from_f32(gaussian(random) * size).to_le_bytes())),
        DType::BF16 => quants.chunks_exact_mut(2).for_each(|x| {
            x.copy_from_slice(&half::bf16::from_f32(gaussian(random) * size).to_le_bytes());
        }),
        _ => {
            let steps = if dtype == DType::Q8_0 { 64.0 } else { 4.0 };
            quants.iter_mut().for_each(|q| *q = random.next() as u8);
            assert_eq!(scales.len(), n / 32 * 2);
            scales.chunks_exact_mut(2).for_each(|d| {
                d.copy_from_slice(&f16::from_f32(random.sign() * size / steps).to_le_bytes());
            });
        }
    }
}

impl Prompt {
    pub(crate) fn draw(shape: Shape, seed: u64) -> Prompt {
        let mut random = Random(seed);
        let elements = shape.n_kv_heads * shape.head_dim;
        let mut at = 0;
        let planes = [shape.k_type, shape.v_type].map(|dtype| {
            let bytes = planar_bytes(dtype, elements).unwrap();
            let plane = Plane { dtype, quants: at, scales: at + aligned(bytes.quants) };
            at = plane.scales + aligned(bytes.scales);
            plane
        });
        // Another layer's part of each row.
        let row_stride = at + 48;
        let sink_bytes = aligned(SINKS * elements * 2);
        let (sinks, rows_at) = ([32, 32 + sink_bytes], if shape.transform { 32 + 2 * sink_bytes } else { 0 });
        let memories = shape.sequences.iter().map(|sequence| {
            let last = sequence.runs.iter().map(|run| run.row + run.len).max().unwrap_or(0);
            let mut memory = vec![0u128; (rows_at + last * row_stride).div_ceil(16)];
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
            // NaN where nothing is to be read: between the planes, and in rows that are in no run.
            bytes.fill(0xff);
            for row in sequence.runs.iter().flat_map(|run| run.row..run.row + run.len) {
                let (k, v) = (shape.sizes)(row);
                for (plane, size) in planes.iter().zip([k, v]) {
                    let lens = planar_bytes(plane.dtype, elements).unwrap();
                    let row = &mut bytes[rows_at + row * row_stride..][..row_stride];
                    let (quants, scales) = row.split_at_mut(plane.scales);
                    let quants = &mut quants[plane.quants..][..lens.quants];
                    draw(&mut random, plane.dtype, elements, size, quants, &mut scales[..lens.scales]);
                }
                if shape.transform && row < SINKS {
                    for (at, plane) in sinks.into_iter().zip(planes) {
                        let (sinks, rows) = bytes.split_at_mut(rows_at);
                        let sink = &mut sinks[at + row * elements * 2..][..elements * 2];
                        // What an append writes: of f16, the row's own bits.
                        if plane.dtype == DType::F16 {
                            sink.copy_from_slice(&rows[row * row_stride + plane.quants..][..elements * 2]);
                        } else {
                            draw(&mut random, DType::F16, elements, 1.0, sink, &mut []);
                        }
                    }
                }
            }
            memory
        });
        let memories = memories.collect();
        let q =
            (0..shape.queries() * shape.n_heads() * shape.head_dim).map(|_| gaussian(&mut random)).collect();
        let mut table = |around: f32, by: f32| -> Vec<f32> {
            (0..elements).map(|_| around + by * gaussian(&mut random)).collect()
        };
        let folds = shape.transform.then(|| {
            [(); 2].map(|()| {
                let scales = table(1.0, 0.1);
                KvFold::new(shape.n_kv_heads, shape.head_dim, table(0.0, 0.5), scales).unwrap()
            })
        });
        let dims = shape.head_dim / 4 * 2;
        let freqs = (0..dims / 2).map(|i| BASE.powf(-2.0 * i as f64 / dims as f64)).collect();
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        Prompt { planes, row_stride, sinks, rows_at, memories, q, scale, folds, freqs, shape }
    }

    pub(crate) fn rope_dims(&self) -> usize {
        2 * self.freqs.len()
    }

    /// The model's rotation.
    pub(crate) fn rope(&self) -> Rope {
        Rope::new(self.rope_dims(), BASE as f32, 1.0, None).unwrap()
    }

    /// K (0) or V (1) of one row and KV head.
    fn decoded(&self, sequence: usize, row: usize, which: usize, head: usize) -> Vec<f64> {
        let (shape, plane) = (&self.shape, self.planes[which]);
        let bytes: &[u8] = bytemuck::cast_slice(&self.memories[sequence]);
        let mut out = vec![0f32; shape.head_dim];
        if shape.transform && row < SINKS {
            let at = self.sinks[which] + ((row * shape.n_kv_heads + head) * shape.head_dim) * 2;
            decode_planar(DType::F16, &bytes[at..][..shape.head_dim * 2], &[], &mut out).unwrap();
        } else {
            let lens = planar_bytes(plane.dtype, shape.head_dim).unwrap();
            let row = &bytes[self.rows_at + row * self.row_stride..];
            let quants = &row[plane.quants + head * lens.quants..][..lens.quants];
            let scales = &row[plane.scales + head * lens.scales..][..lens.scales];
            decode_planar(plane.dtype, quants, scales, &mut out).unwrap();
        }
        out.into_iter().map(f64::from).collect()
    }

    /// A query as the keys of a run want it, and what is added to its products.
    fn query(&self, q: &[f32], turn: i32, kv_head: usize) -> (Vec<f64>, f64) {
        let mut q: Vec<f64> = q.iter().map(|&x| f64::from(x)).collect();
        for (pair, freq) in q.chunks_exact_mut(2).zip(&self.freqs) {
            let (sin, cos) = (-f64::from(turn) * freq).sin_cos();
            (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
        }
        let Some([keys, _]) = &self.folds else { return (q, 0.0) };
        let at = kv_head * q.len();
        let constant = q.iter().zip(&keys.constants()[at..]).map(|(q, &c)| q * f64::from(c)).sum();
        q.iter_mut().zip(&keys.inverses()[at..]).for_each(|(q, &inverse)| *q *= f64::from(inverse));
        (hadamard(&q, keys.width(), |x| x), constant)
    }

    /// What attention is, in f64, and for each number how far from it a result may be.
    ///
    /// A query, a key and a value are each rounded to 11 bits, or to 2^-35 of the largest there is (2^-34: q8_0 and q4_0 are
    /// measured by their scales), and a weight too: so a score is off by at most `e = scale * sum |q k| * 2 * 2^-11` and a
    /// bit for the sum (2^-19, `tensor.cuh`), a weight by a factor of `1 + 2 e` (its own score, and all others' sum), and
    /// what it is multiplied with by another `1 + 2 * 2^-11`.
    pub(crate) fn expected(&self) -> Vec<(f64, f64)> {
        let shape = &self.shape;
        let (half, tiny) = (2f64.powi(-11), 2f64.powi(-34));
        let largest = |vectors: &[Vec<f64>]| vectors.iter().flatten().fold(0f64, |a, x| a.max(x.abs()));
        let mut out = Vec::new();
        let mut first_query = 0;
        for (index, sequence) in shape.sequences.iter().enumerate() {
            let rows: Vec<(usize, i32)> = sequence
                .runs
                .iter()
                .flat_map(|run| (run.row..run.row + run.len).map(|row| (row, run.turn)))
                .collect();
            let heads: Vec<[Vec<Vec<f64>>; 2]> = (0..shape.n_kv_heads)
                .map(|head| {
                    [0, 1].map(|which| {
                        rows.iter().map(|&(row, _)| self.decoded(index, row, which, head)).collect()
                    })
                })
                .collect();
            for query in 0..sequence.queries {
                let seen = rows.len() - sequence.queries + query + 1;
                for head in 0..shape.n_heads() {
                    let kv_head = head / shape.group;
                    let [keys, values] = &heads[kv_head];
                    let (most_k, most_v) = (largest(keys), largest(values));
                    let at = ((first_query + query) * shape.n_heads() + head) * shape.head_dim;
                    let (mut scores, mut off) = (Vec::new(), 0f64);
                    let mut turned: Option<(i32, Vec<f64>, f64)> = None;
                    for (&(_, turn), key) in rows[..seen].iter().zip(keys) {
                        if turned.as_ref().is_none_or(|(at, ..)| *at != turn) {
                            let (q, constant) = self.query(&self.q[at..at + shape.head_dim], turn, kv_head);
                            turned = Some((turn, q, constant));
                        }
                        let (_, q, constant) = turned.as_ref().unwrap();
                        let scale = f64::from(self.scale);
                        scores.push(scale * (q.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() + constant));
                        let most_q = q.iter().fold(0f64, |a, x| a.max(x.abs()));
                        let size = q.iter().zip(key).map(|(q, k)| {
                            let (q_off, k_off) =
                                (q.abs() * half + most_q * tiny, k.abs() * half + most_k * tiny);
                            q.abs() * k_off + k.abs() * q_off + q_off * k_off + (q * k).abs() * 2f64.powi(-19)
                        });
                        // And the score itself, and its exponent, in f32.
                        off = off
                            .max(scale * size.sum::<f64>() + scores.last().unwrap().abs() * 2f64.powi(-21));
                    }
                    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    let spread = (2.0 * off).exp_m1() + 3.0 * half;
                    let mut mean = vec![0f64; shape.head_dim];
                    let mut error = vec![0f64; shape.head_dim];
                    for (weight, value) in weights.iter().zip(values) {
                        for ((mean, error), v) in mean.iter_mut().zip(&mut error).zip(value) {
                            *mean += weight / total * v;
                            // A weight below f16's normal numbers is off by half of the smallest; all are 2^10 times larger.
                            *error += (weight / total * spread + 2f64.powi(-35)) * v.abs();
                        }
                    }
                    error.iter_mut().for_each(|error| *error += most_v * tiny);
                    if let Some([_, fold]) = &self.folds {
                        let tables = fold.inverses()[kv_head * shape.head_dim..]
                            .iter()
                            .zip(&fold.constants()[kv_head * shape.head_dim..]);
                        let tables: Vec<(f64, f64)> = tables
                            .map(|(&a, &b)| (f64::from(a), f64::from(b)))
                            .take(shape.head_dim)
                            .collect();
                        mean = hadamard(&mean, fold.width(), |x| x);
                        error = hadamard(&error, fold.width(), f64::abs);
                        for ((mean, error), (inverse, constant)) in
                            mean.iter_mut().zip(&mut error).zip(tables)
                        {
                            *mean = *mean * inverse + constant;
                            *error = *error * inverse + mean.abs() * 2f64.powi(-22);
                        }
                    }
                    out.extend(mean.into_iter().zip(error));
                }
            }
            first_query += sequence.queries;
        }
        out
    }

    /// Holds a result to [`Prompt::expected`]. Answers the largest part of its bound that an error has.
    pub(crate) fn check(&self, got: &[f32]) -> f64 {
        let expected = self.expected();
        assert_eq!(got.len(), expected.len());
        let mut worst = 0f64;
        for (i, (&got, (exact, bound))) in got.iter().zip(expected).enumerate() {
            let error = (f64::from(got) - exact).abs();
            let (row, d) = (i / self.shape.head_dim, i % self.shape.head_dim);
            assert!(error <= bound, "row {row}, element {d}: {got} for {exact} +- {bound}; {:?}", self.shape);
            worst = worst.max(error / bound);
        }
        worst
    }
}

/// The product with the Hadamard matrix of entries 1 and -1, from its definition; `of` is applied to each entry.
fn hadamard(x: &[f64], width: usize, of: fn(f64) -> f64) -> Vec<f64> {
    let part = |part: &[f64]| -> Vec<f64> {
        let entry = |i: usize, j: usize| of(if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 });
        (0..width).map(|i| part.iter().enumerate().map(|(j, x)| entry(i, j) * x).sum()).collect()
    };
    x.chunks_exact(width).flat_map(part).collect()
}
