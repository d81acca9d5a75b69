//! What a context of some depth adds to a decode step, for each type of cache, beside what it adds in llama.cpp.
//!
//! `cargo run --release -p granule-benches --example kv_depth -- MODEL [--depth N] [--steps N] [--threads N]
//! [--layers-per-row N] [--llama-bench PATH]` prints Markdown.
//!
//! A step at depth 0 and one at the depth take turns, and so do the types, so that a machine that slows down slows all of them;
//! what a depth adds is the difference of the medians. llama.cpp, where its `llama-bench` is named, is asked before and after,
//! at each depth by itself, as it cannot take turns. `auto` and `none` are what `--kv-transform` takes.

use std::num::NonZero;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use granule_benches::machine::machine;
use granule_benches::table::Table;
use granule_llama::{Context, ContextOptions, KvTransformMode, KvType, LoadOptions, Model, TokenId};

/// Steps before the cache of depth 0 starts anew: what is meant by depth 0 is the first of them.
const SHALLOW: usize = 16;

struct Case {
    kv: KvType,
    mode: KvTransformMode,
    shallow: Context,
    deep: Context,
    times: [Vec<Duration>; 2],
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut model, mut depth, mut steps, mut threads) = (None, 2048, 64, 2);
    let (mut layers_per_row, mut peer) = (None, None);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("a value behind the flag");
        let mut number = || value().parse::<usize>().expect("a number");
        match argument.as_str() {
            "--depth" => depth = number(),
            "--steps" => steps = number(),
            "--threads" => threads = number(),
            "--layers-per-row" => layers_per_row = Some(number()),
            "--llama-bench" => peer = Some(value()),
            _ if model.is_none() => model = Some(argument),
            _ => panic!("{argument}: one model and no such flag"),
        }
    }
    let path = model.expect("a model: a GGUF file");
    let options = LoadOptions { threads: NonZero::new(threads), ..LoadOptions::default() };
    let model = Model::load(&path, options).unwrap();

    let kinds = [
        (KvType::F16, KvTransformMode::None),
        (KvType::Q8_0, KvTransformMode::None),
        (KvType::Q4_0, KvTransformMode::None),
        (KvType::Q4_0, KvTransformMode::Auto),
    ];
    let ask = |kv| peer.as_deref().map(|peer| llama_bench(peer, &path, kv, depth, threads));
    let before: Vec<_> = kinds.iter().map(|&(kv, _)| ask(kv)).collect();
    let lengths = [2 * SHALLOW, depth + steps + 1];
    let mut cases = kinds.map(|(kv, mode)| {
        let options = ContextOptions {
            type_k: kv,
            type_v: kv,
            kv_transform: mode,
            layers_per_row,
            ..ContextOptions::default()
        };
        let [shallow, mut deep] = lengths.map(|n_ctx| {
            Context::new(Arc::clone(&model), ContextOptions { n_ctx: Some(n_ctx), ..options }).unwrap()
        });
        deep.eval(&(0..depth).map(token).collect::<Vec<_>>()).unwrap();
        Case { kv, mode, shallow, deep, times: [Vec::new(), Vec::new()] }
    });
    for step in 0..steps {
        for case in &mut cases {
            if step % SHALLOW == 0 {
                case.shallow.clear().unwrap();
            }
            for (context, times) in [&mut case.shallow, &mut case.deep].into_iter().zip(&mut case.times) {
                let start = Instant::now();
                context.eval(&[token(step)]).unwrap();
                times.push(start.elapsed());
            }
        }
    }
    let after: Vec<_> = kinds.iter().map(|&(kv, _)| ask(kv)).collect();

    println!("# What a depth of {depth} adds to a token: {}, {threads} threads\n", machine());
    println!("`{path}`, medians of {steps} steps, milliseconds.\n");
    let mut table =
        Table::new(["cache", "transform", "depth 0", "at depth", "added", "llama.cpp adds", "times less"]);
    for (case, (before, after)) in cases.iter_mut().zip(before.into_iter().zip(after)) {
        let [shallow, deep] = case.times.each_mut().map(|times| 1e3 * median(times).as_secs_f64());
        let added = deep - shallow;
        let peers = before.zip(after).map(|(before, after)| before.min(after));
        table.row(vec![
            case.kv.to_string(),
            format!("{:?}", case.mode).to_lowercase(),
            format!("{shallow:.2}"),
            format!("{deep:.2}"),
            format!("{added:.2}"),
            peers.map_or("not asked".to_owned(), |peer| format!("{peer:.2}")),
            peers.map_or(String::new(), |peer| format!("{:.1}", peer / added)),
        ]);
    }
    println!("{table}");
}

fn token(i: usize) -> TokenId {
    TokenId::from(u32::try_from(100 + i % 1000).unwrap())
}

/// Milliseconds that the depth adds in llama.cpp.
fn llama_bench(program: &str, model: &str, kv: KvType, depth: usize, threads: usize) -> f64 {
    let kv = kv.to_string();
    let [shallow, deep] = [0, depth].map(|depth| {
        let (depth, threads) = (depth.to_string(), threads.to_string());
        let arguments = ["-m", model, "-p", "0", "-n", "32", "-r", "3", "-fa", "on", "-o", "csv"];
        let output = Command::new(program)
            .args(arguments)
            .args(["-t", &threads, "-d", &depth, "-ctk", &kv, "-ctv", &kv])
            .output()
            .expect("llama-bench starts");
        assert!(output.status.success(), "llama-bench: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        let mut lines = text.lines().map(|line| line.split(',').map(|field| field.trim_matches('"')));
        let (mut names, mut values) = (lines.next().expect("names"), lines.next().expect("values"));
        let at = names.position(|name| name == "avg_ns").expect("llama-bench names avg_ns");
        let nanoseconds: f64 = values.nth(at).expect("a value").parse().expect("a number");
        nanoseconds / 32.0 / 1e6
    });
    deep - shallow
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}
