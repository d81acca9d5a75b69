//! How a call's work is cut up: pure arithmetic on shapes.
//!
//! A *unit* is some query tokens of a sequence, some KV heads, and a stretch of the context. Tiles of 64 rows were measured
//! against 48 and 32 (the record of 2026-11-22); the other numbers are reckoned:
//!
//! - All KV heads of a row lie next to each other, rows may lie pages apart: a unit takes all heads of a tile of rows while
//!   their pages are known, as long as the queries and sums of these heads fit into a part of the second-level cache.
//! - A stretch is at least [`SPLIT`] rows, so that preparing queries and combining results stay below a percent or so; a
//!   call has about [`STRETCHES`] at most: several for each of up to 16 threads, so that one that was held up loses little. Where
//!   stretches begin decides in which order sums are made, so it does not depend on the number of threads.
//! - Queries of many tokens are enough work without cutting the context.

use std::ops::Range;

use granule_quant::{ATTEND_TILE, DType, query_words};

use crate::KvRowLayout;
use crate::threads::owner;

/// Query rows (query heads of a KV head, times tokens) that meet a tile together, at least one token's.
const BLOCK_ROWS: usize = 32;
/// Query rows over all KV heads of a unit, at least one head's.
const UNIT_ROWS: usize = 64;
/// The shortest stretch of context.
const SPLIT: usize = 256;
/// Stretches of all items of a call together, but for shares that are rounded up.
const STRETCHES: usize = 32;

/// Where a unit is in the share of the thread that begins with it ([`crate::Threads::for_each_chunk`]): as long as nobody
/// helps out, each has stretches of the context that follow one another, so that the rows fetched at the end of one are
/// those that the next begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) is_first: bool,
    pub(super) is_last: bool,
}

impl Place {
    /// Of one of `units` units.
    pub(super) fn new(unit: usize, units: usize, threads: usize) -> Self {
        let owner = |unit| owner(unit, units, threads);
        Self {
            is_first: unit == 0 || owner(unit - 1) != owner(unit),
            is_last: unit + 1 == units || owner(unit) != owner(unit + 1),
        }
    }
}

/// What all items of a call share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) n_heads: usize,
    pub(super) n_kv_heads: usize,
    /// Query heads of a KV head.
    pub(super) group: usize,
    pub(super) head_dim: usize,
    k_type: DType,
    sinks: bool,
    threads: usize,
}

/// How one item is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cuts {
    /// Query tokens of a block.
    pub(super) tokens: usize,
    pub(super) blocks: usize,
    /// KV heads of a unit.
    pub(super) heads: usize,
    pub(super) head_groups: usize,
    /// Stretches of the context.
    pub(super) splits: usize,
}

impl Cuts {
    /// Rows of the `i`-th stretch of `len`: whole tiles but for the last, and as many as any other's or one tile more.
    pub(super) fn stretch(&self, i: usize, len: usize) -> Range<usize> {
        let tiles = len.div_ceil(ATTEND_TILE);
        let at = |i: usize| (tiles * i / self.splits * ATTEND_TILE).min(len);
        at(i)..at(i + 1)
    }

    pub(super) fn units(&self) -> usize {
        self.blocks * self.head_groups * self.splits
    }
}

/// f32 words of one worker's memory, part by part; each is a multiple of a cache line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    pub(super) queries: usize,
    pub(super) sums: usize,
    /// Maxima, totals, constants: one for each row; factors: two.
    pub(super) rows: usize,
    pub(super) scores: usize,
    pub(super) turned: usize,
    pub(super) angles: usize,
}

impl Words {
    pub(super) fn all(&self) -> usize {
        self.queries + self.sums + 5 * self.rows + self.scores + self.turned + self.angles
    }
}

const LINE: usize = 16;

impl Plan {
    pub(super) fn new(threads: usize, layout: &KvRowLayout, n_heads: usize) -> Self {
        let group = (n_heads / layout.n_kv_heads.max(1)).max(1);
        Self {
            n_heads,
            n_kv_heads: layout.n_kv_heads,
            group,
            head_dim: layout.head_dim,
            k_type: layout.k_type,
            sinks: layout.sinks.is_some(),
            threads,
        }
    }

    fn block_tokens(&self, n_tokens: usize) -> usize {
        (BLOCK_ROWS / self.group).clamp(1, n_tokens.max(1))
    }

    /// How an item of `n_tokens` queries against `len` rows is cut up, in a call whose items have `rows` rows together and
    /// are `items` in number.
    pub(super) fn cuts(&self, n_tokens: usize, len: usize, items: usize, rows: usize) -> Cuts {
        let tokens = self.block_tokens(n_tokens);
        let blocks = n_tokens.div_ceil(tokens);
        let mut splits = 1;
        if blocks == 1 && items < STRETCHES {
            let share = (STRETCHES * len).div_ceil(rows.max(1));
            splits = share.min(len / SPLIT).max(1);
        }
        let mut heads = (UNIT_ROWS / (tokens * self.group)).clamp(1, self.n_kv_heads);
        let others = items * blocks * splits;
        if others < self.threads {
            // Not enough for all threads: each takes some heads only.
            heads = heads.min(self.n_kv_heads.div_ceil(self.threads.div_ceil(others)));
        }
        Cuts { tokens, blocks, heads, head_groups: self.n_kv_heads.div_ceil(heads), splits }
    }

    /// What a worker needs for units with blocks of `tokens` tokens and `heads` KV heads.
    pub(super) fn words(&self, tokens: usize, heads: usize) -> Words {
        let rows = tokens * self.group;
        Words {
            queries: heads * self.query_words(rows),
            sums: (heads * rows * self.head_dim).next_multiple_of(LINE),
            rows: (heads * rows).next_multiple_of(LINE),
            scores: rows.next_multiple_of(4) * ATTEND_TILE,
            turned: (rows * self.head_dim).next_multiple_of(LINE),
            angles: self.head_dim.next_multiple_of(LINE),
        }
    }

    /// Of one head's prepared queries, whichever type of keys they meet.
    pub(super) fn query_words(&self, rows: usize) -> usize {
        let words = |dtype| query_words(dtype, self.head_dim, rows);
        let most = if self.sinks { words(self.k_type).max(words(DType::F16)) } else { words(self.k_type) };
        most.next_multiple_of(LINE)
    }

    /// The most that a worker needs in a call of up to `n_tokens` tokens.
    pub(super) fn worker_words(&self, n_tokens: usize) -> usize {
        let most = self.block_tokens(n_tokens);
        let unit = |tokens: usize| (UNIT_ROWS / (tokens * self.group)).clamp(1, self.n_kv_heads.max(1));
        (1..=most).map(|tokens| self.words(tokens, unit(tokens)).all()).max().unwrap_or(0)
    }

    /// Of one stretch's results for `tokens` tokens: maxima, totals, sums, for each token and query head.
    pub(super) fn partial_words(&self, tokens: usize) -> usize {
        tokens * self.n_heads * (self.head_dim + 2)
    }

    /// The most that all stretches of a call of up to `n_tokens` tokens need.
    pub(super) fn partials_words(&self, n_tokens: usize) -> usize {
        // Fewer items than stretches, whose shares of them are rounded up.
        2 * STRETCHES * self.partial_words(self.block_tokens(n_tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::Place;

    /// What `Threads` hands out, as its own tests hold: so many units in a row for each thread.
    #[test]
    fn a_share_has_one_first_and_one_last_unit() {
        let places = |units, threads| (0..units).map(move |unit| Place::new(unit, units, threads));
        for (units, threads) in [(1, 1), (7, 1), (8, 2), (9, 2), (10, 4), (3, 8), (33, 16)] {
            let shares = units.min(threads);
            assert_eq!(places(units, threads).filter(|place| place.is_first).count(), shares);
            let mut before = true;
            for place in places(units, threads) {
                assert_eq!(place.is_first, before, "{units} over {threads}");
                before = place.is_last;
            }
            assert!(before, "{units} over {threads}");
        }
    }
}
