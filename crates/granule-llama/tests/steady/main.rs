//! The hot loop takes no memory: once a context is warm, a token costs no call for device memory and no allocation on the
//! host's heap, on any thread; also while other contexts of the model come and go. Where the cache's rows begin another
//! granule, that one is mapped.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use granule_kv::KvType;
use granule_llama::{
    Context, ContextOptions, EncodeOptions, GenerateOptions, LoadOptions, Model, SamplingOptions,
};

/// The system's allocator, which counts what it is asked for.
struct Counting;

static ASKED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
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

/// One test, so that no other one's allocations are counted.
#[test]
fn a_token_takes_no_memory() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tales-5m.q8_0.gguf");
    let model = Model::load(path, LoadOptions::default()).unwrap();
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
    }
}
