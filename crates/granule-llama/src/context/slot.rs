//! `SequenceId`, and what a context has of each of its sequences.

use std::borrow::{Borrow, BorrowMut};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use granule_kv::Sequence;

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
    pub(crate) sequence: Sequence,
    pub(crate) tokens: Vec<TokenId>,
}

impl Slot {
    pub(crate) fn new(sequence: Sequence, tokens: &[TokenId]) -> Self {
        let mut own = Vec::new();
        // Room for all of them from the start, so that none makes the list move; pages nobody writes cost nothing.
        let _ = own.try_reserve_exact(sequence.n_ctx().max(tokens.len()));
        own.extend_from_slice(tokens);
        Self { id: SequenceId::next(), sequence, tokens: own }
    }

    /// Forgets all but the first `len` tokens; nothing where there are not more.
    pub(crate) fn truncate(&mut self, len: usize) -> Result<()> {
        let len = len.min(self.tokens.len());
        self.sequence.truncate(len)?;
        self.tokens.truncate(len);
        Ok(())
    }

    /// Takes these tokens out.
    pub(crate) fn remove(&mut self, tokens: Range<usize>) -> Result<()> {
        // Refuses what is not there, also a range that ends before it begins.
        self.sequence.remove(tokens.clone())?;
        self.tokens.drain(tokens);
        Ok(())
    }

    /// A sequence of the first `len` tokens, or of all where there are not as many.
    pub(crate) fn fork(&mut self, len: usize) -> Result<Self> {
        let len = len.min(self.tokens.len());
        Ok(Self::new(self.sequence.copy(0..len)?, &self.tokens[..len]))
    }

    /// The tokens as the cache's prefixes and state files have them.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.tokens.iter().copied().map(TokenId::get).collect()
    }
}

impl Borrow<Sequence> for Slot {
    fn borrow(&self) -> &Sequence {
        &self.sequence
    }
}

impl BorrowMut<Sequence> for Slot {
    fn borrow_mut(&mut self) -> &mut Sequence {
        &mut self.sequence
    }
}
