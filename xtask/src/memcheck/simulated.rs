//! The instruments that need no GPU: the simulated driver, and emulated kernels whose every load and store is seen.

use anyhow::Result;

use super::planted::{self, Bug};
use super::{Line, Verdict};
use crate::test::binaries::{Binary, Role};
use crate::test::covering::{self, Extent};
use crate::test::jobs::{self, Done, Job};
use crate::test::simulator::{REPORTS_LEFT, Setup, Simulator};
use crate::test::{CUDA, NUMERIC, NUMERIC_AT_ONCE, SIMULATED};

/// Orders of events that a planted bug has to be found in at least one of, and its corrected twin in none.
const SEEDS: u64 = 20;
/// Orders of events that the tests run with here, and the one that tests run with which are about numbers; `cargo xtask test` runs more
/// of them.
const TEST_SEEDS: u64 = 2;

pub(crate) fn run(programs: &[Binary]) -> Result<Vec<Line>> {
    let simulator = Simulator::build()?;
    let (program, bugs) = planted::list(programs)?;
    let mut lines = Vec::new();
    for bug in &bugs {
        for fixed in [false, true] {
            let jobs = (1..=SEEDS).map(|seed| {
                let mut command = program.command();
                command.arg(&bug.name).args(fixed.then_some("--fixed"));
                simulator.install(&mut command, Setup { seed, checked: true, strict: true });
                Job { name: bug.name.clone(), command }
            });
            let done = jobs::run_all(jobs.collect())?;
            lines.push(line(bug, fixed, &done));
        }
    }
    for binary in programs.iter().filter(|program| program.role == Role::Test) {
        let mut tests = binary.ignored_tests(&[CUDA, SIMULATED])?;
        tests.retain(|test| Extent::Short.has(test));
        if tests.is_empty() {
            continue;
        }
        let each = |names: &[String], seed: u64| {
            let mut command = binary.command();
            command.args(["--ignored", "--exact", "--test-threads=1"]).args(names);
            simulator.install(&mut command, Setup { seed, checked: true, strict: true });
            (names.len(), Job { name: binary.name(), command })
        };
        let is_slow = |test: &String| test.contains(NUMERIC) || covering::row(test).is_some();
        let (slow, quick): (Vec<String>, Vec<String>) = tests.iter().cloned().partition(is_slow);
        let quick = (1..=TEST_SEEDS).filter(|_| !quick.is_empty()).map(|seed| each(&quick, seed));
        // `cargo xtask test` looks at those with the first seed in just this way.
        let slow = slow.chunks(NUMERIC_AT_ONCE).map(|names| each(names, TEST_SEEDS));
        let (lens, jobs): (Vec<usize>, Vec<Job>) = slow.chain(quick).unzip();
        let done = jobs::run_all(jobs)?;
        let took = done.iter().map(|done| done.took.as_secs_f64()).sum();
        let clean = format!("in {} tests", tests.len());
        let ended = done.iter().zip(lens);
        let mut verdicts = ended.map(|(done, tests)| super::verdict_of_tests(done, tests, clean.clone()));
        let wrong = verdicts.find(|verdict| matches!(verdict, Verdict::Wrong { .. }));
        let verdict = wrong.unwrap_or(Verdict::Passed(clean));
        lines.push(Line { instrument: "simulator".to_owned(), subject: binary.name(), verdict, took });
    }
    Ok(lines)
}

/// What the runs of one bug, or of its corrected twin, came to.
fn line(bug: &Bug, fixed: bool, done: &[Done]) -> Line {
    let took = done.iter().map(|done| done.took.as_secs_f64()).sum();
    let subject = if fixed { format!("{}, corrected", bug.name) } else { bug.name.clone() };
    Line { instrument: "simulator".to_owned(), subject, verdict: verdict(bug, fixed, done), took }
}

fn verdict(bug: &Bug, fixed: bool, done: &[Done]) -> Verdict {
    let wrong = |what: String, done: &Done| Verdict::Wrong { what, printed: done.printed.clone() };
    if fixed {
        return match done.iter().find(|done| !done.status.success()) {
            None => Verdict::Clean(format!("with {} seeds", done.len())),
            Some(noisy) => wrong(format!("nothing is wrong there: {}", noisy.status), noisy),
        };
    }
    let finds = |done: &Done| {
        done.status.code() == Some(REPORTS_LEFT) && done.printed.contains(&format!(" {}: ", bug.report))
    };
    let found = done.iter().filter(|done| finds(done)).count();
    match done.iter().find(|done| !finds(done)) {
        Some(missed) if found == 0 || bug.every_time => {
            wrong(format!("found with {found} of {} seeds", done.len()), missed)
        }
        _ => Verdict::Found(format!("with {found} of {} seeds", done.len())),
    }
}
