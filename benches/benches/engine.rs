//! The engine end to end on the model that comes with it: a prompt of 256 tokens, and one token behind it.

use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use granule_kv::KvType;
use granule_llama::{Context, ContextOptions, LoadOptions, Model, TokenId};

const PROMPT: usize = 256;

fn engine(criterion: &mut Criterion) {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/granule-llama/models/tales-5m.q8_0.gguf");
    let model = Model::load(path, LoadOptions::default()).unwrap();
    let prompt: Vec<TokenId> = (0..PROMPT as u32).map(|i| TokenId::new(3 + i * 37 % 1000)).collect();
    let context = |kv: KvType| {
        let options =
            ContextOptions { n_ctx: Some(PROMPT + 1), type_k: kv, type_v: kv, ..ContextOptions::default() };
        Context::new(model.clone(), options).unwrap()
    };

    let mut group = criterion.benchmark_group("prompt 256");
    group.throughput(Throughput::Elements(PROMPT as u64));
    for kv in [KvType::F16, KvType::Q8_0, KvType::Q4_0] {
        let mut context = context(kv);
        group.bench_function(kv.to_string(), |bencher| {
            bencher.iter(|| {
                context.clear().unwrap();
                context.eval(&prompt).unwrap()[0]
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("decode behind 256");
    group.throughput(Throughput::Elements(1));
    for kv in [KvType::F16, KvType::Q8_0, KvType::Q4_0] {
        let mut context = context(kv);
        context.eval(&prompt).unwrap();
        group.bench_function(kv.to_string(), |bencher| {
            bencher.iter(|| {
                // Taking a row back moves no memory: it costs nothing beside the token.
                context.truncate(PROMPT).unwrap();
                context.eval(&[prompt[7]]).unwrap()[0]
            });
        });
    }
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
