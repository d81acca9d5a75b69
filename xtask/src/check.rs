//! `cargo xtask check`: everything that needs no test to run, with warnings as errors.

use anyhow::Result;

use crate::steps::Steps;

/// Format, lints, documentation, house rules: in the order of what they cost.
pub(crate) fn run() -> Result<()> {
    let mut steps = Steps::of("check");
    steps.cargo("format", &["fmt", "--all", "--check"], &[])?;
    steps.call("tidy", || crate::tidy::run(&crate::root()))?;
    steps.cargo("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])?;
    steps.cargo("documentation", &["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")])?;
    steps.report();
    Ok(())
}
