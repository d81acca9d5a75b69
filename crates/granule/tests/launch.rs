//! A command as several processes over MPI, as a person or a script meets it. `cargo xtask mpi` runs these, with Open MPI and MPICH.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const TALES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../granule-llama/models/tales-5m.q8_0.gguf");
const TEXT: [&str; 8] = ["run", TALES, "-p", "Once upon a time", "--temp", "0", "-n", "40"];
/// A text that is not over before somebody can do something about it.
const LONG: [&str; 6] = ["run", TALES, "-p", "Once upon a time", "--temp", "0"];
/// In the environment of a test's processes, so that they are found.
const MARK: &str = "GRANULE_TEST_MARK";
/// Far more than any test takes, far less than for ever.
const PATIENCE: Duration = Duration::from_secs(100);

fn mpirun() -> String {
    std::env::var("MPIRUN").unwrap_or_else(|_| "mpirun".to_owned())
}

fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe");
    command
}

fn granule(args: &[&str]) -> Command {
    command(env!("CARGO_BIN_EXE_granule"), args)
}

/// `granule launch -n N --mpirun … -- ARGS`
fn launched(ranks: &str, args: &[&str]) -> Command {
    let mpirun = mpirun();
    let mut all = vec!["launch", "-n", ranks, "--mpirun", &mpirun, "--"];
    all.extend(args);
    granule(&all)
}

fn start(mut command: Command) -> Child {
    command.spawn().unwrap_or_else(|error| {
        panic!("{command:?}: {error}. These tests need an MPI: `cargo xtask mpi` fetches one and runs them")
    })
}

/// What it came to; it is ended where it takes too long, so that nothing hangs.
fn end(mut child: Child) -> (Output, Duration) {
    let since = Instant::now();
    let id = child.id().to_string();
    let (done, over) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if over.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = Command::new("kill").args(["-KILL", &id]).status();
        }
    });
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    drop(done);
    watch.join().unwrap();
    (output, since.elapsed())
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn stdout(command: Command) -> String {
    let (output, _) = end(start(command));
    assert!(output.status.success(), "{}: {}", output.status, stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The process of that rank, of those that have the mark.
fn process(mark: &str, rank: usize) -> String {
    let since = Instant::now();
    let wanted =
        [format!("{MARK}={mark}"), format!("OMPI_COMM_WORLD_RANK={rank}"), format!("PMI_RANK={rank}")];
    while since.elapsed() < PATIENCE {
        for entry in std::fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            let environment = std::fs::read(path.join("environ")).unwrap_or_default();
            let has = |wanted: &String| environment.split(|&b| b == 0).any(|set| set == wanted.as_bytes());
            if has(&wanted[0]) && (has(&wanted[1]) || has(&wanted[2])) {
                return path.file_name().unwrap().to_string_lossy().into_owned();
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no rank {rank} has started");
}

fn signal(name: &str, process: &str) {
    assert!(Command::new("kill").args([name, process]).status().unwrap().success());
}

/// Waits for the first words of a text.
fn has_begun(child: &mut Child) {
    use std::io::Read;
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn two_processes_write_what_one_writes() {
    let one = stdout(granule(&TEXT));
    assert!(one.len() > 50, "{one}");
    let program = env!("CARGO_BIN_EXE_granule");
    let ranks = [&["-n", "2", program][..], &TEXT].concat();
    assert_eq!(stdout(command(&mpirun(), &ranks)), one, "by mpirun");
    assert_eq!(stdout(launched("2", &TEXT)), one, "by granule launch");
    let uneven = [&TEXT[..], &["--tensor-split", "2,1", "--tensor-parallel", "2"]].concat();
    assert_eq!(stdout(launched("2", &uneven)), one, "in uneven shares");
    assert_eq!(stdout(launched("3", &TEXT)), one, "of three");
}

#[test]
fn only_the_first_speaks_and_says_where_layers_are() {
    let json = [&TEXT[..], &["--json"]].concat();
    let (output, _) = end(start(launched("2", &json)));
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("\"n_ranks\":2"), "{text}");
    let perplexity = std::env::temp_dir().join(format!("granule-launch-{}.txt", std::process::id()));
    std::fs::write(&perplexity, "Once upon a time there was a little girl who had a red ball. ".repeat(8))
        .unwrap();
    let args = ["perplexity", TALES, perplexity.to_str().unwrap(), "-c", "64"];
    let (one, two) = (stdout(granule(&args)), stdout(launched("2", &args)));
    std::fs::remove_file(&perplexity).unwrap();
    let number = |text: &str| -> f64 { text.split_whitespace().nth(1).unwrap().parse().unwrap() };
    assert!((number(&one) - number(&two)).abs() < 0.01 * number(&one), "{one}{two}");
}

/// The seed is the first one's, or they would part at the first token.
#[test]
fn chance_is_shared() {
    let drawn = ["run", TALES, "-p", "Once upon a time", "--temp", "1.5", "--top-k", "0", "-n", "60"];
    for _ in 0..2 {
        assert!(stdout(launched("2", &drawn)).len() > 50);
    }
}

#[test]
fn a_rank_that_is_killed_ends_all() {
    let mark = format!("killed-{}", std::process::id());
    let mut long = launched("2", &LONG);
    long.env(MARK, &mark);
    let mut child = start(long);
    has_begun(&mut child);
    signal("-KILL", &process(&mark, 1));
    let (output, took) = end(child);
    assert!(!output.status.success());
    assert!(!stderr(&output).is_empty(), "nobody said why");
    assert!(took < PATIENCE / 2, "{took:?}");
}

#[test]
fn a_rank_that_stalls_is_named_in_time() {
    let mark = format!("stalled-{}", std::process::id());
    let mut long = launched("2", &LONG);
    long.env(MARK, &mark).env("GRANULE_RANK_TIMEOUT", "2");
    let mut child = start(long);
    has_begun(&mut child);
    signal("-STOP", &process(&mark, 1));
    let (output, took) = end(child);
    assert!(!output.status.success());
    let said = stderr(&output);
    assert!(said.contains("rank 0: error: ") && said.contains("for rank 1 in "), "{said}");
    assert!(took < PATIENCE / 2, "{took:?}");
}

#[test]
fn what_cannot_be_is_said_and_ends_all() {
    for (args, why) in [
        (&["run", "no-such.gguf", "-p", "x"][..], "no-such.gguf"),
        (&["run", TALES], "a chat is for one process"),
        (
            &["run", TALES, "-p", "x", "--tensor-parallel", "2", "--tensor-split", "1,1,1"],
            "3 shares, for 2 ranks",
        ),
        (&["run", TALES, "-p", "x", "--tensor-parallel", "3"], "--tensor-parallel 3 with 2 ranks"),
        (
            &[
                "run",
                TALES,
                "-p",
                "x",
                "--device",
                "host",
                "--tensor-parallel",
                "2",
                "--tensor-split",
                "free",
            ],
            "name shares",
        ),
        (&["info", TALES], "launch is for run, bench and perplexity"),
        (&["run", TALES, "--no-such-flag"], "--no-such-flag"),
    ] {
        let (output, took) = end(start(launched("2", args)));
        assert!(!output.status.success(), "{args:?}");
        assert!(stderr(&output).contains(why), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(took < PATIENCE / 2, "{args:?}: {took:?}");
    }
}

#[test]
fn an_mpirun_that_is_not_there_is_named() {
    let args = [&["launch", "-n", "2", "--mpirun", "/no/such/mpirun", "--"][..], &TEXT].concat();
    let (output, _) = end(start(granule(&args)));
    assert!(!output.status.success());
    assert!(stderr(&output).contains("/no/such/mpirun does not start"), "{}", stderr(&output));
}
