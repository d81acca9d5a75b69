//! `granule bench`: prompt and decode tokens per second, at chosen depths, after a warm-up and repeated.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use granule_llama::{CancelToken, Context, Model, TokenId};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::args::{BenchArgs, ContextArgs};
use crate::table::{Align, Table};
use crate::{interrupt, progress, session};

/// One line of the result.
#[derive(Serialize)]
struct Measurement {
    /// "pp" and the tokens of the prompt, or "tg" and the tokens that were decoded one by one.
    test: String,
    depth: usize,
    cache_type_k: String,
    cache_type_v: String,
    kv_transform: String,
    threads: usize,
    n_batch: usize,
    /// The median of `runs`.
    tokens_per_second: f64,
    /// Tokens per second of each run, in order.
    runs: Vec<f64>,
}

/// Measures and prints; what was measured before an error is printed too.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let cancel = interrupt::install()?;
    let model = session::load(&args.load, &cancel)?;
    let mut measured = Vec::new();
    let mut contexts = args.contexts().into_iter();
    let done = contexts.try_for_each(|context| measure(args, &context, &model, &cancel, &mut measured));
    if done.is_ok() || !measured.is_empty() {
        print(args, &measured)?;
    }
    done
}

fn measure(
    args: &BenchArgs,
    with: &ContextArgs,
    model: &Arc<Model>,
    cancel: &CancelToken,
    measured: &mut Vec<Measurement>,
) -> Result<()> {
    let (depths, n_gen, repeat) = (args.depths(), args.n_gen(), args.repeat());
    let deepest = depths.last().copied().unwrap_or(0);
    let n_ctx = deepest.checked_add(args.n_prompt.max(n_gen)).context("the depth is too large")?;
    let mut context = session::context(model, with, Some(n_ctx), cancel)?;
    let n_batch = with.batch_size.get();
    let kinds = usize::from(args.n_prompt > 0) + usize::from(n_gen > 0);
    let bar = progress::counted("measuring", depths.len() * kinds * (repeat + 1));
    for depth in depths {
        let filled = depth.min(context.tokens().len());
        context.truncate(filled)?;
        append(&mut context, depth - filled, n_batch)?;
        let tests = [("pp", args.n_prompt, n_batch), ("tg", n_gen, 1)];
        for (kind, n, step) in tests.into_iter().filter(|&(_, n, _)| n > 0) {
            let test = format!("{kind}{n}");
            bar.set_message(test.clone());
            let runs = speeds(&mut context, depth, n, step, repeat, &bar, cancel)?;
            measured.push(Measurement {
                test,
                depth,
                cache_type_k: with.type_k().to_string(),
                cache_type_v: with.type_v().to_string(),
                kv_transform: with.kv_transform().to_string(),
                threads: model.threads().count(),
                n_batch,
                tokens_per_second: median(&runs),
                runs,
            });
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Tokens per second of appending `n` tokens behind the first `depth`, in steps of `step`, time and again.
pub(crate) fn speeds(
    context: &mut Context,
    depth: usize,
    n: usize,
    step: usize,
    repeat: usize,
    bar: &ProgressBar,
    cancel: &CancelToken,
) -> Result<Vec<f64>> {
    let mut speed = || -> Result<f64> {
        context.truncate(depth)?;
        let start = Instant::now();
        append(context, n, step)?;
        let seconds = start.elapsed().as_secs_f64();
        if cancel.is_cancelled() {
            return Err(granule_llama::Error::Cancelled.into());
        }
        bar.inc(1);
        Ok(n as f64 / seconds)
    };
    // The first one is the warm-up, and is not counted.
    speed()?;
    (0..repeat).map(|_| speed()).collect()
}

/// Appends `n` tokens in steps of `step`. Any tokens will do: the work does not depend on which they are.
pub(crate) fn append(context: &mut Context, n: usize, step: usize) -> Result<()> {
    let n_vocab = context.model().tokenizer().n_vocab() as u64;
    let mut done = 0;
    while done < n {
        let first = context.tokens().len() as u64;
        let end = first + step.min(n - done) as u64;
        let token = |i: u64| TokenId::new((i.wrapping_mul(2_654_435_761) % n_vocab) as u32);
        let part: Vec<TokenId> = (first..end).map(token).collect();
        context.eval(&part)?;
        done += part.len();
    }
    Ok(())
}

pub(crate) fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    (low + high) / 2.0
}

fn print(args: &BenchArgs, measured: &[Measurement]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(measured)?)?;
        return Ok(());
    }
    let mut table = Table::new([
        Align::Left,
        Align::Right,
        Align::Left,
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Left,
    ]);
    table.row(["test", "depth", "k", "v", "threads", "t/s", "slowest to fastest"]);
    for m in measured {
        let fastest = m.runs.iter().copied().fold(f64::MIN, f64::max);
        let slowest = m.runs.iter().copied().fold(f64::MAX, f64::min);
        table.row([
            m.test.clone(),
            m.depth.to_string(),
            m.cache_type_k.clone(),
            m.cache_type_v.clone(),
            m.threads.to_string(),
            format!("{:.2}", m.tokens_per_second),
            format!("{slowest:.2} to {fastest:.2} in {} runs", m.runs.len()),
        ]);
    }
    write!(out, "{table}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
    }
}
