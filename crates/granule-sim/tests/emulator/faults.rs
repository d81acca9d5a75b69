//! What the processor or the kernel itself stops: a message each, and a process that goes on as before.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use granule_sim::emulator_build::{self, Mode};

use crate::library::{Failure, Param, Shape, library, path};

/// Runs in both builds; the code and words must be there, and the next launch must be fine.
fn stops(name: &str, shape: Shape, params: &[Param], code: i32, words: &[&str]) {
    for mode in [Mode::Plain, Mode::Checked] {
        stops_in(mode, name, shape, params, code, words);
    }
}

fn stops_in(mode: Mode, name: &str, shape: Shape, params: &[Param], code: i32, words: &[&str]) {
    for seed in 0..3 {
        let Failure { code: got, message } = library(mode).run(name, shape.seed(seed), params).unwrap_err();
        assert_eq!(got, code, "{name}: {message}");
        for word in words.iter().chain(&[&format!("kernel {name}, thread (")[..], "planted.cu:"]) {
            assert!(message.contains(word), "{name}: no {word:?} in {message:?}");
        }
        let mut to = [0_u32; 32];
        library(mode).run("together", Shape::new(1, 32).seed(seed), &[(&mut to[..]).into()]).unwrap();
        assert_eq!(to, [596; 32]);
    }
}

/// The index at which an element of `memory` would be at an address where nothing is.
fn far_from(memory: &[u32]) -> u64 {
    (1_u64 << 44).wrapping_sub(memory.as_ptr() as u64) / 4
}

#[test]
fn illegal_addresses() {
    let mut memory = vec![0_u32; 64];
    let to = Param::from(&mut memory[..]);
    // Far from everything that a process maps, and what is no address at all.
    let (far, wild) = (far_from(&memory), 1_u64 << 61);
    let parts = ["illegal address: write to 0x", "thread (3,0,0) of block (0,0,0)"];
    stops("write_at", Shape::new(1, 32), &[to, far.into()], 1, &parts);
    stops("read_at", Shape::new(1, 1), &[to, to, far.into()], 1, &["illegal address: read from 0x"]);
    stops("write_at", Shape::new(1, 32), &[to, wild.into()], 1, &["illegal address"]);
    stops("read_at", Shape::new(1, 1), &[0_u64.into(), to, 0_u64.into()], 1, &["read from 0x0"]);
    stops("deep", Shape::new(1, 1), &[to, 100_000_u32.into()], 1, &["local memory"]);
}

#[test]
fn outside_of_shared_and_local_memory() {
    let mut memory = vec![0_u32; 64];
    let to = Param::from(&mut memory[..]);
    let shape = Shape::new(1, 1).shared(20);
    stops_in(
        Mode::Checked,
        "past_dynamic",
        shape,
        &[5_u32.into()],
        1,
        &["outside of shared memory", "of 20 bytes"],
    );
    // Without watching, the end is where the next multiple of 16 is.
    stops_in(Mode::Plain, "past_dynamic", shape, &[8_u32.into()], 1, &["write to"]);
    library(Mode::Checked).run("past_dynamic", shape, &[4_u32.into()]).unwrap();
    let words = ["write of 8 bytes runs past the end of shared variable values + 124 (of 128 bytes)"];
    stops_in(Mode::Checked, "past_static", Shape::new(1, 1), &[124_u32.into()], 1, &words);
    library(Mode::Checked).run("past_static", Shape::new(1, 1), &[120_u32.into()]).unwrap();
    stops_in(Mode::Checked, "misaligned", Shape::new(1, 1), &[to, to], 1, &["misaligned", "read of 4 bytes"]);
    // 16 bytes of alignment, which a vector of words does not promise.
    let mut memory = [0_u128; 8];
    let to = Param::from(&mut memory[..]);
    let stops = |name: &str, parameters: &[Param], words: &str| {
        stops_in(Mode::Checked, name, Shape::new(1, 1), parameters, 1, &["misaligned", words]);
    };
    for (name, bytes) in [("misaligned_four", 16), ("misaligned_words", 16), ("misaligned_two", 8)] {
        stops(name, &[to, to], &format!("read of {bytes} bytes"));
    }
    stops("misaligned_store", &[7_u32.into(), to], "write of 16 bytes");
    stops_in(Mode::Checked, "foreign_local", Shape::new(1, 32), &[to], 1, &["another thread's local memory"]);
}

#[test]
fn kernels_that_stop_themselves() {
    let mut memory = vec![0_u32; 64];
    let five = [5_u32.into()];
    stops("traps", Shape::new(1, 32), &five, 6, &["__trap", "thread (5,0,0)"]);
    stops("builtin_traps", Shape::new(1, 32), &five, 6, &["__builtin_trap", "thread (5,0,0)"]);
    stops("asserts", Shape::new(1, 32), &five, 6, &["threadIdx.x != n"]);
    stops("divides", Shape::new(1, 1), &[(&mut memory[..]).into(), 0_u32.into()], 6, &["division by zero"]);
    library(Mode::Checked).run("traps", Shape::new(1, 5), &five).unwrap();
}

#[test]
fn launches_that_cannot_be() {
    let refused = |shape, word| {
        let failure = library(Mode::Plain).run("uninitialized_atomic", shape, &[]).unwrap_err();
        assert_eq!(failure.code, 7);
        assert!(failure.message.contains(word), "{}", failure.message);
    };
    refused(Shape::new(0, 32), "grid");
    refused(Shape::new(1, 0), "block");
    refused(Shape::new(1, 1025), "1024");
    refused(Shape { grid: [1, 65536, 1], ..Shape::new(1, 1) }, "65535");
    refused(Shape { block: [1, 1, 65], ..Shape::new(1, 1) }, "64 in z");
    refused(Shape { block: [32, 33, 1], ..Shape::new(1, 1) }, "1024 threads");
    refused(Shape::new(1, 1).shared(227 * 1024 + 1), "227 KiB");
    library(Mode::Plain)
        .run("past_dynamic", Shape::new(1, 1).shared(227 * 1024), &[58111_u32.into()])
        .unwrap();
}

/// The name by which a test runs itself in a process of its own, for what a process survives only once.
fn alone(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--ignored", "--nocapture"]).arg(format!("faults::{name}"));
    command
}

#[test]
fn faults_outside_of_kernels_are_not_the_emulators() {
    let status = alone("faults_outside").output().unwrap().status;
    assert_eq!(status.signal(), Some(11), "{status}");
}

#[test]
#[ignore = "ends its process: run by faults_outside_of_kernels_are_not_the_emulators"]
fn faults_outside() {
    let failure = library(Mode::Plain).run("traps", Shape::new(1, 32), &[5_u32.into()]).unwrap_err();
    assert_eq!(failure.code, 6);
    // SAFETY: none; that it is invalid is the test, in a process that exists for it.
    unsafe { std::ptr::without_provenance_mut::<u32>(16).write_volatile(1) };
}

#[test]
fn faults_in_the_hook_are_not_the_kernels() {
    let status = alone("faults_in_hook").output().unwrap().status;
    assert_eq!(status.signal(), Some(11), "{status}");
}

#[test]
#[ignore = "ends its process: run by faults_in_the_hook_are_not_the_kernels"]
fn faults_in_hook() {
    let mut to = [0_u32; 32];
    let params = [(&mut to[..]).into()];
    let _ = library(Mode::Checked).run_watched("together", Shape::new(1, 32), &params, |_| {
        // SAFETY: none; that it is invalid is the test, in a process that exists for it.
        unsafe { std::ptr::without_provenance_mut::<u32>(16).write_volatile(1) };
        true
    });
}

#[test]
fn address_sanitizer_build() {
    let preload = emulator_build::address_sanitizer().unwrap_or_else(|error| panic!("{error}"));
    // Built here, where nothing slows the compiler down.
    path(Mode::Asan);
    let run = |name| {
        alone(name).env("LD_PRELOAD", &preload).env("ASAN_OPTIONS", "detect_leaks=0").output().unwrap()
    };
    let good = run("under_address_sanitizer");
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let bad = run("overflow_under_address_sanitizer");
    let report = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(
        !bad.status.success() && report.contains("heap-buffer-overflow") && report.contains("write_at"),
        "{report}"
    );
    let bad = run("shared_overflow_under_address_sanitizer");
    let report = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(!bad.status.success() && report.contains("global-buffer-overflow"), "{report}");
}

#[test]
#[ignore = "needs LD_PRELOAD: run by address_sanitizer_build"]
fn under_address_sanitizer() {
    for seed in 0..4 {
        let from = vec![1.0_f32; 2048];
        let mut to = vec![0.0_f32; 2];
        let params = [(&from[..]).into(), (&mut to[..]).into(), 2048_u32.into()];
        library(Mode::Asan).run("block_sum", Shape::new(2, 1024).seed(seed), &params).unwrap();
        assert_eq!(to, [1024.0; 2]);
        // A launch that ends early leaves frames behind; the next must not stumble over them.
        let failure =
            library(Mode::Asan).run("traps", Shape::new(1, 256).seed(seed), &[5_u32.into()]).unwrap_err();
        assert_eq!(failure.code, 6);
        let mut memory = vec![0_u32; 64];
        let far = [Param::from(&mut memory[..]), far_from(&memory).into()];
        assert_eq!(
            library(Mode::Asan).run("write_at", Shape::new(1, 32).seed(seed), &far).unwrap_err().code,
            1
        );
        let two = library(Mode::Asan)
            .run("two_barriers", Shape::new(1, 64), &[(&mut memory[..]).into()])
            .unwrap_err();
        assert_eq!(two.code, 2);
    }
}

#[test]
#[ignore = "needs LD_PRELOAD: run by address_sanitizer_build"]
fn overflow_under_address_sanitizer() {
    // On the heap, where the sanitizer has put red zones.
    let mut to: Box<[u32]> = Box::new([0; 8]);
    let params = [(&mut to[..]).into(), 8_u64.into()];
    let _ = library(Mode::Asan).run("write_at", Shape::new(1, 32), &params);
}

#[test]
#[ignore = "needs LD_PRELOAD: run by address_sanitizer_build"]
fn shared_overflow_under_address_sanitizer() {
    let _ = library(Mode::Asan).run("past_static", Shape::new(1, 1), &[124_u32.into()]);
}
