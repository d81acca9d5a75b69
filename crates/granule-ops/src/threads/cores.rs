//! How many threads compute where nobody says: one for each physical core that the process may use.
//!
//! Two threads of one core share what the arithmetic needs (vector units, first-level cache), so a second one makes the first
//! slower and the barrier wait longer.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::thread;

/// Physical cores in the affinity mask, and no more than the cgroup's quota of processor time.
pub(super) fn default_count() -> NonZeroUsize {
    // Logical ones in the mask, and the quota.
    let allowed = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    physical(Path::new("/")).map_or(allowed, |cores| cores.min(allowed))
}

/// The physical cores that the calling thread may run on, as Linux tells below `root`; `None` where it does not tell.
fn physical(root: &Path) -> Option<NonZeroUsize> {
    let status = fs::read_to_string(root.join("proc/thread-self/status")).ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cores = BTreeSet::new();
    for cpu in numbers(allowed)? {
        // Who shares a core, by its name since Linux 5.3 and its older one.
        let told = ["core_cpus_list", "thread_siblings_list"].iter().find_map(|name| {
            fs::read_to_string(root.join(format!("sys/devices/system/cpu/cpu{cpu}/topology/{name}"))).ok()
        });
        cores.insert(numbers(&told?)?.next()?);
    }
    NonZeroUsize::new(cores.len())
}

/// The numbers of a list such as `0-3,8,10-11`.
fn numbers(list: &str) -> Option<impl Iterator<Item = usize> + use<>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse().ok()?)
    };
    let ranges: Vec<_> = list.trim().split(',').map(range).collect::<Option<_>>()?;
    Some(ranges.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A tree of files that goes with the value.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, allowed: &str, siblings: &[&str], file: &str) -> Self {
            let root = std::env::temp_dir().join(format!("granule-cores-{name}-{}", std::process::id()));
            let write = |path: String, text: &str| {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            };
            let status =
                format!("Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t{allowed}\nMems_allowed:\t1\n");
            write("proc/thread-self/status".to_owned(), &status);
            for (cpu, list) in siblings.iter().enumerate().filter(|(_, list)| !list.is_empty()) {
                let place = format!("sys/devices/system/cpu/cpu{cpu}/topology/{file}");
                write(place, &format!("{list}\n"));
            }
            Self(root)
        }

        fn cores(&self) -> Option<usize> {
            physical(&self.0).map(NonZeroUsize::get)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn siblings_of_a_core_count_once() {
        let far = ["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"];
        assert_eq!(Tree::new("far", "0-7", &far, "core_cpus_list").cores(), Some(4));
        let near = ["0-1", "0-1", "2-3", "2-3"];
        assert_eq!(Tree::new("near", "0-3", &near, "thread_siblings_list").cores(), Some(2));
        // Some cores with two threads and some with one.
        let mixed = ["0-1", "0-1", "2", "3"];
        assert_eq!(Tree::new("mixed", "0-3", &mixed, "core_cpus_list").cores(), Some(3));
        assert_eq!(Tree::new("single", "0-1", &["0", "1"], "core_cpus_list").cores(), Some(2));
    }

    #[test]
    fn only_cores_of_the_mask_count() {
        let far = ["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"];
        assert_eq!(Tree::new("two", "1,5-6", &far, "core_cpus_list").cores(), Some(2));
        assert_eq!(Tree::new("one", "6", &far, "core_cpus_list").cores(), Some(1));
    }

    #[test]
    fn what_is_not_told_is_not_guessed() {
        let gap = ["0", "", "2"];
        assert_eq!(Tree::new("gap", "0-2", &gap, "core_cpus_list").cores(), None);
        assert_eq!(Tree::new("words", "all", &gap, "core_cpus_list").cores(), None);
        assert_eq!(Tree::new("empty", "", &gap, "core_cpus_list").cores(), None);
        assert_eq!(Tree::new("odd", "0", &["x"], "core_cpus_list").cores(), None);
        assert_eq!(physical(Path::new("/no/such/place")), None);
    }

    #[test]
    fn the_default_is_what_the_process_may_use() {
        let allowed = thread::available_parallelism().unwrap();
        assert!(default_count() <= allowed);
        if cfg!(target_os = "linux") {
            assert!(default_count() <= physical(Path::new("/")).unwrap_or(allowed));
        }
    }
}
