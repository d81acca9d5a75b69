//! The blocks of 32 with nibbles, and `IQ4_XS`, whose runs are like those of `IQ4_NL`.

use super::{Expand, Minimum, NO_MINIMUM, Run};
use crate::block::{BlockIQ4_NL, BlockIQ4_XS, BlockQ5_0, BlockQ5_1};
use crate::{BLOCK_LEN, scalar::codec::nibble};

/// What the nibbles of `IQ4_NL` and `IQ4_XS` stand for.
const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Quants of five bits: nibbles, and bit `j` of `h`.
#[inline(always)]
fn five_bits(q: &[u8; 16], h: [u8; 4], offset: i8) -> [i8; BLOCK_LEN] {
    let h = u32::from_le_bytes(h);
    std::array::from_fn(|j| (nibble(q, j) | ((h >> j) as u8 & 1) << 4) as i8 - offset)
}

#[inline(always)]
fn values(q: &[u8; 16]) -> [i8; BLOCK_LEN] {
    std::array::from_fn(|j| VALUES[usize::from(nibble(q, j))])
}

impl Expand for BlockQ5_0 {
    const RUNS: usize = 1;
    const MINIMUM: Minimum = Minimum::None;

    #[inline(always)]
    fn run(&self, _: usize) -> Run {
        Run { q: five_bits(&self.q, self.h, 16), d: [self.d.to_f32(); 2], m: NO_MINIMUM }
    }
}

impl Expand for BlockQ5_1 {
    const RUNS: usize = 1;
    const MINIMUM: Minimum = Minimum::Whole;

    #[inline(always)]
    fn run(&self, _: usize) -> Run {
        Run { q: five_bits(&self.q, self.h, 0), d: [self.d.to_f32(); 2], m: [self.m.to_f32(); 2] }
    }
}

impl Expand for BlockIQ4_NL {
    const RUNS: usize = 1;
    const MINIMUM: Minimum = Minimum::None;

    #[inline(always)]
    fn run(&self, _: usize) -> Run {
        Run { q: values(&self.q), d: [self.d.to_f32(); 2], m: NO_MINIMUM }
    }
}

impl Expand for BlockIQ4_XS {
    const RUNS: usize = 8;
    const MINIMUM: Minimum = Minimum::None;

    #[inline(always)]
    fn run(&self, i: usize) -> Run {
        let low = self.l[i / 2] >> (i % 2 * 4) & 15;
        let high = (u16::from_le_bytes(self.h) >> (2 * i)) as u8 & 3;
        let scale = f32::from((low | high << 4) as i8 - 32);
        let q = self.q.as_chunks().0;
        Run { q: values(&q[i]), d: [self.d.to_f32() * scale; 2], m: NO_MINIMUM }
    }
}
