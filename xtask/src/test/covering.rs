//! The covering set: configurations of the engine, a test each, that stand for all combinations of their factors' values
//! (`crates/granule-llama/tests/cuda_engine/covering` says which). A part of it runs always, the rest where a run is asked for all;
//! the whole product of the factors, or one of so many of it, where somebody has the time.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;

use super::binaries::{Binary, Role};
use super::jobs::{self, Job};
use super::simulator::{Setup, Simulator};

/// Where its tests are, …
const COVERING: &str = "covering::";
/// … those that run always, …
const SHORT: &str = "covering::short::";
/// … and the one that computes a part of the product.
const PRODUCT: &str = "covering::product";
/// What that test is told: "PART/PARTS", and of how many configurations it computes one.
const PRODUCT_PART: &str = "GRANULE_PRODUCT_PART";
const PRODUCT_ONE_OF: &str = "GRANULE_PRODUCT_ONE_OF";

/// Parts that the product is cut into where all of it is computed: each takes some minutes.
const PARTS: u64 = 1216;
/// Orders of events that rows and parts are spread over.
const SEEDS: u64 = 20;

/// How much of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    Short,
    All,
}

impl Extent {
    /// Whether a test runs: all that are not of the set, and those of this much of it.
    pub(crate) fn has(self, test: &str) -> bool {
        match self {
            _ if !test.contains(COVERING) => true,
            _ if test.contains(PRODUCT) => false,
            Extent::Short => test.contains(SHORT),
            Extent::All => true,
        }
    }
}

/// The row that a test computes, if it is of the set: the number that its name ends with.
pub(crate) fn row(test: &str) -> Option<u64> {
    test.contains(COVERING).then(|| test.rsplit_once('_')?.1.parse().ok())?
}

/// Tests of the set by the order of events that each runs with.
pub(super) fn by_seed(tests: Vec<String>, seeds: u64) -> BTreeMap<u64, Vec<String>> {
    let mut by_seed = BTreeMap::<_, Vec<_>>::new();
    for test in tests {
        by_seed.entry(1 + row(&test).unwrap_or(0) % seeds).or_default().push(test);
    }
    by_seed
}

/// Computes one of `one_of` configurations of the whole product on the simulated driver.
pub(super) fn product(binaries: &[Binary], simulator: &Simulator, one_of: u64) -> Result<()> {
    let mut found = None;
    for binary in binaries.iter().filter(|binary| binary.role == Role::Test) {
        let tests = binary.ignored_tests(&[PRODUCT])?;
        found = tests.into_iter().next().map(|test| (binary, test)).or(found);
    }
    let (binary, test) = found.ok_or_else(|| anyhow::anyhow!("no test computes the product"))?;
    let parts = PARTS.div_ceil(one_of).max(SEEDS);
    let job = |part: u64| {
        let mut command = binary.command();
        command.args(["--ignored", "--exact", &test]);
        command.env(PRODUCT_PART, format!("{part}/{parts}")).env(PRODUCT_ONE_OF, one_of.to_string());
        simulator.install(&mut command, Setup { seed: 1 + part % SEEDS, checked: false, strict: true });
        Job { name: format!("part {part} of {parts}"), command }
    };
    let start = Instant::now();
    // Not all at once: who waits a day wants to hear of a failure when it happens.
    for first in (0..parts).step_by(20) {
        let last = parts.min(first + 20);
        for done in jobs::run_all((first..last).map(job).collect())? {
            super::judge(&done)?;
        }
        eprintln!("{:>8.1} s  {last} of {parts} parts", start.elapsed().as_secs_f64());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_spread_over_seeds() {
        let tests = ["covering::short::row_000", "covering::rest::row_041", "covering::rest::row_020"];
        let spread = by_seed(tests.map(str::to_owned).to_vec(), 20);
        assert_eq!(spread[&1], [tests[0], tests[2]]);
        assert_eq!(spread[&2], [tests[1]]);
        assert_eq!((row("numeric::row_7"), row("cuda::covering::product")), (None, None));
    }

    #[test]
    fn what_runs() {
        let runs = |test| [Extent::Short, Extent::All].map(|extent| extent.has(test));
        assert_eq!(runs("cuda::memory::all"), [true, true]);
        assert_eq!(runs("cuda::covering::short::row_3"), [true, true]);
        assert_eq!(runs("cuda::covering::rest::row_30"), [false, true]);
        assert_eq!(runs("cuda::covering::product"), [false, false]);
    }
}
