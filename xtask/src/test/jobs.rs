//! Programs run beside each other, a few at once, each with a limit on its time; what they print is kept.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long one program may take: far beyond what any needs, so that a hang is a failure and not a silence.
const LIMIT: Duration = Duration::from_secs(900);

/// One program to run.
pub(crate) struct Job {
    /// What to call it in messages.
    pub(crate) name: String,
    pub(crate) command: Command,
}

/// What became of a job.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) name: String,
    pub(crate) status: ExitStatus,
    /// Both streams, as they came.
    pub(crate) printed: String,
    pub(crate) took: Duration,
}

/// A job that waits, then what became of it.
enum Slot {
    Waiting(Box<Job>),
    Running,
    Ended(Result<Done>),
}

/// Runs all jobs, as many at once as there are processors, and answers in the order of the jobs.
pub(crate) fn run_all(jobs: Vec<Job>) -> Result<Vec<Done>> {
    let at_once = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    let slots: Vec<Mutex<Slot>> =
        jobs.into_iter().map(|job| Mutex::new(Slot::Waiting(Box::new(job)))).collect();
    let next = AtomicUsize::new(0);
    let set = |slot: &Mutex<Slot>, state| {
        std::mem::replace(&mut *slot.lock().unwrap_or_else(PoisonError::into_inner), state)
    };
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(slot) = slots.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Slot::Waiting(job) = set(slot, Slot::Running) {
                        set(slot, Slot::Ended(run(*job)));
                    }
                }
            });
        }
    });
    let ended =
        slots.into_iter().map(|slot| match slot.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Slot::Ended(done) => done,
            Slot::Waiting(_) | Slot::Running => bail!("a job was left out"),
        });
    ended.collect()
}

/// Runs one job to its end.
pub(crate) fn run(mut job: Job) -> Result<Done> {
    let start = Instant::now();
    // One file for both streams keeps their order, and never fills up as a pipe does.
    let mut printed = tempfile::tempfile().context("no temporary file")?;
    let shared = |file: &File| file.try_clone().map(Stdio::from);
    job.command.stdin(Stdio::null()).stdout(shared(&printed)?).stderr(shared(&printed)?);
    let mut child = job.command.spawn().with_context(|| format!("{} does not start", job.name))?;
    let status = wait(&mut child, start + LIMIT)?;
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut printed)?;
    printed.read_to_end(&mut bytes)?;
    let printed = String::from_utf8_lossy(&bytes).into_owned();
    match status {
        Some(status) => Ok(Done { name: job.name, status, printed, took: start.elapsed() }),
        None => bail!("{} was stopped after {} s:\n{printed}", job.name, LIMIT.as_secs()),
    }
}

/// The child's end, or `None` where it had to be killed.
fn wait(child: &mut Child, until: Instant) -> Result<Option<ExitStatus>> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_order() {
        let jobs = (0..6).map(|n| {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("echo out {n}; echo err {n} >&2; exit {n}")]);
            Job { name: n.to_string(), command }
        });
        for (n, done) in run_all(jobs.collect()).unwrap().iter().enumerate() {
            assert_eq!(done.status.code(), Some(n as i32));
            assert_eq!(done.printed, format!("out {n}\nerr {n}\n"));
        }
    }
}
