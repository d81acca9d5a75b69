//! What has to be true of the set, and of the files that it is computed with.

use std::collections::HashSet;

use granule_device::Device;
use granule_kv::KvType;
use granule_llama::{Context, EncodeOptions, GenerateOptions, SamplingOptions, TokenId};
use granule_quant::DType;

use super::{Row, SHORT, product, rows};
use crate::cuda::covering::{rest, short};
use crate::cuda::{load_on, options};
use crate::support::make::Dice;
use crate::tales::encode::{decode, encode};
use crate::tales::{LAYERS, tales_of};

/// The values of a row's factors, as texts; the last one says whether a transform is made.
fn values(row: &Row) -> [String; 9] {
    let Row { weights, split, boundary, k, v, batch, graphs, transform } = row;
    let made = if row.is_transformed() { "made" } else { "not made" };
    [
        format!("weights {weights}"),
        format!("split {}", split.name()),
        format!("boundary {boundary}"),
        format!("k {k}"),
        format!("v {v}"),
        format!("batch {batch}"),
        format!("graphs {graphs}"),
        format!("transform {transform}"),
        format!("a transform is {made}"),
    ]
}

/// All pairs of values of two factors that some of these rows have.
fn pairs<'a>(rows: impl IntoIterator<Item = &'a Row>) -> HashSet<[String; 2]> {
    let mut pairs = HashSet::new();
    for row in rows {
        let values = values(row);
        for (i, one) in values.iter().enumerate() {
            pairs.extend(values[i + 1..].iter().map(|other| [one.clone(), other.clone()]));
        }
    }
    pairs
}

#[test]
fn every_two_values_of_every_two_factors_meet() {
    let (set, all) = (rows(), product());
    assert!(set.len() <= 120, "{} rows", set.len());
    assert_eq!(set.iter().collect::<HashSet<_>>().len(), set.len(), "a row twice");
    assert!(set.iter().all(Row::is_valid));
    assert_eq!(all.len(), 16 * (LAYERS + LAYERS + LAYERS + 1) * 5 * 5 * 2 * 2 * 2);
    let (met, there_are) = (pairs(&set), pairs(&all));
    let missing: Vec<_> = there_are.difference(&met).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_short_set_has_every_value() {
    let set = rows();
    let each = |rows: &[Row]| rows.iter().flat_map(values).collect::<HashSet<_>>();
    assert_eq!(each(&set[..SHORT]), each(&product()));
}

#[test]
fn every_row_has_a_test() {
    let tested = [short::ROWS, rest::ROWS].concat();
    assert_eq!(tested, (0..rows().len()).collect::<Vec<_>>());
    assert_eq!(short::ROWS.len(), SHORT);
}

/// A type's file tells a tale as well as its bits allow: what a token of the first model's own text costs in nats, beside that model.
#[test]
fn files_of_every_type_tell_tales() {
    let dir = tempfile::tempdir().unwrap();
    let context = |dtype| {
        let model = load_on(Device::host().unwrap(), &tales_of(dtype, dir.path()));
        Context::new(model, options(512, 256, KvType::F16, KvType::F16)).unwrap()
    };
    let mut first = context(DType::Q8_0);
    let mut text = first.model().tokenizer().encode("Once upon a time", EncodeOptions::default()).unwrap();
    let plain = SamplingOptions {
        temp: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 8,
        ..SamplingOptions::default()
    };
    let generate = GenerateOptions { sampling: plain, n_predict: Some(400), ..GenerateOptions::default() };
    let drawn = first.generate(&text, generate).unwrap();
    text.extend(drawn.filter_map(|piece| piece.unwrap().token).collect::<Vec<TokenId>>());
    let loss = |context: &mut Context| {
        let (mut sum, mut n) = (0.0, 0);
        context.clear().unwrap();
        let add = &mut |i: usize, logits: &[f32]| {
            sum -= granule_ops::log_softmax_at(logits, text[i + 1].index());
            n += 1;
        };
        context.eval_each(&text[..text.len() - 1], 4, add).unwrap();
        sum / f64::from(n)
    };
    let best = loss(&mut first);
    assert!((0.2..1.0).contains(&best), "{best}");
    for &dtype in DType::ALL {
        let more = loss(&mut context(dtype)) - best;
        let most = if dtype == DType::IQ2_XXS { 0.3 } else { 0.05 };
        assert!(more.abs() < most, "{dtype}: {more}");
    }
}

/// What is written is read back as near as a type's bits can bring it, for numbers in a bell: how far, in parts of their root mean
/// square.
#[test]
fn encoders_come_near() {
    let mut dice = Dice(5);
    let x: Vec<f32> = (0..64 * 256).map(|_| (0..6).map(|_| dice.signed()).sum::<f32>() * 0.1).collect();
    for (dtype, most) in [
        (DType::Q2_K, 0.30),
        (DType::Q3_K, 0.15),
        (DType::IQ4_NL, 0.08),
        (DType::IQ4_XS, 0.08),
        (DType::IQ2_XXS, 0.37),
    ] {
        for negative in [1.0, -1.0] {
            let x: Vec<f32> = x.iter().map(|x| x * negative).collect();
            let y = decode(dtype, &encode(dtype, &x));
            let squares = x.iter().zip(&y).map(|(x, y)| (x - y).powi(2)).sum::<f32>();
            let off = (squares / x.iter().map(|x| x * x).sum::<f32>()).sqrt();
            assert!(off < most, "{dtype}: {off}");
        }
        assert!(decode(dtype, &encode(dtype, &[0.0; 256])).iter().all(|&x| x == 0.0), "{dtype}");
    }
}
