//! Failing calls of the driver: an error, nothing held, and whoever goes on goes on as if nothing had been. On one GPU, with a layer on
//! the host and one on a GPU, and over two GPUs.

use std::num::NonZeroUsize;
use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Device, DeviceKind, FaultPlan, LiveCounts};
use granule_kv::KvType;
use granule_llama::{
    Context, Error, GenerateOptions, LoadOptions, Model, Placement, SamplingOptions, TokenId,
};

use super::super::{argmax, options, tokens};
use crate::support::make::{Made, Shape};

fn gpu() -> Vec<Device> {
    vec![Device::cuda(0).unwrap()]
}

fn host_and_gpu() -> Vec<Device> {
    vec![Device::host().unwrap(), Device::cuda(0).unwrap()]
}

fn two_gpus() -> Vec<Device> {
    vec![Device::cuda(0).unwrap(), Device::cuda(1).unwrap()]
}

/// A small model with a layer on each of these devices.
fn load(devices: &[Device]) -> Result<Arc<Model>, Error> {
    let mut placement = Placement::new();
    for device in devices {
        let bank = Bank::new(device.clone(), BankOptions::default())?;
        placement = placement.layers(&bank, 1);
    }
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { n_layers: devices.len(), n_heads: 2, n_kv_heads: 1, ..Shape::default() };
    let threads = NonZeroUsize::new(1);
    let options = LoadOptions { placement: Some(placement), threads, ..LoadOptions::default() };
    Model::load(Made::new(&shape).write(dir.path()), options)
}

/// All that a model is there for: it is loaded, reads a prompt, goes on with the likeliest tokens and with drawn ones, forgets.
fn run(devices: &[Device]) -> Result<Vec<TokenId>, Error> {
    let mut context = Context::new(load(devices)?, options(64, 16, KvType::Q4_0, KvType::F16))?;
    let mut written = Vec::new();
    let mut next = argmax(context.eval(&tokens(1..10))?);
    for _ in 0..4 {
        written.push(next);
        next = argmax(context.eval(&[next])?);
    }
    let drawing = GenerateOptions {
        sampling: SamplingOptions { seed: 1, ..SamplingOptions::default() },
        n_predict: Some(4),
        ..GenerateOptions::default()
    };
    for piece in context.generate(&[next], drawing)? {
        written.extend(piece?.token);
    }
    context.truncate(4)?;
    context.trim()?;
    written.push(argmax(context.eval(&[next])?));
    Ok(written)
}

/// What each device is asked for by `act`, and what comes of it.
fn counted<T>(devices: &[Device], act: impl FnOnce() -> T) -> (Vec<u64>, T) {
    let before: Vec<u64> = devices.iter().map(Device::calls_made).collect();
    let done = act();
    (devices.iter().zip(before).map(|(device, before)| device.calls_made() - before).collect(), done)
}

/// A spread of failing calls of each device, at least `apart` from one another: an error, nothing held anywhere, and the next model is as good as new.
#[track_caller]
fn failing_calls_leave_nothing(devices: &[Device], apart: u64) {
    let (calls, right) = counted(devices, || run(devices).unwrap());
    for (device, calls) in devices.iter().zip(calls) {
        let name = device.name();
        let least = if device.kind() == DeviceKind::Host { 10 } else { 100 };
        assert!(calls > least, "{calls} calls of {name}: the faults would test little");
        let (mut errors, mut step) = (0, 1);
        let mut k = 1;
        while k <= calls {
            let guard = device.inject_fault(FaultPlan::nth(k));
            let result = run(devices);
            drop(guard);
            match result {
                Ok(written) => assert_eq!(written, right, "call {k} of {name}"),
                Err(error) => {
                    errors += 1;
                    assert!(!error.to_string().contains('\n'), "{error}");
                }
            }
            for held in devices {
                assert_eq!(held.live(), LiveCounts::default(), "call {k} of {name} leaks on {}", held.name());
            }
            k += step;
            step = step % 23 + apart;
        }
        assert!(errors > least / 10, "{errors} of {calls} calls of {name}");
    }
    assert_eq!(run(devices).unwrap(), right);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_failing_call_is_an_error_and_leaves_nothing() {
    failing_calls_leave_nothing(&gpu(), 5);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_failing_call_of_a_host_and_a_gpu_leaves_nothing() {
    failing_calls_leave_nothing(&host_and_gpu(), 23);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_failing_call_of_two_gpus_leaves_nothing() {
    failing_calls_leave_nothing(&two_gpus(), 60);
}

/// A call that fails in the middle of a text, at one of `every` of each device's calls: the context goes on as if it had not been
/// made.
#[track_caller]
fn contexts_go_on(devices: &[Device], every: usize) {
    let model = load(devices).unwrap();
    let texts = |context: &mut Context| -> Result<Vec<Vec<f32>>, Error> {
        let mut rows = vec![context.eval(&tokens(1..10))?.to_vec()];
        // Given as they are, captured, replayed.
        for token in [10, 11, 12] {
            rows.push(context.eval(&tokens([token]))?.to_vec());
        }
        Ok(rows)
    };
    let new = || Context::new(Arc::clone(&model), options(64, 16, KvType::Q4_0, KvType::F16)).unwrap();
    let mut context = new();
    let (calls, right) = counted(devices, || texts(&mut context).unwrap());
    for (device, calls) in devices.iter().zip(calls) {
        let name = device.name();
        let (mut errors, mut tried) = (0, 0);
        for k in (1..=calls).step_by(every) {
            let mut context = new();
            let guard = device.inject_fault(FaultPlan::nth(k));
            let done = texts(&mut context);
            drop(guard);
            tried += 1;
            match done {
                Ok(rows) => assert!(rows == right, "call {k} of {name}"),
                Err(_) => {
                    errors += 1;
                    let appended = context.tokens().len();
                    assert!([0, 9, 10, 11].contains(&appended), "call {k} of {name}: {appended} tokens");
                    context.clear().unwrap();
                    assert!(texts(&mut context).unwrap() == right, "call {k} of {calls} of {name}");
                }
            }
        }
        // A host's calls are for memory, of which some is there at the second try.
        assert!(
            errors * 2 > tried || device.kind() == DeviceKind::Host,
            "{errors} of {tried} faults of {name} were errors"
        );
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_context_goes_on_after_a_failing_call() {
    contexts_go_on(&gpu(), 1);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_context_of_a_host_and_a_gpu_goes_on_after_a_failing_call() {
    contexts_go_on(&host_and_gpu(), 3);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_context_of_two_gpus_goes_on_after_a_failing_call() {
    contexts_go_on(&two_gpus(), 7);
}
