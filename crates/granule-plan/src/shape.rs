//! The numbers of a model that sizes follow from.

use granule_quant::DType;

/// The numbers of a Llama-like model that the sizes of a step follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Elements of one token's hidden state.
    pub n_embd: usize,
    /// Query heads of a layer.
    pub n_heads: usize,
    /// Key-value heads of a layer; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Hidden elements of the feed-forward part.
    pub n_ff: usize,
    /// Tokens of the vocabulary.
    pub n_vocab: usize,
    /// Elements of each head that are rotated.
    pub rope_dims: usize,
    /// The type of the output layer, which is `n_vocab` x `n_embd`.
    pub output: DType,
}

impl ModelShape {
    /// Elements of all query heads of one token.
    #[must_use]
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Elements of all keys (and of all values) of one token in one layer.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}

/// A weight matrix, as a file's directory has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixShape {
    /// The type of its elements.
    pub dtype: DType,
    /// Rows: elements of a product with it.
    pub rows: usize,
    /// Columns: elements of what is multiplied with it.
    pub cols: usize,
}
