//! A stage: a run of a model's layers on one device, or one rank's part of it; and what it holds.

use std::sync::Arc;

use granule_device::Bytes;
use granule_kv::KvLayout;
#[cfg(feature = "cuda")]
use granule_ops::DeviceFacts;
use granule_quant::DType;
use granule_split::Communicator;

use crate::ModelShape;

/// What computes a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// The host.
    Host {
        /// Threads that compute steps of one token.
        threads: usize,
        /// Those that compute steps of more.
        threads_batch: usize,
    },
    /// A CUDA device.
    #[cfg(feature = "cuda")]
    Cuda(DeviceFacts),
}

/// One rank's part of layers that are split: it has some of every layer's heads and of its feed-forward part, and of the last
/// layers' run some of the vocabulary.
#[derive(Clone, Debug)]
pub struct Part {
    /// What tells a run of layers from the one behind it: equal for its ranks, which follow one another.
    pub run: usize,
    /// Which of the run's ranks.
    pub rank: usize,
    /// The shape of what it computes: its own heads, feed-forward elements and vocabulary.
    pub shape: ModelShape,
    /// What sums over all ranks where it computes on a GPU, if that asks for [scratch](Communicator::scratch_bytes).
    pub sums: Option<Arc<dyn Communicator>>,
}

/// A run of layers on one device, or one rank's part of it, to be planned for.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The device's name: "host", "cuda:0", …
    pub device: String,
    /// What its memory comes by; zero where it has no virtual memory.
    pub granule: Bytes,
    /// What computes there.
    pub compute: Compute,
    /// Where its layers are split: which part it is. All of a run's parts that are in this process follow one another.
    pub part: Option<Part>,
    /// How its layers' keys and values lie, of its own heads; their number is the stage's.
    pub kv: KvLayout,
    /// Type and columns of the weights of its layers, as they are here, each pair once is enough.
    pub products: Vec<(DType, usize)>,
    /// Weights as the bank will count them: [`Places::bytes`](crate::Places::bytes) of a GPU's, rounded up by who plans.
    pub weights: Bytes,
    /// What is there beside the weights while they are loaded, and gone after that.
    pub loading: Bytes,
    /// Tables of a transform: what is kept for the model; and a context's own copy from its first step on.
    pub kv_transform: (Bytes, Bytes),
    /// Scratch that the engine has from the start: what cuBLAS works in, where it is asked for.
    pub engine_scratch: Bytes,
    /// What a CUDA context costs, as measured.
    pub context: Option<Bytes>,
}

/// What a stage holds, in bytes as its bank counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StageMemory {
    /// The device's name.
    pub device: String,
    /// Where its layers are split: which rank it is.
    pub rank: Option<usize>,
    /// Layers.
    pub layers: usize,
    /// The weights.
    pub weights: Bytes,
    /// Beside them while they are loaded. Not in the total.
    pub loading: Bytes,
    /// Keys and values.
    pub kv: Bytes,
    /// A transform's tables.
    pub kv_transform: Bytes,
    /// Hidden states, and logits where they are computed.
    pub activations: Bytes,
    /// Temporaries of single operations.
    pub scratch: Bytes,
    /// Of the host's memory, what copies to and from a GPU go through. Not in the total.
    pub pinned: Bytes,
    /// A CUDA context's own memory, as it was given. Not in the total, as no bank counts it.
    pub context: Option<Bytes>,
}

impl StageMemory {
    /// What the bank counts: weights, keys and values, tables, activations and scratch.
    #[must_use]
    pub fn total(&self) -> Bytes {
        let StageMemory { weights, kv, kv_transform, activations, scratch, .. } = self;
        [weights, kv, kv_transform, activations, scratch]
            .into_iter()
            .fold(Bytes::ZERO, |sum, part| sum.saturating_add(*part))
    }
}
