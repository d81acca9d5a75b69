//! Saving that is interrupted: by a full disk, by the end of the program. The old file is there still, and nothing else. A program
//! of its own, for it limits what the process may write.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use granule_kv::state::{SaveSequence, StateError, StateFile, save};
use granule_kv::{Identity, KvType, Sequence};
use support::{bank, cache_of, holds, layout, sequence};

/// The folder in which a child process saves until it is ended.
const FOLDER: &str = "GRANULE_TEST_SAVE_INTO";

fn tokens(n: u32) -> Vec<u32> {
    (0..n).collect()
}

/// Held where a test limits what the process may write, and where one writes.
static WRITING: Mutex<()> = Mutex::new(());

fn made(n: u32) -> Sequence {
    let bank = bank(1000);
    sequence(&cache_of(&bank, layout(KvType::F32, KvType::F32, 3)), 600, &tokens(n)).unwrap()
}

fn save_tokens(path: &Path, sequence: &Sequence) -> Result<(), StateError> {
    let tokens = tokens(u32::try_from(sequence.len()).unwrap());
    let one = SaveSequence { sequence, further: &[], heads: &[], tokens: &tokens, extra: b"" };
    save(path, &Identity::default(), &[one]).map(drop)
}

/// How many tokens the file has, every one of them right.
fn saved_tokens(path: &Path) -> u32 {
    let bank = bank(1000);
    let cache = cache_of(&bank, layout(KvType::F32, KvType::F32, 3));
    let restored = StateFile::open(path).unwrap().restore(0, &cache, 600, &Identity::default()).unwrap();
    let n = u32::try_from(restored.len()).unwrap();
    assert!(holds(&restored, &tokens(n)));
    n
}

#[test]
fn ended_at_any_moment_it_leaves_the_old_file_or_the_new_one() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let path = Path::new(&folder).join("state");
        let (longer, shorter) = (made(500), made(400));
        loop {
            save_tokens(&path, &longer).unwrap();
            save_tokens(&path, &shorter).unwrap();
        }
    }
    let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    save_tokens(&path, &made(300)).unwrap();
    let mut seen = Vec::new();
    for round in 0..20u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ended_at_any_moment_it_leaves_the_old_file_or_the_new_one"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(10_000 + 3700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        seen.push(saved_tokens(&path));
    }
    assert!(seen.iter().all(|n| [300, 400, 500].contains(n)) && seen.iter().any(|&n| n != 300), "{seen:?}");
    // What the last one left is cleared away.
    save_tokens(&path, &made(300)).unwrap();
    assert_eq!((saved_tokens(&path), fs::read_dir(folder.path()).unwrap().count()), (300, 1));
}

#[test]
fn a_full_disk_leaves_the_old_file_and_nothing_else() {
    let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    save_tokens(&path, &made(20)).unwrap();
    let before = fs::read(&path).unwrap();
    let longer = made(500);
    let old = limit_files(256 << 10);
    let refused = save_tokens(&path, &longer);
    limit_files(old);
    let Err(StateError::Io { path: named, source }) = refused else { panic!("{refused:?}") };
    assert_eq!((named, source.kind()), (folder.path().join("state.part"), io::ErrorKind::FileTooLarge));
    assert_eq!((fs::read(&path).unwrap(), fs::read_dir(folder.path()).unwrap().count()), (before, 1));
}

/// The most bytes that a file of this process may have: beyond, writing fails as on a full disk. Answers the limit until now.
fn limit_files(bytes: libc::rlim_t) -> libc::rlim_t {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a whole `rlimit` that lives during both calls; a signal that is ignored runs nobody's code.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit), 0);
        let old = std::mem::replace(&mut limit.rlim_cur, bytes);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
        old
    }
}
