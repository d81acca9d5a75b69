//! What a subscriber hears of steps and layers.
//!
//! One test a run, on one thread: where no subscriber is global, `tracing` asks the thread that comes to a span first whether anybody
//! wants it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops where something is not as it should be"
)]
#![allow(dead_code, reason = "of what tests share, these need a part")]

#[path = "../support/mod.rs"]
mod support;

#[cfg(feature = "cuda")]
mod cuda;
mod remembers;

use std::num::NonZeroUsize;
use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::Device;
use granule_llama::{Context, ContextOptions, LoadOptions, Model, TokenId};
use tracing::level_filters::LevelFilter;

use self::remembers::entered_in;
use self::support::make::{Made, Shape};

/// A small model on a device.
fn model(device: Device, shape: &Shape) -> Arc<Model> {
    let dir = tempfile::tempdir().unwrap();
    let bank = Some(Bank::new(device, BankOptions::new()).unwrap());
    let options = LoadOptions { bank, threads: NonZeroUsize::new(1), ..LoadOptions::default() };
    Model::load(Made::new(shape).write(dir.path()), options).unwrap()
}

fn context(model: Arc<Model>) -> Context {
    Context::new(model, ContextOptions { n_ctx: Some(64), n_batch: 4, ..ContextOptions::default() }).unwrap()
}

fn tokens<const N: usize>(ids: [u32; N]) -> [TokenId; N] {
    ids.map(TokenId::new)
}

#[test]
fn steps_with_their_layers_in_them() {
    let mut context = context(model(Device::host().unwrap(), &Shape::default()));
    let (first, other) = (context.first_sequence(), context.add_sequence().unwrap());
    let layers = ["  layer index=0 device=\"host\"", "  layer index=1 device=\"host\""];
    let mut work = |most| {
        entered_in(most, || {
            // A prompt of two batches, and one token of each of two sequences.
            context.eval(&tokens([300, 301, 302, 303, 304, 305])).unwrap();
            assert_eq!(context.eval_batch(&[(first, &tokens([7])), (other, &tokens([8]))]).unwrap().len(), 2);
        })
    };
    let steps = ["step tokens=4 sequences=1", "step tokens=2 sequences=1", "step tokens=2 sequences=2"];
    let all: Vec<&str> = steps.iter().flat_map(|step| [*step, layers[0], layers[1]]).collect();
    assert_eq!(work(LevelFilter::TRACE), all);
    assert_eq!(work(LevelFilter::DEBUG), steps);
    assert!(work(LevelFilter::INFO).is_empty());
    // A step that fails leaves no span open.
    let cancel = context.cancel_token();
    let heard = entered_in(LevelFilter::TRACE, || {
        cancel.cancel();
        assert!(context.eval(&tokens([5, 6])).is_err());
        cancel.reset();
        context.eval(&tokens([5])).unwrap();
    });
    assert_eq!(heard, ["step tokens=2 sequences=1", "step tokens=1 sequences=1", layers[0], layers[1]]);
}
