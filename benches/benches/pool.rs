//! granule-pool beside floors and peers: nanoseconds of an allocation and a free. `examples/pool_report.rs` prints the same
//! workloads' percentiles, memory and calls, and the ratios.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use granule_benches::subjects::{
    ClassLifo, GgmlList, Granule, Nothing, Offsets, Plain, SlabFloor, mimalloc, system_malloc,
};
use granule_benches::workload::model::{LLAMA_1B, LLAMA_8B};
use granule_benches::workload::{Sizes, churn, decode};
use granule_benches::{Player, Script, Subject};
use granule_device::Device;

/// Whether this is a benchmark and not a quick test of it.
fn in_earnest() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

fn one<S: Subject>(group: &mut BenchmarkGroup<'_, WallTime>, subject: S, script: &Script) {
    let name = subject.name();
    let mut player = Player::new(&subject, script, 0);
    if in_earnest() {
        player.cycle();
    }
    group.bench_function(name, |bencher| bencher.iter_custom(|pairs| player.time_of(pairs)));
}

fn scripts() -> Vec<Script> {
    let pairs = if in_earnest() { 1 << 16 } else { 1 << 10 };
    let mut scripts: Vec<Script> =
        [100, 1_000, 10_000].map(|live| churn(live, Sizes::CLASSES, pairs, live as u64)).into();
    scripts.push(churn(100, Sizes::WIDE, pairs, 16));
    scripts.push(decode(&LLAMA_1B, 1, 1, 1000, 64));
    scripts.push(decode(&LLAMA_8B, 16, 16, 1000, 32));
    scripts.push(decode(&LLAMA_1B, 512, 1, 0, 8));
    scripts
}

fn pairs(criterion: &mut Criterion) {
    let device = Device::host().unwrap();
    for script in scripts() {
        let mut group = criterion.benchmark_group(&script.name);
        group.measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
        one(&mut group, Nothing, &script);
        one(&mut group, ClassLifo::default(), &script);
        one(&mut group, Granule::new(1), &script);
        one(&mut group, SlabFloor::default(), &script);
        one(&mut group, system_malloc(), &script);
        one(&mut group, mimalloc(), &script);
        one(&mut group, Offsets::new(64 << 30), &script);
        one(&mut group, GgmlList::new(1), &script);
        if script.slots <= 100 {
            one(&mut group, Plain::new(&device), &script);
        }
        group.finish();
    }
}

criterion_group!(benches, pairs);
criterion_main!(benches);
