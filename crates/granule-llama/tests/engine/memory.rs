//! Where the memory is: addresses that stay, bytes that are what the report says, limits that hold.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, DevicePtr, HostOptions};
use granule_kv::KvType;
use granule_llama::{Context, Error, LoadOptions, Model};

use crate::{context, encode, ids, load, options, tales};

/// A model on a device of its own, with granules small enough that a short text needs many.
fn small_granules() -> (Device, Arc<Model>) {
    let device =
        Device::host_with(HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::mib(256))).unwrap();
    let bank = Bank::new(device.clone(), BankOptions::default()).unwrap();
    let model = Model::load(tales(), LoadOptions { bank: Some(bank), ..LoadOptions::default() }).unwrap();
    (device, model)
}

/// The addresses of the cache's ranges.
fn bases(context: &Context) -> Vec<DevicePtr> {
    context.sequence().bases().collect()
}

fn sum<const N: usize>(bytes: [Bytes; N]) -> Bytes {
    Bytes::new(bytes.iter().map(|b| b.get()).sum())
}

#[test]
fn growth_moves_nothing() {
    let (_device, model) = small_granules();
    for kv in [KvType::F32, KvType::F16, KvType::Q8_0, KvType::Q4_0] {
        let mut context = context(&model, 1024, 32, kv);
        context.eval(&ids([1, 2, 3])).unwrap();
        let first = bases(&context);
        let row = |context: &Context| {
            let view = context.sequence().view(0, 1).unwrap();
            view.segments()[0].rows.as_host().unwrap()[..view.layout().row_stride].to_vec()
        };
        let first_row = row(&context);
        let mut held = Vec::new();
        for _ in 0..300 {
            context.eval(&ids([5])).unwrap();
            held.push(context.memory_info().kv);
            assert_eq!(bases(&context), first);
        }
        assert_eq!(row(&context), first_row);
        assert_eq!(context.sequence().bytes_copied(), Bytes::ZERO);
        assert!(held.windows(2).any(|w| w[0] < w[1]), "the cache grew: {kv}");
    }
}

#[test]
fn bytes_held_equal_the_report_at_each_step() {
    let (device, model) = small_granules();
    let before = model.bank().stats().held;
    let granule = device.granularity();
    let mut context = context(&model, 512, 32, KvType::F16);
    for step in 0..200 {
        context.eval(&ids([7])).unwrap();
        let read = || {
            let info = context.memory_info();
            let reported = sum([before, info.kv, info.activations, info.scratch]);
            (info, reported, model.bank().stats().held)
        };
        let (mut info, mut reported, mut held) = read();
        // The cache's mapper may be at work between the two looks.
        let start = Instant::now();
        while reported != held && start.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(1));
            (info, reported, held) = read();
        }
        assert_eq!(reported, held, "step {step}");
        assert_eq!(sum([info.model, info.kv, info.activations, info.scratch]), info.total);
        assert_eq!(info.n_tokens, step + 1);
        assert_eq!(info.kv.get() % granule.get(), 0);
        assert!(info.kv_used <= info.kv && info.kv <= info.kv_reserved);
    }
    drop(context);
    assert_eq!(model.bank().stats().held, before);
}

#[test]
fn a_fork_costs_little_and_is_counted_once() {
    let (_device, model) = small_granules();
    let mut parent = context(&model, 1024, 64, KvType::F16);
    parent.eval(&vec![ids([9])[0]; 400]).unwrap();
    let (alone, held) = (parent.memory_info(), model.bank().stats().held);
    let fork = parent.fork().unwrap();
    let info = fork.memory_info();
    let added = model.bank().stats().held.get() - sum([held, info.activations, info.scratch]).get();
    assert!(info.kv_shared.get() * 10 >= info.kv.get() * 8, "{info:?}");
    assert!(added * 4 < alone.kv.get(), "{added} bytes added to {}", alone.kv);
}

#[test]
fn nothing_is_left_when_everything_is_gone() {
    let (device, model) = small_granules();
    let mut context = context(&model, 512, 32, KvType::F16);
    context.eval(&encode(&model, "Once upon a time")).unwrap();
    let fork = context.fork().unwrap();
    drop((model, context, fork));
    assert_eq!(device.live(), Default::default());
}

#[test]
fn a_limit_too_small_for_the_weights() {
    let load = LoadOptions { memory_limit: Some(Bytes::mib(4)), ..LoadOptions::default() };
    let error = Model::load(tales(), load).expect_err("5 MB in 4 MiB");
    assert!(matches!(error, Error::Bank(granule_bank::Error::TooLarge { .. })), "{error:?}");
    let line = error.to_string();
    assert!(line.contains("4.0 MiB") && line.contains("weights"), "{line}");
}

#[test]
fn a_limit_too_small_for_the_tokens() {
    // Weights of 5.1 MiB, 4 MiB to compute with, and then no room for 1,024 tokens at 6 KiB.
    let load = LoadOptions { memory_limit: Some(Bytes::mib(14)), ..LoadOptions::default() };
    let model = Model::load(tales(), load).unwrap();
    let mut context = context(&model, 1024, 32, KvType::F32);
    let mut done = 0;
    let error = loop {
        match context.eval(&vec![ids([5])[0]; 64]) {
            Ok(_) => done += 64,
            Err(error) => break error,
        }
        assert!(done < 1024, "14 MiB hold all");
    };
    let line = error.to_string();
    assert!(line.contains("MiB"), "{line}");
    // Whichever of the two asked last.
    assert!(matches!(error, Error::Kv(_) | Error::Pool(_)), "{error:?}");
    assert_eq!(context.tokens().len(), done, "a failed call leaves the context as it was");
    context.truncate(done - 10).unwrap();
    context.eval(&ids([5; 10])).unwrap();
}

#[test]
fn a_context_of_no_size_is_refused() {
    let model = load(tales());
    for (n_ctx, n_batch) in [(0, 8), (8, 0), (usize::MAX, 8), (1 << 60, 8)] {
        let error =
            Context::new(Arc::clone(&model), options(n_ctx, n_batch, KvType::F16)).map(|_| ()).unwrap_err();
        assert!(!error.to_string().contains('\n'));
    }
}
