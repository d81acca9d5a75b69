//! What an all-reduce between two threads costs, beside a copy of as many bytes by one of them: the ratio of the two throughputs is what
//! the group makes of the memory's speed.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use granule_split::comm::{Communicator, GroupOptions, host_group};

const RANKS: usize = 2;

/// How long so many sums take, from when all ranks are there.
fn sums(elements: usize, count: u64) -> Duration {
    let ranks = host_group(RANKS, GroupOptions::default()).unwrap();
    let times: Vec<Duration> = thread::scope(|scope| {
        let threads: Vec<_> = (ranks.iter())
            .map(|rank| {
                scope.spawn(move || {
                    let mut x = vec![0.0_f32; elements];
                    rank.all_reduce(&mut x).unwrap();
                    let begun = Instant::now();
                    for _ in 0..count {
                        rank.all_reduce(black_box(&mut x)).unwrap();
                    }
                    begun.elapsed()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    times.into_iter().max().unwrap_or_default()
}

fn ranks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ranks/2 threads");
    for elements in [1 << 10, 1 << 13, 1 << 16, 1 << 20] {
        // What a rank sends: for two, as many bytes as there are.
        group.throughput(Throughput::Bytes(4 * elements as u64));
        group.bench_function(BenchmarkId::new("all_reduce", elements), |bencher| {
            bencher.iter_custom(|count| sums(elements, count));
        });
        let (from, mut to) = (vec![1.0_f32; elements], vec![0.0_f32; elements]);
        group.bench_function(BenchmarkId::new("memcpy", elements), |bencher| {
            bencher.iter(|| black_box(&mut to[..]).copy_from_slice(black_box(&from)));
        });
    }
    group.finish();
}

criterion_group!(benches, ranks);
criterion_main!(benches);
