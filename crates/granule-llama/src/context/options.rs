//! `ContextOptions`: how to make a context.

use std::time::Duration;

use granule_kv::{KvLayout, KvOptions, KvShape, KvType};

use crate::error::Result;
use crate::kv_transform::KvTransformMode;

/// How long ranks wait for one another where nothing else is said: a step of a few hundred tokens takes seconds at most.
pub(crate) const RANK_TIMEOUT: Duration = Duration::from_secs(120);

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
    /// On a GPU: whether steps of one token of each sequence are captured as graphs and replayed, one launch a step, instead of being
    /// given kernel by kernel. The numbers are the same.
    pub graphs: bool,
    /// On a GPU: whether products of many tokens are NVIDIA's cuBLAS's, where it is installed, instead of this project's kernels'. It takes
    /// some 40 to 100 MiB of scratch, and its handle memory that no bank counts. Which is faster, nobody has measured yet.
    pub cublas: bool,
    /// Where layers are split over ranks of one process: how long one waits for another before the step fails. Between processes it is
    /// their communicator's time.
    pub rank_timeout: Duration,
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
            graphs: true,
            cublas: false,
            rank_timeout: RANK_TIMEOUT,
            prefix_cache: false,
        }
    }
}

impl ContextOptions {
    /// How the rows of a stage lie that has so many layers of a model of this shape, and so many sinks.
    pub(crate) fn layout(&self, shape: KvShape, n_layers: usize, sinks: usize) -> Result<KvLayout> {
        let layers_per_row = self.layers_per_row.map(|layers| layers.min(n_layers));
        let shape = KvShape { n_layers, ..shape };
        Ok(KvLayout::new(shape, self.type_k, self.type_v, layers_per_row, sinks)?)
    }
}
