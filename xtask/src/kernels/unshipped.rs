//! Kernels that stand beside the program that runs them and are never shipped: those with bugs planted in them, and the one
//! that the neighbouring engine brings. Compiled as the others are.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::nvrtc::Nvrtc;
use super::{Sources, ptx};

/// Where each is, without its ending.
const KERNELS: [&str; 2] =
    ["crates/granule-sim/planted/planted", "crates/granule-device/tests/neighbour/kernels/saxpy"];

/// The sources, for the emulator.
pub(crate) fn sources() -> impl Iterator<Item = PathBuf> {
    KERNELS.iter().map(|stem| crate::root().join(stem).with_extension("cu"))
}

/// Writes each one's PTX beside it, or with `check` fails where the one that is committed is another.
pub(super) fn build(sources: &Sources, nvrtc: &Nvrtc, check: bool) -> Result<()> {
    KERNELS.iter().try_for_each(|stem| build_one(stem, sources, nvrtc, check).context(*stem))
}

fn build_one(stem: &str, sources: &Sources, nvrtc: &Nvrtc, check: bool) -> Result<()> {
    let source = crate::root().join(stem).with_extension("cu");
    let text = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
    let name = stem.rsplit('/').next().unwrap_or(stem);
    let raw = nvrtc.compile(name, &text, &sources.headers, "80").context("for sm_80")?;
    let head = format!("// Built from {stem}.cu by NVRTC 12.4 (cargo xtask kernels); not for editing.\n");
    let built = head + &ptx::clean(&raw);
    let file = source.with_extension("ptx");
    if !check {
        return fs::write(&file, built).with_context(|| file.display().to_string());
    }
    match fs::read_to_string(&file) {
        Ok(committed) if committed == built => Ok(()),
        Ok(_) => bail!("{} is not what its source gives. Run `cargo xtask kernels`", file.display()),
        Err(error) => bail!("{}: {error}. Run `cargo xtask kernels`", file.display()),
    }
}
