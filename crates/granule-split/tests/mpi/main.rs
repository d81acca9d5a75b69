//! Ranks that `mpirun` starts. Each test here starts this program again, as so many ranks of one of the parts in `ranks`, and
//! looks at how they end and what they say. `cargo xtask mpi` runs them, with Open MPI and with MPICH.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../support/naive.rs"]
mod naive;
mod ranks;

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Which part a rank plays.
const PART: &str = "GRANULE_TEST_PART";
/// What every test must be over within: far more than it takes, far less than for ever.
const PATIENCE: Duration = Duration::from_secs(100);

/// What a job came to.
struct Job {
    status: ExitStatus,
    printed: String,
    took: Duration,
}

/// Starts ranks by the `mpirun` that `MPIRUN` names, or that is in the path.
fn start(ranks: usize, part: &str, flags: &[&str]) -> Child {
    let mpirun = std::env::var("MPIRUN").unwrap_or_else(|_| "mpirun".to_owned());
    let mut command = Command::new(&mpirun);
    command.args(flags).arg("-n").arg(ranks.to_string());
    command.arg(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "ranks::as_rank", "--nocapture", "--test-threads=1"]);
    // More ranks than cores, and started by whoever runs tests: Open MPI wants to be told that both are meant.
    command.env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe");
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.env(PART, part).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap_or_else(|error| {
        panic!(
            "{mpirun}: {error}. These tests need an MPI: `cargo xtask mpi` fetches one and runs them; or install one (Debian: \
             apt install openmpi-bin), or name its mpirun in MPIRUN"
        )
    })
}

/// Waits for a job, never for longer than the patience.
fn end(mut child: Child) -> Job {
    let since = Instant::now();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |from: &mut dyn std::io::Read| {
        let mut text = Vec::new();
        from.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    };
    std::thread::scope(|scope| {
        let others = scope.spawn(|| read(&mut stderr));
        let own = scope.spawn(|| read(&mut stdout));
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if since.elapsed() > PATIENCE => {
                    child.kill().unwrap();
                    break child.wait().unwrap();
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let printed = own.join().unwrap() + &others.join().unwrap();
        Job { status, printed, took: since.elapsed() }
    })
}

fn run(ranks: usize, part: &str) -> Job {
    end(start(ranks, part, &[]))
}

/// All ranks did their part, said so, and ended MPI.
fn all_well(ranks: usize, part: &str) {
    all_said(ranks, part, true);
}

/// All ranks saw the failure that was to come, and left MPI as it was, which `mpirun` takes for one too.
fn all_saw(ranks: usize, part: &str) {
    all_said(ranks, part, false);
}

fn all_said(ranks: usize, part: &str, success: bool) {
    let Job { status, printed, .. } = run(ranks, part);
    assert_eq!(status.success(), success, "{part} with {ranks} ranks: {status}\n{printed}");
    for rank in 0..ranks {
        let said = format!("rank {rank} of {ranks} is well");
        assert!(printed.contains(&said), "{part}: not said: {said}\n{printed}");
    }
}

#[test]
fn collectives_have_the_bits_of_the_naive_sums() {
    for ranks in [1, 2, 3, 4, 7] {
        all_well(ranks, "collectives");
    }
}

#[test]
fn rounded_numbers_have_the_bits_of_threads() {
    for ranks in [2, 3, 5] {
        all_well(ranks, "rounded");
    }
}

#[test]
fn ranks_that_are_apart_wait_for_one_another() {
    all_well(3, "apart");
}

#[test]
fn calls_and_sizes_that_do_not_go_together_are_errors() {
    all_saw(2, "calls");
    all_saw(2, "short");
    all_saw(2, "long");
    all_saw(3, "counts");
}

#[test]
fn a_rank_that_gives_up_is_heard() {
    all_saw(3, "gives_up");
}

/// One that stalls: the other says for whom it waited, in time, and the job ends.
#[test]
fn a_rank_that_stalls_is_named_in_time() {
    let Job { status, printed, took } = run(2, "stalls");
    assert!(!status.success(), "{printed}");
    let said = "rank 0 of 2 waited ";
    assert!(printed.contains(said) && printed.contains(" for rank 1 in all_reduce"), "{printed}");
    assert!(took < PATIENCE / 2, "{took:?}\n{printed}");
}

/// One that is killed: `mpirun` sees it and stops the other.
#[test]
fn a_rank_that_is_killed_ends_the_job() {
    let Job { status, printed, took } = run(2, "killed");
    assert!(!status.success(), "{printed}");
    assert!(!printed.contains("is well"), "{printed}");
    assert!(
        printed.contains("killed") || printed.contains("KILLED") || printed.contains("signal"),
        "{printed}"
    );
    assert!(took < PATIENCE / 2, "{took:?}\n{printed}");
}

/// And where `mpirun` is told to go on without it, the other ends by itself, in time, with a message.
#[test]
fn a_rank_whose_other_is_killed_ends_by_itself() {
    let flags: &[&str] = match granule_split::comm::MpiRank::library() {
        name if name.starts_with("Open MPI") => &["--enable-recovery"],
        _ => &["-disable-auto-cleanup"],
    };
    let Job { printed, took, .. } = end(start(2, "killed", flags));
    assert!(!printed.contains("is well"), "{printed}");
    // MPICH's mpirun may stop the other all the same, and then says so.
    let is_stopped = printed.contains("APPLICATION TERMINATED") && !flags.contains(&"--enable-recovery");
    assert!(printed.contains("rank 0 saw") || is_stopped, "{printed}");
    assert!(took < PATIENCE / 2, "{took:?}\n{printed}");
}

/// A rank that fails and ends ends the job, though MPI was not ended.
#[test]
fn a_rank_that_panics_ends_the_job() {
    let Job { status, printed, took } = run(3, "panics");
    assert!(!status.success(), "{printed}");
    assert!(printed.contains("rank 1 of 3 gave up: its thread panicked"), "{printed}");
    assert!(took < PATIENCE / 2, "{took:?}\n{printed}");
}
