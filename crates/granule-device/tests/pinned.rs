//! Pinned memory and the limit on it, in a process of its own: limits and users are a whole process's.

use std::process::Command;

use granule_device::{Bytes, Device, Error, HostOptions, LiveCounts};

#[test]
fn the_limit_is_named() {
    const CHILD: &str = "GRANULE_TEST_PINNED_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["the_limit_is_named", "--exact", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("was refused"), "{said}");
        return;
    }
    let device = Device::host_with(HostOptions::new().capacity(Bytes::gib(4))).unwrap();
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: only this process is changed. Root has no limit, so it becomes nobody.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
        assert!(libc::geteuid() != 0 || libc::setresuid(65534, 65534, 65534) == 0);
    }
    let small = device.alloc_pinned(Bytes::kib(64)).unwrap();
    match device.alloc_pinned(Bytes::mib(64)) {
        Err(error @ Error::LockLimit { requested, limit, .. }) => {
            assert_eq!((requested, limit), (Bytes::mib(64), Bytes::mib(1)));
            println!("was refused: {error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(device.memory().unwrap().free, Bytes::gib(4).saturating_sub(Bytes::kib(64)));
    drop(small);
    assert_eq!(device.live(), LiveCounts::default());
}
