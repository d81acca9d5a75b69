//! `granule bench --kv`: what each pair of types of keys and values costs in bytes, gives in speed, and loses in perplexity.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use granule_device::Bytes;
use granule_llama::{CancelToken, Error, KvType, Model, Perplexity, TokenId, perplexity};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::args::{BenchArgs, ContextArgs};
use crate::bench::{append, median, speeds};
use crate::table::{Align, Table};
use crate::{interrupt, progress, ranks, session};

/// What was measured of one pair.
#[derive(Serialize)]
struct Pair {
    cache_type_k: String,
    cache_type_v: String,
    /// Whether they are transformed before they are stored.
    transformed: bool,
    /// Keys and values of one token, all layers.
    bytes_per_token: u64,
    threads: usize,
    n_batch: usize,
    /// Ascending.
    depths: Vec<Depth>,
    /// Where there is a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    perplexity: Option<Scored>,
}

/// Speeds behind so many tokens.
#[derive(Serialize)]
struct Depth {
    depth: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<Speed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode: Option<Speed>,
}

#[derive(Serialize)]
struct Speed {
    n_tokens: usize,
    /// The median of `runs`.
    tokens_per_second: f64,
    runs: Vec<f64>,
}

#[derive(Clone, Copy, Serialize)]
struct Scored {
    ppl: f64,
    ctx_size: usize,
    chunks: usize,
    tokens: usize,
}

/// Measures and prints; what was measured before an error is printed too.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let text = args.text.as_ref().map(|file| {
        let name = file.display();
        let text = std::fs::read(file).with_context(|| format!("cannot read `{name}`"))?;
        String::from_utf8(text).ok().with_context(|| format!("`{name}` is not UTF-8"))
    });
    let text = text.transpose()?;
    let cancel = interrupt::install()?;
    let model = session::load(&args.load, &args.largest()?, &cancel)?;
    let text = text.map(|text| model.tokenizer().encode(&text, Default::default())).transpose()?;
    if let Some(text) = &text {
        // Before minutes are spent on speeds.
        Perplexity::windows(text.len(), args.ctx_size.get())?;
    }
    let contexts = args.contexts();
    let bar = progress::counted("measuring", contexts.len() * steps(args, text.as_deref()));
    let (mut measured, mut left_out) = (Vec::new(), BTreeSet::new());
    let done = contexts.iter().try_for_each(|with| {
        bar.set_message(format!("{} {}", with.type_k(), with.type_v()));
        let done = measure(args, with, &model, text.as_deref(), &bar, &cancel, &mut measured);
        if let Err(error) = done {
            if impossible(&error).is_none_or(|kv_type| args.is_named(kv_type)) {
                return Err(error);
            }
            // Nobody asked for this type.
            left_out.insert(error.to_string());
        }
        Ok(())
    });
    bar.finish_and_clear();
    for why in left_out {
        eprintln!("left out: {why}");
    }
    if done.is_ok() || !measured.is_empty() {
        print(args, &measured)?;
    }
    done
}

/// Of a cache that the model cannot have: the type that does not fit its heads.
fn impossible(error: &anyhow::Error) -> Option<KvType> {
    match error.downcast_ref()? {
        Error::Kv(granule_kv::Error::HeadDim { kv_type, .. }) => Some(*kv_type),
        _ => None,
    }
}

/// What the bar counts of one pair.
fn steps(args: &BenchArgs, text: Option<&[TokenId]>) -> usize {
    let kinds = usize::from(args.n_prompt > 0) + usize::from(args.n_gen() > 0);
    let windows = text.map_or(0, |text| text.len() / args.ctx_size.get());
    args.depths().len() * kinds * (args.repeat() + 1)
        + windows.min(args.chunks.map_or(usize::MAX, usize::from))
}

/// Measures one pair; its speeds are in `all` also where its perplexity cannot be measured.
fn measure(
    args: &BenchArgs,
    with: &ContextArgs,
    model: &Arc<Model>,
    text: Option<&[TokenId]>,
    bar: &ProgressBar,
    cancel: &CancelToken,
    all: &mut Vec<Pair>,
) -> Result<()> {
    let (depths, n_gen, n_batch) = (args.depths(), args.n_gen(), with.batch_size.get());
    let deepest = depths.last().copied().unwrap_or(0);
    let n_ctx = deepest.checked_add(args.n_prompt.max(n_gen).max(1)).context("the depth is too large")?;
    let mut context = session::context(model, with, Some(n_ctx), cancel)?;
    let sequences = [context.first_sequence()];
    let caches = context.stages_of(sequences[0])?.iter().map(|rows| rows.cache().layout().token_bytes());
    let token_bytes = caches.fold(Bytes::ZERO, Bytes::saturating_add);
    let transformed = context.kv_transforms().is_some();
    // Filled once, and from the deepest to the shallowest cut back.
    append(&mut context, &sequences, deepest, n_batch)?;
    let mut measured = Vec::with_capacity(depths.len());
    for &depth in depths.iter().rev() {
        let mut speed = |n, step| -> Result<Option<Speed>> {
            if n == 0 {
                return Ok(None);
            }
            let runs = speeds(&mut context, &sequences, depth, n, step, args.repeat(), bar, cancel)?;
            Ok(Some(Speed { n_tokens: n, tokens_per_second: median(&runs), runs }))
        };
        measured.push(Depth { depth, prompt: speed(args.n_prompt, n_batch)?, decode: speed(n_gen, 1)? });
    }
    measured.reverse();
    drop(context);
    let mut pair = Pair {
        cache_type_k: with.type_k().to_string(),
        cache_type_v: with.type_v().to_string(),
        transformed,
        bytes_per_token: token_bytes.get(),
        threads: model.threads().count(),
        n_batch,
        depths: measured,
        perplexity: None,
    };
    let scored = text.map(|text| -> Result<Scored> {
        let ctx_size = args.ctx_size.get();
        let mut context = session::context(model, with, Some(ctx_size), cancel)?;
        let chunks = args.chunks.map(usize::from);
        let scored = perplexity(&mut context, text, ctx_size, chunks, &mut |_| bar.inc(1))?;
        Ok(Scored { ppl: scored.ppl, ctx_size, chunks: scored.chunks, tokens: scored.tokens })
    });
    let scored = scored.transpose();
    if let Ok(scored) = &scored {
        pair.perplexity = scored.as_ref().copied();
    }
    all.push(pair);
    scored.map(drop)
}

fn print(args: &BenchArgs, measured: &[Pair]) -> Result<()> {
    let mut out = ranks::out();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(measured)?)?;
        return Ok(());
    }
    let depths = args.depths();
    let mut heading: Vec<String> = ["k", "v", "transform", "bytes/token"].map(str::to_owned).to_vec();
    let mut columns = |what: &str, n: usize| {
        heading.extend(depths.iter().filter(|_| n > 0).map(|depth| format!("{what}{n} @ {depth}")));
    };
    columns("pp", args.n_prompt);
    columns("tg", args.n_gen());
    if args.text.is_some() {
        heading.push("perplexity".to_owned());
    }
    let mut align = vec![Align::Left; 3];
    align.resize(heading.len(), Align::Right);
    let mut table = Table::new(align);
    table.row(heading);
    for pair in measured {
        let transform = if pair.transformed { "yes" } else { "no" };
        let bytes = pair.bytes_per_token.to_string();
        let mut row = vec![pair.cache_type_k.clone(), pair.cache_type_v.clone(), transform.to_owned(), bytes];
        let cell = |speed: &Speed| format!("{:.2}", speed.tokens_per_second);
        row.extend(pair.depths.iter().filter_map(|depth| depth.prompt.as_ref()).map(cell));
        row.extend(pair.depths.iter().filter_map(|depth| depth.decode.as_ref()).map(cell));
        if args.text.is_some() {
            row.push(pair.perplexity.map_or_else(String::new, |scored| format!("{:.4}", scored.ppl)));
        }
        table.row(row);
    }
    write!(out, "{table}")?;
    writeln!(
        out,
        "pp and tg: tokens per second of a prompt and of decoding, behind as many tokens as stand after the @"
    )?;
    Ok(())
}
