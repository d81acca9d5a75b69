//! `cargo xtask test`: the README's test command. Every test on the host device, those that need a CUDA driver on the
//! simulated one with many seeds, and on a real GPU where there is one. The table at the end says how many ran on which.

pub(crate) mod binaries;
pub(crate) mod covering;
pub(crate) mod gpu;
pub(crate) mod jobs;
pub(crate) mod outcome;
pub(crate) mod simulator;

use anyhow::{Result, bail};
use clap::Args;

use self::binaries::{Binary, Role};
use self::covering::Extent;
use self::gpu::Gpu;
use self::jobs::{Done, Job};
use self::outcome::{Count, Line};
use self::simulator::{REPORTS_LEFT, Setup, Simulator};
use crate::steps::Steps;

/// Tests that run on any CUDA driver stand in a module of this name, …
pub(crate) const CUDA: &str = "cuda::";
/// … those that only make sense on the simulated one in this, …
pub(crate) const SIMULATED: &str = "sim::";
/// … and those that prove nothing about an order of events, and take long, in this: they run with few seeds.
pub(crate) const NUMERIC: &str = "numeric::";
/// How many of these one process runs: few, so that the longest of them keep no processor waiting at the end.
pub(crate) const NUMERIC_AT_ONCE: usize = 4;

#[derive(Args)]
pub(crate) struct TestArgs {
    /// Fail where no GPU is there to run the GPU tests on
    #[arg(long)]
    require_gpu: bool,
    /// How many orders of events the simulated driver is run with
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Run all of the covering set of the engine's configurations, not only the part that runs always
    #[arg(long)]
    all: bool,
    /// Run nothing but one of N configurations of the whole product that the covering set stands for; 1 is all of it, which takes
    /// more than a day
    #[arg(long, value_name = "N", conflicts_with_all = ["require_gpu", "all", "filter"], value_parser = clap::value_parser!(u64).range(1..))]
    product: Option<u64>,
    /// A part of tests' names: runs those, on the host and, where they need a CUDA driver, on the simulated one
    filter: Option<String>,
}

/// Builds every test, runs them wherever they can run, then the examples in the documentation.
pub(crate) fn run(args: &TestArgs) -> Result<()> {
    let mut steps = Steps::of("test");
    let mut lines = Vec::new();
    let (mut binaries, mut simulator) = (Vec::new(), None);
    steps.call("build", || {
        binaries = binaries::build_all()?;
        simulator = Some(Simulator::build()?);
        // Known before anything runs that takes long.
        if args.require_gpu { gpu::require(&binaries).map(drop) } else { Ok(()) }
    })?;
    if let (Some(one_of), Some(simulator)) = (args.product, &simulator) {
        steps.call("product", || covering::product(&binaries, simulator, one_of))?;
        steps.report();
        return Ok(());
    }
    let filter = args.filter.as_deref();
    let extent = if args.all { Extent::All } else { Extent::Short };
    steps.call("host device", || on_host(&binaries, filter).map(|line| lines.push(line)))?;
    if let Some(simulator) = &simulator {
        steps.call("simulated driver", || {
            on_simulator(&binaries, simulator, args.seeds, extent, filter).map(|line| lines.push(line))
        })?;
    }
    steps.call("GPU", || on_gpu(&binaries, args.require_gpu, filter).map(|line| lines.push(line)))?;
    if filter.is_none() {
        steps.cargo("documentation examples", &["test", "--workspace", "--doc"], &[])?;
    }
    steps.report();
    eprint!("\n{}", outcome::table(&lines));
    Ok(())
}

/// Everything that is not marked as needing something.
fn on_host(binaries: &[Binary], filter: Option<&str>) -> Result<Line> {
    let mut count = Count::default();
    for binary in binaries.iter().filter(|binary| binary.role == Role::Test) {
        // A test program uses all processors by itself.
        let mut command = binary.command();
        command.args(filter);
        let done = jobs::run(Job { name: binary.name(), command })?;
        count.add(judge(&done)?);
        eprintln!("{:>8.1} s  {}", done.took.as_secs_f64(), done.name);
    }
    let (tests, place) = (count.passed, "host device".to_owned());
    Ok(Line { place, tests, rounds: 1, count, note: String::new() })
}

/// The tests that need a CUDA driver, on the simulated one: with every seed where the order of events matters, with
/// two where numbers do, and once with every load and store of the kernels looked at; rows of the covering set with a seed each, of
/// which those with the first one are looked at like that.
fn on_simulator(
    binaries: &[Binary],
    simulator: &Simulator,
    seeds: u64,
    extent: Extent,
    filter: Option<&str>,
) -> Result<Line> {
    let mut jobs = Vec::new();
    let (mut tests, mut rows) = (0, 0);
    for binary in binaries.iter().filter(|binary| binary.role == Role::Test) {
        let mut names = binary.ignored_tests(&[CUDA, SIMULATED])?;
        names.retain(|name| extent.has(name) && filter.is_none_or(|filter| name.contains(filter)));
        tests += names.len();
        let (covering, names): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| covering::row(name).is_some());
        rows += covering.len();
        let (numeric, ordered): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.contains(NUMERIC));
        let each = |names: &[String], seed: u64| {
            let mut command = binary.command();
            command.args(["--ignored", "--exact", "--test-threads=1"]).args(names);
            simulator.install(&mut command, Setup { seed, checked: seed == 1, strict: true });
            Job { name: format!("{} (seed {seed})", binary.name()), command }
        };
        jobs.extend(covering::by_seed(covering, seeds).iter().map(|(&seed, names)| each(names, seed)));
        let numeric = numeric.chunks(NUMERIC_AT_ONCE).map(|names| (names, seeds.min(2)));
        for (names, seeds) in numeric.chain([(&ordered[..], seeds)]) {
            jobs.extend((1..=seeds).filter(|_| !names.is_empty()).map(|seed| each(names, seed)));
        }
    }
    anyhow::ensure!(tests > 0 || filter.is_some(), "no test is for a CUDA driver");
    let mut count = Count::default();
    let mut wrong = Vec::new();
    for done in jobs::run_all(jobs)? {
        match judge(&done) {
            Ok(passed) => count.add(passed),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    probe_agrees(binaries, simulator)?;
    let rounds = usize::try_from(seeds)?;
    let note = format!("numeric ones with 2, the {rows} of the covering set with one each");
    Ok(Line { place: "simulated CUDA driver".to_owned(), tests, rounds, count, note })
}

/// What the probe says that the simulator does is what it does; the probe breaks rules on purpose to see that.
fn probe_agrees(binaries: &[Binary], simulator: &Simulator) -> Result<()> {
    let mut command = binaries::program(binaries, "probe")?.command();
    command.arg("--strict");
    simulator.install(&mut command, Setup { seed: 1, checked: false, strict: false });
    let done = jobs::run(Job { name: "probe".to_owned(), command })?;
    anyhow::ensure!(done.status.success(), "{}\nthe simulator is not what the probe says", done.printed);
    Ok(())
}

/// The tests that need a CUDA driver, on a real one: of the covering set all rows, for which a GPU is fast enough.
pub(crate) fn on_gpu(binaries: &[Binary], required: bool, filter: Option<&str>) -> Result<Line> {
    let gpu = match gpu::find(binaries)? {
        Gpu::Here(name) => name,
        Gpu::None(_) if required => gpu::require(binaries)?,
        Gpu::None(note) => {
            let (place, count) = ("GPU".to_owned(), Count::default());
            return Ok(Line { place, tests: 0, rounds: 1, count, note });
        }
    };
    let (mut count, mut left_out) = (Count::default(), 0);
    for binary in binaries.iter().filter(|binary| binary.role == Role::Test) {
        let mut names = binary.ignored_tests(&[CUDA])?;
        names.retain(|name| Extent::All.has(name) && filter.is_none_or(|filter| name.contains(filter)));
        left_out += gpu::without_cublas(&mut names);
        if !names.is_empty() {
            let mut command = binary.command();
            command.args(["--ignored", "--exact", "--test-threads=1"]).args(&names);
            count.add(judge(&jobs::run(Job { name: binary.name(), command })?)?);
        }
    }
    if required && count == Count::default() {
        bail!("no test ran on {gpu}");
    }
    let tests = count.passed + count.failed;
    let note = match left_out {
        0 => String::new(),
        n => format!("{n} left out: cuBLAS is not in the library path"),
    };
    Ok(Line { place: gpu, tests, rounds: 1, count, note })
}

/// The count of a run that passed; an error with all that it printed for one that did not.
fn judge(done: &Done) -> Result<Count> {
    let Done { name, status, printed, .. } = done;
    let count = Count::read(printed);
    match status.code() {
        Some(0) if count.failed == 0 => Ok(count),
        Some(REPORTS_LEFT) => {
            bail!("{printed}\n{name}: the simulated driver reported what no test asked for")
        }
        _ => bail!("{printed}\n{name}: {status}"),
    }
}
