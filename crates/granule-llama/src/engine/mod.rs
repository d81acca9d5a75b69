//! What computes a context's steps: the host, or a device. A step takes tokens of one or more sequences through all layers, stores
//! their keys and values behind the sequences' rows, and keeps the hidden states for whoever wants logits.

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod host;

use std::borrow::BorrowMut;

use granule_device::Bytes;
use granule_kv::{KvLayout, Sequence};
use granule_pool::PoolSlice;

use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::kv_tables::Tables;
use crate::model::Model;
use crate::tokenizer::TokenId;

/// Is shown each layer's queries, rotated, and its keys and values, as the projections gave them: of steps of one sequence.
pub(crate) type Observer<'a> = &'a mut dyn FnMut(usize, &[f32], &[f32], &[f32]) -> Result<()>;

/// What a step adds to one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Which sequence, of those that the step is given; no two parts have the same.
    pub(crate) sequence: usize,
    /// How many tokens, at least one.
    pub(crate) n: usize,
}

/// What a step computes.
pub(crate) struct Batch<'a, S> {
    pub(crate) sequences: &'a mut [S],
    /// Those that take part, and with how many tokens; rows for these are prepared.
    pub(crate) parts: &'a [Part],
    /// The tokens, those of each part one after the other.
    pub(crate) tokens: &'a [TokenId],
    /// What keys and values go through before they are stored.
    pub(crate) tables: Option<&'a Tables>,
}

/// What computes the steps of one context, with the memory to compute in.
#[derive(Debug)]
pub(crate) enum Engine {
    Host(Box<host::HostEngine>),
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::CudaEngine>),
}

impl Engine {
    /// What computes where the model's weights are, over caches of this layout.
    pub(crate) fn new(model: &Model, layout: &KvLayout) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(device) = model.cuda() {
            return Ok(Self::Cuda(Box::new(cuda::CudaEngine::new(model, device, layout)?)));
        }
        Ok(Self::Host(Box::new(host::HostEngine::new(model, layout)?)))
    }

    /// Runs a batch through all layers; the caller commits its rows. The hidden states are kept until the next step, or until
    /// [`Engine::rest`].
    pub(crate) fn step<S: BorrowMut<Sequence>>(
        &mut self,
        model: &Model,
        batch: Batch<'_, S>,
        cancel: &CancelToken,
        observe: Option<Observer<'_>>,
    ) -> Result<()> {
        match self {
            Self::Host(host) => host.step(model, batch, cancel, observe),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.step(model, batch, cancel, observe),
        }
    }

    /// The logits of these tokens of the last step, n_vocab each: into `logits` from row `first` on.
    pub(crate) fn logits(
        &mut self,
        model: &Model,
        tokens: impl Iterator<Item = usize>,
        logits: &mut PoolSlice<f32>,
        first: usize,
    ) -> Result<()> {
        match self {
            Self::Host(host) => host.logits(model, tokens, logits, first),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.logits(model, tokens, logits, first),
        }
    }

    /// Gives back what the last step computed with.
    pub(crate) fn rest(&mut self) {
        match self {
            Self::Host(host) => host.rest(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.rest(),
        }
    }

    /// Memory that the host reads and [`Engine::logits`] writes.
    pub(crate) fn room_for_logits(&self, elements: usize) -> Result<PoolSlice<f32>> {
        match self {
            Self::Host(host) => host.room_for_logits(elements),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.room_for_logits(elements),
        }
    }

    /// Gives what is not in use back to the bank.
    pub(crate) fn trim(&mut self) -> Result<()> {
        match self {
            Self::Host(host) => host.trim(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.trim(),
        }
    }

    /// What it holds.
    pub(crate) fn memory(&self) -> EngineMemory {
        match self {
            Self::Host(host) => host.memory(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.memory(),
        }
    }
}

/// How long a call waits for another context's capture, in milliseconds: captures take a few of them.
const PATIENCE: u32 = 2000;

/// Makes a call again for as long as a device refuses it because a graph is being captured in another context: what allocates, maps
/// or copies does not go together with that. A call that is refused has done nothing.
pub(crate) fn patiently<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..PATIENCE {
        match call() {
            Err(error) if is_capture(&error) => std::thread::sleep(std::time::Duration::from_millis(1)),
            done => return done,
        }
    }
    call()
}

/// Whether a device refused a call because a graph is being captured: a moment, not a verdict.
pub(crate) fn is_capture(error: &Error) -> bool {
    let device = match error {
        Error::Device(device)
        | Error::Bank(granule_bank::Error::Device(device))
        | Error::Pool(granule_pool::Error::Device(device))
        | Error::Pool(granule_pool::Error::Bank(granule_bank::Error::Device(device)))
        | Error::Ops(granule_ops::Error::Device(device))
        | Error::Kv(granule_kv::Error::Device(device))
        | Error::Kv(granule_kv::Error::Bank(granule_bank::Error::Device(device))) => device,
        _ => return false,
    };
    matches!(device, granule_device::Error::Capturing { .. })
}

/// What an engine holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EngineMemory {
    /// Hidden states and logits.
    pub(crate) activations: Bytes,
    /// Temporaries of single operations.
    pub(crate) scratch: Bytes,
    /// A transform's tables, beside the host's.
    pub(crate) folds: Bytes,
    /// Of the host's memory, for copies between it and a device.
    pub(crate) pinned: Bytes,
}
