//! Random models of every shape that the engine takes, against the naive twin; and the twin against a third party.

use granule_kv::KvType;
use granule_llama::TokenId;
use granule_quant::DType;

use crate::support::make::{Dice, Made, Shape, Vocab};
use crate::support::naive::Naive;
use crate::{context, distance, encode, load, tales};

/// The largest distance (see [`distance`]) of any position's logits from the twin's.
fn furthest(shape: &Shape, kv: KvType) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let path = Made::new(shape).write(dir.path());
    let model = load(&path);
    let mut dice = Dice(shape.seed + 100);
    let numbers: Vec<u32> = (0..41).map(|_| dice.below(model.config().n_vocab) as u32).collect();
    let want = Naive::read(&path).forward(&numbers);
    let tokens: Vec<TokenId> = numbers.into_iter().map(TokenId::new).collect();
    let mut context = context(&model, 64, 16, kv);
    let n_vocab = model.config().n_vocab;
    let got = context.eval_all(&tokens).unwrap();
    assert_eq!(got.len(), tokens.len() * n_vocab);
    let rows = got.chunks(n_vocab).zip(&want);
    let distances = rows.map(|(got, want)| {
        let want: Vec<f32> = want.iter().map(|w| *w as f32).collect();
        distance(got, &want)
    });
    distances.fold(0.0, f64::max)
}

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const BLOCKS: [DType; 3] = [DType::Q8_0, DType::Q4_0, DType::Q4_1];

/// Float weights and a float32 cache: nothing but the order of sums differs.
const EXACT: f64 = 2e-4;
/// A 16-bit cache: 8 bits of fraction in bf16, 11 in f16.
const F16_CACHE: f64 = 1e-2;
const BF16_CACHE: f64 = 6e-2;
/// Activations are rounded to 8 bits for each product with quantized weights.
const QUANTIZED: f64 = 1e-1;

#[track_caller]
fn assert_close(shape: Shape, kv: KvType, bound: f64) {
    let far = furthest(&shape, kv);
    assert!(far <= bound, "{far} from the twin, bound {bound}, {kv} cache, {shape:?}");
    // A bound that a wrong result could meet by luck would prove nothing: the twin's own rows differ by more than that.
    assert!(bound < 0.5);
}

#[test]
fn float_weights() {
    for dtype in FLOATS {
        assert_close(Shape { weights: vec![dtype], ..Shape::default() }, KvType::F32, EXACT);
    }
}

#[test]
fn quantized_weights() {
    for dtype in BLOCKS {
        assert_close(Shape { weights: vec![dtype], ..Shape::default() }, KvType::F32, QUANTIZED);
    }
}

#[test]
fn all_types_in_one_file() {
    let weights = FLOATS.into_iter().chain(BLOCKS).collect();
    assert_close(Shape { weights, n_layers: 3, separate_output: true, ..Shape::default() }, KvType::F32, QUANTIZED);
}

#[test]
fn every_group_size() {
    for (n_heads, n_kv_heads) in [(1, 1), (4, 4), (6, 2), (9, 3), (5, 1), (8, 1), (12, 2)] {
        let shape = Shape { n_embd: 8 * n_heads, n_heads, n_kv_heads, ..Shape::default() };
        assert_close(shape, KvType::F32, EXACT);
    }
}

#[test]
fn every_even_head_dim() {
    for head_dim in [8, 10, 12, 14, 18, 22, 30, 34, 48, 80, 96, 128, 130] {
        let shape = Shape { head_dim: Some(head_dim), ..Shape::default() };
        assert_close(shape, KvType::F32, EXACT);
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
            assert_close(shape, KvType::F32, EXACT);
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
        assert_close(shape, KvType::F32, EXACT);
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
    for (kv, bound) in [
        (KvType::F16, F16_CACHE),
        (KvType::BF16, BF16_CACHE),
        (KvType::Q8_0, BF16_CACHE),
        (KvType::Q4_0, 0.45),
    ] {
        assert_close(Shape { rope_freqs: true, head_dim: Some(32), ..Shape::default() }, kv, bound);
    }
}

#[test]
fn a_long_model() {
    let shape = Shape { n_layers: 9, n_embd: 96, n_heads: 6, n_kv_heads: 2, n_ff: 160, ..Shape::default() };
    assert_close(shape, KvType::F32, EXACT);
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
