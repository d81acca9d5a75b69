//! The twins of instructions on single words that attention is made of, against their definitions.

use granule_sim::emulator_build::Mode;

use crate::library::{Param, Shape, library};

/// Runs a kernel over `from` with one thread for each of `n` items; `each` words come back for each.
fn run<T>(name: &str, from: &[T], n: usize, each: usize) -> Vec<u32> {
    let mut to = vec![0u32; n * each];
    let params = [Param::from(from), Param::from(&mut to[..]), (n as u32).into()];
    library(Mode::Checked).run(name, Shape::new(n.div_ceil(256) as u32, 256), &params).unwrap();
    to
}

/// Numbers of every exponent and sign, those between two bf16 and next to them, and what is no number.
fn floats() -> Vec<f32> {
    let mut all = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, f32::MIN, 1e-45];
    for upper in (0..=0xff7f_u32).step_by(37) {
        // Halves with an even and an odd neighbour below, one less, one more, and none.
        all.extend([0x8000, 0x7fff, 0x8001, 0, 0xffff].map(|lower| f32::from_bits(upper << 16 | lower)));
    }
    all.resize(all.len().next_multiple_of(2), 1.0);
    all
}

/// The nearest bf16, of two the even one, by distances.
fn nearest_bf16(x: f32) -> u32 {
    if x.is_nan() {
        return 0x7fff;
    }
    let down = x.to_bits() >> 16;
    let value = |bits: u32| match f32::from_bits(bits << 16) {
        // What follows the largest number, as if there were one more exponent.
        x if x.is_infinite() => f64::from(x.signum()) * 2f64.powi(128),
        x => f64::from(x),
    };
    if x.is_infinite() {
        return down;
    }
    let [below, above] = [down, down + 1].map(|bits| (value(bits) - f64::from(x)).abs());
    if below < above || (below == above && down.is_multiple_of(2)) { down } else { down + 1 }
}

#[test]
fn bytes_are_chosen_by_their_numbers() {
    let from = [0x0302_0100_u32, 0x0706_0504, 0xaabb_ccdd, 0x1122_3344];
    let got = run("permute", &from, 2, 4);
    assert_eq!(got[..4], [0x0504_0100, 0x0706_0302, 0x0004_0000, 0x0005_0001]);
    assert_eq!(got[4..], [0x3344_ccdd, 0x1122_aabb, 0xdd44_dddd, 0xdd33_ddcc]);
}

#[test]
fn pairs_are_rounded_to_the_nearest_bf16() {
    let from = floats();
    let got = run("pairs_of_bf16", &from, from.len() / 2, 1);
    for (pair, x) in got.iter().zip(from.as_chunks::<2>().0) {
        let expected = nearest_bf16(x[0]) | nearest_bf16(x[1]) << 16;
        assert_eq!(*pair, expected, "{x:?}: {pair:#x} for {expected:#x}");
    }
}

#[test]
fn three_bf16_are_an_f32() {
    let ordinary = |x: &f32| x.is_finite() && (*x == 0.0 || x.abs() > 1e-30) && x.abs() < 1e38;
    let mut from: Vec<f32> = floats().into_iter().filter(ordinary).collect();
    from.truncate(from.len() / 2 * 2);
    let got = run("split_pairs", &from, from.len() / 2, 3);
    for (words, x) in got.as_chunks::<3>().0.iter().zip(from.as_chunks::<2>().0) {
        let sum =
            |shift: u32| words.iter().map(|word| f64::from(f32::from_bits(word >> shift << 16))).sum::<f64>();
        assert_eq!([sum(0), sum(16)], x.map(f64::from), "{words:x?}");
    }
}

#[test]
fn whole_numbers_are_the_nearest_and_of_two_the_even() {
    let mut from: Vec<f32> = (-4096..4096).map(|i| i as f32 / 4.0).collect();
    from.extend([f32::NAN, -0.0, 0.49999997, 4_194_303.5, -4_194_303.5, 1_234_567.5]);
    let got = run("nearest_whole", &from, from.len(), 1);
    for (got, x) in got.into_iter().zip(from) {
        let expected = if x.is_nan() { 0 } else { x.round_ties_even() as i32 };
        assert_eq!(got.cast_signed(), expected, "{x}");
    }
}

#[test]
fn quants_are_bf16_exactly() {
    // Every byte in both places that are read, with others around it that are not.
    let from: Vec<u32> = (0..256u32).map(|byte| byte | (255 - byte) << 16 | 0xa500_5a00).collect();
    let got = run("quants_as_bf16", &from, from.len(), 2);
    let value = |word: u32, half: u32| f32::from_bits(word >> (16 * half) << 16);
    for (byte, words) in (0..=255u8).zip(got.as_chunks::<2>().0) {
        for (half, byte) in [(0, byte), (1, 255 - byte)] {
            assert_eq!(value(words[0], half), f32::from(byte.cast_signed()), "byte {byte}");
            assert_eq!(value(words[1], half), f32::from(byte & 15) - 8.0, "byte {byte}");
        }
    }
}
