//! The kernels with bugs planted in them: compiled as the others are, kept beside the program that runs them, never shipped.

use std::fs;

use anyhow::{Context, Result, bail};

use super::nvrtc::Nvrtc;
use super::{Sources, ptx};

const FOLDER: &str = "crates/granule-sim/planted";

/// Writes `planted.ptx`, or with `check` fails where the one that is committed is another.
pub(super) fn build(sources: &Sources, nvrtc: &Nvrtc, check: bool) -> Result<()> {
    let folder = crate::root().join(FOLDER);
    let text = fs::read_to_string(folder.join("planted.cu")).context("planted.cu")?;
    let raw = nvrtc.compile("planted", &text, &sources.headers, "80").context("planted.cu for sm_80")?;
    let head =
        format!("// Built from {FOLDER}/planted.cu by NVRTC 12.4 (cargo xtask kernels); not for editing.\n");
    let built = head + &ptx::clean(&raw);
    let file = folder.join("planted.ptx");
    if !check {
        return fs::write(&file, built).context("planted.ptx");
    }
    match fs::read_to_string(&file) {
        Ok(committed) if committed == built => Ok(()),
        Ok(_) => bail!("{} is not what its source gives. Run `cargo xtask kernels`", file.display()),
        Err(error) => bail!("{}: {error}. Run `cargo xtask kernels`", file.display()),
    }
}
