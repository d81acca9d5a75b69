//! `SequenceId`, and what a context has of each of its sequences.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use granule_kv::Sequence;

use crate::engine::Staged;
use crate::error::Result;
use crate::tokenizer::TokenId;

/// The name of one sequence of one context. No other sequence of the process ever has it, so that the name of one that is
/// gone, or of another context's, is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

impl SequenceId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A sequence, and the tokens whose rows it has.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) id: SequenceId,
    /// Its rows, by stage of the model: never empty, all of the same tokens.
    pub(crate) stages: Vec<Sequence>,
    pub(crate) tokens: Vec<TokenId>,
}

impl Slot {
    pub(crate) fn new(stages: Vec<Sequence>, tokens: &[TokenId]) -> Self {
        let mut own = Vec::new();
        // Room for all of them from the start, so that none makes the list move; pages nobody writes cost nothing.
        let n_ctx = stages.first().map_or(0, Sequence::n_ctx);
        let _ = own.try_reserve_exact(n_ctx.max(tokens.len()));
        own.extend_from_slice(tokens);
        Self { id: SequenceId::next(), stages, tokens: own }
    }

    /// The rows of the first stage.
    pub(crate) fn first(&self) -> &Sequence {
        &self.stages[0]
    }

    /// Has rows for up to `n` more tokens prepared in all stages; answers for how many.
    pub(crate) fn prepare(&mut self, n: usize) -> Result<usize> {
        // Fewer than asked for where the cache's free rows are cut up, which may be in one stage only.
        let mut least = n;
        for sequence in &mut self.stages {
            least = least.min(sequence.prepare(least)?);
        }
        Ok(least)
    }

    /// Makes prepared rows part of the sequence.
    pub(crate) fn commit(&mut self, tokens: &[TokenId]) -> Result<()> {
        self.stages.iter_mut().try_for_each(|sequence| sequence.commit(tokens.len()))?;
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Forgets all but the first `len` tokens; nothing where there are not more.
    pub(crate) fn truncate(&mut self, len: usize) -> Result<()> {
        let len = len.min(self.tokens.len());
        self.stages.iter_mut().try_for_each(|sequence| sequence.truncate(len))?;
        self.tokens.truncate(len);
        Ok(())
    }

    /// Takes these tokens out.
    pub(crate) fn remove(&mut self, tokens: Range<usize>) -> Result<()> {
        // The first refuses what is not there, also a range that ends before it begins; the others have the same tokens.
        self.stages.iter_mut().try_for_each(|sequence| sequence.remove(tokens.clone()))?;
        self.tokens.drain(tokens);
        Ok(())
    }

    /// Keeps these tokens and forgets the others.
    pub(crate) fn keep(&mut self, tokens: Range<usize>) -> Result<()> {
        self.stages.iter_mut().try_for_each(|sequence| sequence.keep(tokens.clone()))?;
        self.tokens.truncate(tokens.end);
        self.tokens.drain(..tokens.start);
        Ok(())
    }

    /// A sequence of the first `len` tokens, or of all where there are not as many.
    pub(crate) fn fork(&mut self, len: usize) -> Result<Self> {
        let len = len.min(self.tokens.len());
        let forks = self.stages.iter_mut().map(|sequence| sequence.copy(0..len));
        Ok(Self::new(forks.collect::<Result<_, _>>()?, &self.tokens[..len]))
    }

    /// Gives back memory that its tokens do not need.
    pub(crate) fn trim(&mut self) -> Result<()> {
        self.stages.iter_mut().try_for_each(|sequence| sequence.trim().map(|_| ()))?;
        Ok(())
    }

    /// The tokens as the cache's prefixes and state files have them.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.tokens.iter().copied().map(TokenId::get).collect()
    }
}

impl Staged for Slot {
    fn stage(&self, index: usize) -> &Sequence {
        &self.stages[index]
    }

    fn stage_mut(&mut self, index: usize) -> &mut Sequence {
        &mut self.stages[index]
    }

    fn stages_mut(&mut self, places: Range<usize>) -> &mut [Sequence] {
        &mut self.stages[places]
    }
}
