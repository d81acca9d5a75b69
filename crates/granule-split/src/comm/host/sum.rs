//! Sums over the ranks of what lies in their memory, in the order of the ranks.

use std::ops::Range;

use half::bf16;

use super::super::wire;

/// So many sums are made at a time: they stay in the first-level cache, and the loops over them have no tail but the last.
const TILE: usize = 512;

/// Elements `range` of the sum of `parts`, `((p0 + p1) + p2) + …`, to `to`. `to` may be the same elements of one of the parts.
///
/// # Safety
/// - Each part has at least `range.end` elements, `to` has `range.len()`; all of them stay for the call.
/// - Nobody else writes these elements of the parts, or touches `to`, meanwhile.
pub(super) unsafe fn f32(parts: impl Iterator<Item = *const f32> + Clone, range: Range<usize>, to: *mut f32) {
    let mut sums = [0.0_f32; TILE];
    for at in (0..range.len()).step_by(TILE) {
        let n = TILE.min(range.len() - at);
        for (rank, part) in parts.clone().enumerate() {
            // SAFETY: the caller's: inside of the part, which nobody writes; no reference into `to` lives.
            let part = unsafe { std::slice::from_raw_parts(part.add(range.start + at), n) };
            add(&mut sums[..n], part, rank == 0);
        }
        // SAFETY: the caller's: `to` has so many elements, and is nobody else's. The parts' references are gone.
        unsafe { std::slice::from_raw_parts_mut(to.add(at), n) }.copy_from_slice(&sums[..n]);
    }
}

/// As [`f32()`], of parts in bf16; `take` gets each tile of sums with where it begins in the range.
///
/// # Safety
/// Each part has at least `range.end` elements, which stay, and which nobody writes but `take`, of the tile that it is given.
pub(super) unsafe fn bf16(
    parts: impl Iterator<Item = *const bf16> + Clone,
    range: Range<usize>,
    mut take: impl FnMut(usize, &[f32]),
) {
    let (mut sums, mut wide) = ([0.0_f32; TILE], [0.0_f32; TILE]);
    for at in (0..range.len()).step_by(TILE) {
        let n = TILE.min(range.len() - at);
        for (rank, part) in parts.clone().enumerate() {
            // SAFETY: the caller's: inside of the part, and nobody writes it while this reference lives.
            let part = unsafe { std::slice::from_raw_parts(part.add(range.start + at), n) };
            wire::widen(part, &mut wide[..n]);
            add(&mut sums[..n], &wide[..n], rank == 0);
        }
        take(at, &sums[..n]);
    }
}

/// The first part is taken as it is: nothing was added to a zero, so that −0 stays.
fn add(sums: &mut [f32], part: &[f32], first: bool) {
    if first {
        sums.copy_from_slice(part);
    } else {
        for (sum, x) in sums.iter_mut().zip(part) {
            *sum += x;
        }
    }
}
