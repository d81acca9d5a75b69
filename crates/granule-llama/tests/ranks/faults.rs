//! Calls of one rank's device that fail: while a model is loaded and its layers are split, nothing is held by any rank; while a context
//! computes, it is as it was, and goes on as if nothing had been.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Device, DeviceKind, FaultPlan, LiveCounts};
use granule_kv::KvType;
use granule_llama::{Context, Error, Model, Placement, TokenId};
use granule_quant::DType;
use granule_split::Shares;

use crate::support::make::{Made, Shape};
use crate::tales::argmax;
use crate::{load, options, tokens};

/// A small model: a layer that is whole on the first device, and one over all of them.
fn model(devices: &[Device], path: &Path) -> Result<Arc<Model>, Error> {
    let bank = |device: &Device| Bank::new(device.clone(), BankOptions::new());
    let ranks = devices.iter().map(bank).collect::<Result<Vec<_>, _>>()?;
    let shares = Shares::equal(ranks.len()).unwrap();
    load(path, Placement::new().layers(&ranks[0], 1).split(&ranks, shares, 1), 1)
}

fn file(folder: &Path) -> PathBuf {
    let weights = vec![DType::Q8_0, DType::F16];
    Made::new(&Shape { weights, head_dim: Some(32), n_ff: 128, ..Shape::default() }).write(folder)
}

fn context(model: Arc<Model>) -> Result<Context, Error> {
    Context::new(model, options(64, 16, KvType::Q4_0, KvType::F16))
}

/// All that a model is there for: it is loaded, reads a prompt, goes on, forks, forgets.
fn run(devices: &[Device], path: &Path) -> Result<Vec<TokenId>, Error> {
    let mut context = context(model(devices, path)?)?;
    let mut written = Vec::new();
    let mut next = argmax(context.eval(&tokens(1..10))?);
    let first = context.first_sequence();
    let fork = context.fork_sequence(first)?;
    for _ in 0..3 {
        written.push(next);
        let both = [(first, &[next][..]), (fork, &[next][..])];
        next = argmax(context.eval_batch(&both)?.next().unwrap());
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

/// A spread of failing calls of each device, `apart` or a little more from one another: an error or the same text, and nothing held
/// by anybody.
#[track_caller]
pub(crate) fn leave_nothing(devices: &[Device], apart: u64) {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    let (calls, right) = counted(devices, || run(devices, &path).unwrap());
    for (rank, calls) in calls.into_iter().enumerate() {
        let what = format!("{} as rank {rank}", devices[rank].name());
        assert!(calls > 10, "{calls} calls of {what}: the faults would test little");
        let (mut errors, mut tried, mut k) = (0, 0, 1);
        while k <= calls {
            let guard = devices[rank].inject_fault(FaultPlan::nth(k));
            let result = run(devices, &path);
            drop(guard);
            tried += 1;
            match result {
                // What gives memory back has nobody to fail to; the text must be right all the same.
                Ok(written) => assert_eq!(written, right, "call {k} of {what}"),
                Err(error) => {
                    errors += 1;
                    let text = error.to_string();
                    assert!(!text.contains('\n') && !text.contains("gave up"), "call {k} of {what}: {text}");
                }
            }
            for held in devices {
                assert_eq!(held.live(), LiveCounts::default(), "call {k} of {what} leaks on {}", held.name());
            }
            k += apart + k % 3 * (apart - 1);
        }
        assert!(errors * 8 > tried, "{errors} of {tried} faults of {what} were errors");
    }
    assert_eq!(run(devices, &path).unwrap(), right);
}

/// Calls of each device that fail while a text is computed, each `apart` from the next: the context is as before the step that
/// failed, and the step comes out right when it is taken again.
#[track_caller]
pub(crate) fn go_on(devices: &[Device], apart: usize) {
    let dir = tempfile::tempdir().unwrap();
    let model = model(devices, &file(dir.path())).unwrap();
    let steps: Vec<Vec<TokenId>> = [1..10, 10..11, 11..12, 12..42].map(tokens).into();
    let new = || context(Arc::clone(&model)).unwrap();
    let mut first = new();
    let all = |context: &mut Context| -> Vec<Vec<f32>> {
        steps.iter().map(|step| context.eval(step).unwrap().to_vec()).collect()
    };
    let (calls, right) = counted(devices, || all(&mut first));
    drop(first);
    for (rank, calls) in calls.into_iter().enumerate() {
        let what = format!("{} as rank {rank}", devices[rank].name());
        let on_host = devices[rank].kind() == DeviceKind::Host;
        let mut errors = 0;
        for k in (1..=calls).step_by(apart) {
            let mut context = new();
            // A host's calls are for memory, of which some is there at the second try: there all fail from this one on.
            let plan = if on_host { FaultPlan::from_nth(k) } else { FaultPlan::nth(k) };
            let mut guard = Some(devices[rank].inject_fault(plan));
            for (at, step) in steps.iter().enumerate() {
                let before = (context.tokens().to_vec(), context.logits().map(<[f32]>::to_vec).ok());
                if let Err(error) = context.eval(step).map(<[f32]>::len) {
                    errors += 1;
                    assert!(guard.take().is_some(), "call {k} of {what}, again: {error}");
                    assert!(!error.to_string().contains("gave up"), "call {k} of {what}: {error}");
                    let after = (context.tokens().to_vec(), context.logits().map(<[f32]>::to_vec).ok());
                    assert!(after == before, "call {k} of {what}: {error}");
                    context.eval(step).unwrap();
                }
                assert!(context.logits().unwrap() == right[at], "call {k} of {what}, step {at}");
            }
        }
        assert!(errors > 0, "no fault of {what} was an error");
    }
    assert!(all(&mut new()) == right);
    drop(model);
    for held in devices {
        assert_eq!(held.live(), LiveCounts::default(), "{}", held.name());
    }
}
