//! Machines without a CUDA driver, or with something else in its place: an error that says what to do, and no panic.
//! Each case is a process of its own, with a library path of its own: the driver's library is looked for once.
#![cfg(all(target_os = "linux", feature = "cuda"))]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::Command;

use granule_device::{Device, Error, cuda_devices};

/// Every name that the search knows.
const NAMES: [&str; 7] = [
    "libcuda.so",
    "libcuda64.so",
    "libcuda.so.12",
    "libcuda.so.11",
    "libcuda.so.10",
    "libcuda.so.9",
    "libcuda.so.1",
];

const CHILD: &str = "GRANULE_TEST_NO_DRIVER_CHILD";

/// Runs in the other processes: says what opening a device and listing them said.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let opened = Device::cuda(0).err();
    let listed = cuda_devices().err();
    for error in [opened, listed] {
        let kind = match &error {
            Some(Error::NoCudaDriver { .. }) => "none",
            Some(Error::BrokenCudaDriver { .. }) => "broken",
            Some(_) => "other",
            None => "works",
        };
        println!("<<{kind}: {}>>", error.map_or_else(String::new, |error| error.to_string()));
    }
}

/// What `child` says with this folder first in the library path: the same, twice.
fn said(folder: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let said: Vec<&str> = text.split("<<").skip(1).filter_map(|part| part.split(">>").next()).collect();
    assert_eq!((said.len(), said[0]), (2, said[1]), "{text}");
    said[0].to_owned()
}

/// A library of this process that is no driver.
fn some_library() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    PathBuf::from(
        path.into_iter().find(|path| path.contains("libgcc_s") || path.contains("libc.so")).unwrap(),
    )
}

#[test]
fn without_a_library_it_says_what_is_missing() {
    let empty = tempfile::tempdir().unwrap();
    let said = said(empty.path());
    // A machine with a driver finds it all the same; whether there is one, the system's own tool knows.
    let listed = ["/sbin/ldconfig", "/usr/sbin/ldconfig", "ldconfig"]
        .into_iter()
        .find_map(|tool| Command::new(tool).arg("-p").output().ok())
        .map(|output| String::from_utf8_lossy(&output.stdout).contains("libcuda.so"));
    if listed == Some(true) {
        assert!(!said.starts_with("none"), "{said}");
    } else {
        assert!(said.starts_with("none: no CUDA driver: libcuda.so.1 is in no folder"), "{said}");
        assert!(said.contains("install NVIDIA's driver"), "{said}");
    }
}

#[test]
fn a_file_that_is_no_library_is_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        std::fs::write(folder.path().join(name), "no library ".repeat(100)).unwrap();
    }
    let said = said(folder.path());
    let path = folder.path().join("libcuda.so");
    assert!(said.starts_with("broken: ") && said.contains(&path.display().to_string()), "{said}");
    assert!(said.contains("ELF") || said.contains("file format"), "{said}");
}

#[test]
fn a_library_that_is_no_driver_is_named_with_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libcuda.so");
    std::fs::copy(some_library(), &path).unwrap();
    let said = said(folder.path());
    assert!(said.starts_with("broken: ") && said.contains(&path.display().to_string()), "{said}");
    assert!(said.contains("it has no cuInit, so it is not NVIDIA's driver library"), "{said}");
}

#[test]
fn a_broken_name_does_not_hide_a_library_behind_the_next() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libcuda.so"), "broken").unwrap();
    std::fs::copy(some_library(), folder.path().join("libcuda64.so")).unwrap();
    let said = said(folder.path());
    assert!(said.contains("libcuda64.so is not a CUDA driver that works: it has no cuInit"), "{said}");
}

#[test]
fn the_host_device_needs_none_of_it() {
    let device = Device::host().unwrap();
    assert!(device.as_cuda().is_none());
    assert!(matches!(device.cuda_info(), Err(Error::Unsupported { .. })));
    let stream = device.stream().unwrap();
    assert!(stream.as_cuda().is_none());
    assert!(matches!(stream.begin_capture(), Err(Error::Unsupported { .. })));
    let mut bytes = [0_u8; 4];
    // SAFETY: it is refused before anything is done.
    let refused = unsafe { stream.fill_slice((&mut bytes[..]).into(), 1) };
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
}
