//! granule-kv: what a layout costs attention, and what appending and forking cost, on the shape of Llama 3.2 1B.
//!
//! `attention` is one decode step's attention in all layers, one thread; its bytes are the cache's, each read once.

use std::num::NonZero;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use granule_bank::{Bank, BankOptions};
use granule_device::Device;
use granule_kv::{KvCache, KvLayout, KvOptions, KvShape, KvType, Sequence};
use granule_ops::kv_append::{self, AppendShape};
use granule_ops::{AttentionItem, AttentionShape, KvFold, KvTransform, Threads, attention};

const SHAPE: KvShape = KvShape { n_layers: 16, n_kv_heads: 8, head_dim: 64 };
const WIDTH: usize = 512;
const N_HEADS: usize = 32;
const N_CTX: usize = 1 << 17;
const STEP: usize = 256;

fn bank() -> Bank {
    Bank::new(Device::host().unwrap(), BankOptions::new()).unwrap()
}

/// A transform as `auto` makes them for q4_0: constants off the keys, channels of like size, Hadamard on both sides.
fn transform() -> KvTransform {
    let fold = |by: f32| {
        let numbers =
            |at: f32, by: f32| (0..WIDTH).map(|i| at + by * ((i % 37) as f32 - 18.0) / 18.0).collect();
        KvFold::new(SHAPE.n_kv_heads, SHAPE.head_dim, numbers(0.0, by), numbers(1.0, 0.25)).unwrap()
    };
    KvTransform::new(SHAPE.n_kv_heads, SHAPE.head_dim, Some(fold(0.5)), Some(fold(0.0))).unwrap()
}

/// A sequence of `depth` tokens, all of them alike; transformed, with four sinks, where a transform is given.
fn sequence(
    bank: &Bank,
    kv: KvType,
    transform: Option<&KvTransform>,
    layers_per_row: usize,
    depth: usize,
) -> Sequence {
    let sinks = if transform.is_some() { 4 } else { 0 };
    let layout = KvLayout::new(SHAPE, kv, kv, Some(layers_per_row), sinks).unwrap();
    let mut sequence = KvCache::new(bank, layout, KvOptions::new()).unwrap().sequence(N_CTX).unwrap();
    let threads = Threads::new(NonZero::<usize>::MIN).unwrap();
    let numbers: Vec<f32> = (0..STEP * WIDTH).map(|i| (i % 101) as f32 / 101.0 - 0.5).collect();
    let shape = AppendShape { rope_dims: 0, angles: &[], transform };
    for start in (0..depth).step_by(STEP) {
        let n = STEP.min(depth - start);
        sequence.prepare(n).unwrap();
        for layer in 0..SHAPE.n_layers {
            let (mut k, mut v) = (numbers[..n * WIDTH].to_vec(), numbers[..n * WIDTH].to_vec());
            let mut rows = sequence.rows_mut(layer).unwrap();
            kv_append::cpu(&threads, &shape, &mut rows, &mut k, &mut v).unwrap();
        }
        sequence.commit(n).unwrap();
    }
    sequence
}

fn layouts(criterion: &mut Criterion) {
    let bank = bank();
    let threads = Threads::new(NonZero::<usize>::MIN).unwrap();
    let (q, mut out) = (vec![0.1f32; N_HEADS * SHAPE.head_dim], vec![0f32; N_HEADS * SHAPE.head_dim]);
    for depth in [512, 4096] {
        let mut group = criterion.benchmark_group(format!("kv/attention/depth {depth}"));
        group.sample_size(20).measurement_time(Duration::from_secs(3));
        let auto = transform();
        for (kv, transform) in
            [(KvType::F16, None), (KvType::Q8_0, None), (KvType::Q4_0, None), (KvType::Q4_0, Some(&auto))]
        {
            for layers_per_row in [1, 4, 16] {
                let sequence = sequence(&bank, kv, transform, layers_per_row, depth);
                let bytes = sequence.cache().layout().token_bytes().get() * depth as u64;
                let (_, row) = sequence.cache().layout().layer(0).unwrap();
                let mut scratch = vec![0f32; attention::scratch_len(&threads, &row, N_HEADS, 1)];
                let shape = AttentionShape { n_heads: N_HEADS, scale: 0.125, transform, rope: None };
                group.throughput(Throughput::Bytes(bytes));
                let kind = if transform.is_some() { format!("{kv}, auto") } else { kv.to_string() };
                let id = BenchmarkId::new(kind, format!("{layers_per_row} layers a row"));
                group.bench_function(id, |bencher| {
                    bencher.iter(|| {
                        for layer in 0..SHAPE.n_layers {
                            let cache = sequence.view(layer, depth).unwrap();
                            let item = AttentionItem { cache, n_tokens: 1 };
                            attention::cpu(&threads, &shape, &q, &[item], &mut out, &mut scratch).unwrap();
                        }
                        out[0]
                    });
                });
            }
        }
        group.finish();
    }
}

fn bookkeeping(criterion: &mut Criterion) {
    let bank = bank();
    let mut group = criterion.benchmark_group("kv/bookkeeping");
    for layers_per_row in [1, 16] {
        let name = |what: &str| format!("{what}, {layers_per_row} layers a row");
        let mut grown = sequence(&bank, KvType::F16, None, layers_per_row, 64);
        group.bench_function(name("append a token, granules there"), |bencher| {
            bencher.iter(|| {
                if grown.len() + 1 > 4096 {
                    grown.clear();
                }
                grown.prepare(1).unwrap();
                grown.commit(1).unwrap();
            });
        });
        let mut parent = sequence(&bank, KvType::F16, None, layers_per_row, 2048);
        group.bench_function(name("fork 2048 tokens and drop"), |bencher| {
            bencher.iter(|| parent.fork().unwrap());
        });
        group.bench_function(name("fork 2048 tokens, append to it, drop"), |bencher| {
            bencher.iter(|| {
                let mut fork = parent.fork().unwrap();
                fork.prepare(1).unwrap();
                fork
            });
        });
    }
    group.finish();
}

criterion_group!(benches, layouts, bookkeeping);
criterion_main!(benches);
