//! `cargo xtask oracles DIR`: builds the comparing program in release mode and hands the folder on to it.
//!
//! The program is a crate of its own (`xtask/oracles`), so that `tidy` and `check` do not wait for an engine.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::steps::Steps;

#[derive(Args)]
pub(crate) struct OraclesArgs {
    /// The folder that holds `models/` and `oracles/`
    dir: PathBuf,
    /// Handed on to the comparing program: `--help` among them tells what it takes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs the comparing program on `args.dir`.
pub(crate) fn run(args: &OraclesArgs) -> Result<()> {
    let dir = std::path::absolute(&args.dir).context("the folder's path")?;
    let dir = dir.to_str().context("the folder's path is not UTF-8")?;
    let mut cargo = vec!["run", "--release", "--package", "granule-oracles", "--", dir];
    cargo.extend(args.rest.iter().map(String::as_str));
    Steps::of("oracles").cargo("comparisons", &cargo, &[])
}
