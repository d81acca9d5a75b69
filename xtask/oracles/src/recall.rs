//! `recall.json`: questions whose answers stand hundreds of tokens back. Damage to a cache shows here.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;

use crate::Oracles;
use crate::engine::{Pair, context, encode, greedy_text, load};
use crate::report::Report;

/// The most tokens of an answer.
const ANSWER: usize = 40;

#[derive(Deserialize)]
struct Reference {
    questions: Vec<Question>,
    llama_cpp_right: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Question {
    prompt: String,
    answer: String,
}

pub(crate) fn compare(oracles: &Oracles, report: &mut Report) -> Result<()> {
    report.group("recall per cache pair, f16 weights", |group| {
        let reference: Reference = oracles.json("recall.json")?;
        let model = load(&oracles.tales("f16"))?;
        for (name, &theirs) in &reference.llama_cpp_right {
            let Some(pair) = Pair::parse(name)? else { continue };
            let mut right = 0;
            for question in &reference.questions {
                let prompt = encode(&model, &question.prompt)?;
                let mut context = context(&model, pair, prompt.len() + ANSWER)?;
                let text = greedy_text(&mut context, &prompt, ANSWER)?;
                // The answer is the first line; blanks and line breaks in front of it do not count.
                let line = text.trim().lines().next().unwrap_or_default().trim();
                right += usize::from(line == question.answer.trim());
            }
            let asked = reference.questions.len();
            let told = format!("{pair}: {right} of {asked} right, llama.cpp's {name} {theirs}");
            group.check(right + 1 >= theirs, || told.clone());
            group.note(told);
        }
        Ok(())
    })
}
