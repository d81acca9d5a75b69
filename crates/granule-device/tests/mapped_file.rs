//! Mapped files, whole, empty, locked and cut short while they are mapped.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::Write;
use std::process::Command;

use granule_device::{Bytes, Error, MappedFile};

const PAGE: u64 = 4096;

fn file(len: u64) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&(0..len).map(|i| (i % 251 + 1) as u8).collect::<Vec<_>>()).unwrap();
    file
}

#[test]
fn reads_as_the_file() {
    let file = file(3 * PAGE + 5);
    let mapped = MappedFile::open(file.path()).unwrap();
    assert_eq!(mapped.bytes(), fs::read(file.path()).unwrap());
    assert_eq!(mapped.slice().len() as u64, mapped.len().get());
    mapped.check().unwrap();
    mapped.lock(0..mapped.bytes().len()).unwrap();
    mapped.lock(1..2).unwrap();
}

/// The pages of the file that this process has in memory, in KiB, as the system counts them.
#[cfg(target_os = "linux")]
fn resident(file: &tempfile::NamedTempFile) -> u64 {
    let name = file.path().to_str().unwrap();
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    // A part of it that is locked is a mapping of its own there.
    let own = maps.split(name).skip(1).map(|own| own.lines().find(|line| line.starts_with("Rss:")).unwrap());
    own.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
#[cfg(target_os = "linux")]
fn what_is_let_go_is_read_again() {
    let file = file(64 * PAGE);
    let mapped = MappedFile::open(file.path()).unwrap();
    let bytes = fs::read(file.path()).unwrap();
    assert_eq!(mapped.bytes(), bytes);
    let before = resident(&file);
    assert_eq!(before, 64 * PAGE / 1024);
    mapped.let_go(16 * PAGE as usize..48 * PAGE as usize);
    assert_eq!(resident(&file), 32 * PAGE / 1024);
    // Only whole pages, so that what is beside them stays, locked or not.
    assert_eq!(mapped.bytes(), bytes);
    mapped.lock(0..1).unwrap();
    mapped.let_go(1..16 * PAGE as usize + 1);
    assert_eq!(resident(&file), (1 + 48) * PAGE / 1024);
    assert_eq!(mapped.bytes(), bytes);
    mapped.let_go(0..usize::MAX);
    mapped.let_go(usize::MAX..usize::MAX);
    assert_eq!(mapped.bytes(), bytes);
    mapped.check().unwrap();
}

#[test]
fn what_cannot_be_mapped_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let missing = MappedFile::open(directory.path().join("missing")).unwrap_err();
    assert!(matches!(missing, Error::File { .. }) && missing.to_string().contains("missing"), "{missing}");
    assert!(matches!(MappedFile::open(directory.path()), Err(Error::File { .. })));
    assert!(matches!(MappedFile::open("/dev/null"), Err(Error::File { .. })));
    let empty = MappedFile::open(file(0).path()).unwrap();
    assert!(empty.is_empty() && empty.bytes().is_empty());
    empty.check().unwrap();
}

#[test]
fn a_file_cut_short_reads_as_zeros_and_says_so() {
    let file = file(9 * PAGE);
    let mapped = MappedFile::open(file.path()).unwrap();
    let other = MappedFile::open(file.path()).unwrap();
    let whole = self::file(9 * PAGE);
    let whole = MappedFile::open(whole.path()).unwrap();
    file.as_file().set_len(2 * PAGE).unwrap();
    let check = |mapped: &MappedFile| match mapped.check() {
        Err(Error::FileCutShort { path }) => assert_eq!(path, file.path()),
        other => panic!("{other:?}"),
    };
    check(&mapped);
    // Several threads at once run into the pages that are gone.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let bytes = mapped.bytes();
                assert!(bytes[..2 * PAGE as usize].iter().all(|&byte| byte != 0));
                assert!(bytes[2 * PAGE as usize..].iter().all(|&byte| byte == 0));
            });
        }
    });
    // The file is as long as it was again: what was read is wrong all the same, and what was not is not.
    file.as_file().set_len(9 * PAGE).unwrap();
    check(&mapped);
    other.check().unwrap();
    whole.check().unwrap();
    drop(mapped);
    // The slot is free again, for a file that is whole.
    let again = MappedFile::open(file.path()).unwrap();
    assert_eq!(again.bytes().len() as u64, 9 * PAGE);
    again.check().unwrap();
}

#[test]
fn cut_inside_a_page() {
    let file = file(PAGE - 10);
    let mapped = MappedFile::open(file.path()).unwrap();
    file.as_file().set_len(PAGE - 11).unwrap();
    assert_eq!(mapped.bytes().last(), Some(&0));
    assert!(matches!(mapped.check(), Err(Error::FileCutShort { .. })));
}

#[test]
fn many_files_at_once() {
    let file = file(PAGE);
    let mapped: Vec<_> = (0..100).map(|_| MappedFile::open(file.path()).unwrap()).collect();
    file.as_file().set_len(0).unwrap();
    for mapped in &mapped {
        assert_eq!(mapped.bytes()[0], 0);
        assert_eq!(mapped.len(), Bytes::new(PAGE));
        assert!(mapped.check().is_err());
    }
}

/// A signal about memory that is not ours ends the process as it would have: tried in a process of its own.
#[test]
fn foreign_addresses_are_passed_on() {
    const CHILD: &str = "GRANULE_TEST_SIGBUS_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let file = file(2 * PAGE);
        let _guarded = MappedFile::open(file.path()).unwrap();
        // SAFETY: only read; the fault that this is about ends this process.
        let foreign = unsafe { memmap2::Mmap::map(file.as_file()) }.unwrap();
        file.as_file().set_len(0).unwrap();
        println!("about to fault");
        let byte = std::hint::black_box(&foreign)[0];
        println!("survived with {byte}");
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["foreign_addresses_are_passed_on", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(said.contains("about to fault") && !said.contains("survived"), "{said}");
    let signal = std::os::unix::process::ExitStatusExt::signal(&child.status);
    assert_eq!(signal, Some(7), "{}", child.status);
}
