//! Failing calls of the driver: an error, nothing held, and whoever goes on goes on as if nothing had been.

use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Device, FaultPlan, LiveCounts};
use granule_kv::KvType;
use granule_llama::{Context, Error, GenerateOptions, LoadOptions, Model, SamplingOptions, TokenId};

use super::super::memory::small;
use super::super::{argmax, options, tokens};
use crate::support::make::{Made, Shape};

fn run(device: &Device) -> Result<Vec<TokenId>, Error> {
    let load = LoadOptions {
        bank: Some(Bank::new(device.clone(), BankOptions::default())?),
        threads: std::num::NonZeroUsize::new(1),
        ..LoadOptions::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let path =
        Made::new(&Shape { n_layers: 1, n_heads: 2, n_kv_heads: 1, ..Shape::default() }).write(dir.path());
    let model = Model::load(&path, load)?;
    let mut context = Context::new(model, options(64, 16, KvType::Q4_0, KvType::F16))?;
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

/// A spread of failing calls: an error, nothing held, and the next model is as good as new.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_failing_call_is_an_error_and_leaves_nothing() {
    let device = Device::cuda(0).unwrap();
    let before = device.calls_made();
    let right = run(&device).unwrap();
    let calls = device.calls_made() - before;
    assert!(calls > 100, "{calls} calls: the faults would test little");
    let (mut errors, mut step) = (0, 1);
    let mut k = 1;
    while k <= calls {
        let guard = device.inject_fault(FaultPlan::nth(k));
        let result = run(&device);
        drop(guard);
        match result {
            Ok(written) => assert_eq!(written, right, "call {k}"),
            Err(error) => {
                errors += 1;
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
        assert_eq!(device.live(), LiveCounts::default(), "call {k} of {calls} leaks");
        k += step;
        step = step % 23 + 5;
    }
    assert!(errors > 10, "{errors} of {calls} calls");
    assert_eq!(run(&device).unwrap(), right);
}

/// A call that fails in the middle of a text, at each of the driver's calls: the context goes on as if it had not been made.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_context_goes_on_after_a_failing_call() {
    let device = Device::cuda(0).unwrap();
    let model = small(&device, 1);
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
    let before = device.calls_made();
    let right = texts(&mut context).unwrap();
    let calls = device.calls_made() - before;
    let (mut errors, mut tried) = (0, 0);
    for k in 1..=calls {
        let mut context = new();
        let guard = device.inject_fault(FaultPlan::nth(k));
        let done = texts(&mut context);
        drop(guard);
        tried += 1;
        match done {
            Ok(rows) => assert!(rows == right, "call {k}"),
            Err(_) => {
                errors += 1;
                let appended = context.tokens().len();
                assert!([0, 9, 10, 11].contains(&appended), "call {k}: {appended} tokens");
                context.clear().unwrap();
                assert!(texts(&mut context).unwrap() == right, "call {k} of {calls}");
            }
        }
    }
    assert!(errors * 2 > tried, "{errors} of {tried} faults were errors");
}
