//! The twins of tensor cores: products within the bound that kernels may build on, matrices as the PTX ISA lays them out,
//! asynchronous copies, and the mistakes that each of them makes possible.

use granule_sim::emulator_build::Mode;

use crate::library::{Failure, Param, Shape, library};

const MODES: [Mode; 2] = [Mode::Plain, Mode::Checked];

/// A generator that gives the same numbers everywhere (SplitMix64; Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

/// A 16-bit float: how many bits its exponent has, and that exponent's bias.
#[derive(Clone, Copy)]
struct Format {
    exponent: u32,
    bias: i32,
}

const F16: Format = Format { exponent: 5, bias: 15 };
const BF16: Format = Format { exponent: 8, bias: 127 };

impl Format {
    /// The value of finite bits, from the definition.
    fn value(self, bits: u16) -> f64 {
        let fraction_bits = 15 - self.exponent as i32;
        let exponent = i32::from(bits >> fraction_bits) & ((1 << self.exponent) - 1);
        let fraction = f64::from(bits & ((1 << fraction_bits) - 1)) / f64::from(1 << fraction_bits);
        let magnitude = if exponent == 0 {
            fraction * 2f64.powi(1 - self.bias)
        } else {
            (1.0 + fraction) * 2f64.powi(exponent - self.bias)
        };
        if bits >> 15 == 0 { magnitude } else { -magnitude }
    }

    /// Bits of any sign and fraction whose exponent is within `span` of that of 1.
    fn around_one(self, random: &mut Random, span: i32) -> u16 {
        let fraction_bits = 15 - self.exponent;
        let bits = random.next() as u16;
        let exponent = self.bias + (random.next() % (2 * span as u64 + 1)) as i32 - span;
        (bits & 0x8000) | (exponent.max(0) as u16) << fraction_bits | (bits & ((1 << fraction_bits) - 1))
    }
}

/// Holds `c + a b` of the kernel to `16 * 2^-23 * (|c| + |a| |b|)`.
fn multiplies(name: &str, format: Format, spans: &[i32]) {
    let mut random = Random(7);
    for mode in MODES {
        for &span in spans {
            let a: Vec<u16> = (0..256).map(|_| format.around_one(&mut random, span)).collect();
            let b: Vec<u16> = (0..128).map(|_| format.around_one(&mut random, span)).collect();
            let c: Vec<f32> = (0..128).map(|_| (random.next() % 4096) as f32 / 64.0 - 32.0).collect();
            let mut to = vec![f32::NAN; 128];
            let params = [(&a[..]).into(), (&b[..]).into(), (&c[..]).into(), (&mut to[..]).into()];
            library(mode).run(name, Shape::new(1, 32).seed(random.next()), &params).unwrap();
            for (i, (&got, &c)) in to.iter().zip(&c).enumerate() {
                let product = |k: usize| format.value(a[i / 8 * 16 + k]) * format.value(b[k * 8 + i % 8]);
                let exact = f64::from(c) + (0..16).map(product).sum::<f64>();
                let sizes = f64::from(c).abs() + (0..16).map(|k| product(k).abs()).sum::<f64>();
                let bound = 16.0 * 2f64.powi(-23) * sizes;
                let error = (f64::from(got) - exact).abs();
                assert!(error <= bound, "{name}, element {i}: {got} for {exact}, bound {bound}");
            }
        }
    }
}

#[test]
fn products_are_within_the_bound() {
    // The largest span of f16 has subnormal numbers in it.
    multiplies("multiply_f16", F16, &[0, 2, 8, 15]);
    multiplies("multiply_bf16", BF16, &[0, 2, 30]);
}

#[test]
fn products_of_bytes_are_exact() {
    let mut random = Random(3);
    for mode in MODES {
        for round in 0..8 {
            // The largest sums too: all bytes -128.
            let byte = |random: &mut Random| if round == 0 { 0x80 } else { random.next() as u8 };
            let a: Vec<u8> = (0..512).map(|_| byte(&mut random)).collect();
            let b: Vec<u8> = (0..256).map(|_| byte(&mut random)).collect();
            let c: Vec<u32> = (0..128).map(|_| random.next() as u32 >> 4).collect();
            let mut to = vec![0u32; 128];
            let params = [(&a[..]).into(), (&b[..]).into(), (&c[..]).into(), (&mut to[..]).into()];
            library(mode).run("multiply_s8", Shape::new(1, 32).seed(round), &params).unwrap();
            for (i, (&got, &c)) in to.iter().zip(&c).enumerate() {
                let signed = |byte: u8| i64::from(byte.cast_signed());
                let product = |k: usize| signed(a[i / 8 * 32 + k]) * signed(b[k * 8 + i % 8]);
                let exact = i64::from(c.cast_signed()) + (0..32).map(product).sum::<i64>();
                assert_eq!(i64::from(got.cast_signed()), exact, "element {i}");
            }
        }
    }
}

#[test]
fn matrices_are_loaded_as_the_manual_lays_them_out() {
    let from: Vec<u16> = (0..256).collect();
    let element = |matrix: usize, row: usize, column: usize| u32::from(from[matrix * 64 + row * 8 + column]);
    for mode in MODES {
        for seed in 0..4 {
            let mut to = vec![0u32; 32 * 14];
            let params = [(&from[..]).into(), (&mut to[..]).into()];
            library(mode).run("matrices", Shape::new(1, 32).seed(seed), &params).unwrap();
            for (lane, got) in to.chunks_exact(14).enumerate() {
                let (g, t) = (lane / 4, lane % 4);
                let plain = |m| element(m, g, 2 * t) | element(m, g, 2 * t + 1) << 16;
                let transposed = |m| element(m, 2 * t, g) | element(m, 2 * t + 1, g) << 16;
                let mut expected = Vec::new();
                for count in [1, 2, 4] {
                    expected.extend((0..count).map(plain));
                    expected.extend((0..count).map(transposed));
                }
                assert_eq!(got, expected, "lane {lane}");
            }
        }
    }
}

#[test]
fn copies_arrive_where_they_are_waited_for() {
    let from: Vec<u32> = (0..640).map(|i| i * 7 + 1).collect();
    for mode in MODES {
        for seed in 0..9 {
            let mut to = vec![0u32; 640];
            let params = [(&from[..]).into(), (&mut to[..]).into(), 640_u32.into()];
            library(mode).run("ring_copy", Shape::new(1, 32).seed(seed), &params).unwrap();
            assert_eq!(to, from);
        }
    }
}

/// Runs with twenty seeds: each time the kernel must end with `code` and a message that has all of `words`.
fn found_every_time(mode: Mode, name: &str, params: &[Param], code: i32, words: &[&str]) {
    for seed in 0..20 {
        let failure = library(mode).run(name, Shape::new(1, 32).seed(seed), params);
        let Err(Failure { code: got, message }) = failure else { panic!("{name} passed with seed {seed}") };
        assert_eq!(got, code, "{name}, seed {seed}: {message}");
        for word in words.iter().chain(&[".cu"]) {
            assert!(message.contains(word), "{name}, seed {seed}: no {word:?} in {message:?}");
        }
    }
}

#[test]
fn copies_that_are_read_or_overwritten_too_early_are_found() {
    let from = vec![3_u32; 256];
    let mut to = vec![0_u32; 256];
    let (from, to) = (Param::from(&from[..]), Param::from(&mut to[..]));
    let checked = |name, params: &[Param], code, words: &[&str]| {
        found_every_time(Mode::Checked, name, params, code, words);
    };
    checked("ring_without_wait", &[from, to, 256_u32.into()], 4, &["stage", "no thread of the block"]);
    checked("overtaking_copy", &[from, to], 3, &["stage", "reads", "writes 16 bytes"]);
}

#[test]
fn lanes_that_miss_a_matrix_instruction_are_found() {
    let mut to = [0_u32; 32];
    let to = Param::from(&mut to[..]);
    for mode in MODES {
        library(mode).run("lane_goes_round", Shape::new(1, 32), &[to, 32_u32.into()]).unwrap();
        let warp_wide = ["warp-wide instruction", "lanes 0x80000000"];
        found_every_time(mode, "lane_goes_round", &[to, 31_u32.into()], 2, &warp_wide);
        found_every_time(mode, "lane_has_left", &[to], 2, &[&warp_wide[..], &["exited"]].concat());
        found_every_time(mode, "two_products", &[to], 2, &["warp-wide instruction"]);
        found_every_time(mode, "misaligned_row", &[to], 6, &["__trap"]);
    }
}
