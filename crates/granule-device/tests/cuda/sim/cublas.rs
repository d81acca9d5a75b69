//! cuBLAS where it fails, is used wrongly, or is not there: on the simulated driver, which is one too.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode_enum as Mode};
use granule_device::{Blas, Device, Error, FaultPlan, GemmType};
use granule_sim::Sim;

use crate::cuda::cublas::{Case, workspace};
use crate::support::{assert_nothing_left, device};

/// A handle made, a product computed, alone and in a graph, all of it given back.
fn script(device: &Device) -> Result<(), Error> {
    let (stream, mut workspace) = (device.stream()?, workspace(device)?);
    let mut case = Case::new(device, GemmType::F16, [3, 4, 24], [24, 24, 4])?;
    let blas = Blas::new(device)?;
    let mut product = || {
        // SAFETY: everything stays until the stream was waited for: dropping it waits.
        unsafe { blas.gemm(&stream, case.gemm(true), workspace.slice_mut(..)?) }
    };
    let done = product().and_then(|()| {
        stream.begin_capture()?;
        let captured = product();
        let graph = stream.end_capture().and_then(|graph| captured.map(|()| graph))?;
        // SAFETY: as above.
        unsafe { graph.instantiate()?.launch(&stream) }
    });
    let waited = stream.synchronize();
    done.and(waited)?;
    case.check(device, 2.0, true)
}

/// Runs the script with one call after the other failing, until none is left; answers what was said. `plan` begins a failure and
/// answers what ends it and says whether it happened.
fn fail_each<F: FnOnce() -> bool>(device: &Device, plan: impl Fn(u64) -> F) -> Vec<String> {
    let mut said = Vec::new();
    for n in 1.. {
        let end = plan(n);
        let done = script(device);
        if !end() {
            done.unwrap();
            break;
        }
        // Giving back may fail too, which nobody is told of.
        said.extend(done.err().map(|error| error.to_string()));
        device.synchronize().unwrap();
        assert_nothing_left(device);
    }
    said
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn every_call_of_the_library_fails_once_and_nothing_is_left() {
    let (sim, device) = (Sim::find().unwrap(), device());
    for code in [Sim::OUT_OF_MEMORY, 719] {
        let said = fail_each(&device, |n| {
            let fault = sim.fail_nth(n, code);
            move || !fault.clear()
        });
        let name = if code == Sim::OUT_OF_MEMORY { "ALLOC_FAILED (3)" } else { "EXECUTION_FAILED (13)" };
        for call in ["cublasCreate_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2", "cublasGemmEx"] {
            let text = format!("{call} failed: CUBLAS_STATUS_{name}");
            assert!(said.iter().any(|said| said.starts_with(&text)), "{text}: {said:?}");
        }
    }
    let said = fail_each(&device, |n| {
        let guard = device.inject_fault(FaultPlan::nth(n));
        move || guard.fired()
    });
    for call in ["cublasCreate_v2", "cublasGemmEx"] {
        assert!(said.iter().any(|said| said.contains(&format!("injected fault at {call}"))), "{said:?}");
    }
    drop(device);
    assert_eq!((sim.take_reports(), sim.live()), (vec![], vec![]));
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_workspace_of_two_streams_at_once_is_found() {
    let (sim, device) = (Sim::find().unwrap(), device());
    let (blas, mut workspace) = (Blas::new(&device).unwrap(), workspace(&device).unwrap());
    let streams = [device.stream().unwrap(), device.stream().unwrap()];
    let mut cases =
        [3, 4].map(|tokens| Case::new(&device, GemmType::F16, [tokens, 5, 16], [16, 16, 5]).unwrap());
    for (stream, case) in streams.iter().zip(&mut cases) {
        // SAFETY: a workspace for both at once is what must not be; the simulator says so and goes on.
        unsafe { blas.gemm(stream, case.gemm(true), workspace.slice_mut(..).unwrap()) }.unwrap();
    }
    device.synchronize().unwrap();
    let kinds: Vec<String> = sim.take_reports().into_iter().map(|report| report.kind).collect();
    assert_eq!(kinds, ["StreamRace"]);
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_handle_that_goes_during_a_capture_is_given_back_afterwards() {
    let (sim, device) = (Sim::find().unwrap(), device());
    let (blas, stream) = (Blas::new(&device).unwrap(), device.stream().unwrap());
    let held = || sim.live().iter().any(|thing| thing.what == "handle of cuBLAS");
    stream.begin_capture().unwrap();
    drop(blas);
    assert!(held() && device.live().unsettled == 1, "giving it back waits for the device");
    drop(stream.end_capture().unwrap());
    assert!(!held());
    drop(stream);
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn handles_come_and_go_beside_captures_and_spoil_none() {
    const MANY: usize = 2000;
    let (sim, device) = (Sim::find().unwrap(), device());
    let beside = Device::from_cuda(device.as_cuda().unwrap().clone()).unwrap();
    let (over, captures) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|threads| {
        let capturing = threads.spawn(|| {
            let stream = device.stream()?;
            while !over.load(Ordering::Acquire) {
                stream.begin_capture()?;
                drop(stream.end_capture()?);
                captures.fetch_add(1, Ordering::AcqRel);
            }
            Ok::<_, Error>(())
        });
        let mut made = 0;
        let handles = loop {
            if capturing.is_finished() || made >= MANY && captures.load(Ordering::Acquire) >= MANY {
                break Ok(());
            }
            match Blas::new(&beside) {
                Ok(blas) => {
                    made += 1;
                    drop(blas);
                }
                Err(Error::Capturing { .. }) => (),
                Err(other) => break Err(other),
            }
        };
        over.store(true, Ordering::Release);
        capturing.join().unwrap().unwrap();
        handles.unwrap();
    });
    // What was put off in the end is given back by whoever uses a stream next.
    for device in [&device, &beside] {
        drop(device.stream().unwrap().record().unwrap());
        assert_nothing_left(device);
    }
    drop((device, beside));
    assert_eq!((sim.take_reports(), sim.live()), (vec![], vec![]));
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn beside_somebody_elses_capture_a_handle_is_made_and_computes() {
    let device = device();
    let theirs = device.as_cuda().unwrap().new_stream().unwrap();
    let (stream, mut workspace) = (device.stream().unwrap(), workspace(&device).unwrap());
    let mut case = Case::new(&device, GemmType::F16, [3, 4, 24], [24, 24, 4]).unwrap();
    // The mode that forbids the most.
    theirs.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
    let blas = Blas::new(&device).unwrap();
    // SAFETY: everything stays until the stream was waited for.
    unsafe { blas.gemm(&stream, case.gemm(true), workspace.slice_mut(..).unwrap()) }.unwrap();
    theirs.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).unwrap();
    stream.synchronize().unwrap();
    case.check(&device, 1.0, true).unwrap();
    drop((case, blas, stream, workspace));
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_product_that_fails_leaves_the_handle_to_its_stream() {
    let (sim, device) = (Sim::find().unwrap(), device());
    let (stream, mut workspace) = (device.stream().unwrap(), workspace(&device).unwrap());
    let mut case = Case::new(&device, GemmType::F16, [3, 4, 24], [24, 24, 4]).unwrap();
    let mut met = false;
    for n in 1.. {
        let blas = Blas::new(&device).unwrap();
        let fault = sim.fail_nth(n, 719);
        // SAFETY: everything stays until the stream was waited for.
        let given = unsafe { blas.gemm(&stream, case.gemm(true), workspace.slice_mut(..).unwrap()) };
        let waiting = fault.clear();
        drop(blas);
        if let Err(Error::Cublas { call: "cublasGemmEx", code: 13, .. }) = given {
            assert_eq!(device.live().blas, 1, "part of it may have been given");
            met = true;
        }
        stream.synchronize().unwrap();
        assert_eq!(device.live().blas, 0);
        if waiting {
            break;
        }
    }
    assert!(met);
    drop((case, workspace, stream));
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn the_library_is_told_of_stream_and_workspace_every_time() {
    let device = device();
    let (blas, stream) = (Blas::new(&device).unwrap(), device.stream().unwrap());
    let mut workspace = workspace(&device).unwrap();
    let mut case = Case::new(&device, GemmType::Bf16, [2, 5, 16], [16, 16, 5]).unwrap();
    let mut said = Vec::new();
    for n in 1.. {
        // SAFETY: everything stays until the stream was waited for.
        let mut give = || unsafe { blas.gemm(&stream, case.gemm(false), workspace.slice_mut(..).unwrap()) };
        give().unwrap();
        // A further stream may have the address of one that is gone, so that neither is remembered.
        let fault = device.inject_fault(FaultPlan::nth(n));
        match give() {
            Err(error) => said.push(error.to_string()),
            Ok(()) => break,
        }
        assert!(fault.fired());
    }
    let told = |call: &str| said.iter().position(|said| said.contains(call));
    let told = ["cublasSetStream_v2", "cublasSetWorkspace_v2", "cublasGemmEx"].map(told);
    assert!(told[0].is_some() && told.is_sorted(), "{said:?}");
    stream.synchronize().unwrap();
    drop((case, blas, stream, workspace));
    assert_nothing_left(&device);
}

/// Set for a process of its own: what it is to find in the place of cuBLAS.
const CHILD: &str = "GRANULE_TEST_CUBLAS_CHILD";

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let device = device();
    for _ in 0..2 {
        println!("<<{}>>", Blas::new(&device).map_or_else(|error| error.to_string(), |_| "works".to_owned()));
    }
    // Nothing else minds.
    device.stream().unwrap().synchronize().unwrap();
}

/// What `child` says with only this folder in the library path: the same, twice.
fn said(folder: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["sim::cublas::child", "--exact", "--ignored", "--nocapture"])
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

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn without_the_library_it_says_what_is_missing() {
    let _device = device();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let driver =
        maps.lines().find_map(|line| Some(&line[line.find('/')?..]).filter(|p| p.contains("libcuda")));
    let folder = tempfile::tempdir().unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::os::unix::fs::symlink(driver.unwrap(), folder.path().join(name)).unwrap();
    }
    let text = said(folder.path());
    // A machine with the library finds it all the same.
    let listed = ["/sbin/ldconfig", "/usr/sbin/ldconfig", "ldconfig"]
        .into_iter()
        .find_map(|tool| Command::new(tool).arg("-p").output().ok())
        .is_some_and(|output| String::from_utf8_lossy(&output.stdout).contains("libcublas.so"));
    assert!(listed || text.starts_with("no cuBLAS: libcublas.so.12 is in no folder"), "{text}");
    std::fs::write(folder.path().join("libcublas.so.12"), "no library ".repeat(100)).unwrap();
    std::fs::write(folder.path().join("libcublas.so"), "no library ".repeat(100)).unwrap();
    let text = said(folder.path());
    let path = folder.path().join("libcublas.so.12").display().to_string();
    assert!(text.starts_with(&format!("no cuBLAS: {path} does not load: ")), "{text}");
    // What is wrong with one does not end the search: neither that it does not load, nor that it is something else.
    let [wrong, right] = ["libcublas.so.12", "libcublas.so"].map(|name| folder.path().join(name));
    std::fs::remove_file(&right).unwrap();
    std::os::unix::fs::symlink(driver.unwrap(), &right).unwrap();
    assert_eq!(said(folder.path()), "works");
    std::fs::remove_file(&wrong).unwrap();
    let other =
        maps.lines().find_map(|line| Some(&line[line.find('/')?..]).filter(|p| p.contains("libc.so")));
    std::os::unix::fs::symlink(other.unwrap(), &wrong).unwrap();
    assert_eq!(said(folder.path()), "works");
}
