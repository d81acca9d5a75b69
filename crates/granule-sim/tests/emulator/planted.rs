//! Kernels with one mistake each: which code and which words report them, every time or within twenty seeds.

use granule_sim::emulator_build::Mode;

use crate::library::{Failure, Library, Param, Shape, library, path};

const SEEDS: std::ops::Range<u64> = 0..20;

/// Runs the checked build with every seed: each time it must end with `code` and a message that has all of `words`.
fn found_every_time(name: &str, shape: Shape, params: &[Param], code: i32, words: &[&str]) {
    for seed in SEEDS {
        let Err(Failure { code: got, message }) = library(Mode::Checked).run(name, shape.seed(seed), params)
        else {
            panic!("{name} passed with seed {seed}");
        };
        assert_eq!(got, code, "{name}, seed {seed}: {message}");
        for word in [&format!("kernel {name}")[..], "thread (", "block ("].iter().chain(words) {
            assert!(message.contains(word), "{name}, seed {seed}: no {word:?} in {message:?}");
        }
    }
}

#[test]
fn races_in_shared_memory() {
    let mut memory = vec![0_u32; 256];
    let to = [Param::from(&mut memory[..])];
    let race = |name, shape, words: &[&str]| found_every_time(name, shape, &to, 3, words);
    race(
        "missing_barrier",
        Shape::new(2, 64),
        &["shared variable values", "of the block", "no barrier", "planted.cu:"],
    );
    race("missing_syncwarp", Shape::new(1, 32).shared(128), &["dynamic shared memory", "4 bytes"]);
    race("missing_second_barrier", Shape::new(1, 64), &["values", "reads", "writes"]);
    race("shared_byte", Shape::new(1, 64), &["bytes + 62", "writes 1 bytes"]);
    race("shuffle_is_no_barrier", Shape::new(1, 64), &["values"]);
    race("half_syncwarp", Shape::new(1, 32), &["values"]);
    race("read_of_atomic", Shape::new(1, 64), &["count", "atomically updates"]);
}

#[test]
fn races_in_global_memory() {
    let from = vec![0_u32; 256];
    let mut memory = vec![0_u32; 256];
    let to = Param::from(&mut memory[..]);
    found_every_time("global_race", Shape::new(1, 64), &[to], 3, &["global memory 0x", "writes 4 bytes"]);
    found_every_time(
        "block_race",
        Shape::new(3, 1),
        &[to],
        3,
        &["between blocks", "global", "nothing orders blocks"],
    );
    // The same memory for both parameters is a race between blocks; separate memory is none.
    found_every_time(
        "block_read_race",
        Shape::new(4, 32),
        &[to, to],
        3,
        &["between blocks", "global", "reads"],
    );
    for seed in SEEDS {
        let params = [Param::from(&from[..]), to];
        library(Mode::Checked).run("block_read_race", Shape::new(4, 32).seed(seed), &params).unwrap();
    }
}

#[test]
fn uninitialized_shared_memory() {
    let from = vec![7_u32; 256];
    let mut memory = vec![0_u32; 256];
    let to = Param::from(&mut memory[..]);
    let word = ["shared variable values + 256", "no thread of the block has written"];
    found_every_time("uninitialized", Shape::new(1, 64), &[to], 4, &word);
    found_every_time(
        "uninitialized_byte",
        Shape::new(2, 32).shared(4),
        &[to],
        4,
        &["dynamic shared memory + 3"],
    );
    found_every_time("uninitialized_atomic", Shape::new(1, 32), &[], 4, &["count", "atomically updates"]);
    found_every_time("missing_async_wait", Shape::new(1, 32), &[(&from[..]).into(), to], 4, &["stage"]);
}

#[test]
fn the_first_launch_is_watched_like_the_hundredth() {
    // A copy of the file is another library to the loader, with nothing behind it yet.
    let folder = tempfile::tempdir().unwrap();
    for name in ["missing_syncwarp", "global_race", "half_syncwarp"] {
        let copy = folder.path().join(name);
        std::fs::copy(path(Mode::Checked), &copy).unwrap();
        let mut to = [0_u32; 32];
        let failure = Library::open(&copy)
            .run(name, Shape::new(1, 32).shared(128), &[(&mut to[..]).into()])
            .unwrap_err();
        assert_eq!(failure.code, 3, "{}", failure.message);
    }
}

#[test]
fn plain_build_shows_missing_barriers_within_twenty_seeds() {
    let mut to = vec![0_u32; 256];
    let plain = library(Mode::Plain);
    let mut wrong = |name, shape: Shape, expected: fn(u32) -> u32| {
        let found = SEEDS.filter(|seed| {
            plain.run(name, shape.seed(*seed), &[(&mut to[..]).into()]).unwrap();
            (0..shape.block[0]).any(|i| to[i as usize] != expected(i))
        });
        let found = found.count();
        assert!(found > 0, "{name}");
    };
    wrong("missing_barrier", Shape::new(1, 64), |i| (i + 1) % 64);
    wrong("missing_syncwarp", Shape::new(1, 32).shared(128), |i| i ^ 1);
    wrong("missing_second_barrier", Shape::new(1, 64), |i| 3 + 3 * ((i + 33) % 64));
    wrong("shuffle_is_no_barrier", Shape::new(1, 64), |i| (i + 32) % 64);
    wrong("half_syncwarp", Shape::new(1, 32), |i| 31 - i);
}

#[test]
fn a_seed_repeats_itself() {
    let runs = [5, 5, 6].map(|seed| {
        let mut to = vec![0_u32; 64];
        let params = [(&mut to[..]).into()];
        library(Mode::Plain).run("missing_barrier", Shape::new(1, 64).seed(seed), &params).unwrap();
        to
    });
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[test]
fn threads_that_do_not_meet() {
    let mut memory = vec![0_u32; 256];
    let to = Param::from(&mut memory[..]);
    for mode in [Mode::Plain, Mode::Checked] {
        for seed in SEEDS {
            let diverges = |name: &str, block, params: &[Param], words: &[&str]| {
                let failure = library(mode).run(name, Shape::new(1, block).seed(seed), params).unwrap_err();
                assert_eq!(failure.code, 2, "{name}: {}", failure.message);
                for word in words.iter().chain(&["kernel ", "thread (", "planted.cu:"]) {
                    assert!(failure.message.contains(word), "{name}: no {word:?} in {:?}", failure.message);
                }
            };
            diverges("divergent_exit", 64, &[], &["__syncthreads", "exit"]);
            diverges("early_return", 64, &[63_u32.into()], &["__syncthreads", "(63,0,0)", "exit"]);
            diverges("two_barriers", 64, &[to], &["different barriers"]);
            diverges(
                "shuffle_in_branch",
                32,
                &[to],
                &["__shfl_xor_sync", "lanes 0xffff0000", "__syncthreads"],
            );
            diverges("mask_without_self", 32, &[], &["0x0000fffe", "own lane"]);
            diverges("different_masks", 32, &[], &["__syncwarp", "0x7fffffff", "never reach"]);
        }
    }
}

#[test]
fn waiting_for_nobody_ends() {
    let mut at = [0_u32];
    let params = [(&mut at[..]).into()];
    let failure = library(Mode::Plain).run("waits_for_nobody", Shape::new(1, 64), &params).unwrap_err();
    assert_eq!(failure.code, 2);
    assert!(failure.message.contains("blocks run one after another"), "{}", failure.message);
}
