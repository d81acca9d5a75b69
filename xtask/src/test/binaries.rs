//! The test programs: built by cargo here, or packed in a bundle that came from another machine.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use cargo_metadata::Message;
use serde::{Deserialize, Serialize};

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// A test program with libtest's options.
    Test,
    /// An example or a plain program.
    Program,
}

/// One program that cargo made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Binary {
    /// The package it belongs to.
    pub(crate) package: String,
    /// The target's name: of a test file, an example, a program.
    pub(crate) target: String,
    pub(crate) role: Role,
    /// Where it lies; in a bundle's list, from the bundle's folder.
    pub(crate) path: PathBuf,
    /// The package's folder, where cargo runs its tests; in a bundle's list, from the bundle's folder.
    pub(crate) folder: PathBuf,
}

impl Binary {
    /// "granule-device conformance".
    pub(crate) fn name(&self) -> String {
        if self.package == self.target {
            self.package.clone()
        } else {
            format!("{} {}", self.package, self.target)
        }
    }

    /// A command that runs it as cargo would: in its package's folder.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }

    /// The names of its ignored tests that one of `filters` is part of.
    pub(crate) fn ignored_tests(&self, filters: &[&str]) -> Result<Vec<String>> {
        let output = self
            .command()
            .args(["--ignored", "--list", "--format", "terse"])
            .output()
            .with_context(|| format!("{} does not start", self.path.display()))?;
        if !output.status.success() {
            bail!("{} --list: {}", self.path.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        let listed = String::from_utf8_lossy(&output.stdout);
        let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
        Ok(names.filter(|name| filters.iter().any(|f| name.contains(f))).map(str::to_owned).collect())
    }
}

/// A crate that has made its own choice among cudarc's features, and has granule-device beside it.
const NEIGHBOUR: &str = "crates/granule-device/tests/neighbour/Cargo.toml";

/// What every run begins with: all test programs, and the programs that tests ask: the probe and the planted bugs.
pub(crate) fn build_all() -> Result<Vec<Binary>> {
    let mut binaries =
        build(&["test", "--no-run", "--workspace", "--lib", "--bins", "--tests", "--examples"])?;
    binaries.extend(build(&[
        "build",
        "--profile",
        "test",
        "--package",
        "granule-device",
        "--example",
        "probe",
    ])?);
    binaries.extend(build(&["build", "--profile", "test", "--package", "granule-planted"])?);
    // A workspace of its own, so that its choice of features is its own; what it builds lies beside ours.
    let folder = crate::target_dir()?.join("neighbour");
    let folder = folder.to_string_lossy();
    binaries.extend(build(&["test", "--no-run", "--manifest-path", NEIGHBOUR, "--target-dir", &folder])?);
    Ok(binaries)
}

/// The program of that name.
pub(crate) fn program<'a>(binaries: &'a [Binary], name: &str) -> Result<&'a Binary> {
    let found = binaries.iter().find(|binary| binary.target == name && binary.role == Role::Program);
    found.with_context(|| format!("the program {name} was not built"))
}

/// Runs `cargo ARGS` and answers with the programs that it made. Its messages for people go to stderr as always.
pub(crate) fn build(args: &[&str]) -> Result<Vec<Binary>> {
    let line = format!("cargo {}", args.join(" "));
    let mut child = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(args)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(crate::root())
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo does not start")?;
    let stdout = child.stdout.take().context("cargo's output is not there")?;
    let mut binaries = Vec::new();
    for message in Message::parse_stream(BufReader::new(stdout)) {
        if let Message::CompilerArtifact(artifact) = message? {
            let role = if artifact.profile.test { Role::Test } else { Role::Program };
            if let (Some(path), Some(folder)) = (artifact.executable, artifact.manifest_path.parent()) {
                let package = artifact.package_id.repr.clone();
                binaries.push(Binary {
                    package: package_name(&package, folder.as_std_path()),
                    target: artifact.target.name.clone(),
                    role,
                    path: path.into_std_path_buf(),
                    folder: folder.as_std_path().to_path_buf(),
                });
            }
        }
    }
    match child.wait()? {
        status if status.success() => Ok(binaries),
        status => bail!("{line}: {status}"),
    }
}

/// The name in a package id: `path+file:///…/folder#name@1.0.0`, or `…/name#1.0.0` where folder and name are one.
fn package_name(id: &str, folder: &Path) -> String {
    let folder = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match id.rsplit_once('#').and_then(|(_, fragment)| fragment.split_once('@')) {
        Some((name, _)) => name.to_owned(),
        None => folder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_ids_are_read() {
        let name = |id| package_name(id, Path::new("/here/folder"));
        assert_eq!(name("path+file:///here/folder#granule-x@0.1.0"), "granule-x");
        assert_eq!(name("path+file:///here/folder#0.1.0"), "folder");
    }
}
