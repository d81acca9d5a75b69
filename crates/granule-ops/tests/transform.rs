//! Transforms fold out exactly: attention over transformed keys and values, in f64 and without quantization, is attention
//! over the keys and values themselves.

#![allow(clippy::unwrap_used, reason = "a test may")]
use granule_ops::{Error, KvFold, KvTransform, KvTransforms, Rope, rotate};
use proptest::prelude::*;

mod support;
use support::{numbers, transform};

/// `softmax(scores) . values` in f64.
fn attend(scores: &[f64], values: &[Vec<f32>]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    let channel =
        |d: usize| weights.iter().zip(values).map(|(w, v)| w * f64::from(v[d])).sum::<f64>() / total;
    (0..values[0].len()).map(channel).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Rotated to a position, which may be negative.
fn at(rope: &Rope, x: &[f32], position: i32) -> Vec<f32> {
    let (mut x, mut angles, head_dim) = (x.to_vec(), vec![0.0; rope.dims()], x.len());
    rope.turn(position, &mut angles).unwrap();
    rotate(&mut x, 1, head_dim, rope.dims(), &angles).unwrap();
    x
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Segments of keys that were stored at other positions than they have now, each met by a query turned back.
    #[test]
    fn attention_over_transformed_rows_is_attention(
        group in prop::sample::select(vec![1usize, 2, 3, 4, 8]), n_kv_heads in 1usize..4,
        head_dim in prop::sample::select(vec![32usize, 64, 96, 128, 160, 256]),
        segments in prop::collection::vec((1usize..12, -40i32..40), 1..4), seed: u64,
    ) {
        let transform = transform(n_kv_heads, head_dim, seed);
        let rope = Rope::new(head_dim / 4 * 3, 10_000.0, 1.0, None).unwrap();
        let len: usize = segments.iter().map(|&(len, _)| len).sum();
        let numbers = numbers(seed, (2 * n_kv_heads * len + n_kv_heads * group) * head_dim);
        let mut rows = numbers.chunks_exact(head_dim);
        for head in 0..n_kv_heads {
            let keys: Vec<&[f32]> = rows.by_ref().take(len).collect();
            let values: Vec<Vec<f32>> = rows.by_ref().take(len).map(<[f32]>::to_vec).collect();
            for _ in 0..group {
                let query = rows.next().unwrap();
                let (mut want, mut got, mut position) = (Vec::new(), Vec::new(), 0);
                for &(n, turn) in &segments {
                    // Where the query was when these keys were stored: the last token of all, as far on from them as now.
                    let mut turned = at(&rope, query, len as i32 - 1 - turn);
                    let constant = f64::from(transform.query(head, &mut turned));
                    for _ in 0..n {
                        let key = keys[position];
                        want.push(dot(&at(&rope, query, len as i32 - 1), &at(&rope, key, position as i32)));
                        let mut stored = at(&rope, key, position as i32 - turn);
                        transform.keys(head, &mut stored);
                        got.push(dot(&turned, &stored) + constant);
                        position += 1;
                    }
                }
                let stored: Vec<Vec<f32>> = values.iter().map(|v| {
                    let mut v = v.clone();
                    transform.values(head, &mut v);
                    v
                }).collect();
                let want = attend(&want, &values);
                let mut got: Vec<f32> = attend(&got, &stored).iter().map(|&x| x as f32).collect();
                transform.output(head, &mut got);
                for (want, got) in want.iter().zip(&got) {
                    prop_assert!((want - f64::from(*got)).abs() < 3e-4, "{got} for {want}");
                }
            }
        }
    }
}

/// The matrix by its definition: entry (i, j) is 1 where i & j has an even number of ones, else -1.
#[test]
fn what_is_stored_is_the_hadamard_matrix_times_shifted_and_scaled_channels() {
    for head_dim in [8usize, 32, 48, 64, 96, 128, 256] {
        let width = 1usize << head_dim.trailing_zeros();
        let transform = transform(2, head_dim, 7);
        let fold = transform.key_fold().unwrap();
        assert_eq!(fold.width(), width);
        let x = numbers(head_dim as u64, head_dim);
        let mut got = x.clone();
        transform.keys(1, &mut got);
        for (i, got) in got.iter().enumerate() {
            let part = i / width * width;
            let want: f64 = (part..part + width)
                .map(|j| {
                    let even = ((i - part) & (j - part)).count_ones().is_multiple_of(2);
                    let sign = if even { 1.0 } else { -1.0 };
                    let at = head_dim + j;
                    sign * (f64::from(x[j]) - f64::from(fold.constants()[at])) * f64::from(fold.scales()[at])
                })
                .sum();
            assert!((want - f64::from(*got)).abs() < 1e-4, "{head_dim} {i}: {got} for {want}");
        }
    }
}

/// Either side alone leaves the other as it is.
#[test]
fn keys_or_values_alone() {
    let both = transform(1, 64, 3);
    let x = numbers(5, 64);
    let same = |f: &dyn Fn(&mut [f32])| {
        let mut y = x.clone();
        f(&mut y);
        y == x
    };
    let keys = KvTransform::new(1, 64, both.key_fold().cloned(), None).unwrap();
    assert!(!same(&|y| keys.keys(0, y)) && same(&|y| keys.values(0, y)) && same(&|y| keys.output(0, y)));
    let values = KvTransform::new(1, 64, None, both.value_fold().cloned()).unwrap();
    assert!(same(&|y| values.keys(0, y)) && !same(&|y| values.values(0, y)));
    assert!(same(&|y| assert_eq!(values.query(0, y), 0.0)));
}

#[test]
fn every_table_is_counted() {
    let both = transform(2, 32, 1);
    let keys = KvTransform::new(2, 32, both.key_fold().cloned(), None).unwrap();
    assert_eq!(KvTransforms::new(vec![both, keys]).bytes(), 3 * 3 * 64 * 4);
}

#[test]
fn tables_that_cannot_be_undone_are_refused() {
    let fold = |c: f32, s: f32, n: usize| KvFold::new(1, 32, vec![c; n], vec![s; n]);
    assert!(fold(0.0, 1.0, 32).is_ok());
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40, f32::MAX] {
        assert!(matches!(fold(0.0, scale, 32), Err(Error::Dimension { .. })), "{scale}");
    }
    assert!(matches!(fold(f32::NAN, 1.0, 32), Err(Error::Quant(_))));
    assert!(matches!(fold(0.0, 1.0, 31), Err(Error::Shape { .. })));
    let one = fold(0.0, 1.0, 32).unwrap();
    assert!(matches!(KvTransform::new(2, 32, Some(one.clone()), None), Err(Error::Shape { .. })));
    assert!(matches!(KvTransform::new(1, 64, None, Some(one)), Err(Error::Shape { .. })));
}
