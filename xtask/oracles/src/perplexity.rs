//! `perplexity.json`: llama.cpp's perplexity on `heldout.txt`, per weight type and per pair of cache types.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use granule_llama::{Context, Model};
use serde::Deserialize;

use crate::Oracles;
use crate::engine::{Pair, context, load};
use crate::greedy::is_quantized;
use crate::report::Report;

#[derive(Deserialize)]
struct Reference {
    context: usize,
    chunks: usize,
    weights: BTreeMap<String, f64>,
    kv_on_f16_weights: BTreeMap<String, f64>,
    kv_on_f16_weights_rotated: BTreeMap<String, f64>,
}

/// Perplexity of `text` in `chunks` windows of `n_ctx`.
pub(crate) fn measure(
    model: &Arc<Model>,
    pair: Pair,
    text: &str,
    n_ctx: usize,
    chunks: usize,
) -> Result<f64> {
    let mut context = context(model, pair, n_ctx)?;
    let so_far = measure_each(&mut context, text, n_ctx, chunks)?;
    so_far.last().copied().context("no window was measured")
}

/// As [`measure`], over the first window, the first two, and so on.
pub(crate) fn measure_each(
    context: &mut Context,
    text: &str,
    n_ctx: usize,
    chunks: usize,
) -> Result<Vec<f64>> {
    let tokens = context.model().tokenizer().encode(text, Default::default())?;
    let mut all = Vec::new();
    let mut report = |so_far: &granule_llama::Perplexity| all.push(so_far.ppl);
    granule_llama::perplexity(context, &tokens, n_ctx, Some(chunks), &mut report)?;
    Ok(all)
}

pub(crate) fn compare(oracles: &Oracles, report: &mut Report) -> Result<()> {
    let heldout = oracles.text("heldout.txt")?;
    let reference: Reference = oracles.json("perplexity.json")?;
    let Reference { context, chunks, weights, kv_on_f16_weights, kv_on_f16_weights_rotated } = reference;
    report.group("perplexity per weight type, f16 cache", |group| {
        for (weights, want) in weights {
            let tolerance = if is_quantized(&weights) { 0.002 } else { 0.001 };
            let got = measure(&load(&oracles.tales(&weights))?, Pair::F16, &heldout, context, chunks)?;
            group.note(format!("{weights}: {got:.4}, llama.cpp {want}"));
            group.check(got <= want * (1.0 + tolerance), || format!("{weights}: {got:.5}, not {want}"));
        }
        Ok(())
    })?;
    report.group("perplexity per cache pair, f16 weights", |group| {
        let model = load(&oracles.tales("f16"))?;
        let rotated = kv_on_f16_weights_rotated.into_iter().map(|(pair, want)| (pair + " rotated", want));
        for (name, want) in kv_on_f16_weights.into_iter().chain(rotated) {
            let Some(pair) = Pair::parse(&name)? else { continue };
            let tolerance = if name.contains("q8_0") || name.contains("q4_0") { 0.002 } else { 0.001 };
            let got = measure(&model, pair, &heldout, context, chunks)?;
            group.note(format!("{pair}: {got:.4}, llama.cpp's {name} {want}"));
            group.check(got <= want * (1.0 + tolerance), || format!("{pair}: {got:.5}, not {want}"));
        }
        Ok(())
    })
}
