//! The hot loop takes no memory: once a context is warm, a token costs no call for device memory and no allocation on the
//! host's heap, on any thread; also while other contexts of the model come and go, and for many sequences at once. Where the
//! cache's rows come near another granule, that one is lent to the thread that maps ahead: the decoding thread makes no call
//! for it either, and allocates only the loan itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops where something is not as it should be"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "of what tests share, this needs a part")]
mod support;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, HostOptions, calls_made_here};
use granule_kv::KvType;
use granule_llama::{
    Context, ContextOptions, EncodeOptions, GenerateOptions, LoadOptions, Model, SamplingOptions, SequenceId,
    TokenId,
};

/// The system's allocator, which counts what it is asked for.
struct Counting;

static ASKED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// What this thread asked for.
    static ASKED_HERE: Cell<usize> = const { Cell::new(0) };
}

fn asked() {
    ASKED.fetch_add(1, Ordering::Relaxed);
    // A thread that ends has none left.
    let _ = ASKED_HERE.try_with(|asked| asked.set(asked.get() + 1));
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        asked();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        asked();
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        asked();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn tales() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tales-5m.q8_0.gguf")
}

/// One test, so that no other one's allocations are counted.
#[test]
fn a_token_takes_no_memory() {
    let model = Model::load(tales(), LoadOptions::default()).unwrap();
    let device = model.bank().device().clone();
    for kv in [KvType::F32, KvType::F16, KvType::Q8_0, KvType::Q4_0] {
        let options = ContextOptions {
            n_ctx: Some(256),
            n_batch: 32,
            type_k: kv,
            type_v: kv,
            ..ContextOptions::default()
        };
        let other = options;
        let mut context = Context::new(Arc::clone(&model), options).unwrap();
        let prompt = model.tokenizer().encode("Once upon a time", EncodeOptions::default()).unwrap();
        let sampling =
            SamplingOptions { temp: 0.8, repeat_penalty: 1.1, seed: 1, ..SamplingOptions::default() };
        let options = GenerateOptions { sampling, stop: vec!["###".into()], ..GenerateOptions::default() };
        let mut text = String::with_capacity(4096);
        let mut generation = context.generate(&prompt, options).unwrap();
        let mut write = |n| {
            for _ in 0..n {
                text.push_str(generation.next_piece().unwrap().unwrap().text);
            }
        };
        // The first tokens map granules and fill caches; the granules behind the first rows hold many more.
        write(16);
        let mut other = Context::new(Arc::clone(&model), other).unwrap();
        other.eval(&prompt).unwrap();
        drop(other);
        let (calls, asked) = (device.calls_made(), ASKED.load(Ordering::Relaxed));
        write(64);
        let (calls, asked) = (device.calls_made() - calls, ASKED.load(Ordering::Relaxed) - asked);
        assert!(text.len() > 160, "{text:?}");
        assert_eq!((calls, asked), (0, 0), "device calls and heap allocations in 64 tokens, {kv}");
        a_batch_of_sequences(&model, kv);
    }
    across_granules(&model);
    sequences_across_granules();
}

fn a_batch_of_sequences(model: &Arc<Model>, kv: KvType) {
    let options = ContextOptions { n_ctx: Some(256), type_k: kv, type_v: kv, ..ContextOptions::default() };
    let mut context = Context::new(Arc::clone(model), options).unwrap();
    let prompt = model.tokenizer().encode("Once upon a time", EncodeOptions::default()).unwrap();
    context.eval(&prompt).unwrap();
    let first = context.first_sequence();
    let names: Vec<SequenceId> = (0..5).map(|_| context.fork_sequence(first).unwrap()).collect();
    let tokens = [300, 301, 302, 303, 304].map(|token| [TokenId::new(token)]);
    let batch: Vec<(SequenceId, &[TokenId])> =
        names.iter().zip(&tokens).map(|(&id, token)| (id, &token[..])).collect();
    let mut step = || context.eval_batch(&batch).unwrap().map(|logits| logits[0]).sum::<f32>();
    // The first steps copy the granule in which the sequences part.
    (0..16).for_each(|_| assert!(step().is_finite()));
    let device = model.bank().device();
    let (calls, asked) = (device.calls_made(), ASKED.load(Ordering::Relaxed));
    (0..64).for_each(|_| assert!(step().is_finite()));
    let (calls, asked) = (device.calls_made() - calls, ASKED.load(Ordering::Relaxed) - asked);
    assert_eq!((calls, asked), (0, 0), "device calls and heap allocations in 64 steps of 5 sequences, {kv}");
}

/// 6,208 bytes a token in granules of 2 MiB: the second begins at token 337, the third at 675.
fn across_granules(model: &Arc<Model>) {
    let options = ContextOptions {
        n_ctx: Some(1024),
        type_k: KvType::F32,
        type_v: KvType::F32,
        ..ContextOptions::default()
    };
    let mut context = Context::new(Arc::clone(model), options).unwrap();
    context.eval(&[TokenId::new(300); 200]).unwrap();
    for _ in 0..16 {
        context.eval(&[TokenId::new(301)]).unwrap();
    }
    let before = context.sequence().cache().stats();
    let calls = calls_made_here();
    let mut with_memory = Vec::new();
    for token in 216..900 {
        let asked = ASKED_HERE.get();
        context.eval(&[TokenId::new(302)]).unwrap();
        if ASKED_HERE.get() > asked {
            with_memory.push((token, ASKED_HERE.get() - asked));
        }
    }
    let after = context.sequence().cache().stats();
    let granules = after.mapped_ahead - before.mapped_ahead;
    assert!(granules >= 2, "{before:?} {after:?}");
    assert_eq!((after.mapped_now - before.mapped_now, after.waits - before.waits), (0, 0));
    assert_eq!(calls_made_here() - calls, 0, "device calls of the decoding thread");
    // One token lends a granule, another takes it back.
    assert!(with_memory.len() as u64 <= 2 * granules, "{granules} granules: {with_memory:?}");
}

/// Five forks with 4-bit keys and values and their transform, each of which comes to another granule every 68 steps: 960 bytes a
/// token in granules of 64 KiB.
fn sequences_across_granules() {
    let host = HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::mib(64));
    let bank = Bank::new(Device::host_with(host).unwrap(), BankOptions::new()).unwrap();
    let model = Model::load(tales(), LoadOptions { bank: Some(bank), ..LoadOptions::default() }).unwrap();
    let options = ContextOptions {
        n_ctx: Some(1024),
        type_k: KvType::Q4_0,
        type_v: KvType::Q4_0,
        ..ContextOptions::default()
    };
    let mut context = Context::new(Arc::clone(&model), options).unwrap();
    assert!(context.kv_transforms().is_some());
    context.eval(&[TokenId::new(300); 200]).unwrap();
    let first = context.first_sequence();
    let names: Vec<SequenceId> = (0..5).map(|_| context.fork_sequence(first).unwrap()).collect();
    let tokens = [300, 301, 302, 303, 304].map(|token| [TokenId::new(token)]);
    let batch: Vec<(SequenceId, &[TokenId])> =
        names.iter().zip(&tokens).map(|(&id, token)| (id, &token[..])).collect();
    for _ in 0..16 {
        assert_eq!(context.eval_batch(&batch).unwrap().len(), 5);
    }
    let before = context.sequence().cache().stats();
    let calls = calls_made_here();
    let mut with_memory = Vec::new();
    for step in 0..400 {
        let asked = ASKED_HERE.get();
        assert_eq!(context.eval_batch(&batch).unwrap().len(), 5);
        if ASKED_HERE.get() > asked {
            with_memory.push((step, ASKED_HERE.get() - asked));
        }
    }
    let after = context.sequence().cache().stats();
    let granules = after.mapped_ahead - before.mapped_ahead;
    assert!(granules >= 5 * (400 / 68), "{before:?} {after:?}");
    assert_eq!(after.mapped_now, before.mapped_now);
    assert_eq!(calls_made_here() - calls, 0, "device calls of the decoding thread");
    assert!(with_memory.len() as u64 <= 2 * granules, "{granules} granules: {with_memory:?}");
}
