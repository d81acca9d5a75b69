//! What a token costs when it is appended and when it asks: rotation, transform and encoder of one layer's keys and values,
//! and the transforms of its queries and of attention's result. One thread; the shapes of SmolLM2-135M and of Llama 3.2 1B.

use std::hint::black_box;
use std::num::NonZero;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use granule_device::DeviceSliceMut;
use granule_kv::{KvLayout, KvShape, KvType};
use granule_ops::kv_append::{self, AppendShape};
use granule_ops::{KvFold, KvTransform, KvViewMut, Rope, Threads};

/// Name, query heads, KV heads; all heads have 64 channels.
const MODELS: [(&str, usize, usize); 2] = [("SmolLM2-135M", 9, 3), ("Llama 3.2 1B", 32, 8)];
const HEAD_DIM: usize = 64;

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 37 % 101) as f32 / 101.0 - 0.5).collect()
}

fn transform(n_kv_heads: usize) -> KvTransform {
    let n = n_kv_heads * HEAD_DIM;
    let fold = || KvFold::new(n_kv_heads, HEAD_DIM, numbers(n), vec![1.5; n]).unwrap();
    KvTransform::new(n_kv_heads, HEAD_DIM, Some(fold()), Some(fold())).unwrap()
}

fn append(criterion: &mut Criterion) {
    let threads = Threads::new(NonZero::<usize>::MIN).unwrap();
    let mut angles = vec![0.0; HEAD_DIM];
    Rope::new(HEAD_DIM, 10_000.0, 1.0, None).unwrap().angles(1000, 1, &mut angles).unwrap();
    for (model, _, n_kv_heads) in MODELS {
        let mut group = criterion.benchmark_group(format!("kv/append a token to a layer/{model}"));
        let shape = KvShape { n_layers: 1, n_kv_heads, head_dim: HEAD_DIM };
        let turned = transform(n_kv_heads);
        let kinds = [
            (KvType::F16, "plain", None),
            (KvType::Q8_0, "plain", None),
            (KvType::Q4_0, "plain", None),
            (KvType::Q4_0, "transformed", Some(&turned)),
        ];
        for (kv, name, transform) in kinds {
            let (_, layout) = KvLayout::new(shape, kv, kv, None, 0).unwrap().layer(0).unwrap();
            let mut bytes = vec![0u8; layout.row_stride];
            let new = numbers(layout.elements());
            let (mut k, mut v) = (new.clone(), new.clone());
            let append = AppendShape { rope_dims: HEAD_DIM, angles: &angles, transform };
            group.bench_function(BenchmarkId::new(kv.to_string(), name), |bencher| {
                bencher.iter(|| {
                    k.copy_from_slice(&new);
                    v.copy_from_slice(&new);
                    let rows = DeviceSliceMut::from(&mut bytes[..]);
                    let mut view = KvViewMut::contiguous(rows, layout, 1).unwrap();
                    kv_append::cpu(&threads, &append, &mut view, &mut k, &mut v).unwrap();
                });
            });
        }
        group.finish();
    }
}

fn ask(criterion: &mut Criterion) {
    for (model, n_heads, n_kv_heads) in MODELS {
        let transform = transform(n_kv_heads);
        let new = numbers(n_heads * HEAD_DIM);
        let mut x = new.clone();
        let mut group = criterion.benchmark_group(format!("kv/transform a token's heads/{model}"));
        group.bench_function("queries", |bencher| {
            bencher.iter(|| {
                x.copy_from_slice(&new);
                for (head, q) in x.chunks_exact_mut(HEAD_DIM).enumerate() {
                    black_box(transform.query(head / (n_heads / n_kv_heads), q));
                }
            });
        });
        group.bench_function("outputs", |bencher| {
            bencher.iter(|| {
                x.copy_from_slice(&new);
                for (head, out) in x.chunks_exact_mut(HEAD_DIM).enumerate() {
                    transform.output(head / (n_heads / n_kv_heads), out);
                }
                black_box(&x);
            });
        });
        group.finish();
    }
}

criterion_group!(benches, append, ask);
criterion_main!(benches);
