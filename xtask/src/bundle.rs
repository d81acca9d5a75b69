//! `cargo xtask bundle`: one archive for a GPU machine that has neither Rust nor a network: test programs, benchmarks, the
//! probe, the command with a small model, and `run.sh`. There `xtask bundled …` does what it says, with the same code that
//! runs here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::memcheck::{self, MemcheckArgs};
use crate::test::binaries::{self, Binary, Role};
use crate::test::jobs::{self, Job};
use crate::test::{self, outcome};

/// What may travel to a GPU machine in one piece.
const LIMIT: u64 = 64 << 20;
const NAME: &str = "granule-bundle";
const LIST: &str = "bundle.json";

#[derive(Args)]
pub(crate) struct BundleArgs {
    /// Where the archive goes [default: granule-bundle.tar.gz where cargo puts what it builds]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct BundledArgs {
    #[command(subcommand)]
    what: What,
    /// The unpacked bundle
    #[arg(long, value_name = "FOLDER", default_value = ".", global = true)]
    bundle: PathBuf,
}

#[derive(Subcommand)]
enum What {
    /// The facts about this machine's driver that the simulator assumes
    Probe,
    /// Every test that needs a CUDA driver, on this machine's GPU
    Tests,
    /// The GPU tests under compute-sanitizer
    Memcheck(MemcheckArgs),
    /// The GPU benchmarks
    Bench,
}

/// Builds and packs everything.
pub(crate) fn pack(args: &BundleArgs) -> Result<()> {
    let mut programs = binaries::build_all()?;
    programs.extend(binaries::build(&["build", "--release", "--package", "xtask", "--package", "granule"])?);
    let benchmarks = ["build", "--release", "--package", "granule-benches", "--examples"];
    programs.extend(binaries::build(&benchmarks)?);
    programs.retain(wanted);
    for name in ["probe", "granule-planted", "xtask", "granule", "cuda_attention", "cuda_quant"] {
        binaries::program(&programs, name)?;
    }

    let target = crate::target_dir()?;
    let output = args.output.clone().unwrap_or_else(|| target.join(NAME).with_extension("tar.gz"));
    let folder = target.join(NAME);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(folder.join("bin"))?;
    let packed = programs.iter().map(|program| pack_program(program, &folder)).collect::<Result<Vec<_>>>()?;
    let model = Path::new("crates/granule-llama/models/tales-5m.q8_0.gguf");
    fs::create_dir_all(folder.join("models"))?;
    fs::copy(crate::root().join(model), folder.join("models/tales-5m.q8_0.gguf"))?;
    fs::create_dir_all(folder.join("ptx"))?;
    for entry in fs::read_dir(crate::root().join("kernels/ptx"))? {
        let entry = entry?;
        fs::copy(entry.path(), folder.join("ptx").join(entry.file_name()))?;
    }
    fs::write(folder.join(LIST), serde_json::to_string_pretty(&packed)?)?;
    let script = folder.join("run.sh");
    fs::write(&script, include_str!("bundle.sh"))?;
    run_tool(Command::new("chmod").arg("+x").arg(&script), "chmod")?;
    run_tool(Command::new("tar").arg("-C").arg(&target).arg("-czf").arg(&output).arg(NAME), "tar")?;
    let size = fs::metadata(&output)?.len();
    eprintln!(
        "bundle: {} programs, {:.1} MiB: {}",
        packed.len(),
        size as f64 / f64::from(1 << 20),
        output.display()
    );
    if size > LIMIT {
        bail!("the bundle is larger than {} MiB", LIMIT >> 20);
    }
    Ok(())
}

/// What is of use on a GPU machine: tests that need a driver, and what runs them, measures, or is run by a person.
fn wanted(program: &Binary) -> bool {
    let tools = ["probe", "granule-planted", "xtask", "granule"];
    match program.role {
        Role::Test => program.ignored_tests(&[test::CUDA]).is_ok_and(|tests| !tests.is_empty()),
        Role::Program => tools.contains(&program.target.as_str()) || program.target.starts_with("cuda"),
    }
}

/// Puts a stripped copy in the bundle and answers with its place there.
fn pack_program(program: &Binary, folder: &Path) -> Result<Binary> {
    let role = format!("{:?}", program.role).to_lowercase();
    let name = format!("{}.{}.{role}", program.package, program.target);
    let path = Path::new("bin").join(name);
    let copy = folder.join(&path);
    fs::copy(&program.path, &copy).with_context(|| program.path.display().to_string())?;
    run_tool(Command::new("strip").arg(&copy), "strip")?;
    Ok(Binary { path, folder: PathBuf::from("."), ..program.clone() })
}

fn run_tool(command: &mut Command, name: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("{name} does not start: is it installed?"))?;
    anyhow::ensure!(status.success(), "{name}: {status}");
    Ok(())
}

/// Does on a GPU machine what a bundle was packed for.
pub(crate) fn run(args: &BundledArgs) -> Result<()> {
    let folder = fs::canonicalize(&args.bundle).with_context(|| args.bundle.display().to_string())?;
    let list = folder.join(LIST);
    let list = fs::read_to_string(&list).with_context(|| format!("{}: is this a bundle?", list.display()))?;
    let mut programs: Vec<Binary> = serde_json::from_str(&list)?;
    for program in &mut programs {
        program.path = folder.join(&program.path);
        program.folder = folder.join(&program.folder);
    }
    match &args.what {
        What::Probe => probe(&programs),
        What::Tests => {
            print!("{}", outcome::table(&[test::on_gpu(&programs, true, None)?]));
            Ok(())
        }
        What::Memcheck(args) => memcheck::check(&programs, args, &folder.join("memcheck.txt")),
        What::Bench => bench(&programs),
    }
}

fn probe(programs: &[Binary]) -> Result<()> {
    let probe =
        programs.iter().find(|program| program.target == "probe").context("no probe in the bundle")?;
    run_tool(&mut probe.command(), "the probe")
}

fn bench(programs: &[Binary]) -> Result<()> {
    let mut ran = 0;
    for program in programs.iter().filter(|program| program.target.starts_with("cuda")) {
        if program.role == Role::Test {
            continue;
        }
        let done = jobs::run(Job { name: program.name(), command: program.command() })?;
        println!("{}", done.printed);
        anyhow::ensure!(done.status.success(), "{}: {}", done.name, done.status);
        ran += 1;
    }
    anyhow::ensure!(ran > 0, "no benchmark in the bundle");
    Ok(())
}
