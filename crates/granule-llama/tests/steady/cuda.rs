//! Steps that are replayed on CUDA device 0. Without a driver this test fails.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use granule_bank::{Bank, BankOptions};
use granule_device::{Device, FaultPlan};
use granule_kv::KvType;
use granule_llama::{
    Context, ContextOptions, GenerateOptions, LoadOptions, Model, Placement, SamplingOptions, SequenceId,
    TokenId,
};

use super::ASKED;
use crate::support::make::{Made, Shape};

/// A small model on the device.
fn model() -> Arc<Model> {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { n_layers: 1, n_heads: 2, n_kv_heads: 1, ..Shape::default() };
    let bank = Some(Bank::new(Device::cuda(0).unwrap(), BankOptions::new()).unwrap());
    let options = LoadOptions { bank, threads: NonZeroUsize::new(1), ..LoadOptions::default() };
    Model::load(Made::new(&shape).write(dir.path()), options).unwrap()
}

fn context(model: &Arc<Model>, kv: KvType) -> Context {
    let options = ContextOptions { n_ctx: Some(64), type_k: kv, type_v: kv, ..ContextOptions::default() };
    Context::new(Arc::clone(model), options).unwrap()
}

/// Calls into the driver and allocations of this process's, of `n` steps.
fn of_steps(device: &Device, n: usize, mut step: impl FnMut()) -> (u64, usize) {
    let (calls, asked) = (device.calls_made(), ASKED.load(Ordering::Relaxed));
    (0..n).for_each(|_| step());
    (device.calls_made() - calls, ASKED.load(Ordering::Relaxed) - asked)
}

/// The driver's calls in a step that is replayed: one launch, and what it takes to wait for it.
const CALLS: [&str; 7] = [
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuGraphLaunch",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuEventRecord",
    "cuEventSynchronize",
];

/// One test, so that no other one's allocations are counted.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_replayed_step_takes_no_memory() {
    let model = model();
    let device = model.bank().device().clone();
    for kv in [KvType::F16, KvType::Q4_0] {
        let mut context = context(&model, kv);
        context.eval(&[TokenId::new(300); 8]).unwrap();
        let mut one = || {
            assert!(context.eval(&[TokenId::new(301)]).unwrap()[0].is_finite());
        };
        // The first is given launch by launch, the second captured.
        (0..3).for_each(|_| one());
        let counts = of_steps(&device, 8, &mut one);
        assert_eq!(counts, (8 * CALLS.len() as u64, 0), "driver calls and heap allocations in 8 steps, {kv}");
        many(&model, kv);
        drawn(&model, kv);
    }
    which_calls(&model);
    across_devices();
}

/// A layer on the host, one on device 0, one on device 1: hidden states cross without memory or calls of their own.
fn across_devices() {
    let dir = tempfile::tempdir().unwrap();
    let path =
        Made::new(&Shape { n_layers: 3, n_heads: 2, n_kv_heads: 1, ..Shape::default() }).write(dir.path());
    let bank = |device| Bank::new(device, BankOptions::new()).unwrap();
    let devices = [Device::host(), Device::cuda(0), Device::cuda(1)].map(Result::unwrap);
    let placement = devices.iter().fold(Placement::new(), |all, device| all.layers(&bank(device.clone()), 1));
    let placement = Some(placement);
    let options = LoadOptions { placement, threads: NonZeroUsize::new(1), ..LoadOptions::default() };
    let model = Model::load(&path, options).unwrap();
    for drawing in [false, true] {
        let mut context = context(&model, KvType::F16);
        let sampling = SamplingOptions { temp: 0.8, seed: 1, ..SamplingOptions::default() };
        let options = GenerateOptions { sampling, ..GenerateOptions::default() };
        let mut generation;
        let mut step: Box<dyn FnMut()> = if drawing {
            generation = context.generate(&[TokenId::new(300); 4], options).unwrap();
            Box::new(|| assert!(generation.next_piece().unwrap().is_ok()))
        } else {
            Box::new(|| assert!(context.eval(&[TokenId::new(301)]).unwrap()[0].is_finite()))
        };
        (0..5).for_each(|_| step());
        let calls = || devices.each_ref().map(Device::calls_made);
        let (before, asked) = (calls(), ASKED.load(Ordering::Relaxed));
        (0..4).for_each(|_| step());
        let asked = ASKED.load(Ordering::Relaxed) - asked;
        let each: Vec<u64> = calls().iter().zip(before).map(|(after, before)| after - before).collect();
        assert_eq!(asked, 0, "heap allocations in 4 steps over three devices, drawing {drawing}");
        assert_eq!(each, [0, 4 * CALLS.len() as u64, 4 * CALLS.len() as u64], "calls, drawing {drawing}");
    }
}

/// Each call of a replayed step fails once, and so tells its name.
fn which_calls(model: &Arc<Model>) {
    let device = model.bank().device();
    let mut context = context(model, KvType::F16);
    let token = [TokenId::new(300)];
    let mut names = Vec::new();
    for n in 1..=CALLS.len() as u64 {
        // The step that failed has let go of its graph.
        (0..3).for_each(|_| assert!(context.eval(&token).unwrap()[0].is_finite()));
        let fault = device.inject_fault(FaultPlan::nth(n));
        match context.eval(&token) {
            Err(granule_llama::Error::Device(granule_device::Error::Injected { call, .. })) => {
                names.push(call)
            }
            other => panic!("call {n}: {:?}", other.map(|logits| logits[0])),
        }
        drop(fault);
    }
    assert_eq!(names, CALLS);
}

fn many(model: &Arc<Model>, kv: KvType) {
    let mut context = context(model, kv);
    context.eval(&[TokenId::new(300); 4]).unwrap();
    let first = context.first_sequence();
    let names: Vec<SequenceId> = (0..3).map(|_| context.fork_sequence(first).unwrap()).collect();
    let tokens = [300, 301, 302].map(|token| [TokenId::new(token)]);
    let batch: Vec<(SequenceId, &[TokenId])> =
        names.iter().zip(&tokens).map(|(&id, token)| (id, &token[..])).collect();
    let mut step = || assert!(context.eval_batch(&batch).unwrap().all(|logits| logits[0].is_finite()));
    // The first ones copy the granule in which the sequences part.
    (0..3).for_each(|_| step());
    let counts = of_steps(model.bank().device(), 4, step);
    assert_eq!(counts, (4 * CALLS.len() as u64, 0), "calls and allocations in 4 steps of 3 sequences, {kv}");
}

fn drawn(model: &Arc<Model>, kv: KvType) {
    let mut context = context(model, kv);
    let sampling = SamplingOptions { temp: 0.8, seed: 1, ..SamplingOptions::default() };
    let options = GenerateOptions { sampling, ..GenerateOptions::default() };
    let mut text = 0;
    let mut generation = context.generate(&[TokenId::new(300); 4], options).unwrap();
    let mut write = || text += generation.next_piece().unwrap().unwrap().text.len();
    (0..5).for_each(|_| write());
    let counts = of_steps(model.bank().device(), 8, write);
    assert_eq!(counts, (8 * CALLS.len() as u64, 0), "calls and allocations in 8 tokens that are drawn, {kv}");
}
