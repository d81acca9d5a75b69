//! `cargo xtask test`: the README's test command. Plain `cargo test`, in three timed parts.

use anyhow::Result;

use crate::steps::Steps;

/// Builds every test, runs them, then the examples in the documentation.
///
/// `filter` goes to the test binaries. With a filter the documentation's examples are left out.
pub(crate) fn run(filter: &[String]) -> Result<()> {
    const TARGETS: &[&str] = &["--workspace", "--lib", "--bins", "--tests", "--examples"];
    let mut steps = Steps::of("test");
    steps.cargo("build", &[&["test", "--no-run"], TARGETS].concat(), &[])?;
    let mut tests = [&["test"], TARGETS].concat();
    if !filter.is_empty() {
        tests.push("--");
        tests.extend(filter.iter().map(String::as_str));
        steps.cargo("tests", &tests, &[])?;
    } else {
        steps.cargo("tests", &tests, &[])?;
        steps.cargo("documentation examples", &["test", "--workspace", "--doc"], &[])?;
    }
    steps.report();
    Ok(())
}
