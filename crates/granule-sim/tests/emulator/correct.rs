//! Kernels without a mistake: the host computes the same, and no build reports anything, in any order of threads.

use granule_sim::emulator_build::Mode;

use crate::library::{Library, Shape, library};

const MODES: [Mode; 2] = [Mode::Plain, Mode::Checked];

/// Runs `check` on both builds, in order and with eight seeds.
fn everywhere(check: impl Fn(&Library, u64)) {
    for mode in MODES {
        for seed in 0..9 {
            check(library(mode), seed);
        }
    }
}

#[test]
fn says_what_it_is() {
    for mode in MODES {
        let library = library(mode);
        assert_eq!(library.abi(), 1);
        assert_eq!(library.checked(), mode == Mode::Checked);
        assert_eq!(library.param_sizes("block_sum"), Some(vec![8, 8, 4]));
        assert_eq!(library.param_sizes("uninitialized_atomic"), Some(vec![]));
        assert_eq!(library.param_sizes("no_such_kernel"), None);
        let names = library.names();
        assert!(names.iter().any(|name| name == "block_sum") && names.iter().any(|name| name == "deep"));
        assert!(!names.iter().any(|name| name == "reversed"), "a template is no kernel");
    }
}

#[test]
fn sums_with_shuffles_and_shared_memory() {
    let from: Vec<f32> = (0..3000).map(|i| (i % 17) as f32).collect();
    everywhere(|library, seed| {
        let mut to = vec![0.0_f32; 3];
        let params = [(&from[..]).into(), (&mut to[..]).into(), 3000_u32.into()];
        library.run("block_sum", Shape::new(3, 1024).seed(seed), &params).unwrap();
        let expected: Vec<f32> = from.chunks(1024).map(|chunk| chunk.iter().sum()).collect();
        assert_eq!(to, expected);
    });
}

#[test]
fn counts_with_atomics() {
    let from: Vec<u32> = (0..5000_u32).map(|i| i.wrapping_mul(2_654_435_761) >> 7).collect();
    let mut expected = [0_u32; 16];
    from.iter().for_each(|value| expected[(value % 16) as usize] += 1);
    everywhere(|library, seed| {
        let mut to = [0_u32; 16];
        let params = [(&from[..]).into(), (&mut to[..]).into(), 5000_u32.into()];
        library.run("histogram", Shape::new(5, 96).seed(seed), &params).unwrap();
        assert_eq!(to, expected);
    });
}

#[test]
fn finds_shared_variables_of_templates() {
    everywhere(|library, seed| {
        let mut to = vec![0_u64; 200];
        library.run("reverse", Shape::new(1, 200).seed(seed), &[(&mut to[..]).into()]).unwrap();
        let expected: Vec<u64> = (0..200).map(|i| i << 32 | (199 - i)).collect();
        assert_eq!(to, expected);
    });
}

#[test]
fn orders_a_warp_by_syncwarp() {
    everywhere(|library, seed| {
        let mut to = vec![0_u32; 128];
        library.run("warp_tree", Shape::new(1, 128).shared(512).seed(seed), &[(&mut to[..]).into()]).unwrap();
        let expected: Vec<u32> = (0..128).map(|i| (i / 32 * 32..i / 32 * 32 + 32).sum()).collect();
        assert_eq!(to, expected);
    });
}

/// Ten lines of PTX's definitions for one lane.
fn warp_answers(lane: u32) -> [u32; 12] {
    let up = if lane % 16 >= 3 { lane - 3 } else { lane };
    let down = if lane % 16 + 3 < 16 { lane + 3 } else { lane };
    let thirds = (0..32).filter(|i| i % 3 == 0).map(|i| 1 << i).sum();
    let low: u32 = 0x0000_aaaa + (0..16).fold(0, |a, b| a ^ b);
    [
        (lane / 8 * 8 + (lane + 5) % 8) * 10,
        up * 10,
        down * 10,
        (lane ^ 9) * 10,
        thirds,
        2,
        0xf << (lane / 4 * 4),
        31 * 32 / 2,
        (-20_i32) as u32,
        31,
        if lane < 16 { low } else { 0xaaaa_0000 },
        lane ^ 1,
    ]
}

#[test]
fn answers_warp_intrinsics() {
    everywhere(|library, seed| {
        let mut to = vec![0_u32; 32 * 12];
        library.run("warp_answers", Shape::new(1, 32).seed(seed), &[(&mut to[..]).into()]).unwrap();
        for lane in 0..32 {
            assert_eq!(to[lane * 12..][..12], warp_answers(lane as u32), "lane {lane}");
        }
    });
}

#[test]
fn counts_votes_of_a_block() {
    everywhere(|library, seed| {
        for (n, expected) in [(0, [0, 0, 0]), (5, [5, 0, 1]), (70, [70, 1, 1])] {
            let mut to = [9_u32; 3];
            let params = [(&mut to[..]).into(), u32::into(n)];
            library.run("block_votes", Shape::new(1, 70).seed(seed), &params).unwrap();
            assert_eq!(to, expected);
        }
    });
}

#[test]
fn copies_asynchronously() {
    let from: Vec<u32> = (0..2048).map(|i| i * 3 + 1).collect();
    everywhere(|library, seed| {
        let mut to = vec![0_u32; 2048];
        let params = [(&from[..]).into(), (&mut to[..]).into(), 2048_u32.into()];
        library.run("staged_copy", Shape::new(1, 128).seed(seed), &params).unwrap();
        assert_eq!(to, from);
    });
}

#[test]
fn runs_a_function_over_all_lanes() {
    everywhere(|library, seed| {
        let mut to = [0_u32; 32];
        library.run("together", Shape::new(1, 32).seed(seed), &[(&mut to[..]).into()]).unwrap();
        assert_eq!(to, [31 * 32 / 2 + 100; 32]);
    });
}

#[test]
fn lets_waiting_loops_go_on() {
    everywhere(|library, seed| {
        let (mut at, mut to) = ([0_u32], [0_u32]);
        let params = [(&mut at[..]).into(), (&mut to[..]).into()];
        library.run("locked", Shape::new(1, 256).seed(seed), &params).unwrap();
        assert_eq!((at, to), ([0], [8]));
    });
}

#[test]
fn numbers_threads_in_three_axes() {
    everywhere(|library, seed| {
        let shape = Shape { grid: [2, 3, 2], block: [5, 2, 3], shared: 0, seed };
        let mut to = vec![0_u32; 12 * 30 * 3];
        library.run("indices", shape, &[(&mut to[..]).into()]).unwrap();
        let mut expected = Vec::new();
        for (block, thread) in (0..12).flat_map(|block| (0..30).map(move |thread| (block, thread))) {
            expected.push(block << 16 | thread);
            expected.push((thread % 5) << 16 | (thread / 5 % 2) << 8 | (thread / 10));
            expected.push((block % 2) << 16 | (block / 2 % 3) << 8 | (block / 6));
        }
        assert_eq!(to, expected);
    });
}

#[test]
fn block_sizes_around_a_warp() {
    let from = [1.0_f32; 2048];
    everywhere(|library, seed| {
        // block_sum's second step needs whole warps; its mask may still name lanes that the block does not have.
        for block in [32, 64, 1024] {
            let mut to = vec![0.0_f32; 2048 / block as usize];
            let params = [(&from[..]).into(), (&mut to[..]).into(), 2000_u32.into()];
            library.run("block_sum", Shape::new(2048 / block, block).seed(seed), &params).unwrap();
            assert_eq!(to.iter().sum::<f32>(), 2000.0, "{block} threads");
        }
        for block in [1, 2, 31, 33] {
            let mut to = vec![0_u64; block as usize];
            library.run("reverse", Shape::new(1, block).seed(seed), &[(&mut to[..]).into()]).unwrap();
            assert_eq!(to[0], u64::from(block - 1), "{block} threads");
        }
    });
}

#[test]
#[cfg(target_arch = "x86_64")]
fn floating_point_environment_is_the_callers_again() {
    /// Flush-to-zero and denormals-are-zero, on top of what a process begins with.
    const FLUSHING: u32 = 0x1f80 | 0x8040;
    fn control() -> u32 {
        let mut value = 0_u32;
        // SAFETY: stmxcsr writes four bytes to where it is told.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value) };
        value
    }
    fn set_control(value: u32) {
        // SAFETY: all bits are ones that the processor has; the test puts the old value back.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value) };
    }
    everywhere(|library, seed| {
        let from = [f32::MIN_POSITIVE, 3.0e-45, 8.0];
        let mut to = [0.0_f32; 3];
        let params = [(&from[..]).into(), (&mut to[..]).into(), 3_u32.into()];
        let before = control();
        set_control(FLUSHING);
        library.run("halve", Shape::new(1, 32).seed(seed), &params).unwrap();
        let failed = library.run("traps", Shape::new(1, 32).seed(seed), &[3_u32.into()]).unwrap_err();
        let after = control();
        set_control(before);
        assert_eq!(to.map(f32::to_bits), [0x0040_0000, 1, 0x4080_0000]);
        assert_eq!((failed.code, after & !0x3f), (6, FLUSHING), "status bits aside, as the caller set it");
    });
}
