//! Causal attention with grouped queries, straight from the cache's own types:
//! `softmax(q K^T * scale) V` (Vaswani et al., 2017; Ainslie et al., 2023), in one pass with a running maximum
//! (Milakov and Gimelshein, 2018; Dao et al., 2022), so the scores never exist as a whole.

mod cpu;

pub use cpu::{attention, scratch_len};

/// The numbers of one attention call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads; a multiple of the cache's key-value heads.
    pub n_heads: usize,
    /// Query tokens.
    pub n_tokens: usize,
    /// Position of the first query token; query `i` sees the rows `0..=first + i`.
    pub first: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}
