//! Files that are damaged, hostile or of another kind: a clear error in one line each, never a panic.

use std::fs::OpenOptions;
use std::path::Path;

use granule_kv::KvType;
use granule_llama::gguf::{Array, GgmlType, Gguf, Value};
use granule_llama::{LoadOptions, Model};
use granule_quant::DType;

use crate::support::make::{Dice, Made, Shape, Vocab, Weight};
use crate::{context, ids, load, tales};

fn tiny() -> Shape {
    Shape { n_embd: 16, n_layers: 1, n_heads: 2, n_kv_heads: 1, n_ff: 24, ..Shape::default() }
}

/// The error of loading `bytes`, which has to be one line.
fn error_of(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.gguf");
    std::fs::write(&path, bytes).unwrap();
    error_of_file(&path)
}

#[track_caller]
fn error_of_file(path: &Path) -> String {
    let error = Model::load(path, LoadOptions::default()).expect_err("a bad file was loaded").to_string();
    assert!(!error.contains('\n') && error.len() < 400, "{error}");
    error
}

#[track_caller]
fn assert_refused(made: &Made, words: &[&str]) {
    let error = error_of(&made.bytes());
    for word in words {
        assert!(error.contains(word), "`{error}` does not name {word}");
    }
}

#[test]
fn a_file_cut_short_at_any_byte() {
    let bytes = Made::new(&tiny()).bytes();
    let header = Gguf::parse(&bytes).unwrap().data_offset() as usize;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("short.gguf");
    std::fs::write(&path, &bytes).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    assert!(Model::load(&path, LoadOptions::default()).is_ok());
    for len in (header..bytes.len()).rev().step_by(97).chain((0..header).rev()) {
        file.set_len(len as u64).unwrap();
        error_of_file(&path);
    }
}

#[test]
fn what_is_no_gguf_of_a_known_version() {
    let good = Made::new(&tiny()).bytes();
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        error_of(&bytes)
    };
    assert!(patched(0, b"GGML").contains("not a GGUF file"));
    assert!(patched(4, &1u32.to_le_bytes()).contains("version 1"));
    assert!(patched(4, &4u32.to_le_bytes()).contains("version 4"));
    assert!(patched(4, &3u32.to_be_bytes()).contains("big-endian"));
    assert!(error_of(b"").contains("cut short"));
    assert!(error_of_file(Path::new("/")).contains("directory"));
    assert!(error_of_file(Path::new("no such file.gguf")).contains("no such file.gguf"));
}

#[test]
fn counts_and_lengths_near_two_to_the_64() {
    let good = Made::new(&tiny()).bytes();
    let key_length = 24;
    for at in [8, 16, key_length] {
        for huge in [u64::MAX, u64::MAX / 2, 1 << 63, 1 << 40, u64::MAX - 31] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&huge.to_le_bytes());
            error_of(&bytes);
        }
    }
    // Dimensions and the offset of a tensor stand right behind its name.
    let name = b"blk.0.attn_q.weight";
    let entry = good.windows(name.len()).position(|w| w == name).unwrap() + name.len();
    let (dims, offset) = (entry + 4, entry + 4 + 16 + 4);
    for at in [dims, dims + 8, offset] {
        for huge in [u64::MAX, 1 << 63, 1 << 40, u64::MAX - 31, 1 << 32] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&huge.to_le_bytes());
            error_of(&bytes);
        }
    }
    let mut overlapping = good.clone();
    overlapping[offset..offset + 8].copy_from_slice(&0u64.to_le_bytes());
    assert!(error_of(&overlapping).contains("overlap"));
    let mut unaligned = good.clone();
    let was = u64::from_le_bytes(good[offset..offset + 8].try_into().unwrap());
    unaligned[offset..offset + 8].copy_from_slice(&(was + 4).to_le_bytes());
    assert!(error_of(&unaligned).contains("alignment"));
}

#[test]
fn every_missing_tensor_is_named() {
    let made = Made::new(&tiny());
    for weight in &made.weights {
        let mut less = made.clone();
        less.weights.retain(|w| w.name != weight.name);
        assert_refused(&less, &[&weight.name]);
    }
}

#[test]
fn every_misshapen_tensor_is_named() {
    let made = Made::new(&tiny());
    for weight in &made.weights {
        let longer = weight.dims.iter().map(|&n| n as usize + 8).collect::<Vec<_>>();
        let mut other = made.clone();
        let values = vec![0.5; longer.iter().product()];
        *other.weight(&weight.name) = Weight::new(&weight.name, &longer, DType::F32, &values);
        // The embedding table says how many tokens there are; a longer row is what cannot be.
        assert_refused(&other, &[&weight.name]);
    }
    let mut turned = made.clone();
    turned.weight("blk.0.ffn_up.weight").dims.reverse();
    assert_refused(&turned, &["blk.0.ffn_up.weight"]);
}

#[test]
fn what_does_not_run_here_is_refused_by_name() {
    let made = || Made::new(&tiny());
    let text = |s: &str| Value::String(s.to_owned());
    assert_refused(made().set("general.architecture", text("qwen2")), &["qwen2"]);
    assert_refused(made().set("llama.expert_count", Value::U32(8)), &["expert"]);
    assert_refused(made().set("llama.rope.scaling.type", text("yarn")), &["yarn"]);
    assert_refused(made().set("llama.attention.value_length", Value::U32(10)), &["10"]);
    assert_refused(made().set("tokenizer.ggml.model", text("bert")), &["bert"]);
    let bpe = || Made::new(&Shape { vocab: Vocab::Bpe, ..tiny() });
    assert_refused(bpe().set("tokenizer.ggml.pre", text("deepseek-llm")), &["deepseek-llm"]);

    let mut biased = made();
    biased.weights.push(Weight::new("blk.0.attn_q.bias", &[16], DType::F32, &[0.0; 16]));
    assert_refused(&biased, &["blk.0.attn_q.bias"]);

    // A type that is known by name and does not run, in a tensor of the right shape.
    let mut not_yet = Made::new(&Shape { n_embd: 256, ..tiny() });
    let weight = not_yet.weight("blk.0.attn_q.weight");
    (weight.ty, weight.data) = (GgmlType::from_id(18).unwrap(), vec![0; 256 * 98]);
    assert_refused(&not_yet, &["blk.0.attn_q.weight", "iq3_xxs"]);
    let mut more = made();
    more.weight("blk.0.ffn_up.weight").name = "blk.0.more.weight".to_owned();
    assert_refused(&more, &["blk.0"]);
}

#[test]
fn rows_that_are_no_whole_blocks_are_named() {
    let name = b"blk.0.attn_q.weight";
    for dtype in DType::ALL.iter().filter(|dtype| dtype.is_quantized()) {
        // Rows of 16: behind the name stand the number of dimensions, two of them, and the type.
        let mut bytes = Made::new(&tiny()).bytes();
        let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 16;
        bytes[at..at + 4].copy_from_slice(&dtype.ggml_id().to_le_bytes());
        let error = error_of(&bytes);
        let words = [dtype.name(), "blk.0.attn_q.weight", "rows of 16", &dtype.block_len().to_string()];
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

#[test]
fn hostile_numbers_in_the_metadata() {
    let numbers = [0u64, 1, 3, 7, 255, 1 << 16, 1 << 24, u32::MAX as u64, u64::MAX];
    let made = Made::new(&tiny());
    let keys = made.meta.iter().map(|(key, _)| key.clone()).filter(|key| key.starts_with("llama."));
    for key in keys.chain(["llama.rope.dimension_count", "llama.attention.key_length"].map(str::to_owned)) {
        for number in numbers {
            try_it(made.clone().set(&key, Value::U64(number)));
        }
        for number in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-38] {
            try_it(made.clone().set(&key, Value::F32(number)));
        }
        try_it(made.clone().set(&key, Value::String("many".to_owned())));
        try_it(made.clone().set(&key, Value::Array(Array::U32(vec![2, 2]))));
    }
    let mut not_a_number = Made::new(&tiny());
    not_a_number.weight("output_norm.weight").data.fill(0xff);
    try_it(&not_a_number);
}

#[test]
fn flipped_bits_anywhere() {
    let good = Made::new(&tiny()).bytes();
    let header = Gguf::parse(&good).unwrap().data_offset() as usize;
    let mut dice = Dice(7);
    for _ in 0..1500 {
        let mut bytes = good.clone();
        for _ in 0..1 + dice.below(3) {
            bytes[dice.below(header)] ^= 1 << dice.below(8);
        }
        try_bytes(&bytes);
    }
}

/// Either an error of one line, or a model that computes or says why it cannot.
fn try_it(made: &Made) {
    try_bytes(&made.bytes());
}

fn try_bytes(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.gguf");
    std::fs::write(&path, bytes).unwrap();
    let options = LoadOptions { threads: std::num::NonZeroUsize::new(1), ..LoadOptions::default() };
    match Model::load(&path, options) {
        Ok(model) => {
            let Ok(mut context) = granule_llama::Context::new(model, crate::options(16, 8, KvType::F16))
            else {
                return;
            };
            let _ = context.eval(&ids([1, 2, 3])).map(|_| ());
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
}

#[test]
fn a_file_cut_short_while_it_is_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mapped.gguf");
    std::fs::copy(tales(), &path).unwrap();
    let model = load(&path);
    let mut context = context(&model, 64, 16, KvType::F16);
    context.eval(&ids([1, 2, 3])).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    let error = context.eval(&ids([4])).expect_err("weights that are gone").to_string();
    assert!(error.contains("cut short"), "{error}");
}

#[test]
fn a_token_that_does_not_exist_and_a_prompt_that_does_not_fit() {
    let model = load(tales());
    let mut context = context(&model, 32, 16, KvType::F16);
    let n_vocab = model.config().n_vocab as u32;
    assert!(context.eval(&ids([n_vocab])).is_err());
    assert!(context.eval(&ids([u32::MAX])).is_err());
    assert!(context.eval(&[]).is_err());
    let error = context.eval(&ids([5; 33])).expect_err("a prompt longer than the context").to_string();
    assert!(error.contains("33") && error.contains("32"), "{error}");
    assert_eq!(context.tokens().len(), 0);
    context.eval(&ids([5; 32])).unwrap();
    assert!(context.eval(&ids([5])).is_err());
    assert_eq!(context.tokens().len(), 32);
}
