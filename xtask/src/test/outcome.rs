//! What a run of test programs came to, counted from what libtest prints, and the table of it.

use std::fmt::Write as _;

/// Tests that passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl Count {
    /// The sum of all `test result:` lines in what test programs printed.
    pub(crate) fn read(printed: &str) -> Count {
        let mut sum = Count::default();
        for line in printed.lines().filter_map(|line| line.trim_start().strip_prefix("test result: ")) {
            for part in line.split([';', '.']) {
                let mut words = part.split_whitespace();
                match (words.next().and_then(|n| n.parse::<usize>().ok()), words.next()) {
                    (Some(n), Some("passed")) => sum.passed += n,
                    (Some(n), Some("failed")) => sum.failed += n,
                    _ => {}
                }
            }
        }
        sum
    }

    pub(crate) fn add(&mut self, other: Count) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// One line of the closing table: where tests ran, and what came of it.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) place: String,
    /// How many different tests.
    pub(crate) tests: usize,
    /// How often each ran: with how many seeds.
    pub(crate) rounds: usize,
    pub(crate) count: Count,
    /// Why there are none, or what else is to be said.
    pub(crate) note: String,
}

/// The table that says how many tests ran on which device.
pub(crate) fn table(lines: &[Line]) -> String {
    let mut text = String::new();
    let width = lines.iter().map(|line| line.place.len()).max().unwrap_or(0);
    for Line { place, tests, rounds, count, note } in lines {
        let runs = if *rounds == 1 { String::new() } else { format!(" x {rounds} seeds") };
        let failed = if count.failed == 0 { String::new() } else { format!(", {} FAILED", count.failed) };
        let note = if note.is_empty() { String::new() } else { format!("  ({note})") };
        let _ =
            writeln!(text, "{place:width$}  {tests:>5} tests{runs}: {} passed{failed}{note}", count.passed);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_summed() {
        let printed = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.17s\n\
            noise 9 passed\ntest result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 5 filtered out; finished in 1.00s\n";
        assert_eq!(Count::read(printed), Count { passed: 13, failed: 2 });
        assert_eq!(Count::read(""), Count::default());
    }

    #[test]
    fn a_failure_stands_out() {
        let count = Count { passed: 39, failed: 1 };
        let line = Line { place: "simulated".into(), tests: 2, rounds: 20, count, note: "why".into() };
        assert_eq!(table(&[line]), "simulated      2 tests x 20 seeds: 39 passed, 1 FAILED  (why)\n");
    }
}
