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

/// The model that comes with this crate, from the folder that tests run in: the crate's, or a bundle's on a machine with a GPU.
pub(crate) fn tales() -> &'static Path {
    Path::new("models/tales-5m.q8_0.gguf")
}

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

/// The largest difference of two rows of logits, in units of the second row's root mean square.
pub(crate) fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let rms = (want.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / want.len() as f64).sqrt();
    let differences = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - f64::from(*w)).abs());
    differences.fold(0.0, |most, d| if d.is_nan() { f64::INFINITY } else { f64::max(most, d) }) / rms
}

pub(crate) fn argmax(logits: &[f32]) -> TokenId {
    TokenId::new((0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32)
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
