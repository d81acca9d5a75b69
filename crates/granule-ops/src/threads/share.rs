//! A thread's share of a region's chunks: its owner takes them from the front, who helps from the back.

use std::ops::Range;

use super::sync::atomic::{AtomicU64, Ordering};

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
