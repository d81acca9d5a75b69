//! What an engine on a device holds, and what it asks the driver for.

use std::sync::Arc;

use granule_device::{Bytes, Device, LiveCounts};
use granule_kv::KvType;
use granule_llama::{Context, Error, Model};

use super::{argmax, load_on, options, tales, tokens};
use crate::support::make::{Made, Shape};

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_is_held_is_what_is_said_and_all_of_it_goes_back() {
    let device = Device::cuda(0).unwrap();
    let model = load_on(device.clone(), tales());
    let bank = model.bank().clone();
    assert_eq!(bank.stats().held, model.bytes(), "nothing of loading stays");
    let mut context = Context::new(Arc::clone(&model), options(128, 32, KvType::Q4_0, KvType::Q8_0)).unwrap();
    context.eval(&tokens(1..20)).unwrap();
    for token in [20, 21, 22] {
        context.eval(&tokens([token])).unwrap();
        let info = context.memory_info();
        let parts = [info.model, info.kv, info.kv_parked, info.kv_transform, info.activations, info.scratch];
        let sum = parts.into_iter().fold(Bytes::ZERO, Bytes::saturating_add);
        assert_eq!(info.total, sum);
        assert_eq!(info.devices[0].context, Some(device.context_bytes().unwrap()), "measured once");
        assert!(bank.stats().held <= sum, "{:?} held, {sum} said", bank.stats().held);
    }
    drop((context, model));
    bank.trim();
    assert_eq!(bank.stats().held, Bytes::ZERO);
    drop(bank);
    assert_eq!(device.live(), LiveCounts::default());
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_step_that_is_replayed_calls_the_driver_a_few_times_whatever_the_model() {
    let mut each = Vec::new();
    for n_layers in [1, 4] {
        let dir = tempfile::tempdir().unwrap();
        let path = Made::new(&Shape { n_layers, ..Shape::default() }).write(dir.path());
        let device = Device::cuda(0).unwrap();
        let mut context =
            Context::new(load_on(device.clone(), &path), options(128, 32, KvType::F16, KvType::F16)).unwrap();
        context.eval(&tokens(1..9)).unwrap();
        for token in 10..14 {
            context.eval(&tokens([token])).unwrap();
        }
        let before = device.calls_made();
        for token in 14..24 {
            context.eval(&tokens([token])).unwrap();
        }
        each.push(device.calls_made() - before);
    }
    assert_eq!(each[0], each[1]);
    assert!(each[0] <= 80, "{} calls in ten steps", each[0]);
}

/// A small model on the device.
pub(super) fn small(device: &Device, n_layers: usize) -> Arc<Model> {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { n_layers, n_heads: 2, n_kv_heads: 1, ..Shape::default() };
    load_on(device.clone(), &Made::new(&shape).write(dir.path()))
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_replayed_step_is_cancelled() {
    let device = Device::cuda(0).unwrap();
    let mut context = Context::new(small(&device, 2), options(64, 16, KvType::F16, KvType::F16)).unwrap();
    for token in 1..6 {
        context.eval(&tokens([token])).unwrap();
    }
    let token = context.cancel_token();
    token.cancel();
    assert!(matches!(context.eval(&tokens([6])), Err(Error::Cancelled)));
    assert_eq!(context.tokens().len(), 5);
    token.reset();
    context.eval(&tokens([6])).unwrap();
}

/// Two contexts of one model, each with a thread, whose captures fall into the other's steps: both write what they would alone.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn captures_of_two_contexts_do_not_disturb_one_another() {
    let device = Device::cuda(0).unwrap();
    let model = small(&device, 1);
    let write = |first: u32| {
        let mut context =
            Context::new(Arc::clone(&model), options(600, 300, KvType::F16, KvType::F16)).unwrap();
        // Past the first graph's room, so that another one is captured on the way.
        let mut next = argmax(context.eval(&tokens((0..250).map(|i| 1 + (first + i) % 300))).unwrap());
        let mut written = Vec::new();
        for _ in 0..12 {
            written.push(next);
            next = argmax(context.eval(&[next]).unwrap());
        }
        written
    };
    let alone = [write(0), write(7)];
    let together = std::thread::scope(|scope| {
        let threads = [0, 7].map(|first| scope.spawn(move || write(first)));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(together, alone);
}
