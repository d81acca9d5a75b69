//! Where a context's memory went, in bytes.

use granule_device::Bytes;

/// What a context and its model hold. Everything but the model is counted in whole granules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryInfo {
    /// The weights: the mapped or read files. Shared by all contexts of the model.
    pub model: Bytes,
    /// The KV cache of this context, granules shared with a fork included.
    pub kv: Bytes,
    /// Of `kv`: what a fork shares.
    pub kv_shared: Bytes,
    /// Bytes of the rows in use, a part of `kv`.
    pub kv_used: Bytes,
    /// What the cache would hold at the full context size. Address space, not memory.
    pub kv_reserved: Bytes,
    /// Tables of the transform that keys and values go through, if there is one. Shared by all contexts of the model.
    pub kv_transform: Bytes,
    /// Hidden states and logits.
    pub activations: Bytes,
    /// Temporaries of single operations.
    pub scratch: Bytes,
    /// Tokens in the context.
    pub n_tokens: usize,
    /// Tokens that the context can hold.
    pub n_ctx: usize,
    /// All of the above: model, kv, kv_transform, activations, scratch.
    pub total: Bytes,
}
