//! A stage that is split: ranks, each with some of every layer's heads and of its feed-forward part, that compute at the same time.
//!
//! Hidden states are the same on all ranks. What a rank's heads, and its part of the feed-forward network, add to them is a summand: the
//! first rank adds its own to the hidden states, the others to zeros, and the sum of all is the hidden states again. So a layer has
//! two sums of `n_embd` f32 a token over all ranks, and nothing else goes between them.
//!
//! In one process a rank is a thread; what they return is together before anybody goes on. A rank that fails has the others fail,
//! too, and the step is as if it had not been.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use granule_device::{Bytes, Device};
use granule_kv::{KvLayout, Sequence};
use granule_pool::PoolSlice;
use granule_split::comm::{self, GroupOptions};
use granule_split::{Communicator, RankShape};
use rayon_core::{ThreadPool, ThreadPoolBuilder};

use super::{Batch, EngineMemory, Hidden, How, Observer, Stage, Staged, rows_of};
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::memory::RankTraffic;
use crate::model::{Model, Place};
use crate::placement;

/// What computes a stage that is split: those of its ranks that are in this process.
#[derive(Debug)]
pub(super) struct Group {
    /// Never empty, in their order.
    members: Vec<Member>,
    /// Of the first member, among the model's.
    first_place: usize,
    /// A thread for each; none where there is one.
    pool: Option<ThreadPool>,
    /// Whether other ranks are in other processes.
    is_remote: bool,
    /// Elements of the vocabulary of each rank of all processes.
    vocab: Vec<usize>,
}

/// A rank.
#[derive(Debug)]
struct Member {
    engine: Stage,
    /// What reaches the others.
    link: Arc<dyn Communicator>,
    /// Its own logits of the last call.
    logits: Option<PoolSlice<f32>>,
    /// Tokens of the vocabulary that it has.
    n_vocab: usize,
}

/// One place's rows of a token stream.
struct Alone<'a>(&'a mut Sequence);

impl Staged for Alone<'_> {
    fn stage(&self, _: usize) -> &Sequence {
        self.0
    }

    fn stage_mut(&mut self, _: usize) -> &mut Sequence {
        self.0
    }

    fn stages_mut(&mut self, _: Range<usize>) -> &mut [Sequence] {
        std::slice::from_mut(self.0)
    }
}

impl Group {
    /// Of the ranks in these places, each over a cache of its layout.
    pub(super) fn new(group: &placement::Group, ranks: &[(&Place, &KvLayout)], how: How) -> Result<Self> {
        let (Some((first, _)), Some(all)) =
            (ranks.first(), ranks.first().and_then(|(place, _)| place.all_ranks()))
        else {
            return Err(Error::NoLogits);
        };
        // Graphs of several devices do not wait for one another.
        let how = How { graphs: false, ..how };
        let links = links(group, ranks, how)?;
        let mut members = Vec::with_capacity(ranks.len());
        for ((place, layout), link) in ranks.iter().zip(links) {
            let engine = Stage::new(place, layout, how, Some(Arc::clone(&link)))?;
            members.push(Member { engine, link, logits: None, n_vocab: place.config.n_vocab });
        }
        let pool = (members.len() > 1).then(|| {
            let named = ThreadPoolBuilder::new().thread_name(|rank| format!("granule rank {rank}"));
            named.num_threads(members.len()).build()
        });
        let no_threads = |error| Error::Unsupported { what: format!("a thread for each rank: {error}") };
        Ok(Self {
            members,
            first_place: first.span.index,
            pool: pool.transpose().map_err(no_threads)?,
            is_remote: group.remote.is_some(),
            vocab: all.iter().map(|rank| rank.vocab.len()).collect(),
        })
    }

    /// Runs a batch through the stage's layers, on all ranks.
    pub(super) fn step<S: Staged>(
        &mut self,
        model: &Model,
        batch: &mut Batch<'_, S>,
        hidden: Option<Hidden<'_>>,
        cancel: &CancelToken,
        observe: Option<Observer<'_>>,
    ) -> Result<()> {
        let places = self.first_place..self.first_place + self.members.len();
        let Batch { parts, tokens, tables, .. } = *batch;
        let mut rows: Vec<Vec<Alone<'_>>> = places.clone().map(|_| Vec::new()).collect();
        for sequence in batch.sequences.iter_mut() {
            let own = sequence.stages_mut(places.clone()).iter_mut();
            rows.iter_mut().zip(own).for_each(|(rows, own)| rows.push(Alone(own)));
        }
        let observe = observe.map(Mutex::new);
        let work = self.members.iter_mut().zip(rows).map(Mutex::new).collect::<Vec<_>>();
        run(self.pool.as_ref(), self.is_remote, &work, |at, member, rows| {
            let mut own = Batch { sequences: &mut rows[..], parts, tokens, tables };
            let Some(observe) = &observe else {
                return member.engine.step(model, &mut own, hidden, cancel, None);
            };
            // Whoever observes is shown the whole.
            let all = model.places()[places.start + at].all_ranks().ok_or(Error::NoLogits)?;
            let mut whole = Whole { link: &*member.link, model, all, n: tokens.len() };
            let mut shown = |layer: usize, q: &[f32], k: &[f32], v: &[f32]| {
                let [q, k, v] = [whole.heads(q)?, whole.kv_heads(k)?, whole.kv_heads(v)?];
                if at > 0 {
                    return Ok(());
                }
                let mut observe = observe.lock().unwrap_or_else(PoisonError::into_inner);
                observe(layer, &q, &k, &v)
            };
            member.engine.step(model, &mut own, hidden, cancel, Some(&mut shown))
        })
    }

    /// The hidden states that the last step left: those of all ranks are the same.
    pub(super) fn hidden(&self) -> Result<Hidden<'_>> {
        self.members.first().ok_or(Error::NoLogits)?.engine.hidden()
    }

    /// The logits of these tokens of the last step: each rank's part of the vocabulary, put together.
    pub(super) fn logits(
        &mut self,
        model: &Model,
        tokens: impl Iterator<Item = usize>,
        logits: &mut [f32],
    ) -> Result<()> {
        let tokens: Vec<usize> = tokens.collect();
        let n_vocab = model.config().n_vocab;
        let logits = logits.get_mut(..tokens.len() * n_vocab).ok_or(Error::NoLogits)?;
        let work = self.members.iter_mut().map(|member| Mutex::new((member, ()))).collect::<Vec<_>>();
        run(self.pool.as_ref(), self.is_remote, &work, |_, member, ()| {
            let elements = tokens.len() * member.n_vocab;
            if member.logits.as_ref().is_none_or(|room| room.len() < elements) {
                member.logits = Some(member.engine.room_for_logits(elements)?);
            }
            let own = member.logits.as_mut().ok_or(Error::NoLogits)?;
            member.engine.logits(model, tokens.iter().copied(), own, 0)
        })?;
        let mut first = 0;
        for member in &self.members {
            let own = member.logits.as_ref().ok_or(Error::NoLogits)?.as_slice()?;
            for (row, own) in logits.chunks_exact_mut(n_vocab).zip(own.chunks_exact(member.n_vocab)) {
                if self.is_remote {
                    member.link.all_gather(own, &self.vocab, row)?;
                } else {
                    row[first..first + own.len()].copy_from_slice(own);
                }
            }
            first += member.n_vocab;
        }
        Ok(())
    }

    pub(super) fn rest(&mut self) {
        self.members.iter_mut().for_each(|member| member.engine.rest());
    }

    pub(super) fn room_for_logits(&self, elements: usize) -> Result<PoolSlice<f32>> {
        self.members.first().ok_or(Error::NoLogits)?.engine.room_for_logits(elements)
    }

    pub(super) fn trim(&mut self) -> Result<()> {
        self.members.iter_mut().try_for_each(|member| {
            member.logits = None;
            member.engine.trim()
        })
    }

    /// What each rank here holds.
    pub(super) fn memory(&self) -> Vec<EngineMemory> {
        self.members.iter().flat_map(|member| member.engine.memory()).collect()
    }

    /// What each rank here has sent so far.
    pub(super) fn traffic(&self) -> impl Iterator<Item = RankTraffic> {
        self.members.iter().map(|Member { link, .. }| {
            let traffic = link.traffic();
            RankTraffic { rank: link.rank(), calls: traffic.calls, sent: Bytes::new(traffic.sent) }
        })
    }

    /// Tells ranks in other processes that this one gives up.
    pub(super) fn abort(&self, why: &Error) {
        // One that failed because of another has nothing to tell.
        if self.is_remote && !is_echo(why) {
            self.members.iter().for_each(|member| member.link.abort(&why.to_string()));
        }
    }

    /// The least of what all ranks say, where some are in other processes.
    pub(super) fn agree(&self, own: usize) -> Result<usize> {
        let Some(member) = self.members.first().filter(|_| self.is_remote) else { return Ok(own) };
        let mut all = vec![0.0; self.vocab.len()];
        // Numbers of tokens, which f32 has all of.
        member.link.all_gather(&[own as f32], &vec![1; all.len()], &mut all)?;
        Ok(all.iter().fold(own, |least, &said| least.min(said as usize)))
    }
}

/// Puts what ranks have of each token together, to be looked at.
struct Whole<'a> {
    link: &'a dyn Communicator,
    model: &'a Model,
    all: &'a [RankShape],
    n: usize,
}

impl Whole<'_> {
    fn heads(&mut self, own: &[f32]) -> Result<Vec<f32>> {
        self.gather(own, self.model.config().n_heads, |rank| &rank.heads)
    }

    fn kv_heads(&mut self, own: &[f32]) -> Result<Vec<f32>> {
        self.gather(own, self.model.config().n_kv_heads, |rank| &rank.kv_heads)
    }

    /// Of heads that several ranks have all have the same.
    fn gather(&mut self, own: &[f32], heads: usize, of: fn(&RankShape) -> &Range<usize>) -> Result<Vec<f32>> {
        let dim = self.model.config().head_dim;
        let counts: Vec<usize> = self.all.iter().map(|rank| self.n * of(rank).len() * dim).collect();
        let mut parts = vec![0.0; counts.iter().sum()];
        self.link.all_gather(own, &counts, &mut parts)?;
        let mut whole = vec![0.0; self.n * heads * dim];
        let mut rest = &parts[..];
        for rank in self.all {
            let at = rows_of(of(rank).clone(), dim);
            for row in whole.chunks_exact_mut(heads * dim) {
                let (own, behind) = rest.split_at(at.len());
                row[at.clone()].copy_from_slice(own);
                rest = behind;
            }
        }
        Ok(whole)
    }
}

/// What reaches the other ranks, of each rank here, in the host's memory and in that of its device.
fn links(
    group: &placement::Group,
    ranks: &[(&Place, &KvLayout)],
    how: How,
) -> Result<Vec<Arc<dyn Communicator>>> {
    if let Some(remote) = &group.remote {
        return Ok(ranks.iter().map(|_| Arc::clone(remote)).collect());
    }
    let options = GroupOptions { timeout: how.timeout, ..GroupOptions::default() };
    let devices: Vec<&Device> = ranks.iter().map(|(place, _)| place.bank.device()).collect();
    Ok(comm::group_for(&devices, options)?)
}

/// Whether an error only says that another rank has failed.
fn is_echo(error: &Error) -> bool {
    matches!(error, Error::Split(granule_split::Error::Aborted { .. }))
}

/// Has all members do something at the same time; where one fails the others do, and the error is the one that came first of itself.
fn run<T: Send>(
    pool: Option<&ThreadPool>,
    is_remote: bool,
    work: &[Mutex<(&mut Member, T)>],
    of: impl Fn(usize, &mut Member, &mut T) -> Result<()> + Sync,
) -> Result<()> {
    let one = |at: usize| -> Result<()> {
        let mut own = work[at].lock().unwrap_or_else(PoisonError::into_inner);
        let (member, with) = &mut *own;
        let link = Arc::clone(&member.link);
        // Nobody waits for one that panics.
        let guard = Guard(&*link);
        let done = of(at, member, with);
        std::mem::forget(guard);
        if let Err(error) = &done
            && !is_echo(error)
        {
            link.abort(&error.to_string());
        }
        done
    };
    let done = match pool {
        Some(pool) => pool.broadcast(|context| one(context.index())),
        None => vec![one(0)],
    };
    let mut errors: Vec<Error> = done.into_iter().filter_map(Result::err).collect();
    if errors.is_empty() {
        return Ok(());
    }
    if !is_remote {
        for work in work {
            work.lock().unwrap_or_else(PoisonError::into_inner).0.link.recover()?;
        }
    }
    let first = errors.iter().position(|error| !is_echo(error)).unwrap_or(0);
    Err(errors.swap_remove(first))
}

/// Has the other ranks fail unless it is forgotten.
struct Guard<'a>(&'a dyn Communicator);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.abort("it panicked");
    }
}
