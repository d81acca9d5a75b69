//! Causal attention with grouped queries, straight from the cache's own types:
//! `softmax(q K^T * scale) V` (Vaswani et al., 2017; Ainslie et al., 2023), in one pass with a running maximum
//! (Milakov and Gimelshein, 2018; Dao et al., 2022), so the scores never exist as a whole.
//!
//! One call takes a batch of sequences of any lengths. Where a segment of a sequence has a turn, its keys stand `turn`
//! positions behind where they should be, so queries are turned back by as much. Where keys are transformed, queries and
//! results are too: see [`KvTransform`].

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod step;

pub use cpu::{cpu, scratch_len, scratch_len_for};
#[cfg(feature = "cuda")]
pub use cuda::{CudaAttention, cuda, cuda_scratch_bytes, cuda_scratch_len};
#[cfg(feature = "cuda")]
pub use step::{CudaStep, CudaStepView, StepCounts, step};

use crate::{Error, KvRowLayout, KvTransform, KvView, Rope};

/// What the items of one call have in common.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape<'a> {
    /// Query heads; a multiple of the cache's key-value heads.
    pub n_heads: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// How this layer's keys and values were transformed before they were stored, if they were.
    pub transform: Option<&'a KvTransform>,
    /// The model's rotation: needed where a segment of a cache has a turn.
    pub rope: Option<&'a Rope>,
}

/// One sequence of a call: its queries are the next `n_tokens` of the call's, rotated at their positions. The last of them
/// sees all of the cache, the one before it one token less, and so on.
#[derive(Clone, Debug)]
pub struct AttentionItem<'a> {
    /// Keys and values, those of the queries' own tokens included.
    pub cache: KvView<'a>,
    /// Query tokens, at least one.
    pub n_tokens: usize,
}

/// Query heads are a multiple of the key-value heads.
pub(crate) fn check_heads(n_heads: usize, layout: &KvRowLayout) -> Result<(), Error> {
    if layout.n_kv_heads == 0 || n_heads == 0 || !n_heads.is_multiple_of(layout.n_kv_heads) {
        let must = "a multiple of the number of key-value heads";
        return Err(Error::Dimension { what: "the number of query heads", must, got: n_heads });
    }
    Ok(())
}

/// Checks what is the same on every device, for queries and output of these lengths.
fn check(shape: &AttentionShape<'_>, items: &[AttentionItem<'_>], q: usize, out: usize) -> Result<(), Error> {
    let Some(layout) = items.first().map(|item| *item.cache.layout()) else {
        return crate::error::expect_len("queries", q, 0);
    };
    let (n_kv_heads, head_dim) = (layout.n_kv_heads, layout.head_dim);
    check_heads(shape.n_heads, &layout)?;
    let mut tokens = 0;
    for AttentionItem { cache, n_tokens } in items {
        if *n_tokens == 0 {
            return Err(Error::Dimension { what: "an item's query tokens", must: "at least one", got: 0 });
        }
        if cache.len() < *n_tokens {
            return Err(Error::Shape { what: "rows of the cache", got: cache.len(), want: *n_tokens });
        }
        if *cache.layout() != layout {
            return Err(Error::Layouts);
        }
        if cache.segments().iter().any(|segment| segment.turn != 0) {
            let dims = shape.rope.ok_or(Error::NoRope)?.dims();
            if dims > head_dim {
                let must = "at most the head dimension";
                return Err(Error::Dimension { what: "the rotated dimension", must, got: dims });
            }
        }
        tokens += n_tokens;
    }
    if let Some(transform) = shape.transform {
        crate::error::expect_len("a transform's heads", transform.n_kv_heads(), n_kv_heads)?;
        crate::error::expect_len("a transform's head dimension", transform.head_dim(), head_dim)?;
    }
    crate::error::expect_len("queries", q, tokens * shape.n_heads * head_dim)?;
    crate::error::expect_len("attention output", out, q)
}
