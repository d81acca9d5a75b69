//! One model, however it lies in files and however these are brought into memory: the same numbers to the last bit.

use std::ops::ControlFlow;
use std::path::Path;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device};
use granule_kv::KvType;
use granule_llama::gguf::{GgufWriter, Value};
use granule_llama::{Error, LoadOptions, Model};
use granule_quant::{DType, Isa};

use crate::support::make::{Made, Shape};
use crate::{context, ids};

fn made() -> Made {
    Made::new(&Shape { separate_output: true, rope_freqs: true, ..Shape::default() })
}

fn logits(path: &Path, options: LoadOptions<'_>) -> Vec<f32> {
    let model = Model::load(path, options).unwrap();
    let mut context = context(&model, 32, 8, KvType::F16);
    context.eval(&ids([1, 20, 260, 270, 3])).unwrap().to_vec()
}

#[test]
fn mapped_read_and_locked() {
    let dir = tempfile::tempdir().unwrap();
    let path = made().write(dir.path());
    let mapped = logits(&path, LoadOptions::default());
    for (no_mmap, mlock) in [(true, false), (false, true), (true, true)] {
        assert_eq!(logits(&path, LoadOptions { no_mmap, mlock, ..LoadOptions::default() }), mapped);
    }
}

#[test]
fn version_2_and_another_alignment() {
    let dir = tempfile::tempdir().unwrap();
    let mut made = made();
    let expected = logits(&made.write(dir.path()), LoadOptions::default());
    made.set("general.alignment", Value::U32(256));
    let mut writer = GgufWriter::new(2).unwrap();
    for (key, value) in &made.meta {
        writer.set(key, value.clone()).unwrap();
    }
    for w in &made.weights {
        writer.tensor(&w.name, &w.dims, w.ty, &w.data).unwrap();
    }
    let path = dir.path().join("v2.gguf");
    std::fs::write(&path, writer.to_bytes()).unwrap();
    assert_eq!(logits(&path, LoadOptions::default()), expected);
}

/// Writes `made` in `count` files as ggml's splitter does: the metadata in the first, the tensors dealt out.
pub(crate) fn write_shards(made: &Made, dir: &Path, count: usize) -> Vec<std::path::PathBuf> {
    let paths: Vec<_> = (1..=count).map(|i| dir.join(format!("split-{i:05}-of-{count:05}.gguf"))).collect();
    for (i, path) in paths.iter().enumerate() {
        let mut writer = GgufWriter::new(3).unwrap();
        if i == 0 {
            for (key, value) in &made.meta {
                writer.set(key, value.clone()).unwrap();
            }
        }
        writer.set("split.no", Value::U16(i as u16)).unwrap();
        writer.set("split.count", Value::U16(count as u16)).unwrap();
        writer.set("split.tensors.count", Value::I32(made.weights.len() as i32)).unwrap();
        for w in made.weights.iter().skip(i).step_by(count) {
            writer.tensor(&w.name, &w.dims, w.ty, &w.data).unwrap();
        }
        std::fs::write(path, writer.to_bytes()).unwrap();
    }
    paths
}

#[test]
fn several_shards() {
    let dir = tempfile::tempdir().unwrap();
    let made = made();
    let expected = logits(&made.write(dir.path()), LoadOptions::default());
    let paths = write_shards(&made, dir.path(), 3);
    assert_eq!(logits(&paths[0], LoadOptions::default()), expected);
    assert_eq!(logits(&paths[0], LoadOptions { no_mmap: true, ..LoadOptions::default() }), expected);
    let total: u64 = paths.iter().map(|path| std::fs::metadata(path).unwrap().len()).sum();
    let in_place = Model::load(&paths[0], LoadOptions { no_repack: true, ..LoadOptions::default() }).unwrap();
    assert_eq!((in_place.bytes().get(), in_place.packed_bytes().get()), (total, 0));

    let error = Model::load(&paths[1], LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("00001-of-00003"), "{error}");
    std::fs::remove_file(&paths[2]).unwrap();
    let error = Model::load(&paths[0], LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("00003-of-00003"), "{error}");
    std::fs::copy(&paths[1], &paths[2]).unwrap();
    let error = Model::load(&paths[0], LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("00003-of-00003"), "{error}");
}

/// What a bank holds for all owners.
fn held(bank: &Bank) -> Bytes {
    bank.stats().held
}

#[test]
fn memory_is_what_is_said_and_nothing_stays_of_a_load_that_fails() {
    let dir = tempfile::tempdir().unwrap();
    let packs = Isa::best().packing(DType::Q8_0).is_some();
    for (weights, separate_output) in
        [(DType::Q8_0, true), (DType::Q8_0, false), (DType::F16, true), (DType::F16, false)]
    {
        let shape = Shape { weights: vec![weights], separate_output, ..Shape::default() };
        let path = Made::new(&shape).write(dir.path());
        let len = Bytes::new(std::fs::metadata(&path).unwrap().len());
        for (no_mmap, no_repack) in [(false, false), (false, true), (true, false), (true, true)] {
            let what =
                format!("{weights}, separate {separate_output}, no_mmap {no_mmap}, no_repack {no_repack}");
            let bank =
                |budget| Bank::new(Device::host().unwrap(), BankOptions::new().budget(budget)).unwrap();
            let load = |bank: &Bank, stop_at: usize| {
                let mut told = Vec::new();
                let mut progress = |done, total| {
                    told.push((done, total));
                    if told.len() > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                let options =
                    LoadOptions { bank: Some(bank.clone()), no_mmap, no_repack, ..LoadOptions::default() };
                let model = Model::load(&path, LoadOptions { progress: Some(&mut progress), ..options });
                (model, told)
            };
            let ample = bank(Bytes::mib(64));
            let (model, told) = load(&ample, usize::MAX);
            let model = model.unwrap();
            assert_eq!(held(&ample), model.bytes(), "{what}");
            assert_eq!(told.last(), Some(&(len.get(), len.get())), "{what}");
            assert!(told.is_sorted(), "{what}");
            let packed = model.packed_bytes();
            let is_packed = !no_repack && (no_mmap || packs || weights == DType::F16);
            assert_eq!(packed > Bytes::ZERO, is_packed, "{what}");
            if no_repack {
                assert_eq!(model.bytes(), len, "{what}");
            }
            // Each matrix in one place, but for a quantized table that is also the output.
            let twice = if is_packed && weights == DType::Q8_0 && !separate_output { 2 } else { 1 };
            assert!(model.bytes() < len.saturating_mul(twice).saturating_add(Bytes::kib(128)), "{what}");
            drop(model);
            assert_eq!(held(&ample), Bytes::ZERO, "{what}");
            for stop_at in 0..told.len() {
                assert!(matches!(load(&ample, stop_at).0, Err(Error::Cancelled)), "{what}");
                assert_eq!(held(&ample), Bytes::ZERO, "{what}");
            }
            let small = bank(Bytes::kib(64));
            let refused = load(&small, usize::MAX).0;
            assert!(matches!(refused, Err(Error::Bank(_))), "{what}: {:?}", refused.err());
            assert_eq!(held(&small), Bytes::ZERO, "{what}");
        }
    }
}
