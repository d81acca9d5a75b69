//! A thread's share of a region's chunks: its owner takes them from the front, who helps from the back.

use std::ops::Range;

use super::sync::atomic::{AtomicU64, Ordering};

/// The chunks, of so many, that thread `i` of `threads` begins with.
pub(super) fn of(i: usize, chunks: usize, threads: usize) -> Range<usize> {
    chunks * i / threads..chunks * (i + 1) / threads
}

/// The thread that begins with a share that has this chunk.
pub(crate) fn owner(chunk: usize, chunks: usize, threads: usize) -> usize {
    ((chunk + 1) * threads).div_ceil(chunks) - 1
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
        self.take(|start, end| (pack(start + 1, end), start))
    }

    /// Takes the last chunk that is left.
    pub(super) fn last(&self) -> Option<usize> {
        self.take(|start, end| (pack(start, end - 1), end - 1))
    }

    fn take(&self, cut: impl Fn(u64, u64) -> (u64, u64)) -> Option<usize> {
        let left = |word: u64| (word >> 32, word & u64::from(u32::MAX));
        let cut = |word| {
            let (start, end) = left(word);
            (start < end).then(|| cut(start, end))
        };
        let before =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| cut(word).map(|cut| cut.0));
        before.ok().and_then(cut).map(|cut| cut.1 as usize)
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
