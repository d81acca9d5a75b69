//! Layers that are split over ranks, beside one device: a covering set of configurations, a model of a real one's widths, what cannot
//! be split, calls that fail. On the host, and on CUDA devices.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops where something is not as it should be"
)]
#![allow(dead_code, reason = "of what tests share, these need a part")]

#[path = "../support/mod.rs"]
mod support;
#[path = "../support/tales/mod.rs"]
mod tales;

mod covering;
#[cfg(feature = "cuda")]
mod cuda;
mod faults;
mod host;
mod wide;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, HostOptions};
use granule_kv::KvType;
use granule_llama::{Context, ContextOptions, Error, LoadOptions, Model, Placement, Precision, TokenId};

/// A device of its own in the host's memory.
fn host() -> Device {
    Device::host_with(HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::gib(2))).unwrap()
}

fn hosts(n: usize) -> Vec<Device> {
    (0..n).map(|_| host()).collect()
}

/// A bank of its own for each.
fn banks(devices: &[Device]) -> Vec<Bank> {
    devices.iter().map(|device| Bank::new(device.clone(), BankOptions::new()).unwrap()).collect()
}

/// The model at `path` where it is placed, as exact as it gets.
fn load(path: &Path, placement: Placement, threads: usize) -> Result<Arc<Model>, Error> {
    let (placement, threads) = (Some(placement), NonZeroUsize::new(threads));
    let precision = Precision::Precise;
    Model::load(path, LoadOptions { placement, threads, precision, ..LoadOptions::default() })
}

/// All of it on the host.
fn whole(path: &Path) -> Arc<Model> {
    let precision = Precision::Precise;
    Model::load(path, LoadOptions { precision, ..LoadOptions::default() }).unwrap()
}

fn options(n_ctx: usize, n_batch: usize, k: KvType, v: KvType) -> ContextOptions {
    ContextOptions { n_ctx: Some(n_ctx), n_batch, type_k: k, type_v: v, ..ContextOptions::default() }
}

fn context(model: &Arc<Model>, options: ContextOptions) -> Context {
    Context::new(Arc::clone(model), options).unwrap()
}

fn tokens(numbers: impl IntoIterator<Item = u32>) -> Vec<TokenId> {
    numbers.into_iter().map(TokenId::new).collect()
}
