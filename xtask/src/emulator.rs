//! The emulated kernels: the CUDA sources of the repository, compiled for this processor.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use granule_sim::emulator_build::{self, Mode};

/// Libraries of all kernels.
pub(crate) struct Kernels {
    /// At full speed.
    pub(crate) plain: PathBuf,
    /// With every load and store looked at.
    pub(crate) checked: PathBuf,
}

/// Builds what is not up to date into `folder`.
pub(crate) fn build(folder: &Path) -> Result<Kernels> {
    let root = crate::root();
    let mut sources: Vec<PathBuf> = crate::kernels::unshipped::sources().collect();
    let kernels = root.join("kernels");
    for entry in std::fs::read_dir(&kernels).with_context(|| kernels.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    sources.sort();
    let build = |mode| emulator_build::build(&sources, &[kernels.join("include")], mode, folder);
    Ok(Kernels { plain: build(Mode::Plain)?, checked: build(Mode::Checked)? })
}
