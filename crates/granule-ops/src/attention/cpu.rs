//! Attention on the host: tiles of cache rows are decoded once for all query heads and query tokens that read them.

use granule_quant::{DType, axpy_planar, decode_planar, gemm_f32};

use super::AttentionShape;
use crate::error::expect_len;
use crate::kv_view::KvRowLayout;
use crate::threads::Disjoint;
use crate::{Error, KvView, Threads};

/// Cache rows that are decoded at a time.
const TILE: usize = 64;
/// Query rows (heads of a group x tokens) that share a decoded tile, at least one token's worth.
const QUERY_ROWS: usize = 32;

/// How the query tokens are cut into blocks.
struct Blocks {
    group: usize,
    tokens: usize,
    rows: usize,
}

impl Blocks {
    fn new(n_heads: usize, n_kv_heads: usize, n_tokens: usize) -> Self {
        let group = n_heads / n_kv_heads.max(1);
        let tokens = (QUERY_ROWS / group.max(1)).clamp(1, n_tokens.max(1));
        Self { group, tokens, rows: tokens * group }
    }

    /// f32 elements that one worker needs: the queries, the running sums, the scores, and one tile of K or V.
    fn scratch(&self, head_dim: usize) -> usize {
        2 * self.rows * head_dim + self.rows * TILE + 2 * self.rows + TILE * head_dim
    }
}

/// f32 elements of scratch that [`attention`] needs for this shape.
#[must_use]
pub fn scratch_len(threads: &Threads, layout: &KvRowLayout, n_heads: usize, n_tokens: usize) -> usize {
    threads.count() * Blocks::new(n_heads, layout.n_kv_heads, n_tokens).scratch(layout.head_dim)
}

/// `q` and `out` are tokens x heads x head dim; `scratch` is at least [`scratch_len`] long.
///
/// # Errors
/// [`Error::Dimension`] if the query heads are no multiple of the key-value heads, [`Error::Shape`] if a length does
/// not fit or the view ends before the last query token, [`Error::NotOnHost`].
pub fn attention(
    threads: &Threads,
    shape: &AttentionShape,
    q: &[f32],
    cache: &KvView<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
) -> Result<(), Error> {
    let layout = *cache.layout();
    let (head_dim, n_kv_heads) = (layout.head_dim, layout.n_kv_heads);
    if n_kv_heads == 0 || !shape.n_heads.is_multiple_of(n_kv_heads) {
        return Err(Error::Dimension {
            what: "the number of query heads",
            must: "a multiple of the number of key-value heads",
            got: shape.n_heads,
        });
    }
    expect_len("queries", q.len(), shape.n_tokens * shape.n_heads * head_dim)?;
    expect_len("attention output", out.len(), q.len())?;
    let rows_seen = shape.first.saturating_add(shape.n_tokens);
    if cache.len() < rows_seen {
        return Err(Error::Shape { what: "rows of the cache", got: cache.len(), want: rows_seen });
    }
    let blocks = Blocks::new(shape.n_heads, n_kv_heads, shape.n_tokens);
    let per_worker = blocks.scratch(head_dim);
    if scratch.len() < threads.count() * per_worker {
        return Err(Error::Shape {
            what: "attention scratch",
            got: scratch.len(),
            want: threads.count() * per_worker,
        });
    }
    // Contiguous rows only, until the other way of reading them is done.
    let rows = match cache.segments() {
        [one] if one.turn == 0 && layout.sinks.is_none() => one.rows,
        segments => return Err(Error::Shape { what: "segments of the cache", got: segments.len(), want: 1 }),
    };
    let bytes = rows.as_host().ok_or(Error::NotOnHost { what: "a KV cache" })?;
    let token_blocks = shape.n_tokens.div_ceil(blocks.tokens);
    let (out, scratch) = (Disjoint::new(out), Disjoint::new(scratch));
    threads.try_for_each_chunk(n_kv_heads * token_blocks, 1, &|worker, items| {
        // SAFETY: every worker has its own part.
        let scratch = unsafe { scratch.range(worker * per_worker..(worker + 1) * per_worker) };
        for item in items {
            // The longest blocks first, so that the threads end together.
            let (block, kv_head) = (token_blocks - 1 - item / n_kv_heads, item % n_kv_heads);
            let part = Part { shape, layout: &layout, blocks: &blocks, block, kv_head };
            part.attend(q, bytes, &out, scratch)?;
        }
        Ok(())
    })
}

/// One block of query tokens against one key-value head.
struct Part<'a> {
    shape: &'a AttentionShape,
    layout: &'a KvRowLayout,
    blocks: &'a Blocks,
    block: usize,
    kv_head: usize,
}

impl Part<'_> {
    fn attend(
        &self,
        q: &[f32],
        bytes: &[u8],
        out: &Disjoint<'_, f32>,
        scratch: &mut [f32],
    ) -> Result<(), Error> {
        let Blocks { group, .. } = *self.blocks;
        let head_dim = self.layout.head_dim;
        let first_token = self.block * self.blocks.tokens;
        let tokens = self.blocks.tokens.min(self.shape.n_tokens - first_token);
        let rows = tokens * group;
        let width = self.shape.n_heads * head_dim;
        let head_at = self.kv_head * group * head_dim;

        let (queries, rest) = scratch.split_at_mut(rows * head_dim);
        let (sums, rest) = rest.split_at_mut(rows * head_dim);
        let (scores, rest) = rest.split_at_mut(rows * TILE);
        let (maxima, rest) = rest.split_at_mut(rows);
        let (totals, rest) = rest.split_at_mut(rows);
        let tile = &mut rest[..TILE * head_dim];
        for (token, row) in queries.chunks_exact_mut(group * head_dim).enumerate() {
            let from = (first_token + token) * width + head_at;
            for (to, &x) in row.iter_mut().zip(&q[from..from + group * head_dim]) {
                *to = x * self.shape.scale;
            }
        }
        sums.fill(0.0);
        maxima.fill(f32::NEG_INFINITY);
        totals.fill(0.0);

        let keys = self.layout.head(true, self.kv_head)?;
        let values = self.layout.head(false, self.kv_head)?;
        let stride = self.layout.row_stride;
        let seen_by_first = self.shape.first + first_token + 1;
        let seen_by_last = seen_by_first + tokens - 1;
        for start in (0..seen_by_last).step_by(TILE) {
            let n = TILE.min(seen_by_last - start);
            for (i, row) in tile.chunks_exact_mut(head_dim).take(n).enumerate() {
                let (quants, scales) = keys.in_row(bytes, (start + i) * stride);
                decode_planar(self.layout.k_type, quants, scales, row)?;
            }
            let tile_bytes = bytemuck::cast_slice(&tile[..n * head_dim]);
            gemm_f32(DType::F32, tile_bytes, n, head_dim, queries, rows, scores, TILE)?;
            for row in 0..rows {
                // Query token `row / group` sees the cache up to its own position.
                let visible = (seen_by_first + row / group).saturating_sub(start).min(n);
                let scores = &mut scores[row * TILE..row * TILE + n];
                scores[visible..].fill(0.0);
                if visible == 0 {
                    continue;
                }
                let scores = &mut scores[..visible];
                let max = scores.iter().copied().fold(maxima[row], f32::max);
                let shrink = (maxima[row] - max).exp();
                let mut total = 0f32;
                for score in scores.iter_mut() {
                    *score = (*score - max).exp();
                    total += *score;
                }
                maxima[row] = max;
                totals[row] = totals[row] * shrink + total;
                if shrink != 1.0 {
                    for sum in &mut sums[row * head_dim..(row + 1) * head_dim] {
                        *sum *= shrink;
                    }
                }
            }
            for i in 0..n {
                let (quants, scales) = values.in_row(bytes, (start + i) * stride);
                decode_planar(
                    self.layout.v_type,
                    quants,
                    scales,
                    &mut tile[i * head_dim..(i + 1) * head_dim],
                )?;
            }
            let tile_bytes: &[u8] = bytemuck::cast_slice(&tile[..n * head_dim]);
            for (row, sum) in sums.chunks_exact_mut(head_dim).enumerate() {
                for (weight, value) in
                    scores[row * TILE..row * TILE + n].iter().zip(tile_bytes.chunks_exact(4 * head_dim))
                {
                    axpy_planar(DType::F32, value, &[], *weight, sum);
                }
            }
        }
        for (token, sum) in sums.chunks_exact(group * head_dim).enumerate() {
            let at = (first_token + token) * width + head_at;
            // SAFETY: each (token, key-value head) is in one item, and its heads' outputs lie next to each other.
            let out = unsafe { out.range(at..at + group * head_dim) };
            for (head, (to, from)) in
                out.chunks_exact_mut(head_dim).zip(sum.chunks_exact(head_dim)).enumerate()
            {
                let total = totals[token * group + head];
                for (to, &x) in to.iter_mut().zip(from) {
                    *to = x / total;
                }
            }
        }
        Ok(())
    }
}
