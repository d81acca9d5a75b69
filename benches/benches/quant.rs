//! granule-quant: bytes per second of the memory-bound products, products per second of the others, by path.
//!
//! `gemv` reads a matrix far larger than the caches with one and with two threads and should come near the machine's
//! memory bandwidth (which `gemv/f32` shows). `gemm` is one thread; its unit is multiply-adds.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use granule_quant::{
    ATTEND_TILE, DType, HeadRows, Isa, QuantizedMatrix, RunningSoftmax, Tile, TileShape, encode,
    planar_bytes, quantize_row, query_words,
};

/// Numbers between -1 and 1, the same in every run.
fn numbers(n: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// `rows` rows of one random row's bytes: numbers of that type, or where it is decoded only, random bits.
fn weights(dtype: DType, rows: usize, k: usize) -> Vec<u8> {
    let mut row = vec![0; dtype.row_bytes(k).unwrap()];
    if dtype.is_encoded() {
        encode(dtype, &numbers(k), &mut row).unwrap();
    } else {
        row.iter_mut().zip(numbers(k)).for_each(|(byte, x)| *byte = (x.to_bits() >> 8) as u8);
    }
    row.repeat(rows)
}

struct Activations {
    x: Vec<f32>,
    q: Vec<i8>,
    d: Vec<f32>,
    s: Vec<f32>,
    rows: usize,
    k: usize,
}

impl Activations {
    fn new(rows: usize, k: usize) -> Self {
        let x = numbers(rows * k);
        let (mut q, mut d, mut s) = (vec![0; rows * k], vec![0.0; rows * k / 32], vec![0.0; rows * k / 32]);
        quantize_row(&x, &mut q, &mut d, &mut s).unwrap();
        Self { x, q, d, s, rows, k }
    }

    fn product(&self, isa: Isa, dtype: DType, w: &[u8], out: Tile<'_>) {
        if dtype.is_quantized() {
            let x = QuantizedMatrix::new(&self.q, &self.d, &self.s, self.rows, self.k).unwrap();
            isa.gemm_q8(dtype, w, self.k, &x, out).unwrap();
        } else {
            isa.gemm_f32(dtype, w, self.k, &self.x, out).unwrap();
        }
    }
}

fn vector_paths() -> Vec<Isa> {
    Isa::available().into_iter().filter(|&isa| isa != Isa::SCALAR).collect()
}

fn gemv(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemv");
    let (rows, k) = (16384, 4096);
    let x = Activations::new(1, k);
    for &dtype in DType::ALL {
        let w = weights(dtype, rows, k);
        group.throughput(Throughput::Bytes(w.len() as u64));
        let mut out = vec![0.0; rows];
        for (isa, threads) in vector_paths().into_iter().flat_map(|isa| [(isa, 1), (isa, 2)]) {
            let id = BenchmarkId::new(format!("{dtype}/{isa}"), threads);
            group.bench_function(id, |b| {
                b.iter(|| {
                    std::thread::scope(|scope| {
                        let (share, x) = (rows / threads, &x);
                        let shares = w.chunks(w.len() / threads).zip(out.chunks_mut(share));
                        for (w, out) in shares {
                            let tile = Tile::new(out, share, 1, share).unwrap();
                            scope.spawn(move || x.product(isa, dtype, w, tile));
                        }
                    });
                });
            });
        }
    }
}

fn gemm(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemm");
    let (rows, k) = (256, 2048);
    for columns in [1, 2, 3, 4, 8, 16, 256] {
        let x = Activations::new(columns, k);
        group.throughput(Throughput::Elements((rows * k * columns) as u64));
        for &dtype in DType::ALL {
            let w = weights(dtype, rows, k);
            let mut out = vec![0.0; rows * columns];
            for isa in vector_paths() {
                group.bench_function(BenchmarkId::new(format!("{dtype}/{isa}"), columns), |b| {
                    b.iter(|| x.product(isa, dtype, &w, Tile::new(&mut out, rows, columns, rows).unwrap()));
                });
            }
        }
    }
}

/// One query head over the keys and values of 2,048 tokens, with 8 heads in a row as a cache has them.
/// A tile of keys and values that lie in the caches, four queries: each of the three calls.
fn attention(c: &mut Criterion) {
    let (rows, head_dim) = (4, 64);
    let q = numbers(rows * head_dim);
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0] {
        let head = planar_bytes(dtype, head_dim).unwrap();
        let mut row = vec![0; head.quants + head.scales];
        let (quants, scales) = row.split_at_mut(head.quants);
        granule_quant::encode_planar(dtype, &numbers(head_dim), quants, scales).unwrap();
        let bytes = row.repeat(ATTEND_TILE);
        let planes = [0, head.quants];
        let tile = HeadRows::new(dtype, head_dim, &bytes, row.len(), planes, ATTEND_TILE).unwrap();
        for isa in vector_paths() {
            let mut group = c.benchmark_group("attend");
            group.throughput(Throughput::Elements(ATTEND_TILE as u64));
            let mut words = vec![0.0; query_words(dtype, head_dim, rows)];
            isa.prepare_queries(dtype, head_dim, &q, &mut words).unwrap();
            let mut scores = vec![0.0; rows * ATTEND_TILE];
            group.bench_function(format!("scores/{dtype}/{isa}"), |b| {
                b.iter(|| isa.scores(&tile, &words, rows, black_box(&mut scores)));
            });
            let (mut max, mut total, mut factors) = ([f32::MIN; 4], [0.0; 4], [[0.0; 2]; 4]);
            let shape = TileShape { rows, keys: ATTEND_TILE, seen: 64, group: rows, scale: 0.125 };
            let mut weigh = |weights: &mut [f32]| {
                let mut running = RunningSoftmax { max: &mut max, total: &mut total, factors: &mut factors };
                isa.softmax_tile(shape, &[0.0; 4], weights, &mut running);
            };
            if dtype == DType::F32 {
                // Weights become scores of the next round: any will do.
                let mut weights = scores.clone();
                group.bench_function(format!("softmax/{isa}"), |b| b.iter(|| weigh(black_box(&mut weights))));
            }
            weigh(&mut scores);
            let mut sums = vec![0.0; rows * head_dim];
            group.bench_function(format!("sums/{dtype}/{isa}"), |b| {
                b.iter(|| isa.weighted_sums(&tile, &scores, &factors, black_box(&mut sums)));
            });
            group.finish();
        }
    }
}

fn codec(c: &mut Criterion) {
    let n = 4096;
    let x = numbers(n);
    for &dtype in DType::ALL {
        let mut bytes = weights(dtype, 1, n);
        for isa in Isa::available() {
            if dtype.is_encoded() {
                let mut group = c.benchmark_group("encode");
                group.throughput(Throughput::Elements(n as u64));
                group.bench_function(format!("{dtype}/{isa}"), |b| {
                    b.iter(|| isa.encode(dtype, &x, &mut bytes).unwrap());
                });
                group.finish();
            }
            let mut back = vec![0.0; n];
            let mut group = c.benchmark_group("decode");
            group.throughput(Throughput::Elements(n as u64));
            group.bench_function(format!("{dtype}/{isa}"), |b| {
                b.iter(|| isa.decode(dtype, &bytes, &mut back).unwrap());
            });
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = gemv, gemm, attention, codec
}
criterion_main!(benches);
