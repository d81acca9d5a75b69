//! The simulated driver and the emulated kernels, built and put where a program finds them in place of the real ones.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use cargo_metadata::Message;

/// The exit status of a program whose simulator reported something that no test asked for.
pub(crate) const REPORTS_LEFT: i32 = 97;

/// A folder with a `libcuda.so` that is the simulator, and the kernels it runs.
#[derive(Clone, Debug)]
pub(crate) struct Simulator {
    folder: PathBuf,
    /// Kernels at full speed.
    plain: PathBuf,
    /// Kernels whose every load and store is seen.
    checked: PathBuf,
}

/// How the simulator is set up for one program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    /// Whether every load and store of a kernel is looked at.
    pub(crate) checked: bool,
    /// Whether reports that no test asked for make the program fail.
    pub(crate) strict: bool,
}

impl Simulator {
    /// Builds what is not up to date.
    pub(crate) fn build() -> Result<Simulator> {
        let library = build_driver()?;
        let target = library.ancestors().nth(2).context("the driver lies in no target folder")?;
        let folder = target.join("sim");
        std::fs::create_dir_all(&folder)?;
        replace(&library, &folder.join("libcuda.so"))?;
        // One file under several names: a program that opens all of them has one driver, and cuBLAS is a part of it: under
        // every name that comes first for some driver, so that a real one is never handed simulated memory.
        for name in ["libcuda.so.1", "libcublas.so.12", "libcublas.so.13"] {
            let other = folder.join(name);
            if !other.is_symlink() {
                let linked = std::os::unix::fs::symlink("libcuda.so", &other);
                linked.with_context(|| other.display().to_string())?;
            }
        }
        let kernels = crate::emulator::build(&folder.join("kernels"))?;
        Ok(Simulator { folder, plain: kernels.plain, checked: kernels.checked })
    }

    /// Lets a program find the simulator where it looks for the driver.
    pub(crate) fn install(&self, command: &mut Command, setup: Setup) {
        let mut path = OsString::from(&self.folder);
        if let Some(others) = std::env::var_os("LD_LIBRARY_PATH") {
            path.push(":");
            path.push(others);
        }
        let Setup { seed, checked, strict } = setup;
        command
            .env("LD_LIBRARY_PATH", path)
            .env("GRANULE_SIM", format!("devices=4,memory=256MiB,seed={seed},strict={}", u8::from(strict)))
            .env("GRANULE_SIM_KERNELS", if checked { &self.checked } else { &self.plain });
    }
}

fn build_driver() -> Result<PathBuf> {
    let args = ["build", "--profile", "test", "--package", "granule-sim-driver", "--lib"];
    let mut library = None;
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(args)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(crate::root())
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cargo does not start")?;
    anyhow::ensure!(output.status.success(), "cargo {}: {}", args.join(" "), output.status);
    for message in Message::parse_stream(&output.stdout[..]) {
        if let Message::CompilerArtifact(artifact) = message? {
            let made =
                artifact.filenames.into_iter().find(|name| name.as_str().ends_with("granule_sim_driver.so"));
            library = made.map(|name| name.into_std_path_buf()).or(library);
        }
    }
    library.context("cargo made no libgranule_sim_driver.so")
}

/// Puts a copy in place in one step, so that a program that runs keeps the old one.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    std::fs::copy(from, &new).with_context(|| format!("copying {}", from.display()))?;
    std::fs::rename(&new, to).with_context(|| format!("putting {} in place", to.display()))
}
