//! Attention over the cache alone, one token in all layers: time and bytes per second for pairs of types, depths and both
//! extremes of `layers_per_row`, beside the memory bandwidth of the same run.
//!
//! `cargo run --release --package granule-benches --example kv_report -- [--quick] [--threads N] [--shape 1b|8b]
//! [--deepest N] [--weights MIB]` prints Markdown. A record is made on a machine that does nothing else.

use std::hint::black_box;
use std::num::NonZero;
use std::time::{Duration, Instant};

use granule_bank::{Bank, BankOptions};
use granule_benches::machine::machine;
use granule_benches::table::Table;
use granule_device::Device;
use granule_kv::{KvCache, KvLayout, KvOptions, KvShape, KvType, Sequence};
use granule_ops::kv_append::{self, AppendShape};
use granule_ops::{AttentionItem, AttentionShape, KvFold, KvTransform, Threads, attention};

const N_HEADS: usize = 32;
/// Rows that a transform's layout keeps in f16 besides.
const SINKS: usize = 4;
const DEPTHS: [usize; 3] = [512, 2048, 8192];
/// Tokens that are stored at a time.
const STEP: usize = 128;
/// How long one configuration is measured at least, and in how many turns.
const ROUNDS: usize = 15;

struct Setup {
    shape: KvShape,
    threads: Threads,
    bank: Bank,
    deepest: usize,
    transform: KvTransform,
}

/// Types of keys and values, and whether they are transformed first, as `--kv-transform auto` does for q4_0.
type Kinds = (KvType, KvType, bool);

/// Numbers that differ from row to row.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    let mut state = seed as u32 | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// A transform as `auto` makes them: constants off the keys, channels of like size, Hadamard on both sides, and four sinks.
fn transform(shape: KvShape) -> KvTransform {
    let width = shape.n_kv_heads * shape.head_dim;
    let fold = |constants: Vec<f32>| {
        let scales = numbers(width, 3).iter().map(|x| 1.0 + x / 4.0).collect();
        KvFold::new(shape.n_kv_heads, shape.head_dim, constants, scales).unwrap()
    };
    let keys = fold(numbers(width, 5));
    KvTransform::new(shape.n_kv_heads, shape.head_dim, Some(keys), Some(fold(vec![0.0; width]))).unwrap()
}

/// A sequence as deep as the deepest measurement.
fn sequence(setup: &Setup, (k, v, auto): Kinds, layers_per_row: usize) -> Sequence {
    let layout =
        KvLayout::new(setup.shape, k, v, Some(layers_per_row), if auto { SINKS } else { 0 }).unwrap();
    let cache = KvCache::new(&setup.bank, layout, KvOptions::new()).unwrap();
    let mut sequence = cache.sequence(setup.deepest).unwrap();
    let width = setup.shape.n_kv_heads * setup.shape.head_dim;
    let transform = auto.then_some(&setup.transform);
    let shape = AppendShape { rope_dims: 0, angles: &[], transform };
    while sequence.len() < setup.deepest {
        let n = sequence.prepare(STEP.min(setup.deepest - sequence.len())).unwrap();
        for layer in 0..setup.shape.n_layers {
            let (mut k, mut v) = (numbers(n * width, sequence.len() + layer), numbers(n * width, layer));
            let mut rows = sequence.rows_mut(layer).unwrap();
            kv_append::cpu(&setup.threads, &shape, &mut rows, &mut k, &mut v).unwrap();
        }
        sequence.commit(n).unwrap();
    }
    sequence
}

/// One token's attention in all layers.
fn token(setup: &Setup, sequence: &Sequence, auto: bool, depth: usize, memory: &mut Memory) -> Duration {
    let scale = 1.0 / (setup.shape.head_dim as f32).sqrt();
    let transform = auto.then_some(&setup.transform);
    let shape = AttentionShape { n_heads: N_HEADS, scale, transform, rope: None };
    let mut took = Duration::ZERO;
    for layer in 0..setup.shape.n_layers {
        read(&setup.threads, &memory.weights);
        let start = Instant::now();
        let item = AttentionItem { cache: sequence.view(layer, depth).unwrap(), n_tokens: 1 };
        let Memory { q, out, scratch, .. } = memory;
        attention::cpu(&setup.threads, &shape, q, &[item], out, scratch).unwrap();
        took += start.elapsed();
    }
    took
}

struct Memory {
    q: Vec<f32>,
    out: Vec<f32>,
    scratch: Vec<f32>,
    /// What is read between two layers, as an engine reads weights: rows are not in the caches when attention comes back.
    weights: Vec<u64>,
}

/// Reads all of it, each thread its part.
fn read(threads: &Threads, words: &[u64]) {
    let part = words.len() / threads.count();
    threads.run(&|worker| {
        let mut sums = [0u64; 32];
        for chunk in words[worker * part..(worker + 1) * part].as_chunks::<32>().0 {
            sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum = sum.wrapping_add(*x));
        }
        black_box(sums);
    });
}

/// Bytes per second of reading more memory than any cache holds, the best of some goes.
fn bandwidth(threads: &Threads) -> f64 {
    let words = vec![1u64; 1 << 26];
    let best = (0..5).map(|_| {
        let start = Instant::now();
        read(threads, &words);
        start.elapsed()
    });
    (words.len() * 8) as f64 / best.min().unwrap_or_default().as_secs_f64()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut quick, mut threads, mut shape, mut deepest) = (false, 2, "1b".to_owned(), 8192);
    let mut weights = 0;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("a value behind the flag");
        match argument.as_str() {
            "--quick" => quick = true,
            "--threads" => threads = value().parse().expect("a number of threads"),
            "--shape" => shape = value(),
            "--weights" => weights = value().parse().expect("MiB"),
            "--deepest" => deepest = value().parse().expect("a number of tokens"),
            other => panic!("{other}: no such flag"),
        }
    }
    let shape = match shape.as_str() {
        "1b" => KvShape { n_layers: 16, n_kv_heads: 8, head_dim: 64 },
        "8b" => KvShape { n_layers: 32, n_kv_heads: 8, head_dim: 128 },
        other => panic!("{other}: the shapes are 1b and 8b"),
    };
    let threads = Threads::new(NonZero::new(threads).expect("at least one thread")).unwrap();
    let bank = Bank::new(Device::host().unwrap(), BankOptions::new()).unwrap();
    let setup = Setup { shape, threads, bank, deepest, transform: transform(shape) };
    let read = bandwidth(&setup.threads);
    println!("# Attention over the cache: {}\n", machine());
    println!(
        "{} layers, {} KV heads of {}, {N_HEADS} query heads, {} threads; memory reads {:.1} GB/s. Medians of {ROUNDS} turns.\n",
        shape.n_layers,
        shape.n_kv_heads,
        shape.head_dim,
        setup.threads.count(),
        read / 1e9
    );
    let all = [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0, KvType::Q4_0];
    let pairs: Vec<Kinds> = all
        .iter()
        .flat_map(|&k| all.map(|v| (k, v, false)))
        .filter(|(k, v, _)| !quick || (k == v && !matches!(k, KvType::F32 | KvType::BF16)))
        .chain([(KvType::Q4_0, KvType::Q4_0, true)])
        .collect();
    let scratch = {
        let layout = KvLayout::new(shape, KvType::F32, KvType::F32, None, 0).unwrap();
        let (_, row) = layout.layer(0).unwrap();
        attention::scratch_len(&setup.threads, &row, N_HEADS, 1)
    };
    let q = numbers(N_HEADS * shape.head_dim, 7);
    let weights = vec![1; weights << 17];
    let mut memory = Memory { out: q.clone(), q, scratch: vec![0.0; scratch], weights };
    let mut table =
        Table::new(["K, V", "layers a row", "depth", "µs a token", "fastest", "GB/s", "of the bandwidth"]);
    for layers_per_row in [1, shape.n_layers] {
        // Few at a time, so that memory suffices; those of one group take turns.
        for group in pairs.chunks(5) {
            let sequences: Vec<_> =
                group.iter().map(|&kinds| sequence(&setup, kinds, layers_per_row)).collect();
            for depth in DEPTHS.into_iter().filter(|&depth| depth <= deepest) {
                let mut times = vec![Vec::new(); sequences.len()];
                for _ in 0..ROUNDS {
                    for ((sequence, times), &(.., auto)) in sequences.iter().zip(&mut times).zip(group) {
                        // The first one brings the others' rows out of the caches.
                        token(&setup, sequence, auto, depth, &mut memory);
                        times.push(token(&setup, sequence, auto, depth, &mut memory));
                    }
                }
                for (((k, v, auto), sequence), times) in group.iter().zip(&sequences).zip(&mut times) {
                    let seconds = median(times).as_secs_f64();
                    let fastest = times[0].as_secs_f64();
                    let bytes = (sequence.cache().layout().token_bytes().get() * depth as u64) as f64;
                    table.row(vec![
                        format!("{k}, {v}{}", if *auto { ", auto" } else { "" }),
                        layers_per_row.to_string(),
                        depth.to_string(),
                        format!("{:.0}", seconds * 1e6),
                        format!("{:.0}", fastest * 1e6),
                        format!("{:.1}", bytes / seconds / 1e9),
                        format!("{:.0} %", 100.0 * bytes / seconds / read),
                    ]);
                }
            }
        }
    }
    println!("{table}");
}
