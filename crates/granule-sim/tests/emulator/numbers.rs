//! The twins of instructions on single words that attention and products are made of, against their definitions.

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

/// A finite f16 in units of 2^-48, exactly: products of two are whole numbers of them too.
fn in_units(bits: u16) -> i128 {
    let (exponent, significand) = (u32::from(bits >> 10 & 31), i128::from(bits & 0x3ff));
    let magnitude = if exponent == 0 { significand } else { (significand | 0x400) << (exponent - 1) };
    (if bits >> 15 == 1 { -magnitude } else { magnitude }) << 24
}

/// a * b + c by whole numbers: the nearest of all f16, of two the even one.
fn fused(a: u16, b: u16, c: u16) -> u16 {
    let sum = ((in_units(a) * in_units(b)) >> 48) + in_units(c);
    if sum == 0 {
        return (a ^ b) & c & 0x8000; // of two zeros with the same sign that one, otherwise the positive
    }
    // Infinity follows the largest number, as if there were one more exponent.
    let value = |bits: u16| if bits == 0x7c00 { 1 << (16 + 48) } else { in_units(bits) };
    let nearest = (0..=0x7c00u16).min_by_key(|&bits| ((value(bits) - sum.abs()).abs(), bits & 1)).unwrap();
    nearest | if sum < 0 { 0x8000 } else { 0 }
}

#[test]
fn products_of_f16_are_added_and_rounded_once() {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as u16
    };
    let mut triples = Vec::new();
    for i in 0..600u16 {
        // Any numbers; a third that cancels most of the product; whole numbers above 1024; small ones.
        let (a, b, c) = (random(), random(), random());
        triples.push(match i % 4 {
            0 => [a, b, c],
            1 => [a & 0xbfff, b & 0xbfff, (a ^ b ^ 0x8000) & 0x8000 | (a & 0x3fff) | 0x2000],
            2 => [0x6400 | (a & 0xff), 0x3c00, 0xe400 | (b & 0xff)],
            _ => [a & 0x87ff, b & 0xbfff, c & 0x83ff],
        });
    }
    let ordinary = |x: &[u16; 3]| x.iter().all(|bits| bits & 0x7c00 != 0x7c00);
    triples.retain(ordinary);
    triples.truncate(triples.len() / 2 * 2);
    let pairs = triples.as_chunks::<2>().0;
    let word = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
    let from: Vec<u32> = pairs.iter().flat_map(|[x, y]| [0, 1, 2].map(|k| word(x[k], y[k]))).collect();
    let got = run("fused_pairs", &from, pairs.len(), 1);
    for (got, [x, y]) in got.into_iter().zip(pairs) {
        let want = word(fused(x[0], x[1], x[2]), fused(y[0], y[1], y[2]));
        assert_eq!(got, want, "{x:x?}, {y:x?}: {got:#x} for {want:#x}");
    }
    // What is no number, and what has none.
    let from = [0x7e00_7c00, 0x3c00_0000, 0x0000_0000, 0x7bff_7c00, 0x7bff_3c00, 0x7bff_fc00];
    assert_eq!(run("fused_pairs", &from, 2, 1), [0x7fff_7fff, 0x7c00_7fff]);
}
