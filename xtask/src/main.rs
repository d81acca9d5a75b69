//! Chores of the project: `cargo xtask check|test|tidy|oracles`.

mod check;
mod oracles;
mod steps;
mod test;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the Granule project")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Format, clippy, documentation and tidy, with every warning an error
    Check,
    /// Every test of the workspace, documentation examples included
    Test {
        /// Passed on to the test binaries, for example a part of a test's name
        #[arg(trailing_var_arg = true)]
        filter: Vec<String>,
    },
    /// The house rules: which crate imports which, what every file opens with, what no file may name
    Tidy,
    /// Compare the engine with a folder that holds `models/` and `oracles/`
    Oracles(oracles::OraclesArgs),
}

fn main() -> ExitCode {
    let done = match Args::parse().chore {
        Chore::Check => check::run(),
        Chore::Test { filter } => test::run(&filter),
        Chore::Tidy => tidy::run(&root()),
        Chore::Oracles(args) => oracles::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root: the folder above this crate's.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}
