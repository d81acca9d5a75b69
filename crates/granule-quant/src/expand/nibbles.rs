//! The blocks of 32 with nibbles, and `IQ4_XS`, whose runs are like those of `IQ4_NL`.

use bytemuck::cast;

use super::{Expand, Minimum, NO_MINIMUM, Run, bits, join, widen};
use crate::BLOCK_LEN;
use crate::block::{BlockIQ4_NL, BlockIQ4_XS, BlockQ5_0, BlockQ5_1};

/// What the nibbles of `IQ4_NL` and `IQ4_XS` stand for.
const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 16 bytes as 32 nibbles: low ones, then high ones.
#[inline(always)]
fn nibbles(q: &[u8; 16]) -> [u64; 4] {
    let [a, b] = bits(cast(*q), 0, 15);
    let [c, d] = bits(cast(*q), 4, 15);
    [a, b, c, d]
}

/// Quants of five bits: nibbles, and bit `j` of `h`.
#[inline(always)]
fn five_bits(q: &[u8; 16], h: [u8; 4], offset: u8) -> [i8; BLOCK_LEN] {
    // Every byte has a copy of the eight bits and keeps its own, which then carries to the highest place.
    let spread = |h: u8| {
        let own = (u64::from(h) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        (own + 0x7f7f_7f7f_7f7f_7f7f) >> 7 & 0x0101_0101_0101_0101
    };
    join(nibbles(q), h.map(spread), 4, offset)
}

#[inline(always)]
fn values(q: &[u8; 16]) -> [i8; BLOCK_LEN] {
    let mut values = [0; BLOCK_LEN];
    for (value, nibble) in values.iter_mut().zip(cast::<_, [u8; BLOCK_LEN]>(nibbles(q))) {
        *value = VALUES[usize::from(nibble & 15)];
    }
    values
}

impl Expand for BlockQ5_0 {
    const RUNS: usize = 1;
    const MINIMUM: Minimum = Minimum::None;

    #[inline(always)]
    fn run(&self, _: usize) -> Run {
        Run { q: five_bits(&self.q, self.h, 16), d: [widen(self.d); 2], m: NO_MINIMUM }
    }
}

impl Expand for BlockQ5_1 {
    const RUNS: usize = 1;
    const MINIMUM: Minimum = Minimum::Whole;

    #[inline(always)]
    fn run(&self, _: usize) -> Run {
        Run { q: five_bits(&self.q, self.h, 0), d: [widen(self.d); 2], m: [widen(self.m); 2] }
    }
}

impl Expand for BlockIQ4_NL {
    const RUNS: usize = 1;
    const MINIMUM: Minimum = Minimum::None;

    #[inline(always)]
    fn run(&self, _: usize) -> Run {
        Run { q: values(&self.q), d: [widen(self.d); 2], m: NO_MINIMUM }
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
        Run { q: values(&q[i]), d: [widen(self.d) * scale; 2], m: NO_MINIMUM }
    }
}
