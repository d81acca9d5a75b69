//! `third_party.json`: models that others trained: ids, greedy tokens, perplexity; and a file that no reader takes.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use granule_llama::{LoadOptions, Model};
use serde::Deserialize;

use crate::Oracles;
use crate::engine::{Pair, encode, load, numbers};
use crate::greedy::{self, Case};
use crate::perplexity::measure;
use crate::report::Report;

#[derive(Deserialize)]
struct Reference {
    tokens: Vec<Text>,
    greedy: Vec<Case>,
    perplexity: BTreeMap<String, f64>,
    context: usize,
    chunks: usize,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    /// None where llama.cpp aborts: there only "no crash" counts.
    ids: Option<Vec<u32>>,
}

pub(crate) fn compare(oracles: &Oracles, report: &mut Report) -> Result<()> {
    let dir = oracles.models().join("third-party");
    for (name, bound) in [("tinystories-656k.q8_0", 0.3), ("stories260k.f32", 0.05)] {
        compare_one(oracles, report, name, &dir.join(format!("{name}.gguf")), bound)?;
    }
    report.group("GGUF version 1 is refused by name", |group| {
        let refused = Model::load(dir.join("stories260k.gguf-v1.gguf"), LoadOptions::default()).map(|_| ());
        let said = refused.map_or_else(|error| error.to_string(), |()| "loaded".to_owned());
        group.check(said.contains("version 1"), || said.clone());
        Ok(())
    })
}

/// One model of the file, `bound` being the gap above which a greedy token is certain.
pub(crate) fn compare_one(
    oracles: &Oracles,
    report: &mut Report,
    name: &str,
    file: &Path,
    bound: f64,
) -> Result<()> {
    let mut all: BTreeMap<String, Reference> = oracles.json("third_party.json")?;
    let reference = all.remove(name).with_context(|| format!("third_party.json has nothing on {name}"))?;
    let model = load(file)?;
    report.group(&format!("{name}: token ids"), |group| {
        for Text { text, ids } in &reference.tokens {
            let got = numbers(&encode(&model, text)?);
            if let Some(want) = ids {
                group.check(got == *want, || format!("{text:?}: {got:?}, not {want:?}"));
            }
        }
        Ok(())
    })?;
    report.group(&format!("{name}: greedy tokens, teacher-forced, f32 and f16 cache"), |group| {
        for pair in [Pair::F32, Pair::F16] {
            for case in &reference.greedy {
                greedy::follow(&model, pair, case, bound, name, group)?;
            }
        }
        Ok(())
    })?;
    report.group(&format!("{name}: perplexity"), |group| {
        let heldout = oracles.text("heldout.txt")?;
        for (pair_name, want) in &reference.perplexity {
            let Some(pair) = Pair::parse(pair_name)? else { continue };
            let tolerance = if pair_name.contains("q4_0") { 0.03 } else { 0.005 };
            let got = measure(&model, pair, &heldout, reference.context, reference.chunks)?;
            group.note(format!("{pair}: {got:.4}, llama.cpp's {pair_name} {want}"));
            group.check(got <= want * (1.0 + tolerance), || format!("{pair}: {got:.4}, not {want}"));
        }
        Ok(())
    })
}
