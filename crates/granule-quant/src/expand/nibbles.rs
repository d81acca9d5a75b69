//! The blocks of 32, and `IQ4_XS`, whose runs are like those of `IQ4_NL`.

use bytemuck::cast;
use half::f16;

use super::{Expand, Minimum, Scales, Values, bits, join};
use crate::BLOCK_LEN;
use crate::block::{BlockIQ4_NL, BlockIQ4_XS, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0};

/// What the nibbles of `IQ4_NL` and `IQ4_XS` stand for.
const UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 16 bytes as 32 nibbles: low ones, then high ones.
#[inline(always)]
fn nibbles(q: &[u8; 16]) -> [u64; 4] {
    let [a, b] = bits(cast(*q), 0, 15);
    let [c, d] = bits(cast(*q), 4, 15);
    [a, b, c, d]
}

/// Codes of five bits: nibbles, and bit `j` of `h`.
#[inline(always)]
fn five_bits(q: &[u8; 16], h: [u8; 4]) -> [u8; BLOCK_LEN] {
    // Every byte has a copy of the eight bits and keeps its own, which then carries to the highest place.
    let spread = |h: u8| {
        let own = (u64::from(h) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        (own + 0x7f7f_7f7f_7f7f_7f7f) >> 7 & 0x0101_0101_0101_0101
    };
    join(nibbles(q), h.map(spread), 4)
}

/// What the blocks that are one run say alike; with a minimum, what they say of it too.
macro_rules! of_32 {
    () => {
        const RUNS: usize = 1;

        #[inline(always)]
        fn d(&self) -> f16 {
            self.d
        }
    };
    (minimum) => {
        const MINIMUM: Minimum = Minimum::Whole;
        of_32!();

        #[inline(always)]
        fn minimum(&self) -> f16 {
            self.m
        }
    };
}

/// Codes that are the nibbles of the only run.
macro_rules! nibble_codes {
    () => {
        const BITS: (usize, usize) = (4, 0);

        #[inline(always)]
        fn codes(&self, _: usize) -> [u8; BLOCK_LEN] {
            cast(nibbles(&self.q))
        }
    };
}

/// Codes of five bits of the only run.
macro_rules! five_bit_codes {
    () => {
        const BITS: (usize, usize) = (4, 1);

        #[inline(always)]
        fn codes(&self, _: usize) -> [u8; BLOCK_LEN] {
            five_bits(&self.q, self.h)
        }
    };
}

impl Expand for BlockQ8_0 {
    of_32!();
    const BITS: (usize, usize) = (8, 0);
    const VALUES: Values = Values::Less(128);

    #[inline(always)]
    fn codes(&self, _: usize) -> [u8; BLOCK_LEN] {
        self.q.map(|q| q.cast_unsigned() ^ 128)
    }
}

impl Expand for BlockQ4_0 {
    of_32!();
    nibble_codes!();
    const VALUES: Values = Values::Less(8);
}

impl Expand for BlockQ4_1 {
    of_32!(minimum);
    nibble_codes!();
    const VALUES: Values = Values::Less(0);
}

impl Expand for BlockQ5_0 {
    of_32!();
    five_bit_codes!();
    const VALUES: Values = Values::Less(16);
}

impl Expand for BlockQ5_1 {
    of_32!(minimum);
    five_bit_codes!();
    const VALUES: Values = Values::Less(0);
}

impl Expand for BlockIQ4_NL {
    of_32!();
    nibble_codes!();
    const VALUES: Values = Values::Table(UNEVEN);
}

impl Expand for BlockIQ4_XS {
    const RUNS: usize = 8;
    const BITS: (usize, usize) = (4, 0);
    const VALUES: Values = Values::Table(UNEVEN);
    const SCALES: Scales = Scales::Whole;

    #[inline(always)]
    fn codes(&self, i: usize) -> [u8; BLOCK_LEN] {
        cast(nibbles(&self.q.as_chunks().0[i]))
    }

    #[inline(always)]
    fn d(&self) -> f16 {
        self.d
    }

    #[inline(always)]
    fn scales(&self, i: usize) -> [i8; 2] {
        let low = self.l[i / 2] >> (i % 2 * 4) & 15;
        let high = (u16::from_le_bytes(self.h) >> (2 * i)) as u8 & 3;
        [(low | high << 4) as i8 - 32; 2]
    }
}
