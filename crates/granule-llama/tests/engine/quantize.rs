//! Files that are quantized: what their tensors become, what stays as it was, and what is refused with nothing left behind.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use granule_kv::KvType;
use granule_llama::gguf::{Array, Gguf, Value};
use granule_llama::{
    CancelToken, Error, LoadOptions, Model, QuantizeOptions, QuantizeTarget, Quantized, quantize,
    unfinished_path,
};
use granule_quant::DType;

use crate::files::write_shards;
use crate::support::make::{Made, Shape, Weight};
use crate::{context, distance, ids, load};

/// Rows that are whole blocks of every type.
fn wide() -> Shape {
    Shape { n_embd: 256, n_ff: 512, n_layers: 8, ..Shape::default() }
}

fn made(to: QuantizeTarget, shape: &Shape) -> (tempfile::TempDir, PathBuf, Quantized) {
    let dir = tempfile::tempdir().unwrap();
    let input = Made::new(shape).write(dir.path());
    let output = dir.path().join("out.gguf");
    let done = quantize(input, &output, to, QuantizeOptions::default()).unwrap();
    (dir, output, done)
}

/// Names and types.
fn types(path: &Path) -> BTreeMap<String, &'static str> {
    let gguf = Gguf::parse(&std::fs::read(path).unwrap()).unwrap();
    gguf.tensors().iter().map(|t| (t.name.clone(), t.ty.name())).collect()
}

fn data(file: &[u8], name: &str) -> Vec<u8> {
    let gguf = Gguf::parse(file).unwrap();
    file[gguf.data_range(gguf.tensor(name).unwrap())].to_vec()
}

/// Everything in a folder, but for the model that was put there.
fn files(dir: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "model.gguf").collect()
}

#[test]
fn a_mixture() {
    for separate_output in [false, true] {
        let (_dir, output, done) = made(QuantizeTarget::Q4_K_M, &Shape { separate_output, ..wide() });
        let types = types(&output);
        for layer in 0..8 {
            let more = if [0, 3, 6, 7].contains(&layer) { "q6_k" } else { "q4_k" };
            let of = |name: &str| types[&format!("blk.{layer}.{name}.weight")];
            assert_eq!((of("attn_v"), of("ffn_down")), (more, more), "{layer}");
            for name in ["attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"] {
                assert_eq!(of(name), "q4_k");
            }
            assert_eq!((of("attn_norm"), of("ffn_norm")), ("f32", "f32"));
        }
        if separate_output {
            assert_eq!((types["token_embd.weight"], types["output.weight"]), ("q4_k", "q6_k"));
        } else {
            assert_eq!(types["token_embd.weight"], "q6_k");
        }
        assert!(done.tensors.iter().all(|tensor| tensor.instead_of.is_none()));
    }
}

#[test]
fn rows_that_are_no_whole_blocks_get_shorter_ones() {
    let (_dir, output, done) =
        made(QuantizeTarget::Q4_K_M, &Shape { n_ff: 100, n_layers: 3, ..Shape::default() });
    let types = types(&output);
    let of = |name: &str| {
        let tensor = done.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        assert_eq!(tensor.to.name(), types[name]);
        (types[name], tensor.instead_of)
    };
    assert_eq!(of("blk.0.attn_q.weight"), ("q5_0", Some(DType::Q4_K)));
    assert_eq!(of("blk.2.attn_v.weight"), ("q8_0", Some(DType::Q6_K)));
    assert_eq!(of("token_embd.weight"), ("q8_0", Some(DType::Q6_K)));
    assert_eq!(of("blk.0.ffn_down.weight"), ("f16", Some(DType::Q4_K)));
    assert_eq!(of("blk.2.ffn_down.weight"), ("f16", Some(DType::Q6_K)));
    assert_eq!(of("output_norm.weight"), ("f32", None));
    // And it runs.
    load(&output);
}

#[test]
fn each_tensor_is_what_the_codec_makes_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    for from in [DType::F32, DType::F16, DType::BF16] {
        let made = Made::new(&Shape { weights: vec![from], n_layers: 2, ..wide() });
        let input = made.write(dir.path());
        for &to in QuantizeTarget::ALL {
            let options = QuantizeOptions { force: true, ..QuantizeOptions::default() };
            let done = quantize(&input, &output, to, options).unwrap();
            let file = std::fs::read(&output).unwrap();
            assert_eq!(done.bytes_out, file.len() as u64);
            for (weight, tensor) in made.weights.iter().zip(&done.tensors) {
                let mut numbers = vec![0.0; weight.dims.iter().product::<u64>() as usize];
                granule_quant::decode(weight.ty.dtype().unwrap(), &weight.data, &mut numbers).unwrap();
                let to = tensor.to.dtype().unwrap();
                let mut expected = vec![0; to.row_bytes(numbers.len()).unwrap()];
                granule_quant::encode(to, &numbers, &mut expected).unwrap();
                assert!(data(&file, &weight.name) == expected, "{from} to {to}: {}", weight.name);
            }
        }
    }
}

#[test]
fn metadata_and_alignment_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut made = Made::new(&Shape::default());
    made.set("general.alignment", Value::U32(256)).set("general.file_type", Value::U32(0));
    made.set("own.numbers", Value::Array(Array::Array(vec![Array::I16(vec![-1, 2]), Array::I16(vec![])])));
    made.set("own.flag", Value::Bool(true)).set("own.big", Value::U64(u64::MAX));
    let (input, output) = (made.write(dir.path()), dir.path().join("out.gguf"));
    quantize(input, &output, QuantizeTarget::Q8_0, QuantizeOptions::default()).unwrap();
    let file = std::fs::read(&output).unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    assert_eq!((gguf.version(), gguf.alignment()), (3, 256));
    made.meta.iter_mut().find(|(key, _)| key == "general.file_type").unwrap().1 = Value::U32(7);
    made.meta.push(("general.quantization_version".into(), Value::U32(2)));
    let got: Vec<_> = gguf.metadata().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
    assert_eq!(got, made.meta);
    let names: Vec<_> = gguf.tensors().iter().map(|tensor| &tensor.name).collect();
    assert_eq!(names, made.weights.iter().map(|weight| &weight.name).collect::<Vec<_>>());
}

#[test]
fn threads_and_files_make_no_difference() {
    let dir = tempfile::tempdir().unwrap();
    let made = Made::new(&Shape { n_layers: 3, ..wide() });
    let input = made.write(dir.path());
    let shards = write_shards(&made, dir.path(), 3);
    let run = |input: &Path, threads| {
        let output = dir.path().join("out.gguf");
        let threads = NonZeroUsize::new(threads);
        let options = QuantizeOptions { threads, force: true, ..QuantizeOptions::default() };
        quantize(input, &output, QuantizeTarget::Q4_K_M, options).unwrap();
        std::fs::read(&output).unwrap()
    };
    let one = run(&input, 1);
    assert!(run(&input, 3) == one);
    let joined = run(&shards[0], 2);
    assert_eq!(joined.len(), one.len());
    for weight in &made.weights {
        assert!(data(&joined, &weight.name) == data(&one, &weight.name), "{}", weight.name);
    }
    let metadata = |file: &[u8]| {
        Gguf::parse(file)
            .unwrap()
            .metadata()
            .iter()
            .map(|(k, v)| (k.to_owned(), v.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(metadata(&joined), metadata(&one));
}

#[test]
fn what_comes_out_computes_nearly_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let input = Made::new(&Shape { n_layers: 2, ..wide() }).write(dir.path());
    let logits = |path: &Path| {
        let model = Model::load(path, LoadOptions::default()).unwrap();
        context(&model, 32, 8, KvType::F32).eval(&ids([1, 20, 260, 270, 3])).unwrap().to_vec()
    };
    let expected = logits(&input);
    let bounds = [1e-9, 0.02, 0.15, 0.1, 1.5, 1.0];
    for (&to, bound) in QuantizeTarget::ALL.iter().zip(bounds) {
        let output = dir.path().join(to.name());
        quantize(&input, &output, to, QuantizeOptions::default()).unwrap();
        let far = distance(&logits(&output), &expected);
        assert!(far <= bound, "{to}: {far}");
    }
}

#[test]
fn what_is_refused_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.gguf");
    let refused = |made: &Made, to, words: &[&str]| {
        let error = quantize(made.write(dir.path()), &output, to, QuantizeOptions::default()).unwrap_err();
        for word in words {
            assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
        }
        assert_eq!(files(dir.path()), [""; 0]);
        error
    };
    let quantized = Made::new(&Shape { weights: vec![DType::F32, DType::Q4_0], ..Shape::default() });
    let error = refused(&quantized, QuantizeTarget::Q8_0, &["blk.0.attn_q.weight", "q4_0", "f16"]);
    assert!(matches!(error, Error::AlreadyQuantized { .. }));

    let mut broken = Made::new(&Shape::default());
    broken.weight("blk.1.ffn_up.weight").data[4 * (64 * 5 + 7)..][..4]
        .copy_from_slice(&f32::NAN.to_le_bytes());
    let words = ["blk.1.ffn_up.weight", "row 5", "element 7", "NaN"];
    assert!(matches!(refused(&broken, QuantizeTarget::Q4_K_M, &words), Error::NotEncodable { .. }));

    let mut large = Made::new(&Shape::default());
    large.weight("blk.1.ffn_up.weight").data[..4].copy_from_slice(&1e9f32.to_le_bytes());
    refused(&large, QuantizeTarget::F16, &["blk.1.ffn_up.weight", "row 0", "element 0", "too large for f16"]);

    let mut integers = Made::new(&Shape::default());
    let i32s = granule_llama::gguf::GgmlType::from_id(26).unwrap();
    let weight = Weight { ty: i32s, ..integers.weights[1].clone() };
    integers.weights[1] = weight;
    let error = refused(&integers, QuantizeTarget::Q4_0, &["i32", "q4_0"]);
    assert!(matches!(error, Error::NotQuantizable { .. }));

    let mut cut = Made::new(&Shape::default()).bytes();
    cut.truncate(cut.len() - 100);
    let input = dir.path().join("model.gguf");
    std::fs::write(&input, cut).unwrap();
    assert!(quantize(&input, &output, QuantizeTarget::F16, QuantizeOptions::default()).is_err());
    assert_eq!(files(dir.path()), [""; 0]);
}

#[test]
fn what_is_there_is_replaced_only_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let input = Made::new(&Shape::default()).write(dir.path());
    let output = dir.path().join("out.gguf");
    std::fs::write(&output, "precious").unwrap();
    let run = |output: &Path, force| {
        let options = QuantizeOptions { force, ..QuantizeOptions::default() };
        quantize(&input, output, QuantizeTarget::Q8_0, options).map(drop)
    };
    assert!(matches!(run(&output, false), Err(Error::OutputExists { .. })));
    assert_eq!(std::fs::read(&output).unwrap(), b"precious");
    run(&output, true).unwrap();
    assert_eq!(types(&output)["token_embd.weight"], "q8_0");

    let before = std::fs::read(&input).unwrap();
    let link = dir.path().join("link.gguf");
    std::os::unix::fs::symlink(&input, &link).unwrap();
    for same in [&input, &link] {
        for force in [false, true] {
            assert!(matches!(run(same, force), Err(Error::OutputIsInput { .. })));
        }
    }
    assert!(std::fs::read(&input).unwrap() == before);
    assert!(matches!(run(dir.path(), true), Err(Error::Io { .. })));
    assert!(matches!(run(&dir.path().join("no/folder.gguf"), true), Err(Error::Io { .. })));

    // Through a link, what it leads to is replaced.
    let other = dir.path().join("other.gguf");
    std::fs::write(&other, "old").unwrap();
    let link = dir.path().join("other-link.gguf");
    std::os::unix::fs::symlink(&other, &link).unwrap();
    run(&link, true).unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(types(&other)["token_embd.weight"], "q8_0");
}

#[test]
fn stopped_it_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let input = Made::new(&Shape { n_layers: 2, ..wide() }).write(dir.path());
    let output = dir.path().join("out.gguf");
    std::fs::write(&output, "precious").unwrap();
    // What a program that was killed has left is no obstacle.
    std::fs::write(unfinished_path(&output), "left").unwrap();
    for stop_at in [0, 1, 5] {
        let cancel = CancelToken::default();
        for by_token in [false, true] {
            let mut calls = 0;
            let mut report = |done: u64, total: u64| {
                assert!(done <= total && unfinished_path(&output).exists());
                calls += 1;
                if calls <= stop_at {
                    return ControlFlow::Continue(());
                }
                if by_token {
                    cancel.cancel();
                    return ControlFlow::Continue(());
                }
                ControlFlow::Break(())
            };
            let options = QuantizeOptions {
                force: true,
                progress: Some(&mut report),
                cancel: cancel.clone(),
                ..Default::default()
            };
            let stopped = quantize(&input, &output, QuantizeTarget::Q4_K_M, options);
            assert!(matches!(stopped, Err(Error::Cancelled)), "{stop_at}");
            assert_eq!(files(dir.path()), ["out.gguf"]);
            assert_eq!(std::fs::read(&output).unwrap(), b"precious");
        }
    }
}
