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

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn what_is_not_simulated_says_so_where_cudarc_would_panic_without_the_symbol() {
    use std::ptr::{null, null_mut};
    let bench = Bench::new();
    let (mut at, mut pitch) = (0, 0);
    let (mut library, mut graph) = (null_mut(), null_mut());
    let answers = unsafe {
        [
            sys::cuMemAllocPitch_v2(&mut at, &mut pitch, 10, 10, 4),
            sys::cuMemcpy2D_v2(null()),
            sys::cuMemcpy2DAsync_v2(null(), null_mut()),
            sys::cuMemcpy3D_v2(null()),
            sys::cuMemsetD2D8_v2(0, 0, 0, 0, 0),
            sys::cuMemsetD2D32Async(0, 0, 0, 0, 0, null_mut()),
            sys::cuStreamAddCallback(null_mut(), None, null_mut(), 0),
            sys::cuLibraryLoadData(
                &mut library,
                null(),
                null_mut(),
                null_mut(),
                0,
                null_mut(),
                null_mut(),
                0,
            ),
            sys::cuGraphCreate(&mut graph, 0),
            sys::cuGraphExecUpdate_v2(null_mut(), null_mut(), null_mut()),
        ]
    };
    assert_eq!(answers, [CUresult::CUDA_ERROR_NOT_SUPPORTED; 10]);
    assert_eq!((at, pitch, library, graph), (0, 0, null_mut(), null_mut()), "and nothing was written");
    assert!(bench.end().is_empty());
}
