//! Bugs planted on purpose, each with its corrected twin: they prove that an instrument finds what it is for.
//!
//! `granule-planted NAME` runs one bug and ends as if nothing had happened: whoever watches has to notice.
//! `granule-planted NAME --fixed` does the same work right, and nobody may notice anything. `--list` names them all.
//! These are cudarc programs of the plain kind, so that they are bugs that anyone's program could have.

mod cuda;
mod memory;
mod streams;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::cuda::Cuda;

#[derive(Parser)]
#[command(about = "Bugs planted on purpose: they prove that a checker finds what it is for")]
struct Args {
    /// Which bug
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// Do it right
    #[arg(long)]
    fixed: bool,
    /// One line for each bug: its name, the tool of compute-sanitizer that finds it or -, the simulator's report, and
    /// whether it is found with every seed or with some
    #[arg(long)]
    list: bool,
}

/// One bug and who finds it.
struct Bug {
    name: &'static str,
    /// The tool of compute-sanitizer that is for it.
    tool: &'static str,
    /// What the simulated driver calls it.
    report: &'static str,
    /// Whether every run shows it, or some orders of events only.
    every_time: bool,
    run: fn(&Cuda, fixed: bool) -> Result<()>,
}

const BUGS: &[Bug] = &[
    always("write-past-allocation", "memcheck", "OutOfBounds", memory::write_past_allocation),
    always("write-past-lease", "memcheck", "PastLease", memory::write_past_lease),
    always("write-past-separate-lease", "memcheck", "OutOfBounds", memory::write_past_separate_lease),
    always("use-after-free", "memcheck", "UseAfterFree", memory::use_after_free),
    always("leak", "memcheck", "LeakAtContextRelease", memory::leak),
    always("uninitialized-read", "initcheck", "UninitializedRead", memory::uninitialized_read),
    always("shared-race", "racecheck", "SharedRace", memory::shared_race),
    always("divergent-barrier", "synccheck", "BarrierDivergence", memory::divergent_barrier),
    always("write-through-read-only", "-", "WriteThroughReadOnly", memory::write_through_read_only),
    sometimes("missing-wait", "StreamRace", streams::missing_wait),
    sometimes("pinned-reused-early", "PinnedReuse", streams::pinned_reused_early),
    sometimes("unmapped-before-reader", "UseAfterRetire", streams::unmapped_before_reader),
    sometimes("remapped-before-kernel", "UseAfterRetire", streams::remapped_before_kernel),
    sometimes("event-never-recorded", "EventNeverRecorded", streams::event_never_recorded),
    always("mapping-during-capture", "-", "VmmDuringCapture", streams::mapping_during_capture),
];

const fn always(
    name: &'static str,
    tool: &'static str,
    report: &'static str,
    run: fn(&Cuda, bool) -> Result<()>,
) -> Bug {
    Bug { name, tool, report, every_time: true, run }
}

/// A bug of order: no tool of compute-sanitizer is for it, and the simulated driver finds it within a number of seeds.
const fn sometimes(name: &'static str, report: &'static str, run: fn(&Cuda, bool) -> Result<()>) -> Bug {
    Bug { name, tool: "-", report, every_time: false, run }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if args.list {
        for Bug { name, tool, report, every_time, .. } in BUGS {
            println!("{name} {tool} {report} {}", if *every_time { "always" } else { "sometimes" });
        }
        return Ok(());
    }
    let name = args.name.as_deref().unwrap_or_default();
    let bug =
        BUGS.iter().find(|bug| bug.name == name).with_context(|| format!("no bug is called {name:?}"))?;
    (bug.run)(&Cuda::open()?, args.fixed).with_context(|| format!("while running {name}"))
}
