//! What caches of few bits cost SmolLM2, with transforms as they are by default: perplexity against an f16 cache's.

use anyhow::{Context as _, Result};

use crate::Oracles;
use crate::engine::{Pair, context, load};
use crate::perplexity::measure_each;
use crate::report::Report;

/// Windows of so many tokens, counts of them that are judged, and the most that q4_0 and q8_0 may cost.
struct Goal {
    n_ctx: usize,
    chunks: &'static [usize],
    q4_0: f64,
    q8_0: f64,
}

const GOALS: [Goal; 2] = [
    Goal { n_ctx: 512, chunks: &[8, 16], q4_0: 0.04, q8_0: 0.002 },
    Goal { n_ctx: 2048, chunks: &[4], q4_0: 0.06, q8_0: 0.002 },
];

pub(crate) fn compare(oracles: &Oracles, file: &std::path::Path, report: &mut Report) -> Result<()> {
    for Goal { n_ctx, chunks, q4_0, q8_0 } in GOALS {
        report.group(&format!("SmolLM2: what caches of few bits cost, windows of {n_ctx}"), |group| {
            let heldout = oracles.text("heldout.txt")?;
            let model = load(file)?;
            let most = chunks.iter().copied().max().unwrap_or(0);
            let measure = |pair: Pair| -> Result<Vec<f64>> {
                measure_each(&mut context(&model, pair, n_ctx)?, &heldout, n_ctx, most)
            };
            let reference = measure(Pair::F16)?;
            // Plain blocks of 4 bits are there to be seen.
            let all = [(Pair::Q8_0, q8_0), (Pair::Q4_0.transformed(), q4_0), (Pair::Q4_0, f64::INFINITY)];
            for (pair, bound) in all {
                let got = measure(pair)?;
                for &windows in chunks {
                    let at = |all: &[f64]| all.get(windows - 1).copied().context("heldout.txt is too short");
                    let (got, f16) = (at(&got)?, at(&reference)?);
                    let cost = got / f16 - 1.0;
                    let told =
                        format!("{pair}, {windows} windows: {got:.4}, f16 {f16:.4}: {:+.2}%", 100.0 * cost);
                    if bound.is_finite() {
                        group.check(cost <= bound, || format!("{told}, more than {:.1}%", 100.0 * bound));
                    }
                    group.note(told);
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}
