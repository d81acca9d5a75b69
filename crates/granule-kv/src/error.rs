//! Everything that can go wrong with a KV cache, said to the person who must act.

use crate::KvType;

/// Why a cache did not do what it was asked. A call that returns one has changed nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name of no type.
    #[error("{name:?} is no type of a KV cache: choose f32, f16, bf16, q8_0 or q4_0")]
    UnknownType {
        /// The name.
        name: String,
    },
    /// A type whose blocks do not fit the heads.
    #[error(
        "a cache of {kv_type} needs a head dim that is a multiple of {multiple}, and the model's is {head_dim}"
    )]
    HeadDim {
        /// The type.
        kv_type: KvType,
        /// Elements of one head.
        head_dim: usize,
        /// What the head dim would have to be a multiple of.
        multiple: usize,
    },
    /// A shape of zero layers, heads or elements, or one beyond what can be addressed.
    #[error(
        "a cache of {n_layers} layers, {n_kv_heads} KV heads and {head_dim} elements a head is not possible"
    )]
    Shape {
        /// Layers.
        n_layers: usize,
        /// KV heads of a layer.
        n_kv_heads: usize,
        /// Elements of a head.
        head_dim: usize,
    },
    /// A number of layers per row that the model does not have.
    #[error("{layers_per_row} layers per row, and the model has {n_layers}")]
    LayersPerRow {
        /// What was asked for.
        layers_per_row: usize,
        /// Layers of the model.
        n_layers: usize,
    },
    /// A layer that the model does not have.
    #[error("layer {layer}, and the model has {n_layers}")]
    NoSuchLayer {
        /// The layer, from 0.
        layer: usize,
        /// Layers of the model.
        n_layers: usize,
    },
    /// More tokens than the context holds.
    #[error("{requested} more tokens do not fit: the context holds {n_ctx} and has {len}")]
    ContextFull {
        /// Tokens to add.
        requested: usize,
        /// Tokens that are there.
        len: usize,
        /// Tokens that the sequence was made for.
        n_ctx: usize,
    },
    /// Rows that were not made room for.
    #[error("row {row} is asked for, and rows up to {prepared} are prepared")]
    NotPrepared {
        /// One past the last row asked for.
        row: usize,
        /// One past the last prepared row.
        prepared: usize,
    },
    /// Tokens that are not there.
    #[error("a sequence of {len} tokens cannot be cut down to {to}")]
    PastEnd {
        /// Tokens to keep.
        to: usize,
        /// Tokens that are there.
        len: usize,
    },
    /// The bank said no: most often, out of memory.
    #[error(transparent)]
    Bank(#[from] granule_bank::Error),
    /// The view could not be made.
    #[error(transparent)]
    View(#[from] granule_ops::Error),
}
