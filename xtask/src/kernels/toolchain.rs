//! The compilers: pinned Python wheels, fetched once with pip, checked against their hashes and unpacked into cargo's
//! target folder. Nothing of them is committed or passed on: their licence lets us use them, not redistribute them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Package, version, sha256 of the wheel for x86-64 Linux.
const WHEELS: &[(&str, &str, &str)] = &[
    // The baseline's compiler: the newest whose PTX drivers as old as CUDA 12.4's take.
    (
        "nvidia-cuda-nvrtc-cu12",
        "12.4.127",
        "a178759ebb095827bd30ef56598ec182b85547f1508941a3d560eb7ea1fbf338",
    ),
    // nvcc, ptxas; what nvcc calls; the headers that it includes by itself.
    ("nvidia-cuda-nvcc", "13.0.88", "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03"),
    ("nvidia-nvvm", "13.0.88", "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0"),
    ("nvidia-cuda-crt", "13.0.88", "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4"),
    ("nvidia-cuda-runtime", "13.0.96", "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
];

/// Where the compilers are.
pub(super) struct Toolchain {
    folder: PathBuf,
}

impl Toolchain {
    /// The compilers as pinned, fetched where they are not there yet.
    pub(super) fn ready() -> Result<Toolchain> {
        let folder = crate::target_dir()?.join("cuda-toolchain");
        let pins = requirements();
        // Written last, so it stands for all the rest.
        let stamp = folder.join("wheels.txt");
        if fs::read_to_string(&stamp).is_ok_and(|unpacked| unpacked == pins) {
            return Ok(Toolchain { folder });
        }
        if cfg!(not(all(target_os = "linux", target_arch = "x86_64"))) {
            bail!(
                "the CUDA compilers are pinned for x86-64 Linux; the committed PTX in kernels/ptx runs anywhere"
            );
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        let wheels = folder.join("wheels");
        fs::create_dir_all(&wheels)?;
        fetch(&pins, &folder, &wheels)?;
        unpack(&wheels, &folder)?;
        fs::remove_dir_all(&wheels)?;
        fs::write(&stamp, pins)?;
        Ok(Toolchain { folder })
    }

    /// The NVRTC library.
    pub(super) fn nvrtc(&self) -> PathBuf {
        self.folder.join("nvidia/cuda_nvrtc/lib/libnvrtc.so.12")
    }

    /// A program of the toolkit.
    pub(super) fn tool(&self, name: &str) -> PathBuf {
        self.folder.join("nvidia/cu13/bin").join(name)
    }
}

/// The pins as pip reads them.
fn requirements() -> String {
    WHEELS.iter().map(|(name, version, hash)| format!("{name}=={version} --hash=sha256:{hash}\n")).collect()
}

fn fetch(pins: &str, folder: &Path, wheels: &Path) -> Result<()> {
    eprintln!("kernels: fetching about 125 MB of compilers, once");
    let list = folder.join("requirements.txt");
    fs::write(&list, pins)?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "--disable-pip-version-check",
        "download",
        "--quiet",
        "--no-deps",
        "--no-cache-dir",
    ]);
    pip.args(["--require-hashes", "--only-binary=:all:", "--requirement"])
        .arg(&list)
        .arg("--dest")
        .arg(wheels);
    let status = pip
        .status()
        .context("the CUDA compilers are fetched with python3 and pip: apt install python3 python3-pip")?;
    ensure!(
        status.success(),
        "pip could not fetch the CUDA compilers ({status}; its reason stands above). It needs python3-pip and a network, \
         or PIP_NO_INDEX=1 and PIP_FIND_LINKS with a folder that holds the wheels:\n{pins}"
    );
    Ok(())
}

/// Unpacks every wheel, which is a zip file, all at once; makes programs of the programs.
fn unpack(wheels: &Path, folder: &Path) -> Result<()> {
    let mut running = Vec::new();
    for entry in fs::read_dir(wheels)? {
        let wheel = entry?.path();
        let child = Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(folder).spawn();
        running.push((wheel, child.context("python3 does not start")?));
    }
    ensure!(running.len() == WHEELS.len(), "pip fetched {} wheels of {}", running.len(), WHEELS.len());
    for (wheel, mut child) in running {
        let status = child.wait()?;
        ensure!(status.success(), "unpacking {}: {status}", wheel.display());
    }
    for bin in ["nvidia/cu13/bin", "nvidia/cu13/nvvm/bin"] {
        for entry in fs::read_dir(folder.join(bin)).with_context(|| format!("no {bin} in the wheels"))? {
            let path = entry?.path();
            if path.is_file() {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            }
        }
    }
    Ok(())
}
