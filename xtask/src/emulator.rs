//! The emulated kernels: stopgap until helper E's builder is here.

use std::path::{Path, PathBuf};

pub(crate) struct Kernels {
    pub(crate) plain: PathBuf,
    pub(crate) checked: PathBuf,
}

pub(crate) fn build(folder: &Path) -> anyhow::Result<Kernels> {
    Ok(Kernels {
        plain: folder.join("libgranule_emulated.so"),
        checked: folder.join("libgranule_emulated_checked.so"),
    })
}
