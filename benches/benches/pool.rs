//! granule-pool beside floors and peers: nanoseconds of an allocation and a free. `examples/pool_report.rs` prints the same
//! workloads' percentiles, memory and calls, and the ratios.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use granule_benches::crowd::time_of;
use granule_benches::report::{Field, Visitor, look_at};
use granule_benches::traced::{Streams, files, peak_live, read};
use granule_benches::workload::model::{LLAMA_1B, LLAMA_8B, QWEN, SMOL};
use granule_benches::workload::{KvBlocks, Sizes, churn, decode, residency};
use granule_benches::{Player, Script, Subject, Timing};

const GRANULE: u64 = 2 << 20;

/// Whether this is a benchmark and not a quick test of it.
fn in_earnest() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

fn cycle_of(pairs: usize) -> usize {
    if in_earnest() { pairs } else { pairs >> 6 }
}

/// Benchmarks each subject under its name.
struct Each<'a, 'b, F> {
    group: &'a mut BenchmarkGroup<'b, WallTime>,
    how: F,
}

/// What is done with a subject: it plays so many pairs, about, and says how long they took.
trait How {
    fn play<'s, S: Subject>(&'s self, subject: &'s S) -> impl FnMut(u64) -> Duration;
}

impl<F: How> Visitor for Each<'_, '_, F> {
    fn visit<S: Subject>(&mut self, subject: S) {
        let mut play = self.how.play(&subject);
        self.group.bench_function(subject.name(), |bencher| bencher.iter_custom(&mut play));
    }
}

/// One thread on a script.
struct Alone<'a>(&'a Script);

impl How for Alone<'_> {
    fn play<'s, S: Subject>(&'s self, subject: &'s S) -> impl FnMut(u64) -> Duration {
        let mut player = Player::new(subject, self.0, 0);
        if in_earnest() {
            player.cycle();
        }
        move |pairs| player.time_of(pairs)
    }
}

/// Each thread on a script of its own.
struct Together<'a>(&'a [Script]);

impl How for Together<'_> {
    fn play<'s, S: Subject>(&'s self, subject: &'s S) -> impl FnMut(u64) -> Duration {
        move |pairs| time_of(subject, self.0, pairs)
    }
}

/// A whole recorded trace.
struct Recorded<'a>(&'a granule_pool::replay::Script);

impl How for Recorded<'_> {
    fn play<'s, S: Subject>(&'s self, subject: &'s S) -> impl FnMut(u64) -> Duration {
        let mut streams = Streams::new(subject, self.0);
        move |passes| {
            let mut timing = Timing::default();
            let start = std::time::Instant::now();
            (0..passes).for_each(|_| streams.pass(self.0, &mut timing));
            start.elapsed()
        }
    }
}

fn pairs(criterion: &mut Criterion) {
    let pairs = cycle_of(1 << 16);
    let churns = [100, 1_000, 10_000].map(|live| churn(live, Sizes::CLASSES, pairs, live as u64));
    let wide = churn(100, Sizes::WIDE, pairs, 16);
    let decodes = [
        decode(&LLAMA_1B, 1, 1, 1000, 64),
        decode(&LLAMA_8B, 16, 16, 1000, 32),
        decode(&LLAMA_1B, 512, 1, 0, 8),
    ];
    for script in churns.into_iter().chain([wide]).chain(decodes) {
        let mut group = criterion.benchmark_group(&script.name);
        group.measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
        let slow = script.slots <= 100;
        let field = Field { streams: 1, peak: script.peak_live(), slow, granule: GRANULE };
        field.visit(&mut Each { group: &mut group, how: Alone(&script) });
    }
}

fn threads(criterion: &mut Criterion) {
    let scripts: Vec<Script> =
        (0..8).map(|seed| churn(100, Sizes::CLASSES, cycle_of(1 << 16), 100 + seed)).collect();
    let peak = scripts.iter().map(Script::peak_live).sum();
    for threads in [1, 2, 8] {
        let mut group = criterion.benchmark_group(format!("{threads} threads on as many streams"));
        group.measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
        group.throughput(criterion::Throughput::Elements(threads as u64));
        let field = Field { streams: threads, peak, slow: false, granule: GRANULE };
        field.visit(&mut Each { group: &mut group, how: Together(&scripts[..threads]) });
    }
}

fn traces(criterion: &mut Criterion) {
    for path in files().unwrap() {
        let script = read(&path).unwrap();
        let mut group = criterion.benchmark_group(format!("trace {}", path.file_stem().unwrap().display()));
        group.measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
        group.throughput(criterion::Throughput::Elements(script.steps().len() as u64));
        let streams = script.streams().len();
        let field = Field { streams, peak: peak_live(&script), slow: false, granule: GRANULE };
        field.visit(&mut Each { group: &mut group, how: Recorded(&script) });
    }
}

/// Models come and go; all of it, trims included, is one iteration.
struct Coming<'a>(&'a granule_benches::workload::Residency);

impl How for Coming<'_> {
    fn play<'s, S: Subject>(&'s self, subject: &'s S) -> impl FnMut(u64) -> Duration {
        move |times| {
            let start = std::time::Instant::now();
            (0..times).for_each(|_| drop(look_at(subject, self.0)));
            start.elapsed()
        }
    }
}

fn models(criterion: &mut Criterion) {
    let history = residency(&[SMOL, QWEN, LLAMA_1B], KvBlocks::One, 6, 64, 5);
    let mut group = criterion.benchmark_group("models of 1/64 of their size come and go");
    group.measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500)).sample_size(10);
    let field = Field { streams: 1, peak: 1 << 30, slow: true, granule: GRANULE / 64 };
    field.visit(&mut Each { group: &mut group, how: Coming(&history) });
}

criterion_group!(benches, pairs, threads, traces, models);
criterion_main!(benches);
