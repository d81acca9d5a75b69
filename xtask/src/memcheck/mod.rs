//! `cargo xtask memcheck`: every GPU test under every tool of compute-sanitizer, or with `--sim` the same work on the
//! simulated driver with every load and store of the kernels looked at. Before that, planted bugs: an instrument that
//! does not find what it is for proves nothing by finding nothing.

mod planted;
mod sanitizer;
mod simulated;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::test::binaries::{self, Binary};
use crate::test::jobs::Done;
use crate::test::outcome::Count;

#[derive(Args)]
pub(crate) struct MemcheckArgs {
    /// Use the simulated driver and the emulated kernels instead of a GPU and compute-sanitizer
    #[arg(long)]
    sim: bool,
    /// Where the report goes [default: memcheck.txt where cargo puts what it builds]
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// One line of the report: an instrument and what it was held against.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) instrument: String,
    pub(crate) subject: String,
    pub(crate) verdict: Verdict,
    pub(crate) took: f64,
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// A planted bug was found; how it was found.
    Found(String),
    /// Nothing was found in a planted bug's corrected twin.
    Clean(String),
    /// Nothing was found in tests, which all ran and passed.
    Passed(String),
    /// A planted bug was missed, or something was found where nothing was planted: with what the program printed.
    Wrong { what: String, printed: String },
}

pub(crate) fn run(args: &MemcheckArgs) -> Result<()> {
    check(&binaries::build_all()?, args, &crate::target_dir()?.join("memcheck.txt"))
}

/// Runs all instruments on programs that are built.
pub(crate) fn check(programs: &[Binary], args: &MemcheckArgs, default_report: &Path) -> Result<()> {
    let lines = if args.sim { simulated::run(programs)? } else { sanitizer::run(programs)? };
    let (mut planted, mut tested) = (0, 0);
    for line in &lines {
        match &line.verdict {
            Verdict::Found(_) => planted += 1,
            Verdict::Passed(_) => tested += 1,
            Verdict::Clean(_) | Verdict::Wrong { .. } => {}
        }
    }
    let (text, wrong) = report(&lines);
    if wrong == 0 && (planted == 0 || tested == 0) {
        bail!(
            "memcheck: {planted} planted bugs were found and {tested} test programs ran: nothing is proven"
        );
    }
    let file = args.report.clone().unwrap_or_else(|| default_report.to_owned());
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&file, &text).with_context(|| file.display().to_string())?;
    eprint!("{}", summary(&lines));
    eprintln!("memcheck: the whole report is in {}", file.display());
    if wrong > 0 {
        eprint!("{text}");
        bail!("memcheck: {wrong} of {} are not as they should be", lines.len());
    }
    Ok(())
}

/// What a run of `tests` tests came to. One that did not run them all is as bad as one in which one failed.
fn verdict_of_tests(done: &Done, tests: usize, clean: String) -> Verdict {
    let passed = Count::read(&done.printed).passed;
    match done.status.success() {
        true if passed == tests => Verdict::Passed(clean),
        true => {
            Verdict::Wrong { what: format!("{passed} of {tests} tests ran"), printed: done.printed.clone() }
        }
        false => Verdict::Wrong { what: done.status.to_string(), printed: done.printed.clone() },
    }
}

/// The table, one line for each program under each instrument.
fn summary(lines: &[Line]) -> String {
    let width = |f: fn(&Line) -> &str| lines.iter().map(|line| f(line).len()).max().unwrap_or(0);
    let (first, second) = (width(|line| &line.instrument), width(|line| &line.subject));
    let mut text = String::new();
    for Line { instrument, subject, verdict, took } in lines {
        let verdict = match verdict {
            Verdict::Found(how) => format!("planted, found {how}"),
            Verdict::Clean(how) | Verdict::Passed(how) => format!("clean {how}"),
            Verdict::Wrong { what, .. } => format!("WRONG: {what}"),
        };
        let _ = writeln!(text, "{instrument:first$}  {subject:second$}  {took:>7.1} s  {verdict}");
    }
    text
}

/// The table, and all that was printed where something is wrong; and how often that is.
fn report(lines: &[Line]) -> (String, usize) {
    let mut text = summary(lines);
    let mut wrong = 0;
    for line in lines {
        if let Verdict::Wrong { what, printed } = &line.verdict {
            wrong += 1;
            let _ = writeln!(text, "\n--- {} on {}: {what}\n{printed}", line.instrument, line.subject);
        }
    }
    (text, wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_counted_and_told() {
        let line = |verdict| Line { instrument: "memcheck".into(), subject: "x".into(), verdict, took: 1.0 };
        let lines = [
            line(Verdict::Found("with seed 3".into())),
            line(Verdict::Wrong { what: "missed".into(), printed: "the output".into() }),
        ];
        let (text, wrong) = report(&lines);
        assert_eq!(wrong, 1);
        assert!(text.contains("planted, found with seed 3") && text.contains("the output"), "{text}");
    }
}
