//! What a context of some depth adds to a decode step, for each type of cache, beside what it adds in llama.cpp.
//!
//! `cargo run --release -p granule-benches --example kv_depth -- MODEL [--depth N] [--turns N] [--threads N]
//! [--layers-per-row N] [--llama-bench PATH]` prints Markdown.
//!
//! Turns of some steps at depth 0 and at the depth follow one another, and so do the types, so that a machine that slows down
//! slows all of them. A turn's time is the mean of its steps; what a depth adds is the median, over the turns, of the
//! difference to the turn at depth 0 before. llama.cpp, where its `llama-bench` is named, computes as many steps at a time, eight
//! times at depth 0 and then at the depth: the difference of the medians. It is asked before and after, and the smaller answer counts. `auto` and `none` are what `--kv-transform` takes.

use std::num::NonZero;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use granule_benches::machine::machine;
use granule_benches::table::Table;
use granule_llama::{Context, ContextOptions, KvTransformMode, KvType, LoadOptions, Model, TokenId};

/// Steps of a turn: the tokens of one sequence follow one another, as they do where text is generated.
const TURN: usize = 8;

struct Case {
    kv: KvType,
    mode: KvTransformMode,
    shallow: Context,
    deep: Context,
    /// Milliseconds of a step, the mean of each turn, at depth 0 and at the depth.
    times: [Vec<f64>; 2],
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut model, mut depth, mut turns, mut threads) = (None, 2048, 12, 2);
    let (mut layers_per_row, mut peer) = (None, None);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("a value behind the flag");
        let mut number = || value().parse::<usize>().expect("a number");
        match argument.as_str() {
            "--depth" => depth = number(),
            "--turns" => turns = number(),
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
    let lengths = [TURN + 1, depth + TURN + 1];
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
    for _ in 0..turns {
        for case in &mut cases {
            let depths = [0, depth];
            for ((context, depth), times) in
                [&mut case.shallow, &mut case.deep].into_iter().zip(depths).zip(&mut case.times)
            {
                context.truncate(depth).unwrap();
                // Not timed: what others have left in the caches goes.
                context.eval(&[token(depth)]).unwrap();
                let start = Instant::now();
                for i in 0..TURN {
                    context.eval(&[token(i)]).unwrap();
                }
                times.push(1e3 * start.elapsed().as_secs_f64() / TURN as f64);
            }
        }
    }
    let after: Vec<_> = kinds.iter().map(|&(kv, _)| ask(kv)).collect();

    println!("# What a depth of {depth} adds to a token: {}, {threads} threads\n", machine());
    println!(
        "`{path}`, medians of {turns} turns of {TURN} steps each, milliseconds; a quarter of the turns is below, one above.\n"
    );
    let mut table = Table::new([
        "cache",
        "transform",
        "depth 0",
        "at depth",
        "added",
        "quarters",
        "llama.cpp adds",
        "times less",
    ]);
    for (case, (before, after)) in cases.into_iter().zip(before.into_iter().zip(after)) {
        let [shallow, deep] = &case.times;
        let mut added: Vec<_> = deep.iter().zip(shallow).map(|(deep, shallow)| deep - shallow).collect();
        added.sort_by(f64::total_cmp);
        let (quarter, half) = (added.len() / 4, added[added.len() / 2]);
        let peers = before.zip(after).map(|(before, after)| before.min(after));
        let [shallow, deep] = case.times.map(median);
        table.row(vec![
            case.kv.to_string(),
            format!("{:?}", case.mode).to_lowercase(),
            format!("{shallow:.2}"),
            format!("{deep:.2}"),
            format!("{half:.2}"),
            format!("{:.2}, {:.2}", added[quarter], added[added.len() - 1 - quarter]),
            peers.map_or("not asked".to_owned(), |peer| format!("{peer:.2}")),
            peers.filter(|_| half > 0.0).map_or(String::new(), |peer| format!("{:.1}", peer / half)),
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
    let (depths, threads, steps) = (format!("0,{depth}"), threads.to_string(), TURN.to_string());
    let arguments = ["-m", model, "-p", "0", "-n", &steps, "-r", "8", "-fa", "on", "-o", "jsonl"];
    let output = Command::new(program)
        .args(arguments)
        .args(["-t", &threads, "-d", &depths, "-ctk", &kv, "-ctv", &kv])
        .output()
        .expect("llama-bench starts");
    assert!(output.status.success(), "llama-bench: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let mut medians = text.lines().map(|line| {
        let row: serde_json::Value = serde_json::from_str(line).expect("llama-bench answers in JSON");
        let samples = row["samples_ns"].as_array().expect("samples of a row").iter();
        median(samples.map(|x| x.as_f64().expect("a number") / TURN as f64 / 1e6).collect())
    });
    let (shallow, deep) = (medians.next().expect("a row"), medians.next().expect("another"));
    deep - shallow
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
