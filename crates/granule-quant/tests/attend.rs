//! Attention over a tile against its naive twin in f64 on the decoded rows, by every path.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod naive;

use granule_quant::{
    ATTEND_TILE, DType, HeadRows, Isa, RunningSoftmax, TileShape, encode_planar, planar_bytes, query_words,
};
use proptest::prelude::*;

const TYPES: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0];

/// Rows of a cache as they lie in memory, and what they stand for.
#[derive(Debug)]
struct Cache {
    dtype: DType,
    head_dim: usize,
    stride: usize,
    planes: [usize; 2],
    bytes: Vec<u8>,
    decoded: Vec<Vec<f64>>,
}

impl Cache {
    fn new(dtype: DType, head_dim: usize, lead: usize, gap: usize, x: &[f32]) -> Self {
        let bytes_of = planar_bytes(dtype, head_dim).unwrap();
        let planes = [lead, lead + bytes_of.quants + gap];
        let stride = planes[1] + bytes_of.scales + gap;
        let mut bytes = Vec::new();
        let mut decoded = Vec::new();
        for x in x.chunks(head_dim) {
            let (mut quants, mut scales) = (vec![0; bytes_of.quants], vec![0; bytes_of.scales]);
            encode_planar(dtype, x, &mut quants, &mut scales).unwrap();
            // What lies between rows is none of attention's business.
            let mut row = vec![0xff; stride];
            row[planes[0]..][..quants.len()].copy_from_slice(&quants);
            row[planes[1]..][..scales.len()].copy_from_slice(&scales);
            bytes.extend(row);
            let mut ggml = vec![0; dtype.row_bytes(head_dim).unwrap()];
            granule_quant::ggml_from_planar(dtype, &quants, &scales, &mut ggml).unwrap();
            decoded.push(naive::decode(dtype, &ggml));
        }
        // Nothing behind the last row's last byte.
        bytes.truncate(bytes.len() - gap);
        Self { dtype, head_dim, stride, planes, bytes, decoded }
    }

    fn rows(&self) -> HeadRows<'_> {
        let len = self.decoded.len();
        HeadRows::new(self.dtype, self.head_dim, &self.bytes, self.stride, self.planes, len).unwrap()
    }
}

/// A head dimension that the type can have.
fn head_dim(dtype: DType) -> impl Strategy<Value = usize> {
    let odd: &[usize] = if dtype.is_quantized() { &[] } else { &[2, 8, 22, 48, 80, 100, 112] };
    prop::sample::select([&[32, 64, 96, 128, 160, 256][..], odd].concat())
}

/// A tile of rows, some with an outlier channel as keys have them, and `rows` times `head_dim` other numbers.
fn tile() -> impl Strategy<Value = (Cache, usize, Vec<f32>)> {
    (prop::sample::select(&TYPES[..]), 1usize..=9, 1usize..=ATTEND_TILE)
        .prop_flat_map(|(dtype, rows, n)| (Just(dtype), head_dim(dtype), Just(rows), Just(n), any::<bool>()))
        .prop_flat_map(|(dtype, head_dim, rows, n, outlier)| {
            let x = prop::collection::vec(-1f32..1.0, n * head_dim);
            let q = prop::collection::vec(-1f32..1.0, rows * head_dim);
            (x, q, 0usize..3, 0usize..70).prop_map(move |(mut x, q, lead, gap)| {
                if outlier {
                    x.chunks_mut(head_dim).for_each(|x| x[head_dim / 3] = 17.0 + x[0]);
                }
                (Cache::new(dtype, head_dim, 16 * lead, gap, &x), rows, q)
            })
        })
}

fn close(got: f32, exact: f64, bound: f64) -> Result<(), TestCaseError> {
    let off = (f64::from(got) - exact).abs();
    prop_assert!(off <= bound, "{got} for {exact}: off by {off:e}, allowed {bound:e}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn scores_are_dot_products((cache, rows, q) in tile(), ahead in 0usize..3) {
        let (n, width) = (cache.decoded.len(), cache.head_dim);
        for isa in Isa::available() {
            let mut words = vec![f32::NAN; query_words(cache.dtype, width, rows)];
            isa.prepare_queries(cache.dtype, width, &q, &mut words).unwrap();
            let mut scores = vec![f32::NAN; rows.next_multiple_of(4) * ATTEND_TILE];
            isa.scores(&cache.rows().fetching(1 << 40, ahead), &words, rows, &mut scores);
            for (row, q) in q.chunks(width).enumerate() {
                let q = naive::widen(q);
                let largest = q.iter().fold(0f64, |max, x| max.max(x.abs()));
                for key in 0..n {
                    let k = &cache.decoded[key];
                    let (exact, magnitude) = naive::dot(&q, k);
                    let mut bound = magnitude * (width + 8) as f64 * 2f64.powi(-23);
                    if cache.dtype.is_quantized() {
                        bound += 2f64.powi(-16) * largest * k.iter().map(|k| k.abs()).sum::<f64>();
                    }
                    close(scores[row * ATTEND_TILE + key], exact, bound + 1e-30)?;
                }
            }
        }
    }

    #[test]
    fn sums_are_weighted_values((cache, rows, before) in tile(), weights in prop::collection::vec(0f32..=1.0, 9 * ATTEND_TILE), factors in prop::collection::vec(any::<[u8; 2]>(), 9)) {
        let (n, width) = (cache.decoded.len(), cache.head_dim);
        let mut weights = weights[..rows * ATTEND_TILE].to_vec();
        // Some keys matter little.
        weights.iter_mut().for_each(|w| *w = w.powi(6));
        weights.chunks_mut(ATTEND_TILE).for_each(|row| row[n..].fill(0.0));
        let factors: Vec<[f32; 2]> = factors[..rows].iter().map(|f| f.map(|f| f32::from(f) / 255.0)).collect();
        for isa in Isa::available() {
            let mut sums = before.clone();
            isa.weighted_sums(&cache.rows(), &weights, &factors, &mut sums);
            for row in 0..rows {
                let [grow, shrink] = factors[row].map(f64::from);
                for d in 0..width {
                    let old = f64::from(before[row * width + d]) * shrink;
                    let terms = (0..n).map(|key| grow * f64::from(weights[row * ATTEND_TILE + key]) * cache.decoded[key][d]);
                    let (exact, magnitude) = terms.fold((old, old.abs()), |(sum, size), x| (sum + x, size + x.abs()));
                    let mut bound = magnitude * (n + 8) as f64 * 2f64.powi(-23);
                    if cache.dtype.is_quantized() {
                        // Half a step of the block's largest scale for each quant, which is at most 127 (or 8); the largest
                        // decoded value of a block is at least half of that of the largest scale's.
                        let block = d / 32 * 32..d / 32 * 32 + 32;
                        let largest = cache.decoded.iter().flat_map(|x| &x[block.clone()]).fold(0f64, |max, x| max.max(x.abs()));
                        bound += n as f64 * 1.02 * grow * largest * 2f64.powi(-16);
                    }
                    close(sums[row * width + d], exact, bound + 1e-30)?;
                }
            }
        }
    }

    #[test]
    fn tiles_merge_into_one_softmax(
        rows in 1usize..40, tiles in 1usize..4, group in 1usize..5, last in 1usize..=ATTEND_TILE,
        scores in prop::collection::vec(-30f32..30.0, 64), scale in 0.01f32..1.0,
    ) {
        let len = (tiles - 1) * ATTEND_TILE + last;
        let score = |row: usize, key: usize| scores[(row * 31 + key * 7 + row * key) % 64] * (1.0 + (key % 5) as f32);
        let add: Vec<f32> = (0..rows).map(|row| row as f32 / 8.0).collect();
        // The last query sees everything, those before it less.
        let tokens = rows.div_ceil(group);
        let seen = len as isize - tokens as isize + 1;
        for isa in Isa::available() {
            let (mut max, mut total) = (vec![f32::MIN; rows], vec![0f32; rows]);
            let mut sums = vec![0f64; rows];
            for tile in 0..tiles {
                let n = ATTEND_TILE.min(len - tile * ATTEND_TILE);
                let mut tile_scores = vec![f32::NAN; rows * ATTEND_TILE];
                for row in 0..rows {
                    for key in 0..n {
                        tile_scores[row * ATTEND_TILE + key] = score(row, tile * ATTEND_TILE + key);
                    }
                }
                let mut factors = vec![[f32::NAN; 2]; rows];
                let mut running = RunningSoftmax { max: &mut max, total: &mut total, factors: &mut factors };
                let shape = TileShape { rows, keys: n, seen: seen - (tile * ATTEND_TILE) as isize, group, scale };
                isa.softmax_tile(shape, &add, &mut tile_scores, &mut running);
                for (row, [grow, shrink]) in factors.into_iter().enumerate() {
                    let weights = &tile_scores[row * ATTEND_TILE..][..ATTEND_TILE];
                    prop_assert!(weights.iter().all(|w| (0.0..=1.0).contains(w)));
                    // As if every value were its key's number.
                    let tile_sum: f64 = weights.iter().enumerate().map(|(i, &w)| f64::from(w) * (tile * ATTEND_TILE + i) as f64).sum();
                    sums[row] = sums[row] * f64::from(shrink) + tile_sum * f64::from(grow);
                }
            }
            for row in 0..rows {
                let seen = seen + (row / group) as isize;
                let exact: Vec<f64> = (0..seen.max(0).unsigned_abs().min(len)).map(|key| f64::from(score(row, key) * scale) + f64::from(add[row])).collect();
                if exact.is_empty() {
                    prop_assert_eq!(total[row], 0.0);
                    continue;
                }
                let top = exact.iter().copied().fold(f64::MIN, f64::max);
                let all: f64 = exact.iter().map(|s| (s - top).exp()).sum();
                let sum: f64 = exact.iter().enumerate().map(|(key, s)| (s - top).exp() / all * key as f64).sum();
                // A score of up to 150 is off by half an f32 step of it, which is what its weight is off by.
                close(max[row], top, 2e-5)?;
                close(total[row], all, all * 4e-5)?;
                close((sums[row] / f64::from(total[row])) as f32, sum, len as f64 * 4e-5)?;
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let x = vec![0.5f32; 64 * 32];
    for dtype in TYPES {
        let cache = Cache::new(dtype, 32, 0, 0, &x);
        for isa in Isa::available() {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut q = vec![1f32; 32];
                q[7] = bad;
                let mut words = vec![0.0; query_words(dtype, 32, 1)];
                isa.prepare_queries(dtype, 32, &q, &mut words).unwrap();
                let mut scores = vec![0.0; 4 * ATTEND_TILE];
                isa.scores(&cache.rows(), &words, 1, &mut scores);
                let (mut max, mut total, mut factors) = ([f32::MIN], [0.0], [[0.0; 2]]);
                let mut running = RunningSoftmax { max: &mut max, total: &mut total, factors: &mut factors };
                let shape = TileShape { rows: 1, keys: 64, seen: 64, group: 1, scale: 1.0 };
                isa.softmax_tile(shape, &[0.0], &mut scores[..ATTEND_TILE], &mut running);
                assert!(total[0].is_nan(), "{isa} {dtype} {bad}: {total:?}");
            }
        }
    }
}

#[test]
fn rows_must_lie_in_their_bytes() {
    let bytes = [0u8; 1000];
    let rows = |dtype, head_dim, len| HeadRows::new(dtype, head_dim, &bytes, 100, [0, 64], len);
    assert_eq!(rows(DType::Q8_0, 64, 10).unwrap().len(), 10);
    assert_eq!(rows(DType::Q8_0, 64, 10).unwrap().rows(7, 64).len(), 3);
    assert_eq!(rows(DType::Q8_0, 64, 10).unwrap().rows(11, 1).len(), 0);
    assert!(rows(DType::Q8_0, 64, 11).is_err());
    assert!(rows(DType::Q8_0, 64, usize::MAX).is_err());
    assert!(rows(DType::Q8_0, 48, 1).is_err());
    assert!(rows(DType::Q4_1, 64, 1).is_err());
    assert!(HeadRows::new(DType::F16, 64, &bytes, 100, [usize::MAX, 0], 1).is_err());
}
