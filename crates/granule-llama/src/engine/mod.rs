//! What computes a context's steps: the host, devices, or both, stage by stage. A step takes tokens of one or more sequences through
//! all layers, stores their keys and values behind the sequences' rows, and keeps the hidden states for whoever wants logits.
//!
//! A stage is done before the next one begins: its hidden states are then in the host's memory, from where the next one takes them.

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod host;
pub(crate) mod spans;

#[cfg(feature = "cuda")]
use std::ops::Range;

use granule_device::Bytes;
use granule_kv::state::StateError;
use granule_kv::{KvLayout, Sequence};
#[cfg(feature = "cuda")]
use granule_ops::sample::{Draw, Drawn};
use granule_pool::PoolSlice;

use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::kv_tables::Tables;
use crate::model::{Model, Place};
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

/// One token stream's rows, by stage of the model: as many sequences of a cache, of the same tokens.
pub(crate) trait Staged {
    fn stage(&self, index: usize) -> &Sequence;

    fn stage_mut(&mut self, index: usize) -> &mut Sequence;
}

impl Staged for Vec<Sequence> {
    fn stage(&self, index: usize) -> &Sequence {
        &self[index]
    }

    fn stage_mut(&mut self, index: usize) -> &mut Sequence {
        &mut self[index]
    }
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

/// What a step left at the end of a stage, for the next one: n_embd numbers a token.
#[derive(Clone, Copy)]
pub(crate) struct Hidden<'a> {
    rows: &'a [f32],
    /// Which row each token has; none: that of its own number.
    row_of: Option<&'a [u32]>,
}

impl Hidden<'_> {
    /// The numbers of a token of the batch.
    fn of(&self, token: usize, n_embd: usize) -> Result<&[f32]> {
        let row = match self.row_of {
            Some(row_of) => *row_of.get(token).ok_or(Error::NoLogits)? as usize,
            None => token,
        };
        self.rows.get(row * n_embd..(row + 1) * n_embd).ok_or(Error::NoLogits)
    }
}

/// What computes the steps of one context: for each stage of its model what computes there, with the memory to compute in.
#[derive(Debug)]
pub(crate) struct Engine {
    /// Never empty.
    stages: Vec<Stage>,
}

/// How devices other than the host compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct How {
    /// Whether steps of one token of each sequence are replayed from graphs.
    pub(crate) graphs: bool,
    /// Where products of many tokens are cuBLAS's: how many tokens a step has at most.
    pub(crate) cublas: Option<usize>,
}

/// What computes one stage's layers.
#[derive(Debug)]
enum Stage {
    Host(Box<host::HostEngine>),
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::CudaEngine>),
}

impl Engine {
    /// What computes where the model's weights are, over caches of these layouts, one for each stage.
    pub(crate) fn new(model: &Model, layouts: &[KvLayout], how: How) -> Result<Self> {
        let stages = model.places().iter().zip(layouts);
        let stages = stages.map(|(place, layout)| Stage::new(place, layout, how));
        Ok(Self { stages: stages.collect::<Result<_>>()? })
    }

    /// Runs a batch through all layers; the caller commits its rows. The hidden states are kept until the next step, or until
    /// [`Engine::rest`].
    pub(crate) fn step<S: Staged>(
        &mut self,
        model: &Model,
        mut batch: Batch<'_, S>,
        cancel: &CancelToken,
        mut observe: Option<Observer<'_>>,
    ) -> Result<()> {
        let _step = spans::step(batch.tokens.len(), batch.parts.len());
        for index in 0..self.stages.len() {
            let (stage, before) = self.stage(index);
            let hidden = before.map(Stage::hidden).transpose()?;
            match observe.as_mut() {
                // Who observes would be shown twice what is computed twice.
                Some(observe) => stage.step(model, &mut batch, hidden, cancel, Some(&mut **observe))?,
                None => patiently(|| stage.step(model, &mut batch, hidden, cancel, None))?,
            }
        }
        Ok(())
    }

    /// As [`Engine::step`], of one token of one sequence, and the token that is drawn behind it of the first `n` logits, where these are
    /// on a device that draws ([`Engine::draws`]): only that comes back.
    #[cfg(feature = "cuda")]
    pub(crate) fn draw<S: Staged>(
        &mut self,
        model: &Model,
        mut batch: Batch<'_, S>,
        cancel: &CancelToken,
        how: (&Draw, usize),
    ) -> Result<Drawn> {
        let _step = spans::step(batch.tokens.len(), batch.parts.len());
        let last = self.stages.len() - 1;
        for index in 0..last {
            let (stage, before) = self.stage(index);
            let hidden = before.map(Stage::hidden).transpose()?;
            patiently(|| stage.step(model, &mut batch, hidden, cancel, None))?;
        }
        let (stage, before) = self.stage(last);
        let hidden = before.map(Stage::hidden).transpose()?;
        match stage {
            Stage::Cuda(cuda) => patiently(|| cuda.draw(model, &mut batch, hidden, cancel, how)),
            Stage::Host(_) => Err(Error::NoLogits),
        }
    }

    /// Whether the device that has the logits can draw from them.
    #[cfg(feature = "cuda")]
    pub(crate) fn draws(&self) -> bool {
        matches!(self.last(), Stage::Cuda(_))
    }

    /// The logits that the last [`Engine::draw`] drew from, n_vocab long.
    #[cfg(feature = "cuda")]
    pub(crate) fn drawn_from(&self) -> Result<PoolSlice<f32>> {
        match self.last() {
            Stage::Cuda(cuda) => cuda.drawn_from(),
            Stage::Host(_) => Err(Error::NoLogits),
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
        match self.stages.last_mut() {
            Some(Stage::Host(host)) => host.logits(model, tokens, logits, first),
            #[cfg(feature = "cuda")]
            Some(Stage::Cuda(cuda)) => cuda.logits(model, tokens, logits, first),
            None => Err(Error::NoLogits),
        }
    }

    /// Gives back what the last step computed with.
    pub(crate) fn rest(&mut self) {
        for stage in &mut self.stages {
            match stage {
                Stage::Host(host) => host.rest(),
                #[cfg(feature = "cuda")]
                Stage::Cuda(cuda) => cuda.rest(),
            }
        }
    }

    /// Memory that the host reads and [`Engine::logits`] writes.
    pub(crate) fn room_for_logits(&self, elements: usize) -> Result<PoolSlice<f32>> {
        match self.last() {
            Stage::Host(host) => host.room_for_logits(elements),
            #[cfg(feature = "cuda")]
            Stage::Cuda(cuda) => cuda.room_for_logits(elements),
        }
    }

    /// Gives what is not in use back to the banks.
    pub(crate) fn trim(&mut self) -> Result<()> {
        self.stages.iter_mut().try_for_each(|stage| match stage {
            Stage::Host(host) => host.trim(),
            #[cfg(feature = "cuda")]
            Stage::Cuda(cuda) => cuda.trim(),
        })
    }

    /// What each stage holds.
    pub(crate) fn memory(&self) -> impl Iterator<Item = EngineMemory> {
        self.stages.iter().map(|stage| match stage {
            Stage::Host(host) => host.memory(),
            #[cfg(feature = "cuda")]
            Stage::Cuda(cuda) => cuda.memory(),
        })
    }

    /// A stage, and the one before it.
    fn stage(&mut self, index: usize) -> (&mut Stage, Option<&Stage>) {
        let (before, rest) = self.stages.split_at_mut(index);
        (&mut rest[0], before.last())
    }

    fn last(&self) -> &Stage {
        &self.stages[self.stages.len() - 1]
    }
}

impl Stage {
    fn new(place: &Place, layout: &KvLayout, how: How) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(device) = &place.cuda {
            return Ok(Self::Cuda(Box::new(cuda::CudaEngine::new(place, device, layout, how)?)));
        }
        // The host has one way.
        let _ = how;
        Ok(Self::Host(Box::new(host::HostEngine::new(place, layout)?)))
    }

    /// Runs a batch through this stage's layers, from the hidden states that the one before it left, or from the tokens.
    fn step<S: Staged>(
        &mut self,
        model: &Model,
        batch: &mut Batch<'_, S>,
        hidden: Option<Hidden<'_>>,
        cancel: &CancelToken,
        observe: Option<Observer<'_>>,
    ) -> Result<()> {
        match self {
            Self::Host(host) => host.step(model, batch, hidden, cancel, observe),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.step(model, batch, hidden, cancel, observe),
        }
    }

    /// What the last step left for the next stage.
    fn hidden(&self) -> Result<Hidden<'_>> {
        match self {
            Self::Host(host) => host.hidden(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.hidden(),
        }
    }
}

/// The rows that a batch's tokens have, of a list with `n` a token.
#[cfg(feature = "cuda")]
fn rows_of(tokens: Range<usize>, n: usize) -> Range<usize> {
    tokens.start * n..tokens.end * n
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
        | Error::State(StateError::Kv(granule_kv::Error::Device(device)))
        | Error::Kv(granule_kv::Error::Bank(granule_bank::Error::Device(device)))
        | Error::State(StateError::Kv(granule_kv::Error::Bank(granule_bank::Error::Device(device)))) => {
            device
        }
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
