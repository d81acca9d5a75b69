//! `Q2_K` to `Q6_K`.

use bytemuck::cast;

use super::{Expand, Minimum, NO_MINIMUM, Run, bits, join, widen};
use crate::BLOCK_LEN;
use crate::block::{BlockQ2_K, BlockQ3_K, BlockQ4_K, BlockQ5_K, BlockQ6_K};

/// The quants of two bits of run `i`, as `Q2_K` and `Q3_K` have them, and the high two of `Q6_K`.
#[inline(always)]
fn two_bits(q: &[u8; 64], i: usize) -> [u64; 4] {
    bits(words(&q.as_chunks().0[i / 4]), 2 * (i % 4), 3)
}

/// The quants of four bits of run `i`, as `Q4_K` and `Q5_K` have them.
#[inline(always)]
fn four_bits(q: &[u8; 128], i: usize) -> [u64; 4] {
    bits(words(&q.as_chunks().0[i / 2]), 4 * (i % 2), 15)
}

#[inline(always)]
fn words(bytes: &[u8; BLOCK_LEN]) -> [u64; 4] {
    cast(*bytes)
}

/// Scale and minimum of run `i`, as `Q4_K` and `Q5_K` have them.
#[inline(always)]
fn scale_and_minimum(scales: &[u8; 12], i: usize) -> (f32, f32) {
    let (s, t) = if i < 4 {
        (scales[i] & 63, scales[i + 4] & 63)
    } else {
        let low = scales[i + 4];
        (low & 15 | scales[i - 4] >> 6 << 4, low >> 4 | scales[i] >> 6 << 4)
    };
    (f32::from(s), f32::from(t))
}

impl Expand for BlockQ2_K {
    const RUNS: usize = 8;
    const MINIMUM: Minimum = Minimum::Halves;

    #[inline(always)]
    fn run(&self, i: usize) -> Run {
        let (d, dmin) = (widen(self.d), widen(self.dmin));
        let scales = [self.scales[2 * i], self.scales[2 * i + 1]];
        Run {
            q: cast(two_bits(&self.q, i)),
            d: scales.map(|s| d * f32::from(s & 15)),
            m: scales.map(|s| -(dmin * f32::from(s >> 4))),
        }
    }
}

impl Expand for BlockQ3_K {
    const RUNS: usize = 8;
    const MINIMUM: Minimum = Minimum::None;

    #[inline(always)]
    fn run(&self, i: usize) -> Run {
        let d = widen(self.d);
        let scale = |g: usize| {
            let low = self.scales[g % 8] >> (g / 8 * 4) & 15;
            let high = self.scales[8 + g % 4] >> (g / 4 * 2) & 3;
            d * f32::from((low | high << 4) as i8 - 32)
        };
        Run {
            q: join(two_bits(&self.q, i), bits(words(&self.h), i, 1), 2, 4),
            d: [scale(2 * i), scale(2 * i + 1)],
            m: NO_MINIMUM,
        }
    }
}

impl Expand for BlockQ4_K {
    const RUNS: usize = 8;
    const MINIMUM: Minimum = Minimum::Whole;

    #[inline(always)]
    fn run(&self, i: usize) -> Run {
        let (s, t) = scale_and_minimum(&self.scales, i);
        Run { q: cast(four_bits(&self.q, i)), d: [widen(self.d) * s; 2], m: [-(widen(self.dmin) * t); 2] }
    }
}

impl Expand for BlockQ5_K {
    const RUNS: usize = 8;
    const MINIMUM: Minimum = Minimum::Whole;

    #[inline(always)]
    fn run(&self, i: usize) -> Run {
        let (s, t) = scale_and_minimum(&self.scales, i);
        Run {
            q: join(four_bits(&self.q, i), bits(words(&self.h), i, 1), 4, 0),
            d: [widen(self.d) * s; 2],
            m: [-(widen(self.dmin) * t); 2],
        }
    }
}

impl Expand for BlockQ6_K {
    const RUNS: usize = 8;
    const MINIMUM: Minimum = Minimum::None;

    #[inline(always)]
    fn run(&self, i: usize) -> Run {
        let d = widen(self.d);
        let low = bits(words(&self.q.as_chunks().0[i / 4 * 2 + i % 2]), i % 4 / 2 * 4, 15);
        Run {
            q: join(low, two_bits(&self.h, i), 4, 32),
            d: [self.scales[2 * i], self.scales[2 * i + 1]].map(|s| d * f32::from(s)),
            m: NO_MINIMUM,
        }
    }
}
