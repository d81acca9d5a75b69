//! The k-th call into the system fails, for every k, during load and generation: an error, and nothing leaks.

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, FaultPlan, HostOptions};
use granule_kv::KvType;
use granule_llama::{Context, Error, LoadOptions, Model, TokenId};

use crate::{argmax, ids, options, tales};

/// How a run brings the weights into memory.
#[derive(Clone, Copy, Debug)]
enum Weights {
    Mapped,
    Read,
}

fn device() -> Device {
    Device::host_with(HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::mib(256))).unwrap()
}

/// Loads, reads a prompt, forks, writes a little into both, clears, and writes again; returns what was written.
fn run(device: &Device, weights: Weights) -> Result<Vec<TokenId>, Error> {
    let load = LoadOptions {
        bank: Some(Bank::new(device.clone(), BankOptions::default())?),
        no_mmap: matches!(weights, Weights::Read),
        threads: std::num::NonZeroUsize::new(1),
        ..LoadOptions::default()
    };
    let model = Model::load(tales(), load)?;
    let mut context = Context::new(model, options(128, 16, KvType::Q8_0))?;
    let mut written = Vec::new();
    let mut next = argmax(context.eval(&ids([1, 381, 555, 968, 982, 989, 264, 263]))?);
    let mut fork = context.fork()?;
    for step in 0..40 {
        written.push(next);
        next = argmax(context.eval(&[next])?);
        if step < 3 {
            fork.eval(&ids([300 + step]))?;
        }
    }
    drop(fork);
    context.truncate(4)?;
    context.trim()?;
    written.push(argmax(context.eval(&ids([982; 20]))?));
    context.clear()?;
    written.push(argmax(context.eval(&ids([1, 381]))?));
    Ok(written)
}

#[test]
fn every_call_may_fail() {
    for weights in [Weights::Mapped, Weights::Read] {
        let counted = device();
        let before = counted.calls_made();
        let right = run(&counted, weights).unwrap();
        let calls = counted.calls_made() - before;
        assert!(calls > 30, "{calls} calls: the faults would test little");
        let (mut errors, mut missed) = (0, 0);
        for k in 1..=calls {
            let device = device();
            let guard = device.inject_fault(FaultPlan::nth(k));
            let result = run(&device, weights);
            // How many calls it takes depends on how far the thread that maps ahead comes.
            missed += u64::from(!guard.fired());
            drop(guard);
            match result {
                // What gives memory back has nobody to fail to; the text must be right all the same.
                Ok(written) => assert_eq!(written, right, "{weights:?}, call {k}"),
                Err(error) => {
                    errors += 1;
                    assert!(!error.to_string().contains('\n'), "{error}");
                }
            }
            assert_eq!(device.live(), Default::default(), "{weights:?}: call {k} of {calls} leaks");
        }
        assert!(errors > 10, "{errors} of {calls} faults were errors");
        assert!(missed * 10 <= calls, "{missed} of {calls} calls were never made");
    }
}

#[test]
fn a_context_goes_on_after_a_fault() {
    let device = device();
    let bank = Bank::new(device.clone(), BankOptions::default()).unwrap();
    let model = Model::load(tales(), LoadOptions { bank: Some(bank), ..LoadOptions::default() }).unwrap();
    let right = {
        let mut context = Context::new(model.clone(), options(512, 16, KvType::F16)).unwrap();
        context.eval(&ids([1, 381])).unwrap();
        context.eval(&ids([982; 100])).unwrap().to_vec()
    };
    let mut faults = 0;
    for k in 1..200 {
        let mut context = Context::new(model.clone(), options(512, 16, KvType::F16)).unwrap();
        context.eval(&ids([1, 381])).unwrap();
        // All calls from the k-th on: one alone may strike memory that is mapped ahead, which is then mapped when it is needed.
        let guard = device.inject_fault(FaultPlan::from_nth(k));
        let failed = context.eval(&ids([982; 100])).map(|_| ()).is_err();
        let fired = guard.fired();
        drop(guard);
        if failed {
            faults += 1;
            assert_eq!(context.tokens(), ids([1, 381]));
            assert_eq!(context.eval(&ids([982; 100])).unwrap(), right, "call {k}");
        }
        if !fired {
            break;
        }
    }
    assert!(faults > 0);
}
