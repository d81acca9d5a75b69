//! Whether a real GPU is here, asked of the program that every CUDA run begins with: the probe.

use anyhow::{Context, Result};

use super::binaries::{self, Binary};

/// A GPU, or why there is none.
pub(crate) enum Gpu {
    Here(String),
    None(String),
}

/// Asks the probe. It answers in lines of `name: value` and ends with an error where there is no driver.
pub(crate) fn find(binaries: &[Binary]) -> Result<Gpu> {
    let probe = binaries::program(binaries, "probe")?;
    let output = probe.command().arg("--name").output().context("the probe does not start")?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(match output.status.success() {
        true => Gpu::Here(said(&output.stdout)),
        false => Gpu::None(said(&output.stderr).trim_start_matches("error: ").to_owned()),
    })
}
