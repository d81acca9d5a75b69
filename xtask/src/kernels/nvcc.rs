//! nvcc and ptxas of CUDA 13.0: PTX for targets that NVRTC 12.4 does not know, and machine code for the table.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::cubin;
use super::table::Row;
use super::toolchain::Toolchain;

/// Options that nvcc and NVRTC share: the language, and arithmetic that is IEEE 754's to the bit.
pub(super) const EXACT: &[&str] =
    &["--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"];

/// PTX for `compute_<arch>` of `kernels/<op>.cu`, with warnings as errors.
pub(super) fn compile(
    toolchain: &Toolchain,
    op: &str,
    sources: &super::Sources,
    arch: &str,
    scratch: &Path,
) -> Result<String> {
    let output = scratch.join(format!("{op}.sm_{arch}.nvcc.ptx"));
    let mut nvcc = Command::new(toolchain.tool("nvcc"));
    nvcc.current_dir(&sources.folder)
        .args(["--ptx", "--Werror=all-warnings", "--include-path=include"])
        .arg(format!("--gpu-architecture=compute_{arch}"))
        .args(EXACT)
        .arg(format!("{op}.cu"))
        .arg("--output-file")
        .arg(&output);
    said(&mut nvcc, "nvcc (which preprocesses with gcc: is that installed?)")?;
    fs::read_to_string(&output).context("nvcc left no PTX")
}

/// What each kernel of `ptx` takes on `sm_<arch>`.
pub(super) fn assemble(
    toolchain: &Toolchain,
    op: &str,
    ptx: &str,
    arch: &str,
    scratch: &Path,
) -> Result<Vec<Row>> {
    let stem = scratch.join(format!("{op}.sm_{arch}"));
    let (source, output) = (stem.with_extension("ptx"), stem.with_extension("cubin"));
    fs::write(&source, ptx)?;
    let mut ptxas = Command::new(toolchain.tool("ptxas"));
    ptxas.args(["--verbose", "--warning-as-error"]).arg(format!("--gpu-name=sm_{arch}"));
    let report = said(ptxas.arg(&source).arg("--output-file").arg(&output), "ptxas")?;
    let code = cubin::code_sizes(&fs::read(&output).context("ptxas left no cubin")?)?;
    let mut rows = read_report(&report)?;
    for row in &mut rows {
        row.code = *code.get(&row.kernel).with_context(|| format!("no machine code for {}", row.kernel))?;
    }
    let entries = ptx.lines().filter(|line| line.starts_with(".visible .entry ")).count();
    ensure!(rows.len() == entries, "ptxas reports on {} kernels of {entries}", rows.len());
    Ok(rows)
}

/// Runs a compiler and answers with what it said; an error with that where it fails.
fn said(command: &mut Command, name: &str) -> Result<String> {
    let output = command.output().with_context(|| format!("{name} does not start"))?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{name}: {}\n{text}", output.status);
    }
    Ok(text)
}

/// Reads what `ptxas --verbose` says: for each kernel a line with its name and target, one with stack and spills, one
/// with registers and shared memory.
fn read_report(report: &str) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for line in report.lines() {
        if let Some((_, names)) = line.split_once("Compiling entry function '") {
            let mut names = names.split('\'');
            let (kernel, target) = (names.next().unwrap_or_default(), names.nth(1).unwrap_or_default());
            rows.push(Row {
                kernel: kernel.to_owned(),
                target: target.to_owned(),
                registers: 0,
                shared: 0,
                stack: 0,
                spill_stores: 0,
                spill_loads: 0,
                code: 0,
            });
        } else if line.contains("bytes stack frame") {
            let row = rows.last_mut().context("ptxas names no kernel")?;
            // Of the kernel itself, and then of the functions that it calls.
            row.stack += before(line, " bytes stack frame").context("no stack frame")?;
            row.spill_stores += before(line, " bytes spill stores").context("no spill stores")?;
            row.spill_loads += before(line, " bytes spill loads").context("no spill loads")?;
        } else if line.contains(" registers") {
            let row = rows.last_mut().context("ptxas names no kernel")?;
            row.registers = before(line, " registers").context("no registers")?;
            row.shared = before(line, " bytes smem").unwrap_or(0);
        }
    }
    Ok(rows)
}

/// The number that stands right before `unit`.
fn before(line: &str, unit: &str) -> Option<u64> {
    line.split_once(unit)?.0.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_ptxas_is_read() {
        let report = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'rope' for 'sm_90a'\n\
            ptxas info    : Function properties for rope\n    \
            16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n\
            ptxas info    : Used 40 registers, used 1 barriers, 8720 bytes smem, 408 bytes cmem[0]\n\
            ptxas info    : Function properties for turn\n    \
            0 bytes stack frame, 2 bytes spill stores, 1 bytes spill loads\n\
            ptxas info    : Compiling entry function 'norm' for 'sm_90a'\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 8 registers, used 0 barriers\n";
        let rows = read_report(report).unwrap();
        let numbers: Vec<_> = rows
            .iter()
            .map(|r| (&*r.kernel, &*r.target, r.registers, r.shared, r.stack, r.spill_stores, r.spill_loads))
            .collect();
        assert_eq!(numbers, [("rope", "sm_90a", 40, 8720, 16, 10, 5), ("norm", "sm_90a", 8, 0, 0, 0, 0)]);
        assert!(rows[0].spills() && !rows[1].spills());
        assert!(read_report("    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads").is_err());
    }
}
