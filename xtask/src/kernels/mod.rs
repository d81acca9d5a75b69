//! `cargo xtask kernels`: compiles `kernels/*.cu` with pinned compilers to the PTX and the table that are committed, or
//! with `--check` holds what is committed against what the sources give.

mod cubin;
mod nvcc;
mod nvrtc;
mod ptx;
mod table;
mod toolchain;
pub(crate) mod unshipped;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use self::nvrtc::Nvrtc;
use self::toolchain::Toolchain;
use crate::steps::Steps;

/// What all PTX together may have, in bytes: it is part of every program that links `granule-kernels`.
const PTX_BUDGET: usize = 3 << 20;

/// Operations that compute, where the others carry or encode numbers: they promise a bound on their error and no bits, and
/// may contract (`fma`) and approximate (`ex2.approx`).
const BOUNDED: &[&str] = &["attention", "attention_prefill", "matmul", "matvec"];

#[derive(Args)]
pub(crate) struct KernelsArgs {
    /// Write nothing; fail where the committed PTX or table differ from what the sources give
    #[arg(long)]
    check: bool,
}

/// Who makes PTX for a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compiler {
    /// NVRTC 12.4, whose PTX drivers of CUDA 12.4 and later take.
    Nvrtc,
    /// nvcc 13.0, whose PTX drivers of CUDA 13.0 and later take.
    Nvcc,
}

/// One thing to compile for.
struct Target {
    /// What follows `sm_` and `compute_`.
    arch: &'static str,
    compiler: Compiler,
    /// What ships.
    ships: Ships,
}

/// Which operations' PTX is committed for a target. All are compiled and stand in the table.
#[derive(Clone, Copy)]
enum Ships {
    /// Every operation, as `<op>.ptx`: the baseline.
    All,
    /// These, as `<op>.sm_<arch>.ptx`, beside their baseline twins.
    Only(&'static [&'static str]),
}

impl Ships {
    /// The name of the file for `op`, if there is one.
    fn file(self, op: &str, arch: &str) -> Option<String> {
        match self {
            Ships::All => Some(format!("{op}.ptx")),
            Ships::Only(ops) => ops.contains(&op).then(|| format!("{op}.sm_{arch}.ptx")),
        }
    }
}

/// Everything that kernels are compiled for. No kernel gains from sm_90a yet, so none ships for it; that all of them
/// compile, and with what registers, is kept true.
const TARGETS: &[Target] = &[
    Target { arch: "80", compiler: Compiler::Nvrtc, ships: Ships::All },
    Target { arch: "90a", compiler: Compiler::Nvcc, ships: Ships::Only(&[]) },
];

/// The CUDA sources, read.
struct Sources {
    folder: PathBuf,
    /// Operation and text, sorted.
    kernels: Vec<(String, String)>,
    /// File name and text, sorted.
    headers: Vec<(String, String)>,
}

impl Sources {
    fn read(folder: &Path) -> Result<Sources> {
        let kernels = texts(folder, ".cu")?;
        let kernels = kernels.into_iter().map(|(name, text)| (name.trim_end_matches(".cu").to_owned(), text));
        let (kernels, headers) = (kernels.collect(), texts(&folder.join("include"), ".cuh")?);
        Ok(Sources { folder: folder.to_owned(), kernels, headers })
    }
}

/// Names and texts of the files in `folder` that end so, sorted.
fn texts(folder: &Path, ending: &str) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if name.ends_with(ending) {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            found.push((name, text));
        }
    }
    found.sort();
    Ok(found)
}

/// What one operation gives for one target.
struct Built {
    /// The file to commit, if this target ships the operation.
    file: Option<(String, String)>,
    kernels: Vec<table::Row>,
}

/// Compiles everything; writes it, or with `--check` compares.
pub(crate) fn run(args: &KernelsArgs) -> Result<()> {
    let mut steps = Steps::of("kernels");
    let folder = crate::root().join("kernels");
    let sources = Sources::read(&folder)?;
    let mut toolchain = None;
    steps.call("compilers", || {
        toolchain = Some(Toolchain::ready()?);
        Ok(())
    })?;
    let toolchain = toolchain.context("no compilers")?;
    let mut built = Vec::new();
    steps.call("compile", || {
        let nvrtc = Nvrtc::load(&toolchain.nvrtc())?;
        built = compile_all(&sources, &toolchain, &nvrtc)?;
        unshipped::build(&sources, &nvrtc, args.check)
    })?;

    let mut files = BTreeMap::new();
    let mut rows = Vec::new();
    for one in built {
        files.extend(one.file);
        rows.extend(one.kernels);
    }
    let bytes: usize = files.values().map(String::len).sum();
    files.insert("TABLE.md".to_owned(), table::render(&mut rows, bytes, PTX_BUDGET));
    let committed = folder.join("ptx");
    steps.call(if args.check { "compare" } else { "write" }, || {
        if args.check { compare(&files, &committed) } else { write(&files, &committed) }
    })?;
    steps.report();
    let (each, targets) = (rows.len() / TARGETS.len(), TARGETS.len());
    eprintln!(
        "kernels: {each} for {targets} targets, {} KiB of PTX of {} KiB",
        bytes >> 10,
        PTX_BUDGET >> 10
    );
    let spilling: Vec<_> = rows.iter().filter(|row| row.spills()).map(|row| row.kernel.as_str()).collect();
    if !spilling.is_empty() {
        bail!("registers are spilled to memory in {}", spilling.join(", "));
    }
    if bytes > PTX_BUDGET {
        bail!("the PTX has {bytes} bytes, more than its budget of {PTX_BUDGET}");
    }
    Ok(())
}

/// Every operation for every target, on all processors.
fn compile_all(sources: &Sources, toolchain: &Toolchain, nvrtc: &Nvrtc) -> Result<Vec<Built>> {
    let scratch = tempfile::tempdir().context("a folder for what the compilers write")?;
    let jobs: Vec<_> = TARGETS
        .iter()
        .flat_map(|target| sources.kernels.iter().map(move |kernel| (target, kernel)))
        .collect();
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((target, (op, text))) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let built = compile(target, op, text, sources, nvrtc, toolchain, scratch.path())
                .with_context(|| format!("kernels/{op}.cu for sm_{}", target.arch));
            done.lock().map(|mut done| done.push(built)).ok();
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    done.into_inner().map_err(|_| anyhow!("a compiling thread panicked"))?.into_iter().collect()
}

fn compile(
    target: &Target,
    op: &str,
    text: &str,
    sources: &Sources,
    nvrtc: &Nvrtc,
    toolchain: &Toolchain,
    scratch: &Path,
) -> Result<Built> {
    let (raw, compiler) = match target.compiler {
        Compiler::Nvrtc => (nvrtc.compile(op, text, &sources.headers, target.arch)?, "NVRTC 12.4"),
        Compiler::Nvcc => (nvcc::compile(toolchain, op, sources, target.arch, scratch)?, "nvcc 13.0"),
    };
    let head =
        format!("// Built from kernels/{op}.cu by {compiler} (cargo xtask kernels); not for editing.\n");
    let clean = head + &ptx::clean(&raw);
    if !BOUNDED.contains(&op) {
        ptx::check_exact(&clean)?;
    }
    let kernels = nvcc::assemble(toolchain, op, &clean, target.arch, scratch)?;
    let file = target.ships.file(op, target.arch).map(|name| (name, clean));
    Ok(Built { file, kernels })
}

/// The names of what is in `folder`.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

fn write(files: &BTreeMap<String, String>, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for (name, text) in files {
        fs::write(folder.join(name), text).with_context(|| name.clone())?;
    }
    for name in names(folder)?.into_iter().filter(|name| !files.contains_key(name)) {
        fs::remove_file(folder.join(&name)).with_context(|| name)?;
    }
    Ok(())
}

/// An error that names every file which is not what the sources give.
fn compare(files: &BTreeMap<String, String>, folder: &Path) -> Result<()> {
    let mut different = Vec::new();
    for (name, text) in files {
        match fs::read_to_string(folder.join(name)) {
            Ok(committed) if committed == *text => {}
            Ok(_) => different.push(format!("{name} differs")),
            Err(error) => different.push(format!("{name}: {error}")),
        }
    }
    let strays = names(folder)?.into_iter().filter(|name| !files.contains_key(name));
    different.extend(strays.map(|name| format!("{name} comes from no source")));
    if different.is_empty() {
        return Ok(());
    }
    bail!("kernels/ptx is not what the sources give: {}. Run `cargo xtask kernels`", different.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_the_sources_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let files =
            BTreeMap::from([("a.ptx".to_owned(), "a".to_owned()), ("b.ptx".to_owned(), "b".to_owned())]);
        write(&files, folder.path()).unwrap();
        compare(&files, folder.path()).unwrap();

        fs::write(folder.path().join("a.ptx"), "x").unwrap();
        fs::remove_file(folder.path().join("b.ptx")).unwrap();
        fs::write(folder.path().join("c.ptx"), "c").unwrap();
        let said = compare(&files, folder.path()).unwrap_err().to_string();
        assert!(
            said.contains("a.ptx differs") && said.contains("b.ptx: ") && said.contains("c.ptx comes"),
            "{said}"
        );

        write(&files, folder.path()).unwrap();
        compare(&files, folder.path()).unwrap();
    }

    #[test]
    fn a_variant_lies_beside_its_baseline() {
        assert_eq!(Ships::All.file("rope", "80").as_deref(), Some("rope.ptx"));
        assert_eq!(Ships::Only(&["rope"]).file("rope", "90a").as_deref(), Some("rope.sm_90a.ptx"));
        assert_eq!(Ships::Only(&["rope"]).file("norm", "90a"), None);
    }
}
