//! A thread's share of a region's chunks: its owner takes them from the front, who helps from the back.

use std::ops::Range;

use super::sync::atomic::{AtomicU64, Ordering};

/// The chunks, of so many, that thread `i` of `threads` begins with.
pub(super) fn of(i: usize, chunks: usize, threads: usize) -> Range<usize> {
    let at = |i: usize| (chunks as u64 * i as u64 / threads as u64) as usize;
    at(i)..at(i + 1)
}

/// The thread that begins with a share that has this chunk.
pub(crate) fn owner(chunk: usize, chunks: usize, threads: usize) -> usize {
    ((chunk as u64 + 1) * threads as u64).div_ceil(chunks as u64) as usize - 1
}

/// The chunks that are left, first and end, in one word. What its chunks write is ordered by the region's beginning and end, so
/// taking one orders nothing.
#[derive(Default)]
pub(super) struct Share(AtomicU64);

impl Share {
    /// Hands out these chunks, whose numbers fit 32 bits.
    pub(super) fn set(&self, chunks: Range<usize>) {
        self.0.store(pack(chunks.start as u64, chunks.end as u64), Ordering::Relaxed);
    }

    /// Takes the first chunk that is left.
    pub(super) fn first(&self) -> Option<usize> {
        self.take(|start, end| (start, pack(start + 1, end)))
    }

    /// Takes the last chunk that is left.
    pub(super) fn last(&self) -> Option<usize> {
        self.take(|start, end| (end - 1, pack(start, end - 1)))
    }

    /// Takes the chunk that `choose` names beside what is then left.
    fn take(&self, choose: impl Fn(u64, u64) -> (u64, u64)) -> Option<usize> {
        let mut left = self.0.load(Ordering::Relaxed);
        loop {
            let (start, end) = (left >> 32, left & u64::from(u32::MAX));
            if start >= end {
                return None;
            }
            let (chunk, rest) = choose(start, end);
            match self.0.compare_exchange_weak(left, rest, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(chunk as usize),
                Err(now) => left = now,
            }
        }
    }
}

fn pack(start: u64, end: u64) -> u64 {
    start << 32 | end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chunk_is_in_the_share_of_its_owner() {
        for (chunks, threads) in
            [(1, 1), (1, 4), (7, 1), (8, 2), (9, 2), (10, 4), (3, 8), (33, 16), (1000, 7)]
        {
            let owners: Vec<_> = (0..threads).flat_map(|i| of(i, chunks, threads).map(move |_| i)).collect();
            let expected: Vec<_> = (0..chunks).map(|chunk| owner(chunk, chunks, threads)).collect();
            assert_eq!(owners, expected, "{chunks} for {threads}");
        }
    }

    #[test]
    fn a_share_is_taken_from_both_ends_until_nothing_is_left() {
        let share = Share::default();
        assert_eq!((share.first(), share.last()), (None, None));
        share.set(3..7);
        assert_eq!([share.first(), share.last(), share.last(), share.first()], [3, 6, 5, 4].map(Some));
        assert_eq!((share.first(), share.last()), (None, None));
        let most = u32::MAX as usize;
        share.set(most - 1..most);
        assert_eq!((share.last(), share.first()), (Some(most - 1), None));
    }
}
