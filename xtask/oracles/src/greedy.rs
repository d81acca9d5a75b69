//! `greedy.json`: token ids, teacher-forced greedy tokens and the text that any greedy engine writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use granule_llama::Model;
use serde::Deserialize;

use crate::Oracles;
use crate::engine::{Pair, argmax, context, encode, greedy_text, ids, load, numbers};
use crate::report::{Group, Report};

/// What a float64 pass wrote behind one prompt.
#[derive(Deserialize)]
pub(crate) struct Case {
    prompt: String,
    prompt_tokens: Vec<u32>,
    tokens: Vec<u32>,
    /// The best logit less the second, at each step.
    gap: Vec<f64>,
    safe_text: String,
}

/// Whether weights of this type are quantized, by the name in a file's name.
pub(crate) fn is_quantized(weights: &str) -> bool {
    !matches!(weights, "f32" | "f16" | "bf16")
}

pub(crate) fn compare(oracles: &Oracles, report: &mut Report) -> Result<()> {
    report.group("greedy tokens, teacher-forced, f32 and f16 cache", |group| {
        let all: BTreeMap<String, Vec<Case>> = oracles.json("greedy.json")?;
        for (weights, cases) in all {
            let model = load(&oracles.tales(&weights))?;
            let bound = if is_quantized(&weights) { 0.4 } else { 0.05 };
            for pair in [Pair::F32, Pair::F16] {
                for case in &cases {
                    follow(&model, pair, case, bound, &weights, group)?;
                }
            }
        }
        Ok(())
    })
}

/// Holds one case against the engine: the prompt's ids, each step with a gap above `bound`, the safe text.
pub(crate) fn follow(
    model: &Arc<Model>,
    pair: Pair,
    case: &Case,
    bound: f64,
    name: &str,
    group: &mut Group,
) -> Result<()> {
    let prompt = ids(&case.prompt_tokens);
    let start: String = case.prompt.chars().take(30).collect();
    let got = numbers(&encode(model, &case.prompt)?);
    group.check(got == case.prompt_tokens, || format!("{name}: ids of `{start}…` are {got:?}"));
    let mut context = context(model, pair, prompt.len() + case.tokens.len() + 64)?;
    let mut best = argmax(context.eval(&prompt)?);
    for (step, (&token, gap)) in case.tokens.iter().zip(&case.gap).enumerate() {
        if *gap > bound {
            group.check(best == token, || {
                format!("{name}, {pair} cache, `{start}…`, step {step}: {best}, not {token} (gap {gap})")
            });
        }
        best = argmax(context.eval(&ids(&[token]))?);
    }
    let text = greedy_text(&mut context, &prompt, case.tokens.len())?;
    // Whether the space in front of a first word belongs to the text is told apart by file: it is left out on both sides.
    group.check(text.trim_start().starts_with(case.safe_text.trim_start()), || {
        format!("{name}, {pair} cache: `{text}` does not begin with `{}`", case.safe_text)
    });
    Ok(())
}
