//! Rules on the text of files: what each opens with, where CUDA is spoken, what no file names, and its length.

use super::{Finding, Source, arrows};

/// Past this many lines a file is worth a second look; it is a notice and no failure.
const LONG: usize = 500;

/// All the rules on single files and their names.
pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        findings.extend(opening(source));
        findings.extend(cuda_words(source));
        findings.extend(places(source));
    }
    findings.extend(launchers(sources));
    findings
}

/// Rust and CUDA sources over [`LONG`] lines, longest first.
pub(super) fn long(sources: &[Source]) -> Vec<(&str, usize)> {
    let counted = sources.iter().filter(|s| is_rust(&s.path) || is_cuda(&s.path));
    let mut long: Vec<_> =
        counted.map(|s| (s.path.as_str(), s.text.lines().count())).filter(|&(_, n)| n > LONG).collect();
    long.sort_by_key(|&(path, lines)| (std::cmp::Reverse(lines), path));
    long
}

fn is_rust(path: &str) -> bool {
    path.ends_with(".rs")
}

fn is_cuda(path: &str) -> bool {
    path.ends_with(".cu") || path.ends_with(".cuh")
}

/// A source says in its first line what lives there.
fn opening(source: &Source) -> Option<Finding> {
    let mark = match &source.path {
        path if is_rust(path) => "//!",
        path if is_cuda(path) => "//",
        _ => return None,
    };
    let said = source.text.lines().next().and_then(|line| line.strip_prefix(mark));
    match said {
        Some(words) if words.trim_matches(['/', '!', ' ']).len() > 10 => None,
        _ => {
            Some(Finding(format!("{} does not open with a `{mark}` line that says what it is", source.path)))
        }
    }
}

/// cudarc is named in one crate's sources; comments may speak of it anywhere.
fn cuda_words(source: &Source) -> Option<Finding> {
    let homes = [&format!("crates/{}/", arrows::SPEAKS_CUDA), arrows::STANDS_IN, "xtask/src/tidy/"];
    if !is_rust(&source.path) || homes.iter().any(|home| source.path.starts_with(home)) {
        return None;
    }
    let code = |line: &str| line.split("//").next().unwrap_or_default().contains("cudarc");
    let line = source.text.lines().position(code)? + 1;
    Some(Finding(format!("{}:{line} names cudarc; only {} may", source.path, arrows::SPEAKS_CUDA)))
}

/// `kernels/<op>.cu` is launched from `granule-ops/src/<op>/cuda.rs`.
fn launchers(sources: &[Source]) -> Vec<Finding> {
    let kernels = sources.iter().filter_map(|s| {
        s.path.strip_prefix("kernels/").and_then(|p| p.strip_suffix(".cu")).filter(|op| !op.contains('/'))
    });
    let lonely = kernels.filter_map(|op| {
        let launcher = format!("crates/granule-ops/src/{op}/cuda.rs");
        let found = sources.iter().any(|s| s.path == launcher);
        (!found).then(|| Finding(format!("kernels/{op}.cu has no launcher {launcher}")))
    });
    lonely.collect()
}

/// What belongs to one machine or one network. Written in halves, so that this file passes its own rule.
const PLACES: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("C:", "\\"),
    concat!("index.cra", "tes.io"),
    concat!("static.cra", "tes.io"),
    concat!("//cra", "tes.io"),
    concat!("py", "pi.org"),
    concat!("pythonhos", "ted.org"),
    concat!("np", "mjs."),
    concat!("deb.deb", "ian.org"),
];

/// The only registry that the lock file may name.
const LOCKED: &str = "\"registry+https://github.com/rust-lang/crates.io-index\"";

/// No path of somebody's machine and no host of a registry stands in a file.
fn places(source: &Source) -> Option<Finding> {
    let lock = source.path.ends_with("Cargo.lock");
    let named = |line: &str| {
        if lock {
            line.strip_prefix("source = ").is_some_and(|s| s != LOCKED)
        } else {
            PLACES.iter().any(|p| stands_alone(line, p))
        }
    };
    let line = source.text.lines().position(named)? + 1;
    Some(Finding(format!("{}:{line} names a place that only one machine or network has", source.path)))
}

/// Whether `line` has `place` otherwise than as the tail of a longer relative path.
fn stands_alone(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !place.starts_with('/') || !before.is_some_and(|c| c.is_alphanumeric() || "._-".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_source_that_does_not_say_what_it_is_is_found() {
        assert_eq!(opening(&source("a.rs", "//! Everything about doors.\n")), None);
        assert!(opening(&source("a.rs", "use std::fs;\n//! Everything about doors.")).is_some());
        assert!(opening(&source("a.rs", "//!\nfn f() {}")).is_some());
        assert!(opening(&source("a.rs", "")).is_some());
        assert_eq!(opening(&source("a.cu", "// Rotates doors by an angle.\n")), None);
        assert!(opening(&source("a.cuh", "#include <doors>\n")).is_some());
        assert_eq!(opening(&source("a.toml", "x = 1")), None);
    }

    #[test]
    fn cudarc_in_another_crates_code_is_found() {
        let code = "//! Launches.\nuse cudarc::driver::CudaSlice;\n";
        assert!(cuda_words(&source("crates/granule-ops/src/rope/cuda.rs", code)).is_some());
        assert_eq!(cuda_words(&source("crates/granule-device/src/cuda.rs", code)), None);
        assert_eq!(cuda_words(&source("crates/granule-sim/tests/copies.rs", code)), None);
        assert_eq!(
            cuda_words(&source("crates/granule-ops/src/lib.rs", "// goes to cudarc\nfn f() {}")),
            None
        );
    }

    #[test]
    fn a_kernel_without_its_launcher_is_found() {
        let kernel = || source("kernels/rope.cu", "// Rotates.");
        let launcher = source("crates/granule-ops/src/rope/cuda.rs", "//! Launches.");
        assert_eq!(launchers(&[kernel()]).len(), 1);
        assert_eq!(launchers(&[kernel(), launcher]), []);
    }

    #[test]
    fn a_place_of_one_machine_is_found() {
        for place in PLACES {
            assert!(places(&source("README.md", &format!("see {place}x"))).is_some(), "{place}");
        }
        assert_eq!(
            places(&source("README.md", concat!("in net", "wo", "rk/of/doors and ../wo", "rk/"))),
            None
        );
    }

    #[test]
    fn another_registry_in_the_lock_file_is_found() {
        assert_eq!(places(&source("Cargo.lock", &format!("[[package]]\nsource = {LOCKED}\n"))), None);
        let mirror = "source = \"sparse+http://mirror.example/index/\"";
        assert!(places(&source("fuzz/Cargo.lock", mirror)).is_some());
    }

    #[test]
    fn long_files_are_listed_longest_first() {
        let lines = |n: usize| "//! x\n".repeat(n);
        let all = [source("a.rs", &lines(501)), source("b.cu", &lines(900)), source("c.rs", &lines(500))];
        assert_eq!(long(&all), [("b.cu", 900), ("a.rs", 501)]);
    }
}
