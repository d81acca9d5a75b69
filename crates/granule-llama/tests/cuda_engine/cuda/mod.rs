//! Models on CUDA device 0. Without a driver these tests fail.

pub(crate) mod covering;
mod memory;
mod numeric;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::Device;
use granule_kv::KvType;
use granule_llama::{Context, ContextOptions, LoadOptions, Model, Precision, TokenId};

pub(crate) use crate::tales::{argmax, distance, tales};

/// The model on a device, as exact as it gets.
pub(crate) fn load_on(device: Device, path: &Path) -> Arc<Model> {
    let bank = Some(Bank::new(device, BankOptions::new()).unwrap());
    let threads = NonZeroUsize::new(1);
    Model::load(path, LoadOptions { bank, threads, precision: Precision::Precise, ..LoadOptions::default() })
        .unwrap()
}

pub(crate) fn options(n_ctx: usize, n_batch: usize, k: KvType, v: KvType) -> ContextOptions {
    ContextOptions { n_ctx: Some(n_ctx), n_batch, type_k: k, type_v: v, ..ContextOptions::default() }
}

pub(crate) fn tokens(numbers: impl IntoIterator<Item = u32>) -> Vec<TokenId> {
    numbers.into_iter().map(TokenId::new).collect()
}

/// Greedy tokens behind `prompt`.
pub(crate) fn greedy(context: &mut Context, prompt: &[TokenId], n: usize) -> Vec<TokenId> {
    let mut next = argmax(context.eval(prompt).unwrap());
    let mut written = Vec::new();
    for _ in 0..n {
        written.push(next);
        next = argmax(context.eval(&[next]).unwrap());
    }
    written
}
