//! `Q6_K`: sixteen groups of 16 numbers, each with a signed scale of 8 bits.

use std::array::from_fn;

use half::f16;

use super::{Fit, Group, Lanes, Numbers, TRIED, f16_above, inverse, least, nearest, unit, within};
use crate::BlockQ6_K;

/// Groups in a block, and numbers in a group.
const GROUPS: usize = 16;
const LEN: usize = 16;
/// The range of quants and that of scales, which is one farther below zero than above.
const QUANTS: [f32; 2] = [-32.0, 31.0];
const SCALES: [f32; 2] = [-128.0, 127.0];
/// Of types with minimums; here there are none.
const NONE: Lanes = [0.0; TRIED];
/// How often each group's scale is made to fit the quants that it led to.
const PASSES: usize = 3;
/// How often the block's scale is made to fit what its groups chose with it.
const ROUNDS: usize = 2;

/// What a group chose of what the block's scale allows, and the sums of the quants that it leads to.
#[derive(Clone, Copy)]
struct Choice {
    scale: f32,
    error: f32,
    qq: f32,
    xq: f32,
}

impl Choice {
    const ZERO: Choice = Choice { scale: 0.0, error: 0.0, qq: 0.0, xq: 0.0 };
}

/// A block with everything chosen but the quants.
#[derive(Clone, Copy)]
struct Chosen {
    d: f16,
    groups: [Choice; GROUPS],
    error: f32,
}

/// A block's numbers, in units of a power of two.
struct Fitting {
    groups: [Group<LEN>; GROUPS],
    unit: f32,
}

impl Fitting {
    #[inline(always)]
    fn new(x: &Numbers) -> Self {
        let unit = unit(x);
        let mut groups = [Group::ZERO; GROUPS];
        for (group, x) in groups.iter_mut().zip(x.as_chunks().0) {
            *group = Group::new(x, unit);
        }
        Fitting { groups, unit }
    }

    /// The scale that is best for a group, whatever the others need.
    #[inline(always)]
    fn scale(&self, g: usize) -> f32 {
        let group = &self.groups[g];
        let largest = largest_of(&group.x);
        let mut scale = [0.0; TRIED];
        for (i, scale) in scale.iter_mut().enumerate() {
            // With either sign, from steps that reach beyond the largest number to such that cut it off a little.
            let beyond = 0.25 * (i / 2) as f32 - 1.0;
            *scale = largest / if i % 2 == 0 { QUANTS[0] - beyond } else { QUANTS[1] + beyond };
        }
        let mut best = (f32::INFINITY, 0.0);
        for _ in 0..PASSES {
            let sums = group.sums(&scale, &NONE, QUANTS[0], QUANTS[1]);
            let at = least(&sums.error);
            if sums.error[at] < best.0 {
                best = (sums.error[at], scale[at]);
            }
            for (i, scale) in scale.iter_mut().enumerate() {
                *scale = if sums.qq[i] > 0.0 { sums.xq[i] / sums.qq[i] } else { *scale };
            }
        }
        best.1
    }

    /// The block whose scale is `d`: each group chooses what comes nearest to its numbers, around its scale.
    #[inline(always)]
    fn choose(&self, scales: &[f32; GROUPS], d: f16) -> Chosen {
        let scale = d.to_f32() / self.unit;
        let mut chosen = Chosen { d, groups: [Choice::ZERO; GROUPS], error: 0.0 };
        for (g, &near) in scales.iter().enumerate() {
            chosen.groups[g] = self.choose_one(g, near, scale);
            chosen.error += chosen.groups[g].error;
        }
        chosen
    }

    #[inline(always)]
    fn choose_one(&self, g: usize, scale: f32, d: f32) -> Choice {
        let scale = nearest(within(scale * inverse(d), SCALES[0], SCALES[1]));
        let (mut scales, mut real) = ([0.0; TRIED], [0.0; TRIED]);
        for i in 0..TRIED {
            // The nearest first, as the first wins a tie; then those around it, nearer ones first.
            let away = i.div_ceil(2) as f32;
            scales[i] = within(if i % 2 == 0 { scale - away } else { scale + away }, SCALES[0], SCALES[1]);
            real[i] = d * scales[i];
        }
        let sums = self.groups[g].sums(&real, &NONE, QUANTS[0], QUANTS[1]);
        let at = least(&sums.error);
        Choice { scale: scales[at], error: sums.error[at], qq: sums.qq[at], xq: sums.xq[at] }
    }

    /// The block's scale that is best for what its groups chose.
    #[inline(always)]
    fn fit_scale(&self, chosen: &Chosen) -> f16 {
        let (mut ss, mut sx) = (0.0f32, 0.0f32);
        for choice in &chosen.groups {
            ss += choice.scale * choice.scale * choice.qq;
            sx += choice.scale * choice.xq;
        }
        if ss > 0.0 { f16::from_f32(sx / ss * self.unit) } else { chosen.d }
    }

    #[inline(always)]
    fn fit(&self) -> Chosen {
        let mut scales = [0.0; GROUPS];
        for (g, scale) in scales.iter_mut().enumerate() {
            *scale = self.scale(g);
        }
        let largest = largest_of(&scales);
        // The largest scale becomes the largest there is, which is negative. Rounded up, so that it is reached, and what is not
        // too small for f16 is not lost.
        let d = f16_above(largest.abs() / -SCALES[0] * self.unit);
        let mut last = self.choose(&scales, if largest > 0.0 { -d } else { d });
        let mut best = last;
        for _ in 0..ROUNDS {
            last = self.choose(&scales, self.fit_scale(&last));
            if last.error < best.error {
                best = last;
            }
        }
        best
    }

    /// The quants, 0 to 63.
    #[inline(always)]
    fn quants(&self, chosen: &Chosen) -> [u8; GROUPS * LEN] {
        let d = chosen.d.to_f32() / self.unit;
        let mut q = [0; GROUPS * LEN];
        for (g, q) in q.as_chunks_mut::<LEN>().0.iter_mut().enumerate() {
            let inverse = inverse(d * chosen.groups[g].scale);
            for (q, x) in q.iter_mut().zip(&self.groups[g].x) {
                *q = (nearest(within(x * inverse, QUANTS[0], QUANTS[1])) - QUANTS[0]) as u8;
            }
        }
        q
    }
}

/// The first of largest magnitude.
#[inline(always)]
fn largest_of<const N: usize>(x: &[f32; N]) -> f32 {
    let mut found = 0.0f32;
    for &x in x {
        found = if x.abs() > found.abs() { x } else { found };
    }
    found
}

impl Fit for BlockQ6_K {
    #[inline(always)]
    fn fit(x: &Numbers) -> Self {
        let fitting = Fitting::new(x);
        let chosen = fitting.fit();
        let q = fitting.quants(&chosen);
        BlockQ6_K {
            q: from_fn(|i| {
                let at = i / 64 * 128 + i % 64;
                q[at] & 15 | q[at + 64] << 4
            }),
            h: from_fn(|i| {
                let at = i / 32 * 128 + i % 32;
                (0..4).fold(0, |bits, k| bits | q[at + 32 * k] >> 4 << (2 * k))
            }),
            scales: from_fn(|g| chosen.groups[g].scale as i8),
            d: chosen.d,
        }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}
