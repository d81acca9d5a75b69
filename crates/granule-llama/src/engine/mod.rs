//! What computes a context's steps: the host, devices, or both, stage by stage. A step takes tokens of one or more sequences through
//! all layers, stores their keys and values behind the sequences' rows, and keeps the hidden states for whoever wants logits.
//!
//! A stage is done before the next one begins: its hidden states are then in the host's memory, from where the next one takes them.

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod group;
mod host;
pub(crate) mod spans;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use granule_device::Bytes;
use granule_kv::state::StateError;
use granule_kv::{KvLayout, Sequence};
use granule_ops::embed;
#[cfg(feature = "cuda")]
use granule_ops::sample::{Draw, Drawn};
use granule_pool::PoolSlice;
use granule_split::Communicator;

use self::group::Group;
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::kv_tables::Tables;
use crate::memory::RankTraffic;
use crate::model::{Model, Place};
use crate::tokenizer::TokenId;

/// Is shown each layer's queries, rotated, and its keys and values, as the projections gave them: of steps of one sequence.
pub(crate) type Observer<'a> = &'a mut (dyn FnMut(usize, &[f32], &[f32], &[f32]) -> Result<()> + Send);

/// What a step adds to one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Which sequence, of those that the step is given; no two parts have the same.
    pub(crate) sequence: usize,
    /// How many tokens, at least one.
    pub(crate) n: usize,
}

/// One token stream's rows, by the model's places: as many sequences of a cache, of the same tokens.
pub(crate) trait Staged {
    fn stage(&self, index: usize) -> &Sequence;

    fn stage_mut(&mut self, index: usize) -> &mut Sequence;

    /// Those of several places, each to be written by another thread.
    fn stages_mut(&mut self, places: Range<usize>) -> &mut [Sequence];
}

impl Staged for Vec<Sequence> {
    fn stage(&self, index: usize) -> &Sequence {
        &self[index]
    }

    fn stage_mut(&mut self, index: usize) -> &mut Sequence {
        &mut self[index]
    }

    fn stages_mut(&mut self, places: Range<usize>) -> &mut [Sequence] {
        &mut self[places]
    }
}

/// What a step computes.
pub(crate) struct Batch<'a, S> {
    pub(crate) sequences: &'a mut [S],
    /// Those that take part, and with how many tokens; rows for these are prepared.
    pub(crate) parts: &'a [Part],
    /// The tokens, those of each part one after the other.
    pub(crate) tokens: &'a [TokenId],
    /// What keys and values go through before they are stored, for each place of the model.
    pub(crate) tables: Option<&'a [Arc<Tables>]>,
}

impl<'a, S> Batch<'a, S> {
    /// What a place's keys and values go through.
    fn tables_of(&self, place: usize) -> Option<&'a Tables> {
        self.tables.and_then(|tables| tables.get(place)).map(|tables| &**tables)
    }
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct How {
    /// Whether steps of one token of each sequence are replayed from graphs.
    pub(crate) graphs: bool,
    /// Where products of many tokens are cuBLAS's: how many tokens a step has at most.
    pub(crate) cublas: Option<usize>,
    /// How long a rank waits for another.
    pub(crate) timeout: Duration,
}

/// What computes one stage's layers.
#[derive(Debug)]
enum Stage {
    Host(Box<host::HostEngine>),
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::CudaEngine>),
    /// Ranks, each with some of every layer.
    Group(Box<Group>),
}

/// A rank's end of its group, as its engine has it: `None` where layers are whole.
pub(crate) type Link = Option<Arc<dyn Communicator>>;

impl Engine {
    /// What computes where the model's weights are, over caches of these layouts, one for each place.
    pub(crate) fn new(model: &Model, layouts: &[KvLayout], how: How) -> Result<Self> {
        let places: Vec<(&Place, &KvLayout)> = model.places().iter().zip(layouts).collect();
        let stages = places.chunk_by(|(a, _), (b, _)| a.span.stage == b.span.stage);
        let stages = stages.map(|stage| match (stage, model.group(stage[0].0.span.stage)) {
            ([(place, layout)], None) => Stage::new(place, layout, how, None),
            (ranks, Some(group)) => Ok(Stage::Group(Box::new(Group::new(group, ranks, how)?))),
            // A stage that is not split is in one place.
            (_, None) => Err(Error::NoLogits),
        });
        Ok(Self { stages: stages.collect::<Result<_>>()? })
    }

    /// Has ranks in other processes fail, too, if there are any: this one gives up its step.
    pub(crate) fn abort(&self, why: &Error) {
        for stage in &self.stages {
            if let Stage::Group(group) = stage {
                group.abort(why);
            }
        }
    }

    /// The least of what all ranks say, where some are in other processes: what depends on a rank's own memory has to be the same for all.
    pub(crate) fn agree(&self, own: usize) -> Result<usize> {
        self.stages.iter().try_fold(own, |own, stage| match stage {
            Stage::Group(group) => group.agree(own),
            _ => Ok(own),
        })
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
            Stage::Host(_) | Stage::Group(_) => Err(Error::NoLogits),
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
            Stage::Host(_) | Stage::Group(_) => Err(Error::NoLogits),
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
        let n_vocab = model.config().n_vocab;
        let elements = logits.as_slice()?.len();
        match self.stages.last_mut() {
            Some(Stage::Group(group)) => {
                let room = logits.as_mut_slice()?.get_mut(first * n_vocab..).ok_or(Error::NoLogits)?;
                group.logits(model, tokens, room)
            }
            Some(stage) if first * n_vocab <= elements => stage.logits(model, tokens, logits, first),
            _ => Err(Error::NoLogits),
        }
    }

    /// Gives back what the last step computed with.
    pub(crate) fn rest(&mut self) {
        self.stages.iter_mut().for_each(Stage::rest);
    }

    /// Memory that the host reads and [`Engine::logits`] writes.
    pub(crate) fn room_for_logits(&self, elements: usize) -> Result<PoolSlice<f32>> {
        self.last().room_for_logits(elements)
    }

    /// Gives what is not in use back to the banks.
    pub(crate) fn trim(&mut self) -> Result<()> {
        self.stages.iter_mut().try_for_each(Stage::trim)
    }

    /// What each place holds.
    pub(crate) fn memory(&self) -> impl Iterator<Item = EngineMemory> {
        self.stages.iter().flat_map(Stage::memory)
    }

    /// What ranks here have sent, where layers are split.
    pub(crate) fn traffic(&self) -> impl Iterator<Item = RankTraffic> {
        let groups = self.stages.iter().filter_map(|stage| match stage {
            Stage::Group(group) => Some(group),
            _ => None,
        });
        groups.flat_map(|group| group.traffic())
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
    /// What computes in a place; where that is one rank's, `link` reaches the others.
    fn new(place: &Place, layout: &KvLayout, how: How, link: Link) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(device) = &place.cuda {
            return Ok(Self::Cuda(Box::new(cuda::CudaEngine::new(place, device, layout, how, link)?)));
        }
        // The host has one way.
        let _ = how;
        Ok(Self::Host(Box::new(host::HostEngine::new(place, layout, link)?)))
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
            Self::Group(group) => group.step(model, batch, hidden, cancel, observe),
        }
    }

    /// What the last step left for the next stage.
    fn hidden(&self) -> Result<Hidden<'_>> {
        match self {
            Self::Host(host) => host.hidden(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.hidden(),
            Self::Group(group) => group.hidden(),
        }
    }

    /// The logits of these tokens of the last step, as many each as its place has: into `logits` from row `first` on.
    fn logits(
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
            Self::Group(_) => Err(Error::NoLogits),
        }
    }

    fn rest(&mut self) {
        match self {
            Self::Host(host) => host.rest(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.rest(),
            Self::Group(group) => group.rest(),
        }
    }

    fn room_for_logits(&self, elements: usize) -> Result<PoolSlice<f32>> {
        match self {
            Self::Host(host) => host.room_for_logits(elements),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.room_for_logits(elements),
            Self::Group(group) => group.room_for_logits(elements),
        }
    }

    fn trim(&mut self) -> Result<()> {
        match self {
            Self::Host(host) => host.trim(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.trim(),
            Self::Group(group) => group.trim(),
        }
    }

    fn memory(&self) -> Vec<EngineMemory> {
        match self {
            Self::Host(host) => vec![host.memory()],
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => vec![cuda.memory()],
            Self::Group(group) => group.memory(),
        }
    }
}

/// What tokens stand for, from the table on the host.
fn look_up(
    model: &Model,
    tokens: impl ExactSizeIterator<Item = TokenId> + Clone,
    x: &mut [f32],
) -> Result<()> {
    let weights = model.weights();
    Ok(embed(&weights.matrix(&weights.embedding)?, tokens.map(TokenId::get), x)?)
}

/// The rows that a batch's tokens have, of a list with `n` a token.
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
            Err(error) if is_capture(&error) => std::thread::sleep(Duration::from_millis(1)),
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
        | Error::Split(granule_split::Error::Device(device))
        | Error::Split(granule_split::Error::Ops(granule_ops::Error::Device(device)))
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
