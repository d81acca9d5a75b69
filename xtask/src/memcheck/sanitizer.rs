//! compute-sanitizer: memcheck with its leak check, racecheck, initcheck and synccheck, on a machine with a GPU.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::planted::{self, Bug};
use super::{Line, Verdict};
use crate::test::CUDA;
use crate::test::binaries::{Binary, Role};
use crate::test::covering::Extent;
use crate::test::gpu::{self, Gpu};
use crate::test::jobs::{self, Done, Job};

/// The tools, with the options that make them look at everything they can.
const TOOLS: &[(&str, &[&str])] = &[
    // A test may ask the driver for what it has to refuse; that is no error of the program's.
    ("memcheck", &["--leak-check", "full", "--report-api-errors", "no"]),
    ("racecheck", &["--racecheck-report", "all"]),
    ("initcheck", &[]),
    ("synccheck", &[]),
];
/// What compute-sanitizer ends with where it found something.
const FOUND: i32 = 86;

pub(crate) fn run(programs: &[Binary]) -> Result<Vec<Line>> {
    let sanitizer = find()?;
    match gpu::find(programs)? {
        Gpu::Here(name) => eprintln!("memcheck: {} on {name}", sanitizer.display()),
        Gpu::None(why) => bail!("memcheck needs a GPU ({why}); `cargo xtask memcheck --sim` does without"),
    }
    let (program, bugs) = planted::list(programs)?;
    let mut lines = Vec::new();
    for &(tool, options) in TOOLS {
        let planted = bugs.iter().any(|bug| bug.tool.as_deref() == Some(tool));
        anyhow::ensure!(planted, "no bug is planted for {tool}: that it finds nothing would prove nothing");
        for bug in bugs.iter().filter(|bug| bug.tool.as_deref() == Some(tool)) {
            for fixed in [false, true] {
                let mut command = under(&sanitizer, tool, options, program);
                command.arg(&bug.name).args(fixed.then_some("--fixed"));
                let done = jobs::run(Job { name: bug.name.clone(), command })?;
                lines.push(planted_line(tool, bug, fixed, done));
            }
        }
        for binary in programs.iter().filter(|program| program.role == Role::Test) {
            let mut tests = binary.ignored_tests(&[CUDA])?;
            tests.retain(|test| Extent::Short.has(test));
            gpu::without_cublas(&mut tests);
            if tests.is_empty() {
                continue;
            }
            let mut command = under(&sanitizer, tool, options, binary);
            command.args(["--ignored", "--exact", "--test-threads=1"]).args(&tests);
            let done = jobs::run(Job { name: binary.name(), command })?;
            lines.push(test_line(tool, tests.len(), done));
        }
    }
    Ok(lines)
}

/// Where compute-sanitizer is: in PATH, or where a toolkit puts it.
fn find() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os).map(PathBuf::from);
    let toolkits = toolkits.chain([PathBuf::from("/usr/local/cuda")]).map(|toolkit| toolkit.join("bin"));
    let mut found =
        std::env::split_paths(&path).chain(toolkits).map(|folder| folder.join("compute-sanitizer"));
    match found.find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!(
            "compute-sanitizer is neither in PATH nor in a CUDA toolkit (CUDA_HOME, /usr/local/cuda): install the \
             toolkit's compute-sanitizer, or use `cargo xtask memcheck --sim`, which needs neither it nor a GPU"
        ),
    }
}

fn under(sanitizer: &Path, tool: &str, options: &[&str], program: &Binary) -> Command {
    let mut command = Command::new(sanitizer);
    command.args(["--tool", tool, "--error-exitcode", &FOUND.to_string(), "--print-limit", "20"]);
    command.args(options).arg(&program.path);
    command.current_dir(&program.folder).env("CARGO_MANIFEST_DIR", &program.folder);
    command
}

fn planted_line(tool: &str, bug: &Bug, fixed: bool, done: Done) -> Line {
    let subject = if fixed { format!("{}, corrected", bug.name) } else { bug.name.clone() };
    let took = done.took.as_secs_f64();
    let verdict = match (fixed, done.status.code()) {
        (false, Some(FOUND)) => Verdict::Found(String::new()),
        (true, Some(0)) => Verdict::Clean(String::new()),
        (false, _) => Verdict::Wrong { what: format!("missed: {}", done.status), printed: done.printed },
        (true, _) => Verdict::Wrong { what: done.status.to_string(), printed: done.printed },
    };
    Line { instrument: tool.to_owned(), subject, verdict, took }
}

fn test_line(tool: &str, tests: usize, done: Done) -> Line {
    let verdict = super::verdict_of_tests(&done, tests, format!("in {tests} tests"));
    Line { instrument: tool.to_owned(), subject: done.name, verdict, took: done.took.as_secs_f64() }
}
