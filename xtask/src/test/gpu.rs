//! Whether a real GPU is here, asked of the program that every CUDA run begins with: the probe.

use anyhow::{Context, Result, bail};

use super::binaries::{self, Binary};

/// A GPU, or why there is none.
pub(crate) enum Gpu {
    Here(String),
    None(String),
}

/// The GPU's name, or an error where there is none.
pub(crate) fn require(binaries: &[Binary]) -> Result<String> {
    match find(binaries)? {
        Gpu::Here(name) => Ok(name),
        Gpu::None(why) => bail!("a GPU is required and none is here: {why}"),
    }
}

/// Asks the probe, which takes the simulated driver for no GPU.
pub(crate) fn find(binaries: &[Binary]) -> Result<Gpu> {
    let probe = binaries::program(binaries, "probe")?;
    let output = probe.command().arg("--name").output().context("the probe does not start")?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(match output.status.success() {
        true => Gpu::Here(said(&output.stdout)),
        false => Gpu::None(said(&output.stderr).trim_start_matches("error: ").to_owned()),
    })
}
