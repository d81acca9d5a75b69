//! `Q4_K` and `Q5_K`: eight groups of 32 numbers, each with a scale and a minimum of 6 bits.

use std::array::from_fn;

use half::f16;

use super::{Fit, Group, Lanes, Numbers, Sums, TRIED, f16_above, inverse, least, nearest, unit, within};
use crate::{BLOCK_LEN, BlockQ4_K, BlockQ5_K};

/// Groups in a block.
const GROUPS: usize = 8;
/// The largest scale and minimum of 6 bits.
const SIX_BITS: f32 = 63.0;
/// How often each group's scales are made to fit the quants that they led to.
const PASSES: usize = 3;
/// How often the block's two scales are made to fit what its groups chose with them.
const ROUNDS: usize = 2;
/// Scales and minimums that a group tries, from the nearest to its line; that one first, as the first wins a tie.
const AROUND: [[f32; 2]; TRIED] = [
    [0.0, 0.0],
    [0.0, 1.0],
    [0.0, -1.0],
    [1.0, 0.0],
    [1.0, 1.0],
    [1.0, -1.0],
    [-1.0, 0.0],
    [-1.0, 1.0],
    [-1.0, -1.0],
    [0.0, 2.0],
    [0.0, -2.0],
    [1.0, 2.0],
    [-1.0, -2.0],
    [2.0, 1.0],
    [2.0, 2.0],
    [-2.0, -1.0],
];

/// Scale and minimum of a group, as numbers; the minimum is not above zero.
#[derive(Clone, Copy)]
struct Line {
    scale: f32,
    minimum: f32,
}

impl Line {
    const ZERO: Line = Line { scale: 0.0, minimum: 0.0 };
}

/// What a group chose of what the block's two scales allow, and the sums of the quants that it leads to.
#[derive(Clone, Copy)]
struct Choice {
    scale: f32,
    minimum: f32,
    error: f32,
    q: f32,
    qq: f32,
    xq: f32,
}

impl Choice {
    const ZERO: Choice = Choice { scale: 0.0, minimum: 0.0, error: 0.0, q: 0.0, qq: 0.0, xq: 0.0 };
}

/// A block with everything chosen but the quants.
#[derive(Clone, Copy)]
struct Chosen {
    /// What multiplies the scales, and what multiplies the minimums.
    d: [f16; 2],
    groups: [Choice; GROUPS],
    error: f32,
}

/// A block's numbers, in units of a power of two.
struct Fitting {
    groups: [Group<BLOCK_LEN>; GROUPS],
    weight: [f32; GROUPS],
    weighted: [f32; GROUPS],
    unit: f32,
    /// The largest quant.
    high: f32,
}

impl Fitting {
    #[inline(always)]
    fn new(x: &Numbers, high: f32) -> Self {
        let unit = unit(x);
        let mut groups = [Group::ZERO; GROUPS];
        let (mut weight, mut weighted) = ([0.0; GROUPS], [0.0; GROUPS]);
        for (g, x) in x.as_chunks().0.iter().enumerate() {
            groups[g] = Group::new(x, unit);
            for j in 0..BLOCK_LEN {
                weight[g] += groups[g].weight[j];
                weighted[g] += groups[g].weight[j] * groups[g].x[j];
            }
        }
        Fitting { groups, weight, weighted, unit, high }
    }

    /// The line that is best for a group, whatever the others need.
    #[inline(always)]
    fn line(&self, g: usize) -> Line {
        let group = &self.groups[g];
        let (mut low, mut high) = (0.0, f32::NEG_INFINITY);
        for &x in &group.x {
            low = if x < low { x } else { low };
            high = if x > high { x } else { high };
        }
        let (mut scale, mut minimum) = ([0.0; TRIED], [low; TRIED]);
        for (i, scale) in scale.iter_mut().enumerate() {
            // From steps that reach beyond the range to such that cut off its end.
            *scale = (high - low) / (self.high - 1.0 + 0.2 * i as f32);
        }
        let mut best = (f32::INFINITY, Line::ZERO);
        for _ in 0..PASSES {
            let sums = group.sums(&scale, &minimum, 0.0, self.high);
            let at = least(&sums.error);
            if sums.error[at] < best.0 {
                best = (sums.error[at], Line { scale: scale[at], minimum: minimum[at] });
            }
            self.fit_lines(g, &sums, &mut scale, &mut minimum);
        }
        best.1
    }

    /// Makes each line the one with the least error for the quants that its sums are of.
    #[inline(always)]
    fn fit_lines(&self, g: usize, sums: &Sums, scale: &mut Lanes, minimum: &mut Lanes) {
        let (weight, weighted) = (self.weight[g], self.weighted[g]);
        for i in 0..TRIED {
            let (q, qq, xq) = (sums.q[i], sums.qq[i], sums.xq[i]);
            let determinant = weight * qq - q * q;
            let free = [(weight * xq - weighted * q) / determinant, (qq * weighted - q * xq) / determinant];
            // A block subtracts its minimums: one above zero cannot be had, and zero comes nearest.
            let fit = if free[1] <= 0.0 { free } else { [xq / qq, 0.0] };
            if determinant > 0.0 && fit[0] > 0.0 {
                [scale[i], minimum[i]] = fit;
            }
        }
    }

    /// The block whose two scales are `d`: each group chooses what comes nearest to its numbers, around its line.
    #[inline(always)]
    fn choose(&self, lines: &[Line; GROUPS], d: [f16; 2]) -> Chosen {
        let scales = [d[0].to_f32() / self.unit, d[1].to_f32() / self.unit];
        let mut chosen = Chosen { d, groups: [Choice::ZERO; GROUPS], error: 0.0 };
        for (g, &line) in lines.iter().enumerate() {
            chosen.groups[g] = self.choose_one(g, line, scales);
            chosen.error += chosen.groups[g].error;
        }
        chosen
    }

    #[inline(always)]
    fn choose_one(&self, g: usize, line: Line, [d, dmin]: [f32; 2]) -> Choice {
        let scale = nearest(within(line.scale * inverse(d), 0.0, SIX_BITS));
        let minimum = nearest(within(-line.minimum * inverse(dmin), 0.0, SIX_BITS));
        let (mut scales, mut minimums) = ([0.0; TRIED], [0.0; TRIED]);
        let (mut real_scales, mut real_minimums) = ([0.0; TRIED], [0.0; TRIED]);
        for i in 0..TRIED {
            scales[i] = within(scale + AROUND[i][0], 0.0, SIX_BITS);
            minimums[i] = within(minimum + AROUND[i][1], 0.0, SIX_BITS);
            real_scales[i] = d * scales[i];
            real_minimums[i] = -(dmin * minimums[i]);
        }
        let sums = self.groups[g].sums(&real_scales, &real_minimums, 0.0, self.high);
        let at = least(&sums.error);
        Choice {
            scale: scales[at],
            minimum: minimums[at],
            error: sums.error[at],
            q: sums.q[at],
            qq: sums.qq[at],
            xq: sums.xq[at],
        }
    }

    /// The block's two scales that are best for what its groups chose.
    #[inline(always)]
    fn fit_scales(&self, chosen: &Chosen) -> [f16; 2] {
        let [mut ss, mut st, mut tt, mut sx, mut tx] = [0.0f32; 5];
        for (g, choice) in chosen.groups.iter().enumerate() {
            ss += choice.scale * choice.scale * choice.qq;
            st += choice.scale * choice.minimum * choice.q;
            tt += choice.minimum * choice.minimum * self.weight[g];
            sx += choice.scale * choice.xq;
            tx += choice.minimum * self.weighted[g];
        }
        let determinant = ss * tt - st * st;
        let fit = if determinant > 0.0 {
            [(sx * tt - tx * st) / determinant, (sx * st - tx * ss) / determinant]
        } else {
            [sx / ss, 0.0]
        };
        let fits = fit[0] > 0.0 && fit[1] >= 0.0;
        if fits { [f16::from_f32(fit[0] * self.unit), f16::from_f32(fit[1] * self.unit)] } else { chosen.d }
    }

    #[inline(always)]
    fn fit(&self) -> Chosen {
        let mut lines = [Line::ZERO; GROUPS];
        let (mut scale, mut minimum) = (0.0f32, 0.0f32);
        for (g, line) in lines.iter_mut().enumerate() {
            *line = self.line(g);
            scale = scale.max(line.scale);
            minimum = minimum.max(-line.minimum);
        }
        // Rounded up, so that the largest is reached, and what is not too small for f16 is not lost.
        let d = [f16_above(scale / SIX_BITS * self.unit), f16_above(minimum / SIX_BITS * self.unit)];
        let mut last = self.choose(&lines, d);
        let mut best = last;
        for _ in 0..ROUNDS {
            last = self.choose(&lines, self.fit_scales(&last));
            if last.error < best.error {
                best = last;
            }
        }
        best
    }

    /// The quants of each group.
    #[inline(always)]
    fn quants(&self, chosen: &Chosen) -> [[u8; BLOCK_LEN]; GROUPS] {
        let (d, dmin) = (chosen.d[0].to_f32() / self.unit, chosen.d[1].to_f32() / self.unit);
        let mut q = [[0; BLOCK_LEN]; GROUPS];
        for (g, q) in q.iter_mut().enumerate() {
            let (scale, minimum) = (d * chosen.groups[g].scale, -(dmin * chosen.groups[g].minimum));
            let inverse = inverse(scale);
            for (q, x) in q.iter_mut().zip(&self.groups[g].x) {
                *q = nearest(within((x - minimum) * inverse, 0.0, self.high)) as u8;
            }
        }
        q
    }
}

/// Scales and minimums as both types have them.
#[inline(always)]
fn six_bits(groups: &[Choice; GROUPS]) -> [u8; 12] {
    let scale = |g: usize| groups[g].scale as u8;
    let minimum = |g: usize| groups[g].minimum as u8;
    from_fn(|i| match i / 4 {
        0 => scale(i) | scale(i + 4) >> 4 << 6,
        1 => minimum(i - 4) | minimum(i) >> 4 << 6,
        _ => scale(i - 4) & 15 | minimum(i - 4) << 4,
    })
}

/// Bits 0 to 3 of the quants as both types have them.
#[inline(always)]
fn four_bits(q: &[[u8; BLOCK_LEN]; GROUPS]) -> [u8; 128] {
    from_fn(|i| q[i / BLOCK_LEN * 2][i % BLOCK_LEN] & 15 | q[i / BLOCK_LEN * 2 + 1][i % BLOCK_LEN] << 4)
}

impl Fit for BlockQ4_K {
    #[inline(always)]
    fn fit(x: &Numbers) -> Self {
        let fitting = Fitting::new(x, 15.0);
        let chosen = fitting.fit();
        let q = fitting.quants(&chosen);
        BlockQ4_K { d: chosen.d[0], dmin: chosen.d[1], scales: six_bits(&chosen.groups), q: four_bits(&q) }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

impl Fit for BlockQ5_K {
    #[inline(always)]
    fn fit(x: &Numbers) -> Self {
        let fitting = Fitting::new(x, 31.0);
        let chosen = fitting.fit();
        let q = fitting.quants(&chosen);
        BlockQ5_K {
            d: chosen.d[0],
            dmin: chosen.d[1],
            scales: six_bits(&chosen.groups),
            h: from_fn(|j| (0..GROUPS).fold(0, |bits, g| bits | q[g][j] >> 4 << g)),
            q: four_bits(&q),
        }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}
