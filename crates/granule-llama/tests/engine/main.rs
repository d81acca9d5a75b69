//! The engine from a file's bytes to logits and text, held against the naive twin and against itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops where something is not as it should be"
)]

#[allow(dead_code, reason = "of what tests share, these need a part")]
#[path = "../support/mod.rs"]
mod support;

mod bad_files;
mod faults;
mod files;
mod generation;
mod logits;
mod memory;
mod prompts;
mod quantize;
mod same_result;
mod sequences;
mod split;
mod states;
mod transform;
mod twin;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use granule_kv::KvType;
use granule_llama::{Context, ContextOptions, LoadOptions, Model, Precision, TokenId};

/// The model that comes with this crate.
fn tales() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tales-5m.q8_0.gguf"))
}

/// The model at `path`, precise: what is compared here is that one text is one text, however it is computed.
fn load(path: &Path) -> Arc<Model> {
    load_with_threads(path, 2)
}

fn load_with_threads(path: &Path, threads: usize) -> Arc<Model> {
    load_with_two_kinds_of_threads(path, threads, None)
}

/// Threads for steps of one token, and for steps of more.
fn load_with_two_kinds_of_threads(path: &Path, one: usize, more: Option<usize>) -> Arc<Model> {
    let (threads, threads_batch) = (NonZeroUsize::new(one), more.and_then(NonZeroUsize::new));
    Model::load(path, LoadOptions { threads, threads_batch, ..precise() }).unwrap()
}

fn precise() -> LoadOptions<'static> {
    LoadOptions { precision: Precision::Precise, ..LoadOptions::default() }
}

fn options(n_ctx: usize, n_batch: usize, kv: KvType) -> ContextOptions {
    ContextOptions { n_ctx: Some(n_ctx), n_batch, type_k: kv, type_v: kv, ..ContextOptions::default() }
}

fn context(model: &Arc<Model>, n_ctx: usize, n_batch: usize, kv: KvType) -> Context {
    Context::new(Arc::clone(model), options(n_ctx, n_batch, kv)).unwrap()
}

/// The largest difference of two rows of logits, in units of the second row's root mean square.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let rms = (want.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / want.len() as f64).sqrt();
    let differences = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - f64::from(*w)).abs());
    differences.fold(0.0, f64::max) / rms
}

/// Tokens by their numbers.
fn ids<const N: usize>(ids: [u32; N]) -> [TokenId; N] {
    ids.map(TokenId::new)
}

/// The tokens of `text`, with the start token if the file asks for one.
fn encode(model: &Model, text: &str) -> Vec<TokenId> {
    model.tokenizer().encode(text, Default::default()).unwrap()
}

fn argmax(logits: &[f32]) -> TokenId {
    TokenId::new((0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32)
}

/// Greedy tokens behind `prompt`.
fn greedy(context: &mut Context, prompt: &[TokenId], n: usize) -> Vec<TokenId> {
    let mut next = argmax(context.eval(prompt).unwrap());
    let mut tokens = Vec::new();
    for _ in 0..n {
        tokens.push(next);
        next = argmax(context.eval(&[next]).unwrap());
    }
    tokens
}
