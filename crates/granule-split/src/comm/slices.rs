//! Who sums which elements, and how many bytes that makes each rank send.

use std::ops::Range;

/// Slices begin at multiples of so many elements: 16 bytes, what a GPU's thread moves at once.
const UNIT: usize = 4;

/// The elements of `elements` that this rank sums: as even as whole units of 16 bytes let them be, the first ranks having one more,
/// and the last unit as short as it is.
pub fn slice(elements: usize, rank: usize, ranks: usize) -> Range<usize> {
    let units = elements.div_ceil(UNIT);
    let (each, more) = (units / ranks, units % ranks);
    let begin = |rank: usize| ((rank * each + rank.min(more)) * UNIT).min(elements);
    begin(rank)..begin(rank + 1)
}

/// Elements that this rank sends in an all-reduce of `elements` made of a reduce-scatter and an all-gather: to each other rank the part
/// that it sums, then its own sums to everybody. Of all ranks together it is `2 × elements × (ranks − 1)`, so a rank sends
/// `2 × elements × (ranks − 1) / ranks`, as in a ring, where slices are even.
pub fn all_reduce_elements(elements: usize, rank: usize, ranks: usize) -> usize {
    let own = slice(elements, rank, ranks).len();
    (elements - own) + own * (ranks - 1)
}
