//! `logits.json`: the twenty largest logits at the last position of two prompts, and the root mean square of all.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;

use crate::Oracles;
use crate::engine::{Pair, context, ids, load};
use crate::greedy::is_quantized;
use crate::report::Report;

#[derive(Deserialize)]
struct Case {
    prompt_tokens: Vec<u32>,
    top20: Vec<(usize, f64)>,
    rms: f64,
}

pub(crate) fn compare(oracles: &Oracles, report: &mut Report) -> Result<()> {
    report.group("logits, f32 and f16 cache", |group| {
        let all: BTreeMap<String, Vec<Case>> = oracles.json("logits.json")?;
        for (weights, cases) in all {
            let model = load(&oracles.tales(&weights))?;
            for (pair, float_bound) in [(Pair::F32, 0.02), (Pair::F16, 0.06)] {
                let bound = if is_quantized(&weights) { 0.35 } else { float_bound };
                for case in &cases {
                    let prompt = ids(&case.prompt_tokens);
                    let mut context = context(&model, pair, prompt.len())?;
                    let logits = context.eval(&prompt)?;
                    for &(token, want) in &case.top20 {
                        let got = logits.get(token).map_or(f64::NAN, |&l| f64::from(l));
                        group.check((got - want).abs() <= bound, || {
                            format!("{weights}, {pair} cache, token {token}: {got}, not {want}")
                        });
                    }
                    let squares: f64 = logits.iter().map(|&l| f64::from(l).powi(2)).sum();
                    let rms = (squares / logits.len() as f64).sqrt();
                    group.check((rms / case.rms - 1.0).abs() <= 0.01, || {
                        format!("{weights}, {pair} cache: rms {rms}, not {}", case.rms)
                    });
                }
            }
        }
        Ok(())
    })
}
