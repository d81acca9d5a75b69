//! Everything that can go wrong with a KV cache, said to the person who must act.

use std::ops::Range;

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
    /// Tokens that no room was made for.
    #[error("{requested} tokens are asked for, and there is room for {prepared}")]
    NotPrepared {
        /// Tokens asked for.
        requested: usize,
        /// Tokens that are there or prepared.
        prepared: usize,
    },
    /// A range of tokens that the sequence does not have.
    #[error("tokens {}..{} of a sequence of {len}", tokens.start, tokens.end)]
    NoSuchTokens {
        /// The tokens.
        tokens: Range<usize>,
        /// Tokens that are there.
        len: usize,
    },
    /// Positions beyond what can be counted, after billions of tokens or by a shift.
    #[error("a token stored at position {position} cannot be turned that far")]
    Positions {
        /// Where it was stored.
        position: usize,
    },
    /// Bytes of another length than the tokens'.
    #[error("{bytes} bytes of {what} are not {tokens} tokens of {each} bytes")]
    Length {
        /// Keys or values.
        what: &'static str,
        /// How many bytes there are.
        bytes: usize,
        /// How many tokens they are to be.
        tokens: usize,
        /// The bytes of one.
        each: usize,
    },
    /// A cache whose keys and values are transformed has no plain form.
    #[error(
        "the cache keeps keys and values transformed, which ggml's layout cannot say: make it without a transform"
    )]
    Transformed,
    /// Tokens that are not there.
    #[error("a sequence of {len} tokens cannot be cut down to {to}")]
    PastEnd {
        /// Tokens to keep.
        to: usize,
        /// Tokens that are there.
        len: usize,
    },
    /// A prefix key of other sequences.
    #[error("the key is of another layout or context size than the sequence")]
    OtherKey,
    /// The device said no.
    #[error(transparent)]
    Device(#[from] granule_device::Error),
    /// The bank said no: most often, out of memory.
    #[error(transparent)]
    Bank(#[from] granule_bank::Error),
    /// The view could not be made.
    #[error(transparent)]
    View(#[from] granule_ops::Error),
}
