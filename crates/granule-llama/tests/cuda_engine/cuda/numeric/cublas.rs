//! Prompts, and steps of many sequences, whose products are cuBLAS's.

use std::sync::Arc;

use granule_device::Device;
use granule_kv::KvType;
use granule_llama::{Context, ContextOptions, Error};
use granule_quant::DType;

use super::super::{distance, load_on, options, tokens};
use super::MANY;
use crate::support::make::{Made, Shape};
use crate::support::naive::Naive;

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn prompts_by_cublas_are_the_twins() {
    let dir = tempfile::tempdir().unwrap();
    let weights = vec![DType::Q4_0, DType::F16, DType::Q8_0, DType::BF16, DType::F32, DType::Q5_1];
    let path = Made::new(&Shape { weights, n_layers: 2, ..Shape::default() }).write(dir.path());
    let model = load_on(Device::cuda(0).unwrap(), &path);
    let n_vocab = model.config().n_vocab;
    let numbers: Vec<u32> = (0..24).map(|i| 1 + i * 11 % 300).collect();
    let want = Naive::read(&path).with_cache("f32").forward(&numbers);
    let with = |cublas| ContextOptions { cublas, ..options(64, 24, KvType::F32, KvType::F32) };
    let mut context = Context::new(Arc::clone(&model), with(true)).unwrap();
    let by_cublas = context.eval_all(&tokens(numbers.iter().copied())).unwrap();
    for (i, (got, want)) in by_cublas.chunks(n_vocab).zip(&want).enumerate() {
        let want: Vec<f32> = want.iter().map(|w| *w as f32).collect();
        let far = distance(got, &want);
        assert!(far <= MANY, "position {i} is {far} off");
    }
    // It was the library: the kernels add up in another order.
    let mut plain = Context::new(Arc::clone(&model), with(false)).unwrap();
    assert!(by_cublas != plain.eval_all(&tokens(numbers)).unwrap());
    let info = context.memory_info();
    assert!(info.scratch > plain.memory_info().scratch, "its scratch is the bank's");
    // Twelve sequences at once: more than the kernels of few tokens take; from a graph at the second time.
    let first = context.first_sequence();
    let mut rows = Vec::new();
    for context in [&mut context, &mut plain] {
        let first = context.first_sequence();
        let mut all = vec![first];
        all.extend((1..12).map(|_| context.fork_sequence(first).unwrap()));
        for step in 0..3 {
            let each: Vec<_> = (0..12).map(|i| tokens([5 + i + step])).collect();
            let batch: Vec<_> = all.iter().copied().zip(each.iter().map(Vec::as_slice)).collect();
            rows.push(context.eval_batch(&batch).unwrap().flatten().copied().collect::<Vec<f32>>());
        }
    }
    for step in 0..3 {
        let far = distance(&rows[step], &rows[step + 3]);
        assert!(far <= MANY, "step {step}: {far}");
    }
    assert_eq!(context.first_sequence(), first);
}

#[test]
fn it_is_refused_where_nothing_is_on_a_gpu() {
    let model = load_on(Device::host().unwrap(), super::tales());
    let context = Context::new(model, ContextOptions { cublas: true, ..ContextOptions::default() });
    assert!(matches!(context, Err(Error::Unsupported { .. })));
}
