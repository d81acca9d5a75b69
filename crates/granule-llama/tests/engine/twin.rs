//! Random models of every shape that the engine takes, against the naive twin; and the twin against a third party.

use granule_kv::KvType;
use granule_llama::{Context, ContextOptions, KvTransformMode, TokenId};
use granule_quant::DType;

use crate::support::make::{Dice, Made, Shape, Vocab};
use crate::support::naive::Naive;
use crate::{distance, encode, load, options, tales};

/// The distance (see [`distance`]) of each position's logits from the twin's, ascending.
fn distances(shape: &Shape, kv: KvType) -> Vec<f64> {
    let dir = tempfile::tempdir().unwrap();
    let path = Made::new(shape).write(dir.path());
    let model = load(&path);
    let mut dice = Dice(shape.seed + 100);
    let numbers: Vec<u32> = (0..41).map(|_| dice.below(model.config().n_vocab) as u32).collect();
    let want = Naive::read(&path).with_cache(kv.name()).forward(&numbers);
    let tokens: Vec<TokenId> = numbers.into_iter().map(TokenId::new).collect();
    // The twin's cache is of plain blocks.
    let options = ContextOptions { kv_transform: KvTransformMode::None, ..options(64, 16, kv) };
    let mut context = Context::new(model, options).unwrap();
    let n_vocab = context.model().config().n_vocab;
    let got = context.eval_all(&tokens).unwrap();
    assert_eq!(got.len(), tokens.len() * n_vocab);
    let rows = got.chunks(n_vocab).zip(&want);
    let distances = rows.map(|(got, want)| {
        let want: Vec<f32> = want.iter().map(|w| *w as f32).collect();
        distance(got, &want)
    });
    let mut distances: Vec<f64> = distances.collect();
    distances.sort_by(f64::total_cmp);
    distances
}

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const BLOCKS: [DType; 3] = [DType::Q8_0, DType::Q4_0, DType::Q4_1];

/// Nothing but the order of sums differs.
const EXACT: f64 = 5e-5;
/// In front of quantized weights activations keep 15 bits of the largest of 32, and queries as many in front of quantized keys.
const ACTIVATIONS: f64 = 2e-3;
/// Where rows of the cache are rounded to few bits, another order of sums now and then tips a value over to the next
/// step; then positions from there on may be this far off. Most are as near as all others.
const TIPPED: f64 = 5e-2;

#[track_caller]
fn assert_close(shape: Shape, kv: KvType) {
    let distances = distances(&shape, kv);
    let (median, furthest) = (distances[distances.len() / 2], distances[distances.len() - 1]);
    let integers = kv.dtype().is_quantized() || shape.weights.iter().any(|w| w.is_quantized());
    let most = if integers { ACTIVATIONS } else { EXACT };
    assert!(median <= most, "median {median}, {kv} cache, {shape:?}");
    let all = if kv == KvType::F32 { most } else { TIPPED };
    assert!(furthest <= all, "furthest {furthest}, {kv} cache, {shape:?}");
}

#[test]
fn float_weights() {
    for dtype in FLOATS {
        assert_close(Shape { weights: vec![dtype], ..Shape::default() }, KvType::F32);
    }
}

#[test]
fn quantized_weights() {
    for dtype in BLOCKS {
        assert_close(Shape { weights: vec![dtype], ..Shape::default() }, KvType::F32);
    }
}

#[test]
fn weights_that_are_expanded() {
    let wide = Shape { n_embd: 256, n_ff: 512, n_heads: 4, n_layers: 1, ..Shape::default() };
    let types =
        || DType::ALL.iter().copied().filter(|dtype| !FLOATS.contains(dtype) && !BLOCKS.contains(dtype));
    for dtype in types() {
        assert_close(Shape { weights: vec![dtype], ..wide.clone() }, KvType::F32);
    }
    assert_close(
        Shape { weights: types().collect(), n_layers: 3, separate_output: true, ..wide },
        KvType::F32,
    );
}

#[test]
fn all_types_in_one_file() {
    let weights = FLOATS.into_iter().chain(BLOCKS).collect();
    assert_close(Shape { weights, n_layers: 3, separate_output: true, ..Shape::default() }, KvType::F32);
}

#[test]
fn every_group_size() {
    for (n_heads, n_kv_heads) in [(1, 1), (4, 4), (6, 2), (9, 3), (5, 1), (8, 1), (12, 2)] {
        let shape = Shape { n_embd: 8 * n_heads, n_heads, n_kv_heads, ..Shape::default() };
        assert_close(shape, KvType::F32);
    }
}

#[test]
fn every_even_head_dim() {
    for head_dim in [8, 10, 12, 14, 18, 22, 30, 34, 48, 80, 96, 128, 130] {
        let shape = Shape { head_dim: Some(head_dim), ..Shape::default() };
        assert_close(shape, KvType::F32);
    }
}

#[test]
fn rows_that_are_no_multiple_of_anything() {
    for dtype in FLOATS {
        for (n_embd, n_ff) in [(37, 53), (41, 101), (67, 7), (131, 259)] {
            let shape = Shape {
                n_embd,
                n_ff,
                n_heads: 3,
                n_kv_heads: 1,
                head_dim: Some(10),
                weights: vec![dtype],
                separate_output: true,
                ..Shape::default()
            };
            assert_close(shape, KvType::F32);
        }
    }
}

#[test]
fn rotations() {
    let plain = Shape { vocab: Vocab::Bpe, ..Shape::default() };
    let shapes = [
        Shape { rope_base: Some(500_000.0), ..plain.clone() },
        Shape { rope_base: Some(500_000.0), rope_freqs: true, separate_output: true, ..plain.clone() },
        Shape { linear: Some(4.0), ..plain.clone() },
        Shape { rope_dims: Some(8), ..plain.clone() },
        Shape { rope_dims: Some(6), rope_freqs: true, head_dim: Some(14), ..plain },
    ];
    for shape in shapes {
        assert_close(shape, KvType::F32);
    }
}

#[test]
fn each_rotation_matters_to_the_twin() {
    let dir = tempfile::tempdir().unwrap();
    let logits = |shape: &Shape| {
        let row = Naive::read(&Made::new(shape).write(dir.path())).forward(&[5, 60, 7, 70, 9]).pop().unwrap();
        row.iter().map(|x| *x as f32).collect::<Vec<f32>>()
    };
    let plain = logits(&Shape::default());
    for other in [
        Shape { rope_base: Some(500_000.0), ..Shape::default() },
        Shape { rope_freqs: true, ..Shape::default() },
        Shape { linear: Some(4.0), ..Shape::default() },
        Shape { rope_dims: Some(8), ..Shape::default() },
    ] {
        assert!(distance(&logits(&other), &plain) > 10.0 * EXACT, "{other:?}");
    }
}

#[test]
fn smaller_caches() {
    // Heads of 32: a whole block.
    for kv in [KvType::F16, KvType::BF16, KvType::Q8_0, KvType::Q4_0] {
        assert_close(Shape { rope_freqs: true, head_dim: Some(32), ..Shape::default() }, kv);
    }
}

#[test]
fn a_long_model() {
    let shape = Shape { n_layers: 9, n_embd: 96, n_heads: 6, n_kv_heads: 2, n_ff: 160, ..Shape::default() };
    assert_close(shape, KvType::F32);
}

/// From `oracles/logits.json` (q8_0, the first prompt): a float64 pass of another author over the same file.
#[test]
fn the_twin_agrees_with_a_third_party() {
    let text = "Once upon a time the baker Mia and the sailor Leo lived near the harbor Eastwick.";
    let tokens: Vec<u32> = encode(&load(tales()), text).into_iter().map(TokenId::get).collect();
    let logits = Naive::read(tales()).forward(&tokens).pop().unwrap();
    for (token, want) in TOP_LOGITS {
        let got = logits[token];
        assert!((got - want).abs() < 1e-5, "token {token}: {got}, not {want}");
    }
}

const TOP_LOGITS: [(usize, f64); 5] =
    [(859, 12.85736), (282, 11.77397), (830, 8.41549), (853, 6.80533), (802, 6.78571)];
