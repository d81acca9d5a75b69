//! `ContextOptions`: how to make a context.

use granule_kv::{KvOptions, KvType};

use crate::kv_transform::KvTransformMode;

/// How to make a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextOptions {
    /// The most tokens of each of its sequences. None: as many as the model was trained for. Only addresses are reserved for
    /// them; memory is taken as a sequence grows.
    pub n_ctx: Option<usize>,
    /// The most tokens that are computed in one go, of all sequences together.
    pub n_batch: usize,
    /// The type that keys are stored in.
    pub type_k: KvType,
    /// The type that values are stored in.
    pub type_v: KvType,
    /// Layers whose rows lie together in the cache; None: the cache's default.
    pub layers_per_row: Option<usize>,
    /// Whether keys and values are transformed before they are stored.
    pub kv_transform: KvTransformMode,
    /// How the cache deals with memory that no token lies in yet, or any more. Contexts for which it is the same share a cache;
    /// a sequence that begins with a remembered prompt is one of the cache that the prompt was computed in.
    pub kv: KvOptions,
    /// Whether prompts are remembered by the model, for all its contexts of these types, and found again by
    /// [`Context::eval_prompt`](crate::Context::eval_prompt) and generation.
    ///
    /// Off unless asked for, because of two things it changes: memory stays in use when the context is gone, until somebody
    /// else needs it or the model goes; and a prompt that was cut into other batches has logits that differ in the last
    /// bits, so that what comes out depends, that far, on what came before.
    pub prefix_cache: bool,
}

impl Default for ContextOptions {
    fn default() -> Self {
        Self {
            n_ctx: None,
            n_batch: 512,
            type_k: KvType::F16,
            type_v: KvType::F16,
            layers_per_row: None,
            kv_transform: KvTransformMode::Auto,
            kv: KvOptions::new(),
            prefix_cache: false,
        }
    }
}
