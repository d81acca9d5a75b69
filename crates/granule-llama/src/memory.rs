//! Where a context's memory went, in bytes.

use granule_device::Bytes;
use granule_kv::KvMemory;

use crate::context::SequenceId;

/// What a context and its model hold. Everything but the model and the transform is counted in whole granules, each of which
/// counts once.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryInfo {
    /// The devices whose memory this is, in the order of the model's layers: "host", "cuda:0", "host + cuda:0", …
    pub device: String,
    /// The weights: what is used in place of the mapped or read files, and what is packed. Shared by all contexts of the model.
    pub model: Bytes,
    /// Of `model`: weights that are packed for the CPU at hand, or copied into huge pages.
    pub model_packed: Bytes,
    /// Keys and values of this context's sequences. Granules that several of them have count once; those that others have too,
    /// another context or a remembered prompt, count in full.
    pub kv: Bytes,
    /// Of `kv`: what more than one sequence has, of this context or not.
    pub kv_shared: Bytes,
    /// Bytes of the sequences' rows: tokens times the bytes of one, shared or not.
    pub kv_used: Bytes,
    /// What the cache would hold at the full context size. Address space, not memory.
    pub kv_reserved: Bytes,
    /// Prompts that the model remembers, but for what is in `kv`. It goes back when somebody else needs it.
    pub kv_prefixes: Bytes,
    /// Memory of sequences that are gone, for the next ones; shared by all contexts of the model with the same types. It goes
    /// back when somebody else needs it.
    pub kv_parked: Bytes,
    /// Tables of the transform that keys and values go through, if there is one. Shared by all contexts of the model; on a GPU each
    /// context has them once more, there.
    pub kv_transform: Bytes,
    /// Hidden states and logits.
    pub activations: Bytes,
    /// Temporaries of single operations.
    pub scratch: Bytes,
    /// Of the host's memory, what copies to and from a GPU go through, the logits among it. Not in `total`.
    pub pinned: Bytes,
    /// Tokens in the first sequence.
    pub n_tokens: usize,
    /// Tokens that a sequence can hold.
    pub n_ctx: usize,
    /// All of the above that is the device's: model, kv, kv_prefixes, kv_parked, kv_transform, activations, scratch.
    pub total: Bytes,
    /// Each device by itself, in the order of the model's layers. The tables of a transform, which the host has, are with the
    /// host where it has layers, and else with the first.
    pub devices: Vec<DeviceMemory>,
    /// Each sequence by itself, in the order of [`Context::sequences`](crate::Context::sequences): what several have is in
    /// each.
    pub sequences: Vec<SequenceMemory>,
}

/// What a context and its model hold on one device, as in [`MemoryInfo`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceMemory {
    /// "host", "cuda:0", …
    pub device: String,
    /// How many of the model's layers are there.
    pub layers: usize,
    /// The weights.
    pub model: Bytes,
    /// Keys and values of this context's sequences, of the layers that are there.
    pub kv: Bytes,
    /// Of `kv`: what more than one sequence has.
    pub kv_shared: Bytes,
    /// Bytes of the sequences' rows.
    pub kv_used: Bytes,
    /// What the cache would hold at the full context size.
    pub kv_reserved: Bytes,
    /// Prompts that the model remembers, but for what is in `kv`.
    pub kv_prefixes: Bytes,
    /// Memory of sequences that are gone, for the next ones.
    pub kv_parked: Bytes,
    /// Tables of a transform.
    pub kv_transform: Bytes,
    /// Hidden states and logits.
    pub activations: Bytes,
    /// Temporaries of single operations.
    pub scratch: Bytes,
    /// Of the host's memory, what copies to and from this device go through. Not in `total`.
    pub pinned: Bytes,
    /// All of the above that is the device's: model, kv, kv_prefixes, kv_parked, kv_transform, activations, scratch.
    pub total: Bytes,
    /// What the process's CUDA context takes there for itself, as `Device::context_bytes` measured it when the model was
    /// loaded. Not in `total`: it is the process's, not a bank's. None on the host, and where it could not be measured.
    pub context: Option<Bytes>,
}

impl DeviceMemory {
    pub(crate) fn new(device: &str, model: Bytes) -> Self {
        Self { device: device.to_owned(), model, ..Self::default() }
    }

    pub(crate) fn sum(&self) -> Bytes {
        let Self { model, kv, kv_prefixes, kv_parked, kv_transform, activations, scratch, .. } = *self;
        let parts = [model, kv, kv_prefixes, kv_parked, kv_transform, activations, scratch];
        parts.into_iter().fold(Bytes::ZERO, Bytes::saturating_add)
    }
}

/// What one sequence of a context holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SequenceMemory {
    /// Which one.
    pub id: SequenceId,
    /// Its tokens.
    pub n_tokens: usize,
    /// Its keys and values.
    pub kv: KvMemory,
}

/// What a rank of a context has sent to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RankTraffic {
    /// Which rank.
    pub rank: usize,
    /// Collectives that it took part in.
    pub calls: u64,
    /// Bytes that it sent, or that others read of its memory. Of ranks in one process logits are put together without any.
    pub sent: Bytes,
}
