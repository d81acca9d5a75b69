//! Tools that no machine has by itself: pinned Python wheels, fetched once with pip, checked against their hashes and
//! unpacked into cargo's target folder. Nothing of them is committed or passed on: their licences let us use them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Wheels that are needed together.
pub(crate) struct Wheels {
    /// Which chore needs them, and what they are: "kernels", "the CUDA compilers".
    pub(crate) chore: &'static str,
    pub(crate) what: &'static str,
    /// About how much is fetched.
    pub(crate) megabytes: u32,
    /// What to do on another machine than x86-64 Linux.
    pub(crate) elsewhere: &'static str,
    /// Package, version, sha256 of the wheel for x86-64 Linux.
    pub(crate) pins: &'static [(&'static str, &'static str, &'static str)],
    /// Folders in them whose files are programs: a wheel does not say so where it is only unpacked.
    pub(crate) programs: &'static [&'static str],
}

impl Wheels {
    /// Has them be in `folder`, as pinned: fetched where they are not there yet.
    pub(crate) fn ready(&self, folder: &Path) -> Result<()> {
        let pins = self.requirements();
        // Written last, so it stands for all the rest.
        let stamp = folder.join("wheels.txt");
        if fs::read_to_string(&stamp).is_ok_and(|unpacked| unpacked == pins) {
            return Ok(());
        }
        if cfg!(not(all(target_os = "linux", target_arch = "x86_64"))) {
            bail!("{} are pinned for x86-64 Linux; {}", self.what, self.elsewhere);
        }
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let wheels = folder.join("wheels");
        fs::create_dir_all(&wheels)?;
        self.fetch(&pins, folder, &wheels)?;
        self.unpack(&wheels, folder)?;
        fs::remove_dir_all(&wheels)?;
        fs::write(&stamp, pins)?;
        Ok(())
    }

    /// The pins as pip reads them.
    fn requirements(&self) -> String {
        let line = |(name, version, hash): &(_, _, _)| format!("{name}=={version} --hash=sha256:{hash}\n");
        self.pins.iter().map(line).collect()
    }

    fn fetch(&self, pins: &str, folder: &Path, wheels: &Path) -> Result<()> {
        let Wheels { chore, what, megabytes, .. } = self;
        eprintln!("{chore}: fetching {what}, about {megabytes} MB, once");
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
        let status = pip.status().with_context(|| {
            format!("{what} are fetched with python3 and pip: apt install python3 python3-pip")
        })?;
        ensure!(
            status.success(),
            "pip could not fetch {what} ({status}; its reason stands above). It needs python3-pip and a network, or \
             PIP_NO_INDEX=1 and PIP_FIND_LINKS with a folder that holds the wheels:\n{pins}"
        );
        Ok(())
    }

    /// Unpacks every wheel, which is a zip file, all at once; makes programs of the programs.
    fn unpack(&self, wheels: &Path, folder: &Path) -> Result<()> {
        let mut running = Vec::new();
        for entry in fs::read_dir(wheels)? {
            let wheel = entry?.path();
            let child = Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(folder).spawn();
            running.push((wheel, child.context("python3 does not start")?));
        }
        let pinned = self.pins.len();
        ensure!(running.len() == pinned, "pip fetched {} wheels of {pinned}", running.len());
        for (wheel, mut child) in running {
            let status = child.wait()?;
            ensure!(status.success(), "unpacking {}: {status}", wheel.display());
        }
        for bin in self.programs {
            for entry in fs::read_dir(folder.join(bin)).with_context(|| format!("no {bin} in the wheels"))? {
                let path = entry?.path();
                if path.is_file() {
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                }
            }
        }
        Ok(())
    }
}
