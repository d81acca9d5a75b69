//! What the environment says: mistakes in it, reports at the end of the process, threads.

use super::support::{Bench, alloc, free, ok};
use cudarc::driver::sys::{self, CUresult};
use std::process::{Command, Output};

/// Runs another test of this program in a process of its own.
fn run(test: &str, settings: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test])
        .env("GRANULE_SIM", settings)
        .env("GRANULE_SIM_CHILD", "1")
        .output()
        .unwrap()
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn initialization_answers_what_the_settings_allow() {
    let wrong = std::env::var("GRANULE_SIM").is_ok_and(|s| s.contains("nonsense"));
    let expected = if wrong { CUresult::CUDA_ERROR_UNKNOWN } else { CUresult::CUDA_SUCCESS };
    assert_eq!(unsafe { sys::cuInit(0) }, expected);
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_mistake_in_the_settings_is_told() {
    let output = run("sim::settings::initialization_answers_what_the_settings_allow", "nonsense=1");
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("granule-sim: GRANULE_SIM: nonsense=1: no such key"), "{said}");
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn memory_that_a_child_process_leaks() {
    let bench = Bench::new();
    let at = alloc(64);
    if std::env::var_os("GRANULE_SIM_CHILD").is_none() {
        free(at);
        assert!(bench.end().is_empty());
    }
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn reports_that_nobody_took_end_a_strict_process_with_97() {
    let leaks = "sim::settings::memory_that_a_child_process_leaks";
    for (settings, status) in [("strict=1", 97), ("strict=0", 0)] {
        let output = run(leaks, settings);
        assert_eq!(output.status.code(), Some(status));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(
            "still held at the end of the process: allocation of 64 bytes, made by cuMemAlloc_v2 #"
        ));
    }
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn each_thread_has_its_own_current_context() {
    let bench = Bench::new();
    let context = bench.context as u64;
    let other = std::thread::spawn(move || {
        let mut at = 0;
        let without = unsafe { sys::cuMemAlloc_v2(&mut at, 64) };
        ok(unsafe { sys::cuCtxSetCurrent(context as sys::CUcontext) });
        free(alloc(64));
        without
    });
    assert_eq!(other.join().unwrap(), CUresult::CUDA_ERROR_INVALID_CONTEXT);
    free(alloc(64));
    assert!(bench.end().is_empty());
}
