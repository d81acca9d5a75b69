//! Chores of the project: `cargo xtask check|test|mpi|sim|memcheck|kernels|bundle|tidy|oracles`.

mod bundle;
mod check;
mod emulator;
mod kernels;
mod memcheck;
mod mpi;
mod oracles;
mod sim;
mod steps;
mod test;
mod tidy;
mod wheels;

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
    /// Every test: on the host device, on the simulated CUDA driver, on a GPU where there is one
    Test(test::TestArgs),
    /// The tests of ranks that are processes, started by `mpirun`: with Open MPI and MPICH, fetched from PyPI
    Mpi(mpi::MpiArgs),
    /// Run a command on the simulated CUDA driver
    Sim(sim::SimArgs),
    /// The GPU tests under compute-sanitizer, or with --sim under the simulator's own instruments
    Memcheck(memcheck::MemcheckArgs),
    /// Compile the CUDA kernels to the PTX and the register table that are committed
    Kernels(kernels::KernelsArgs),
    /// One archive that tests and measures on a GPU machine with no Rust and no network
    Bundle(bundle::BundleArgs),
    /// What a bundle's run.sh calls
    #[command(hide = true)]
    Bundled(bundle::BundledArgs),
    /// The house rules: which crate imports which, what every file opens with, what no file may name
    Tidy,
    /// Compare the engine with a folder that holds `models/` and `oracles/`
    Oracles(oracles::OraclesArgs),
}

fn main() -> ExitCode {
    let done = match Args::parse().chore {
        Chore::Check => check::run(),
        Chore::Test(args) => test::run(&args),
        Chore::Mpi(args) => mpi::run(&args),
        Chore::Sim(args) => sim::run(&args),
        Chore::Memcheck(args) => memcheck::run(&args),
        Chore::Kernels(args) => kernels::run(&args),
        Chore::Bundle(args) => bundle::pack(&args),
        Chore::Bundled(args) => bundle::run(&args),
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

/// Where cargo puts what it builds for this workspace.
fn target_dir() -> anyhow::Result<PathBuf> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root()).no_deps().exec()?;
    Ok(metadata.target_directory.into_std_path_buf())
}
