//! How much memory this process may use: the smaller of its control group's limits and what is available.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Bytes;

/// The default capacity. Where the system says nothing at all, there is no limit to know.
pub(super) fn detect() -> Bytes {
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = limit_files(&groups, Path::new("/sys/fs/cgroup"))
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .filter_map(|text| text.trim().parse::<u64>().ok())
        .min();
    Bytes::new(available.unwrap_or(u64::MAX).min(limit.unwrap_or(u64::MAX)))
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn mem_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The files that may hold a limit for a process whose /proc/self/cgroup reads `groups`: of its own group and of each one
/// above it, for both versions of the hierarchy and for the places where they are usually mounted. Not all exist.
fn limit_files(groups: &str, mount: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (roots, file) = if controllers.is_empty() {
            (vec![mount.to_owned(), mount.join("unified")], "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (vec![mount.join("memory")], "memory.limit_in_bytes")
        } else {
            continue;
        };
        for root in roots {
            for group in Path::new(path.trim_start_matches('/')).ancestors() {
                files.push(root.join(group).join(file));
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_meminfo() {
        let text = "MemTotal:       24690892 kB\nMemFree:  1 kB\nMemAvailable:   23456 kB\n";
        assert_eq!(mem_available(text), Some(23456 * 1024));
        assert_eq!(mem_available("MemTotal: 1 kB"), None);
    }

    #[test]
    fn looks_in_the_own_group_and_above() {
        let files = limit_files("9:name=systemd:/\n4:memory:/a/b\n0::/c\n", Path::new("/m"));
        let want = [
            "/m/memory/a/b/memory.limit_in_bytes",
            "/m/memory/a/memory.limit_in_bytes",
            "/m/memory/memory.limit_in_bytes",
            "/m/c/memory.max",
            "/m/memory.max",
            "/m/unified/c/memory.max",
            "/m/unified/memory.max",
        ];
        assert_eq!(files, want.map(PathBuf::from));
    }

    #[test]
    fn this_machine_has_some() {
        let capacity = detect();
        assert!(capacity > Bytes::mib(16) && capacity < Bytes::MAX, "{capacity}");
    }
}
