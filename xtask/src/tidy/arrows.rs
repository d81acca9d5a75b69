//! The table of crates: who may import whom. Held against what cargo says, and against ARCHITECTURE.md.

use std::path::Path;

use anyhow::Result;
use cargo_metadata::{DependencyKind, MetadataCommand};

use super::Finding;

/// One row of the table.
struct Row {
    name: &'static str,
    /// The folder, from the repository's root.
    folder: &'static str,
    /// A crate imports only from lower floors; `None` is a tool, which may import anything and which nothing imports.
    floor: Option<u8>,
    /// The crates of the house that it may import.
    may_import: &'static [&'static str],
}

const fn row(
    name: &'static str,
    folder: &'static str,
    floor: u8,
    may_import: &'static [&'static str],
) -> Row {
    Row { name, folder, floor: Some(floor), may_import }
}

const fn tool(name: &'static str, folder: &'static str) -> Row {
    Row { name, folder, floor: None, may_import: &[] }
}

/// The whole house. Not every crate exists yet; none exists without its row.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    row("granule-quant", "crates/granule-quant", 0, &[]),
    row("granule-device", "crates/granule-device", 0, &[]),
    row("granule-kernels", "kernels", 0, &[]),
    row("granule-bank", "crates/granule-bank", 1, &["granule-device"]),
    row("granule-pool", "crates/granule-pool", 2, &["granule-device", "granule-bank"]),
    row("granule-ops", "crates/granule-ops", 2, &["granule-quant", "granule-device", "granule-kernels"]),
    row("granule-kv", "crates/granule-kv", 3,
        &["granule-quant", "granule-device", "granule-bank", "granule-pool", "granule-ops"]),
    row("granule-split", "crates/granule-split", 3,
        &["granule-quant", "granule-device", "granule-bank", "granule-ops"]),
    row("granule-plan", "crates/granule-plan", 4,
        &["granule-quant", "granule-device", "granule-bank", "granule-pool", "granule-ops", "granule-kv",
          "granule-split"]),
    row("granule-llama", "crates/granule-llama", 5,
        &["granule-quant", "granule-device", "granule-kernels", "granule-bank", "granule-pool", "granule-ops",
          "granule-kv", "granule-split", "granule-plan"]),
    row("granule-serve", "crates/granule-serve", 6, &["granule-llama", "granule-plan", "granule-bank"]),
    row("granule", "crates/granule", 7,
        &["granule-quant", "granule-device", "granule-kernels", "granule-bank", "granule-pool", "granule-ops",
          "granule-kv", "granule-split", "granule-plan", "granule-llama", "granule-serve"]),
    tool("granule-sim", "crates/granule-sim"),
    tool("granule-sim-driver", "crates/granule-sim/driver"),
    tool("granule-planted", "crates/granule-sim/planted"),
    tool("xtask", "xtask"),
    tool("granule-oracles", "xtask/oracles"),
    tool("granule-benches", "benches"),
];

/// The one crate of the house that may depend on cudarc.
pub(super) const SPEAKS_CUDA: &str = "granule-device";

/// The tools in this folder stand in for the driver, and are tested with cudarc as their caller.
pub(super) const STANDS_IN: &str = "crates/granule-sim";

/// A crate of the workspace as cargo sees it.
pub(super) struct Package {
    name: String,
    /// From the repository's root, with `/`.
    folder: String,
    published: bool,
    /// Name, and whether only tests use it.
    imports: Vec<(String, bool)>,
}

/// Asks cargo for the workspace's crates.
pub(super) fn read(root: &Path) -> Result<Vec<Package>> {
    let metadata = MetadataCommand::new().manifest_path(root.join("Cargo.toml")).no_deps().exec()?;
    let top = metadata.workspace_root.clone();
    let packages = metadata.packages.into_iter().map(|p| Package {
        folder: p
            .manifest_path
            .parent()
            .and_then(|dir| dir.strip_prefix(&top).ok())
            .map(|dir| dir.as_str().to_owned())
            .unwrap_or_default(),
        published: p.publish.as_ref().is_none_or(|registries| !registries.is_empty()),
        imports: p
            .dependencies
            .iter()
            .map(|d| (d.name.clone(), d.kind == DependencyKind::Development))
            .collect(),
        name: p.name.to_string(),
    });
    Ok(packages.collect())
}

fn find(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == name)
}

/// Every crate has its row and its folder, and imports along the arrows.
pub(super) fn check(packages: &[Package]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        let name = &package.name;
        let Some(row) = find(name) else {
            findings.push(Finding(format!(
                "{name} has no row in the table of crates (xtask/src/tidy/arrows.rs)"
            )));
            continue;
        };
        if package.folder != row.folder {
            findings.push(Finding(format!("{name} lies in {}, its row says {}", package.folder, row.folder)));
        }
        if row.floor.is_none() && package.published {
            findings.push(Finding(format!("{name} is a tool and lacks `publish = false`")));
        }
        for (import, only_tests) in &package.imports {
            findings.extend(check_arrow(row, import, *only_tests).map(Finding));
        }
    }
    findings
}

/// What is wrong with `row` importing `import`, if anything.
fn check_arrow(row: &Row, import: &str, only_tests: bool) -> Option<String> {
    let name = row.name;
    if import == "cudarc" && name != SPEAKS_CUDA && !row.folder.starts_with(STANDS_IN) {
        return Some(format!("{name} imports cudarc; only {SPEAKS_CUDA} may"));
    }
    // Everything else that is not of the house comes from outside.
    let target = find(import)?;
    match (row.floor, target.floor) {
        (None, _) => None,
        (Some(_), None) if only_tests && import == "granule-sim" => None,
        (Some(_), None) => Some(format!("{name} imports the tool {import}")),
        (Some(from), Some(to)) if to >= from => Some(format!(
            "{name} (floor {from}) imports {import} (floor {to}): only lower floors may be imported"
        )),
        // A test may use any lower floor; a library only those that its row names.
        (Some(_), Some(_)) if only_tests || row.may_import.contains(&import) => None,
        (Some(_), Some(_)) => Some(format!("{name} imports {import}, which its row does not name")),
    }
}

/// The chart that people read names every crate that exists.
pub(super) fn check_chart(packages: &[Package], chart: &str) -> Vec<Finding> {
    let named = |name: &str| chart.lines().any(|l| l.starts_with('|') && l.contains(&format!("`{name}`")));
    let missing = packages.iter().filter(|p| !named(&p.name));
    missing.map(|p| Finding(format!("ARCHITECTURE.md has no row for {}", p.name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, imports: &[(&str, bool)]) -> Package {
        Package {
            name: name.to_owned(),
            folder: find(name).map(|row| row.folder).unwrap_or("crates/unknown").to_owned(),
            published: find(name).is_some_and(|row| row.floor.is_some()),
            imports: imports.iter().map(|(n, t)| ((*n).to_owned(), *t)).collect(),
        }
    }

    fn only_finding(package: Package) -> String {
        let mut findings = check(&[package]);
        assert_eq!(findings.len(), 1, "{findings:?}");
        findings.remove(0).0
    }

    #[test]
    fn the_table_itself_points_down() {
        for row in TABLE {
            for import in row.may_import {
                assert_eq!(check_arrow(row, import, false), None);
            }
        }
    }

    #[test]
    fn arrows_of_the_table_pass() {
        let fine =
            package("granule-kv", &[("granule-bank", false), ("thiserror", false), ("proptest", true)]);
        assert_eq!(check(&[fine, package("xtask", &[("granule-llama", false)])]), []);
    }

    #[test]
    fn a_crate_without_a_row_is_found() {
        assert!(only_finding(package("granule-utils", &[])).contains("no row"));
    }

    #[test]
    fn an_arrow_upwards_or_sideways_is_found() {
        assert!(only_finding(package("granule-bank", &[("granule-kv", false)])).contains("floor 3"));
        assert!(only_finding(package("granule-kv", &[("granule-split", false)])).contains("lower floors"));
        assert!(only_finding(package("granule-bank", &[("granule-kv", true)])).contains("floor 3"));
    }

    #[test]
    fn an_arrow_that_the_row_does_not_name_is_found_in_libraries_only() {
        assert!(only_finding(package("granule-bank", &[("granule-quant", false)])).contains("does not name"));
        assert_eq!(check(&[package("granule-bank", &[("granule-quant", true)])]), []);
    }

    #[test]
    fn a_tool_is_not_imported() {
        assert!(only_finding(package("granule-kv", &[("granule-sim", false)])).contains("tool"));
        assert_eq!(check(&[package("granule-kv", &[("granule-sim", true)])]), []);
    }

    #[test]
    fn a_tool_that_would_be_published_is_found() {
        let tool = Package { published: true, ..package("xtask", &[]) };
        assert!(only_finding(tool).contains("publish"));
    }

    #[test]
    fn a_folder_of_another_name_is_found() {
        let moved = Package { folder: "crates/kv".to_owned(), ..package("granule-kv", &[]) };
        assert!(only_finding(moved).contains("crates/kv"));
    }

    #[test]
    fn cudarc_elsewhere_is_found() {
        assert!(only_finding(package("granule-ops", &[("cudarc", false)])).contains("cudarc"));
        assert!(only_finding(package("granule-benches", &[("cudarc", true)])).contains("cudarc"));
        assert_eq!(check(&[package(SPEAKS_CUDA, &[("cudarc", false)])]), []);
        assert_eq!(check(&[package("granule-planted", &[("cudarc", false)])]), []);
    }

    #[test]
    fn a_crate_that_the_chart_lacks_is_found() {
        let house = [package("granule-kv", &[]), package("granule-ops", &[])];
        assert_eq!(check_chart(&house, "| 3 | `granule-kv` | cache |\n| 2 | `granule-ops` | sums |"), []);
        assert_eq!(check_chart(&house, "| 3 | `granule-kv` | cache |\nand `granule-ops`").len(), 1);
    }
}
