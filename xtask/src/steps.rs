//! A chore is a list of commands: each is announced, run at the workspace's root and timed.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The commands of one chore, with what each of them took.
pub(crate) struct Steps {
    chore: &'static str,
    taken: Vec<(&'static str, Duration)>,
}

impl Steps {
    pub(crate) fn of(chore: &'static str) -> Self {
        Steps { chore, taken: Vec::new() }
    }

    /// Runs `cargo ARGS` with `env` set; an error names the step that failed.
    pub(crate) fn cargo(&mut self, step: &'static str, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
        let line = format!("cargo {}", args.join(" "));
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(args).envs(env.iter().copied()).current_dir(crate::root());
        eprintln!("{}: {line}", self.chore);
        self.timed(step, || match cargo.status().context("cargo does not start")? {
            status if status.success() => Ok(()),
            status => bail!("{line}: {status}"),
        })
    }

    /// Runs a step that is a function of this program.
    pub(crate) fn call(&mut self, step: &'static str, f: impl FnOnce() -> Result<()>) -> Result<()> {
        eprintln!("{}: {step}", self.chore);
        self.timed(step, f)
    }

    fn timed(&mut self, step: &'static str, f: impl FnOnce() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        f().with_context(|| format!("{} failed at {step}", self.chore))?;
        self.taken.push((step, start.elapsed()));
        Ok(())
    }

    /// Prints one line per step with the seconds that it took.
    pub(crate) fn report(&self) {
        let all: f64 = self.taken.iter().map(|(_, took)| took.as_secs_f64()).sum();
        for (step, took) in &self.taken {
            eprintln!("{}: {:>7.1} s  {step}", self.chore, took.as_secs_f64());
        }
        eprintln!("{}: {all:>7.1} s  in all", self.chore);
    }
}
