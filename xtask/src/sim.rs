//! `cargo xtask sim -- COMMAND`: runs a command with the simulated CUDA driver in place of a real one, kernels emulated: what
//! a program does on a GPU, where there is none, and slowly. Ends with the command's status.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::test::simulator::{Setup, Simulator};

#[derive(Args)]
pub(crate) struct SimArgs {
    /// Which order of events
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Look at every load and store of the kernels
    #[arg(long)]
    checked: bool,
    /// End with status 97 where the simulator reported something
    #[arg(long)]
    strict: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Builds the simulator, and runs the command on it.
pub(crate) fn run(args: &SimArgs) -> Result<()> {
    let SimArgs { seed, checked, strict, command } = args;
    let (program, arguments) = command.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(arguments);
    Simulator::build()?.install(&mut command, Setup { seed: *seed, checked: *checked, strict: *strict });
    let name = program.to_string_lossy();
    let status = command.status().with_context(|| format!("{name} does not start"))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => std::process::exit(code),
        None => anyhow::bail!("{name}: {status}"),
    }
}
