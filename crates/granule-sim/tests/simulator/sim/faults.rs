//! Failures on order: at every call of a script, with nothing lost and the next run as if nothing had happened.

use super::support::{Bench, LEN};
use cudarc::driver::sys::{self, CUresult};

/// Allocates, fills, reads back, frees; gives everything back whatever fails. The first error, if any.
fn script() -> CUresult {
    let mut first = CUresult::CUDA_SUCCESS;
    let mut note = |code: CUresult| {
        if first == CUresult::CUDA_SUCCESS {
            first = code;
        }
        code == CUresult::CUDA_SUCCESS
    };
    let (mut at, mut stream) = (0, std::ptr::null_mut());
    let mut bytes = [0_u8; LEN];
    unsafe {
        if note(sys::cuMemAlloc_v2(&mut at, LEN)) {
            if note(sys::cuStreamCreate(&mut stream, 1)) {
                note(sys::cuMemsetD8Async(at, 1, LEN, stream));
                note(sys::cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), at, LEN, stream));
                note(sys::cuStreamSynchronize(stream));
                note(sys::cuStreamDestroy_v2(stream));
            }
            note(sys::cuMemFree_v2(at));
        }
    }
    assert!(first != CUresult::CUDA_SUCCESS || bytes == [1; LEN]);
    first
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn each_call_fails_in_its_turn_and_nothing_is_held() {
    let bench = Bench::new();
    let before = bench.sim.calls();
    assert_eq!(script(), CUresult::CUDA_SUCCESS);
    let calls = bench.sim.calls() - before;
    assert_eq!(calls, 7);
    for n in 1..=calls {
        let fault = bench.sim.fail_nth(n, CUresult::CUDA_ERROR_LAUNCH_FAILED as u32);
        assert_eq!(script(), CUresult::CUDA_ERROR_LAUNCH_FAILED, "call {n}");
        assert!(!fault.clear(), "call {n} failed");
        let held: Vec<_> = bench.sim.live().into_iter().map(|l| l.what).collect();
        assert_eq!(held, ["context"], "call {n}");
        assert_eq!(script(), CUresult::CUDA_SUCCESS);
    }
    let fault = bench.sim.fail_nth(1000, 2);
    assert!(fault.clear(), "it had not happened");
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn every_code_has_its_name() {
    let _bench = Bench::new();
    let mut name = std::ptr::null();
    assert_eq!(
        unsafe { sys::cuGetErrorName(CUresult::CUDA_ERROR_OUT_OF_MEMORY, &mut name) },
        CUresult::CUDA_SUCCESS
    );
    let name = unsafe { std::ffi::CStr::from_ptr(name) };
    assert_eq!(name, c"CUDA_ERROR_OUT_OF_MEMORY");
    let error = cudarc::driver::DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(format!("{error:?}").contains("an illegal memory access was encountered"));
}
