//! `granule bench`: prompt and decode tokens per second, at chosen depths, after a warm-up and repeated.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
#[cfg(feature = "cuda")]
use granule_device::DeviceKind;
use granule_llama::{CancelToken, Context, Model, SequenceId, TokenId};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::args::{BenchArgs, ContextArgs};
use crate::table::{Align, Table};
use crate::{interrupt, placement, progress, ranks, session};

/// One line of the result.
#[derive(Serialize)]
struct Measurement {
    /// "pp" and the tokens of the prompt, or "tg" and the tokens that were decoded one by one.
    test: String,
    depth: usize,
    /// Sequences that were decoded at once; a prompt is always one's.
    parallel: usize,
    cache_type_k: String,
    cache_type_v: String,
    kv_transform: String,
    /// What computes: "host", a GPU's name, "host ×2" for virtual devices.
    device: String,
    /// Which layers are where, and which part of them.
    placement: serde_json::Value,
    threads: usize,
    n_batch: usize,
    /// The median of `runs`.
    tokens_per_second: f64,
    /// The same of each sequence.
    tokens_per_second_each: f64,
    /// Tokens per second of all sequences together in each run, in order.
    runs: Vec<f64>,
}

/// Measures and prints; what was measured before an error is printed too.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let cancel = interrupt::install()?;
    let model = session::load(&args.load, &args.largest()?, &cancel)?;
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
    let parallel = if n_gen > 0 { args.parallel() } else { Vec::new() };
    let most = parallel.last().copied().unwrap_or(1);
    let mut context = session::context(model, with, Some(n_ctx), cancel)?;
    let longest = deepest.saturating_add(n_gen) as u64;
    for sequence in context.stages_of(context.first_sequence())? {
        let (cache, tokens) = (sequence.cache(), longest.saturating_mul(most as u64));
        let (wanted, free) = (cache.layout().token_bytes().saturating_mul(tokens), cache.bank().free());
        // Before minutes are spent on filling them.
        ensure!(
            wanted <= free,
            "{most} sequences of {longest} tokens take {wanted} on {}, and {free} are free",
            cache.bank().device().name()
        );
    }
    let n_batch = with.batch_size.get();
    let device = device_of(model)?;
    let n_prompts = usize::from(args.n_prompt > 0);
    let bar = progress::counted("measuring", depths.len() * (n_prompts + parallel.len()) * (repeat + 1));
    let prompts = (0..n_prompts).map(|_| Test { kind: "pp", n: args.n_prompt, step: n_batch, parallel: 1 });
    let decodes = parallel.iter().map(|&parallel| Test { kind: "tg", n: n_gen, step: 1, parallel });
    let tests: Vec<Test> = prompts.chain(decodes).collect();
    for depth in depths {
        for test in &tests {
            let name = format!("{}{}", test.kind, test.n);
            bar.set_message(name.clone());
            let sequences = filled(&mut context, test.parallel, depth, n_batch)?;
            let runs = speeds(&mut context, &sequences, depth, test.n, test.step, repeat, &bar, cancel)?;
            let one = test.step.min(test.n) * test.parallel == 1;
            let threads = if one { model.threads() } else { model.threads_batch() };
            measured.push(Measurement {
                test: name,
                depth,
                parallel: test.parallel,
                cache_type_k: with.type_k().to_string(),
                cache_type_v: with.type_v().to_string(),
                kv_transform: with.kv_transform().to_string(),
                device: device.clone(),
                placement: placement::json(model.stages()),
                threads: threads.count(),
                n_batch,
                tokens_per_second: median(&runs),
                tokens_per_second_each: median(&runs) / test.parallel as f64,
                runs,
            });
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// What is timed: `n` tokens in steps of `step`, of so many sequences at once.
struct Test {
    kind: &'static str,
    n: usize,
    step: usize,
    parallel: usize,
}

/// The first `count` sequences, added where they are not there yet, with `depth` tokens of their own each: a shared beginning
/// would be in the processor's caches when the next sequence comes to it.
fn filled(context: &mut Context, count: usize, depth: usize, n_batch: usize) -> Result<Vec<SequenceId>> {
    while context.sequences().len() < count {
        context.add_sequence()?;
    }
    let sequences: Vec<SequenceId> = context.sequences().take(count).collect();
    for &sequence in &sequences {
        let there = depth.min(context.sequence_tokens(sequence)?.len());
        context.truncate_sequence(sequence, there)?;
        append(context, &[sequence], depth - there, n_batch)?;
    }
    Ok(sequences)
}

/// Tokens per second, over all sequences, of appending `n` tokens to each behind its first `depth`, in steps of `step`, time and
/// again.
#[allow(clippy::too_many_arguments, reason = "what is timed, how often, and who watches")]
pub(crate) fn speeds(
    context: &mut Context,
    sequences: &[SequenceId],
    depth: usize,
    n: usize,
    step: usize,
    repeat: usize,
    bar: &ProgressBar,
    cancel: &CancelToken,
) -> Result<Vec<f64>> {
    let mut speed = || -> Result<f64> {
        for &sequence in sequences {
            context.truncate_sequence(sequence, depth)?;
        }
        let start = Instant::now();
        append(context, sequences, n, step)?;
        let seconds = start.elapsed().as_secs_f64();
        if cancel.is_cancelled() {
            return Err(granule_llama::Error::Cancelled.into());
        }
        bar.inc(1);
        Ok((n * sequences.len()) as f64 / seconds)
    };
    // The first one is the warm-up, and is not counted.
    speed()?;
    (0..repeat).map(|_| speed()).collect()
}

/// Appends `n` tokens to each sequence in steps of `step`. Any tokens will do: the work does not depend on which they are.
pub(crate) fn append(context: &mut Context, sequences: &[SequenceId], n: usize, step: usize) -> Result<()> {
    let n_vocab = context.model().tokenizer().n_vocab() as u64;
    let mut done = 0;
    while done < n {
        let len = step.min(n - done);
        let mut tokens = Vec::with_capacity(len * sequences.len());
        for (lane, &sequence) in (1u64..).zip(sequences) {
            let first = context.sequence_tokens(sequence)?.len() as u64;
            let token =
                |i: u64| TokenId::new((i.wrapping_mul(2_654_435_761).wrapping_mul(lane) % n_vocab) as u32);
            tokens.extend((first..first + len as u64).map(token));
        }
        let batch: Vec<(SequenceId, &[TokenId])> =
            sequences.iter().copied().zip(tokens.chunks(len)).collect();
        let _ = context.eval_batch(&batch)?;
        done += len;
    }
    Ok(())
}

/// The names of what a model runs on, GPUs with their makers' names, in the order of its layers.
fn device_of(model: &Model) -> Result<String> {
    let name = |bank: &granule_bank::Bank| -> Result<String> {
        let device = bank.device();
        #[cfg(feature = "cuda")]
        if device.kind() == DeviceKind::Cuda {
            return Ok(format!("{} ({})", device.name(), device.cuda_info()?.name));
        }
        Ok(device.name().to_owned())
    };
    Ok(placement::together(&model.banks().map(name).collect::<Result<Vec<_>>>()?))
}

pub(crate) fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    (low + high) / 2.0
}

fn print(args: &BenchArgs, measured: &[Measurement]) -> Result<()> {
    let mut out = ranks::out();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(measured)?)?;
        return Ok(());
    }
    let mut table = Table::new([
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Left,
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Left,
    ]);
    table.row(["test", "depth", "parallel", "k", "v", "threads", "t/s", "t/s each", "slowest to fastest"]);
    for m in measured {
        let fastest = m.runs.iter().copied().fold(f64::MIN, f64::max);
        let slowest = m.runs.iter().copied().fold(f64::MAX, f64::min);
        table.row([
            m.test.clone(),
            m.depth.to_string(),
            m.parallel.to_string(),
            m.cache_type_k.clone(),
            m.cache_type_v.clone(),
            m.threads.to_string(),
            format!("{:.2}", m.tokens_per_second),
            format!("{:.2}", m.tokens_per_second_each),
            format!("{slowest:.2} to {fastest:.2} in {} runs", m.runs.len()),
        ]);
    }
    // A GPU is named; which host this is, everybody knows.
    if let Some(m) = measured.first().filter(|m| m.device != "host") {
        writeln!(out, "on {}", m.device)?;
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
