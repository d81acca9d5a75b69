//! `granule launch`: a command as several processes that share the model's layers. On the host `mpirun` starts them, and they talk over
//! MPI; on GPUs this does, and they talk by NCCL. Where one fails the others are stopped.

use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command as Process, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Parser;

use crate::INTERRUPTED;
use crate::args::{self, Args, Command, LaunchArgs, LoadArgs};
use crate::device_name::DeviceName;
use crate::ranks::{RANK, RANKS, RENDEZVOUS, without_mpi};

/// How long ranks may take to end by themselves, where another has failed or Ctrl-C came: long enough to say why.
const GRACE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);

/// Runs the command as so many ranks, and ends as they do.
pub(crate) fn run(args: &LaunchArgs) -> Result<ExitCode> {
    let line = std::iter::once("granule".to_owned()).chain(args.command.iter().cloned());
    let inner = Args::try_parse_from(line)
        .map_err(|usage| anyhow!("{}", args::in_one_line(&usage).trim_start_matches("error: ")))?;
    let ranks = usize::from(args.ranks);
    let load = of_model(&inner.command)?;
    if let Some(parts) = load.place.tensor_parallel {
        ensure!(
            usize::from(parts) == ranks,
            "--tensor-parallel {parts} with {ranks} ranks: each rank is a process, so leave it out or make it {ranks}"
        );
    }
    let is_host = load.place.device.iter().all(|&device| device == DeviceName::Host);
    let status = if is_host { by_mpirun(args)? } else { by_ourselves(args, ranks)? };
    Ok(status)
}

/// The model of a command that ranks can share.
fn of_model(command: &Command) -> Result<&LoadArgs> {
    match command {
        Command::Run(args) => Ok(&args.load),
        Command::Perplexity(args) => Ok(&args.load),
        Command::Bench(args) => Ok(&args.load),
        _ => bail!("launch is for run, bench and perplexity: what several processes share is a model"),
    }
}

/// This very program.
fn ourselves() -> Result<std::path::PathBuf> {
    std::env::current_exe().context("where this program is")
}

fn by_mpirun(args: &LaunchArgs) -> Result<ExitCode> {
    if cfg!(not(feature = "mpi")) {
        bail!("ranks on the host talk over MPI, and {}", without_mpi());
    }
    let mpirun = &args.mpirun;
    let mut command = Process::new(mpirun);
    command.arg("-n").arg(args.ranks.to_string()).arg(ourselves()?).args(&args.command);
    // Open MPI would refuse more ranks than cores; MPICH has no such limit.
    command.env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe");
    command.env("OMPI_MCA_rmaps_base_oversubscribe", "1");
    let stopped = on_interrupt()?;
    let mut child = command.spawn().with_context(|| {
        format!("{} does not start: it is part of an MPI; name it with --mpirun", mpirun.display())
    })?;
    // `mpirun` is told of Ctrl-C by the terminal, as this program is, and stops its ranks by itself.
    let mut since = None;
    loop {
        if let Some(status) = child.try_wait()? {
            if stopped.load(Ordering::SeqCst) {
                return Ok(ExitCode::from(INTERRUPTED));
            }
            // Not every `mpirun` says so on stderr.
            if !status.success() {
                eprintln!("error: not all ranks ended well: {} {status}", mpirun.display());
            }
            return Ok(code(status));
        }
        if stopped.load(Ordering::SeqCst) && since.get_or_insert_with(Instant::now).elapsed() > GRACE {
            child.kill()?;
        }
        thread::sleep(POLL);
    }
}

fn by_ourselves(args: &LaunchArgs, ranks: usize) -> Result<ExitCode> {
    if cfg!(not(feature = "nccl")) {
        bail!("ranks on GPUs talk by NCCL, and this `granule` was built without the feature `nccl`");
    }
    let rendezvous = match &args.rendezvous {
        Some(named) => named.clone(),
        // One that is free now; the first rank says so if it is not any more.
        None => {
            TcpListener::bind("127.0.0.1:0").and_then(|own| own.local_addr()).context("a port")?.to_string()
        }
    };
    let stopped = on_interrupt()?;
    let mut started = Started { children: Vec::new() };
    for rank in 0..ranks {
        let mut command = Process::new(ourselves()?);
        command.args(&args.command).env(RANK, rank.to_string()).env(RANKS, ranks.to_string());
        command.env(RENDEZVOUS, &rendezvous);
        if rank > 0 {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        }
        let mut child = command.spawn().with_context(|| format!("rank {rank} does not start"))?;
        if let Some(stderr) = child.stderr.take() {
            thread::spawn(move || forward(rank, BufReader::new(stderr)));
        }
        started.children.push(Some(child));
    }
    started.wait(&stopped)
}

/// Says on stderr what a rank says there, and which one; each line as it comes. What the rank itself has marked as its own is not marked twice.
fn forward(rank: usize, from: impl BufRead) {
    let mark = format!("rank {rank}: ");
    for line in from.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let mark = if line.starts_with(&mark) { "" } else { &mark };
        let _ = writeln!(std::io::stderr(), "{mark}{line}");
    }
}

/// From now on Ctrl-C sets this; ranks are told by the terminal, too.
fn on_interrupt() -> Result<Arc<AtomicBool>> {
    let stopped = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stopped);
    ctrlc::set_handler(move || set.store(true, Ordering::SeqCst))?;
    Ok(stopped)
}

/// Ranks that have not ended; those that are left when it is dropped are stopped.
struct Started {
    children: Vec<Option<Child>>,
}

impl Started {
    /// Waits for all to end. Once one has failed, or Ctrl-C came, the others have a moment to end too before they are stopped.
    fn wait(&mut self, stopped: &AtomicBool) -> Result<ExitCode> {
        let (mut failed, mut since) = (None, None);
        loop {
            for child in &mut self.children {
                if let Some(status) =
                    child.as_mut().and_then(|child| child.try_wait().transpose()).transpose()?
                {
                    *child = None;
                    if !status.success() {
                        failed.get_or_insert(status);
                    }
                }
            }
            let is_over = stopped.load(Ordering::SeqCst);
            if self.children.iter().all(Option::is_none) {
                return Ok(match failed {
                    _ if is_over => ExitCode::from(INTERRUPTED),
                    Some(status) => code(status),
                    None => ExitCode::SUCCESS,
                });
            }
            if (is_over || failed.is_some()) && since.get_or_insert_with(Instant::now).elapsed() > GRACE {
                self.stop();
            }
            thread::sleep(POLL);
        }
    }

    fn stop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            // One that has ended meanwhile is as good.
            let _ = child.kill();
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.stop();
        for child in self.children.iter_mut().flatten() {
            let _ = child.wait();
        }
    }
}

/// As a shell reports it: 128 and the number of the signal that ended it.
fn code(status: ExitStatus) -> ExitCode {
    #[cfg(unix)]
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    #[cfg(not(unix))]
    let signal = None::<i32>;
    let code = status.code().or_else(|| Some(128 + signal?)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(commands: &[&str]) -> Started {
        let start = |line: &&str| Process::new("sh").arg("-c").arg(line).spawn().unwrap();
        Started { children: commands.iter().map(start).map(Some).collect() }
    }

    fn ended(commands: &[&str], stopped: bool) -> (ExitCode, Duration) {
        let since = Instant::now();
        let code = ranks(commands).wait(&AtomicBool::new(stopped)).unwrap();
        (code, since.elapsed())
    }

    fn same(a: ExitCode, b: u8) -> bool {
        format!("{a:?}") == format!("{:?}", ExitCode::from(b))
    }

    #[test]
    fn all_are_waited_for() {
        let (code, took) = ended(&["sleep 0.3", "true"], false);
        assert!(same(code, 0) && took >= Duration::from_millis(300), "{code:?} {took:?}");
    }

    #[test]
    fn the_first_that_fails_says_how_it_ends_and_the_others_are_stopped() {
        let (code, took) = ended(&["sleep 600", "sleep 0.1; exit 7", "sleep 0.6; exit 8"], false);
        assert!(same(code, 7) && took < Duration::from_secs(60), "{code:?} {took:?}");
        let (code, _) = ended(&["kill -9 $$", "true"], false);
        assert!(same(code, 137), "{code:?}");
    }

    #[test]
    fn an_interrupt_stops_all() {
        let (code, took) = ended(&["sleep 600", "sleep 600"], true);
        assert!(same(code, INTERRUPTED) && took < Duration::from_secs(60), "{code:?} {took:?}");
    }

    #[test]
    fn whoever_goes_away_leaves_none_behind() {
        let mut started = ranks(&["sleep 600"]);
        let id = started.children[0].as_ref().unwrap().id();
        started.children.iter_mut().flatten().for_each(|child| drop(child.stdout.take()));
        drop(started);
        assert!(!Process::new("kill").args(["-0", &id.to_string()]).status().unwrap().success());
    }
}
