//! What growing costs a decode step, on the shape of Llama 3.2 1B and the host device: the time of steps in which a granule is
//! added beside that of all others.
//!
//! `cargo run --release -p granule-benches --example kv_growth [TOKENS [WEIGHTS_MIB [GROWN [TYPE]]]]`
//!
//! Sequences of TOKENS tokens, one after the other, until there are GROWN steps (1,000 by default) in which a granule was added:
//! a 99th percentile of fewer is their maximum. That is some minutes for each line of `model`; with TYPE, those of one
//! type and all layers in a row are measured alone.
//!
//! A step prepares a row, writes it in every layer and commits it. `alone` is that and nothing else, which no mapper can keep up
//! with: it shows what waiting costs. In `model` the step reads WEIGHTS_MIB of memory besides, a part for each layer, as one that
//! multiplies with weights does. `ahead 64` is the cache's default, `ahead 0` maps when memory is needed. A granule is *added* in
//! the step whose row is the first to need it, in the one during which the mapper got it ready, and in the one after that,
//! which takes it over.

use std::hint::black_box;
use std::time::{Duration, Instant};

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, calls_made_here};
use granule_kv::{KvCache, KvLayout, KvOptions, KvShape, KvStats, KvType};

const SHAPE: KvShape = KvShape { n_layers: 16, n_kv_heads: 8, head_dim: 64 };

type Failure = Box<dyn std::error::Error>;

/// How long each step took, those in which a granule was added apart.
struct Steps {
    grown: Vec<Duration>,
    others: Vec<Duration>,
    calls: u64,
    stats: KvStats,
}

fn main() -> Result<(), Failure> {
    let only = std::env::args().nth(4).map(|name| name.parse::<KvType>()).transpose()?;
    if let Some(only) = only.filter(|only| matches!(only, KvType::F32 | KvType::BF16)) {
        return Err(format!("{only} is not measured: f16, q8_0 or q4_0").into());
    }
    let mut args = std::env::args().skip(1).take(3).map(|arg| arg.parse::<usize>());
    let tokens = args.next().transpose()?.unwrap_or(8_192);
    let weights = args.next().transpose()?.unwrap_or(64);
    let grown = args.next().transpose()?.unwrap_or(1_000);
    println!(
        "{:<6} {:<5} {:>8} {:>6} {:>6} {:>10} {:>10} {:>10} {:>10} {:>7} {:>6} {:>6} {:>7} {:>6}",
        "step",
        "type",
        "layers/r",
        "ahead",
        "grown",
        "p50",
        "p50 grown",
        "p99",
        "p99 grown",
        "ratio",
        "ahead",
        "now",
        "waits",
        "calls"
    );
    for megabytes in [0, weights] {
        for (kv, layers_per_row) in
            [(KvType::F16, 16), (KvType::Q8_0, 16), (KvType::Q4_0, 16), (KvType::F16, 1)]
        {
            if only.is_some_and(|only| only != kv || layers_per_row == 1) {
                continue;
            }
            for ahead in [64, 0] {
                let steps = run(kv, layers_per_row, ahead, tokens, megabytes, grown)?;
                print(megabytes, kv, layers_per_row, ahead, steps);
            }
        }
    }
    Ok(())
}

fn run(
    kv: KvType,
    layers_per_row: usize,
    ahead: usize,
    tokens: usize,
    megabytes: usize,
    at_least: usize,
) -> Result<Steps, Failure> {
    let bank = Bank::new(Device::host()?, BankOptions::new())?;
    let layout = KvLayout::new(SHAPE, kv, kv, Some(layers_per_row), 0)?;
    let granule = usize::try_from(bank.granule().get())?;
    let cache = KvCache::new(&bank, layout, KvOptions::new().ahead(ahead).parked(Bytes::ZERO))?;
    let weights = vec![1u64; (megabytes << 20) / 8];
    let part = weights.len() / SHAPE.n_layers;
    let row = vec![7u8; usize::try_from(layout.token_bytes().get())?];
    let stride = usize::try_from(layout.row_stride(0).get())?;
    // Where a layer's last plane ends; rows may be a little further apart than their layers are long.
    let layer_bytes = match layers_per_row {
        1 => usize::try_from(layout.token_bytes().get())? / SHAPE.n_layers,
        _ => layout.layer(1)?.1.k_quants,
    };
    let (mut grown, mut others, mut calls) = (Vec::new(), Vec::with_capacity(tokens), 0);
    let mut sequence = cache.sequence(tokens)?;
    let (mut seen, mut grown_before) = ([0; 2], usize::MAX);
    for token in (0..tokens).cycle() {
        if token == 0 && !others.is_empty() {
            if grown.len() >= at_least {
                break;
            }
            if grown.len() == grown_before {
                return Err(format!("{tokens} tokens of {kv} never need a second granule").into());
            }
            grown_before = grown.len();
            // Nothing is parked: the next one maps everything anew.
            sequence = cache.sequence(tokens)?;
            seen = [cache.stats().mapped_ahead; 2];
        }
        let (start, before) = (Instant::now(), calls_made_here());
        sequence.prepare(1)?;
        for layer in 0..SHAPE.n_layers {
            black_box(weights[layer * part..(layer + 1) * part].iter().sum::<u64>());
            let mut view = sequence.rows_mut(layer)?;
            let planes = *view.layout();
            let (at, len) = (planes.k_quants, layer_bytes);
            let target = view.rows().subslice(at..at + len)?;
            if let Some(bytes) = target.into_host_mut() {
                bytes.copy_from_slice(&row[..len]);
            }
        }
        sequence.commit(1)?;
        let took = start.elapsed();
        calls += calls_made_here() - before;
        let last_place = |row: usize| ((row + 1) * stride - 1) / granule;
        let mapped = cache.stats().mapped_ahead;
        let was_added = mapped > seen[0] || (token > 0 && last_place(token) > last_place(token - 1));
        seen = [seen[1], mapped];
        if was_added { grown.push(took) } else { others.push(took) }
    }
    Ok(Steps { grown, others, calls, stats: cache.stats() })
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

fn print(megabytes: usize, kv: KvType, layers_per_row: usize, ahead: usize, steps: Steps) {
    let Steps { mut grown, mut others, calls, stats } = steps;
    grown.sort_unstable();
    others.sort_unstable();
    let micros = |time: Duration| format!("{:.1} us", time.as_secs_f64() * 1e6);
    let [p50, p99] = [50, 99].map(|percent| percentile(&others, percent));
    let [p50_grown, p99_grown] = [50, 99].map(|percent| percentile(&grown, percent));
    println!(
        "{:<6} {:<5} {:>8} {:>6} {:>6} {:>10} {:>10} {:>10} {:>10} {:>7.2} {:>6} {:>6} {:>7} {:>6}",
        if megabytes == 0 { "alone" } else { "model" },
        kv.to_string(),
        layers_per_row,
        ahead,
        grown.len(),
        micros(p50),
        micros(p50_grown),
        micros(p99),
        micros(p99_grown),
        p99_grown.as_secs_f64() / p99.as_secs_f64(),
        stats.mapped_ahead,
        stats.mapped_now,
        stats.waits,
        calls,
    );
}
