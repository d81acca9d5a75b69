//! `Q2_K` to `Q6_K`.

use bytemuck::cast;
use half::f16;

use super::{Expand, Minimum, Scales, Values, bits, join};
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
fn scale_and_minimum(scales: &[u8; 12], i: usize) -> (u8, u8) {
    if i < 4 {
        (scales[i] & 63, scales[i + 4] & 63)
    } else {
        let low = scales[i + 4];
        (low & 15 | scales[i - 4] >> 6 << 4, low >> 4 | scales[i] >> 6 << 4)
    }
}

/// What the blocks with a scale of their own say alike.
macro_rules! of_256 {
    ($scales:expr) => {
        const RUNS: usize = 8;
        const SCALES: Scales = $scales;

        #[inline(always)]
        fn d(&self) -> f16 {
            self.d
        }
    };
    ($scales:expr, $minimum:expr) => {
        const MINIMUM: Minimum = $minimum;
        of_256!($scales);

        #[inline(always)]
        fn minimum(&self) -> f16 {
            self.dmin
        }
    };
}

impl Expand for BlockQ2_K {
    of_256!(Scales::Halves, Minimum::Halves);
    const BITS: (usize, usize) = (2, 0);
    const VALUES: Values = Values::Less(0);
    const NARROW: bool = true;

    #[inline(always)]
    fn codes(&self, i: usize) -> [u8; BLOCK_LEN] {
        cast(two_bits(&self.q, i))
    }

    #[inline(always)]
    fn scales(&self, i: usize) -> [i8; 2] {
        [self.scales[2 * i], self.scales[2 * i + 1]].map(|s| (s & 15).cast_signed())
    }

    #[inline(always)]
    fn minimums(&self, i: usize) -> [u8; 2] {
        [self.scales[2 * i], self.scales[2 * i + 1]].map(|s| s >> 4)
    }
}

impl Expand for BlockQ3_K {
    of_256!(Scales::Halves);
    const BITS: (usize, usize) = (2, 1);
    const VALUES: Values = Values::Less(4);

    #[inline(always)]
    fn codes(&self, i: usize) -> [u8; BLOCK_LEN] {
        join(two_bits(&self.q, i), bits(words(&self.h), i, 1), 2)
    }

    #[inline(always)]
    fn scales(&self, i: usize) -> [i8; 2] {
        [2 * i, 2 * i + 1].map(|g| {
            let low = self.scales[g % 8] >> (g / 8 * 4) & 15;
            let high = self.scales[8 + g % 4] >> (g / 4 * 2) & 3;
            (low | high << 4).cast_signed() - 32
        })
    }
}

impl Expand for BlockQ4_K {
    of_256!(Scales::Whole, Minimum::Whole);
    const BITS: (usize, usize) = (4, 0);
    const VALUES: Values = Values::Less(0);

    #[inline(always)]
    fn codes(&self, i: usize) -> [u8; BLOCK_LEN] {
        cast(four_bits(&self.q, i))
    }

    #[inline(always)]
    fn scales(&self, i: usize) -> [i8; 2] {
        [scale_and_minimum(&self.scales, i).0.cast_signed(); 2]
    }

    #[inline(always)]
    fn minimums(&self, i: usize) -> [u8; 2] {
        [scale_and_minimum(&self.scales, i).1; 2]
    }
}

impl Expand for BlockQ5_K {
    of_256!(Scales::Whole, Minimum::Whole);
    const BITS: (usize, usize) = (4, 1);
    const VALUES: Values = Values::Less(0);

    #[inline(always)]
    fn codes(&self, i: usize) -> [u8; BLOCK_LEN] {
        join(four_bits(&self.q, i), bits(words(&self.h), i, 1), 4)
    }

    #[inline(always)]
    fn scales(&self, i: usize) -> [i8; 2] {
        [scale_and_minimum(&self.scales, i).0.cast_signed(); 2]
    }

    #[inline(always)]
    fn minimums(&self, i: usize) -> [u8; 2] {
        [scale_and_minimum(&self.scales, i).1; 2]
    }
}

impl Expand for BlockQ6_K {
    of_256!(Scales::Halves);
    const BITS: (usize, usize) = (4, 2);
    const VALUES: Values = Values::Less(32);

    #[inline(always)]
    fn codes(&self, i: usize) -> [u8; BLOCK_LEN] {
        let low = bits(words(&self.q.as_chunks().0[i / 4 * 2 + i % 2]), i % 4 / 2 * 4, 15);
        join(low, two_bits(&self.h, i), 4)
    }

    #[inline(always)]
    fn scales(&self, i: usize) -> [i8; 2] {
        [self.scales[2 * i], self.scales[2 * i + 1]]
    }
}
