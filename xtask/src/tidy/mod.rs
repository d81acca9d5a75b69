//! `cargo xtask tidy`: the house rules that a compiler does not know. Each rule is a pure function from what the
//! repository holds to findings, so that a test can show that it is able to fail.

mod arrows;
mod sources;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What a rule has against something, in one line for the person who wrote it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding(String);

/// One text file that git knows or would take: its path from the repository's root, with `/`, and its text.
struct Source {
    path: String,
    text: String,
}

/// Holds every rule against the repository at `root`; prints what it found and the files that grew long.
pub(crate) fn run(root: &Path) -> Result<()> {
    let sources = read_sources(root)?;
    let mut findings = arrows::check(&arrows::read(root)?);
    findings.extend(arrows::check_chart(&arrows::read(root)?, &read_chart(&sources)));
    findings.extend(sources::check(&sources));
    for (path, lines) in sources::long(&sources) {
        eprintln!("notice: {path} has {lines} lines: do two rooms share one roof?");
    }
    findings.sort();
    for Finding(line) in &findings {
        eprintln!("tidy: {line}");
    }
    match findings.len() {
        0 => {
            eprintln!("tidy: {} files, nothing to put right", sources.len());
            Ok(())
        }
        n => bail!("tidy found {n} things to put right"),
    }
}

/// ARCHITECTURE.md, where the chart of crates is drawn for people.
fn read_chart(sources: &[Source]) -> String {
    sources.iter().find(|s| s.path == "ARCHITECTURE.md").map(|s| s.text.clone()).unwrap_or_default()
}

/// Every file that git tracks, and every new one that it does not ignore; binary files are left out.
fn read_sources(root: &Path) -> Result<Vec<Source>> {
    let list = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("tidy asks git for the list of files")?;
    if !list.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&list.stderr).trim());
    }
    let mut sources = Vec::new();
    for path in String::from_utf8(list.stdout)?.split_terminator('\0') {
        let full: PathBuf = root.join(path);
        match std::fs::read(&full) {
            Ok(bytes) => {
                if let Ok(text) = String::from_utf8(bytes) {
                    sources.push(Source { path: path.to_owned(), text });
                }
            }
            // Deleted, the deletion not yet committed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| full.display().to_string()),
        }
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_repository_is_tidy() {
        super::run(&crate::root()).unwrap();
    }
}
