//! Many sequences in one context: they share its memory to compute with, and may share tokens.

use std::ops::Range;

use granule_kv::Sequence;

use super::{Context, SequenceId, Slot};
use crate::engine::patiently;
use crate::error::{Error, Result};
use crate::tokenizer::TokenId;

impl Context {
    /// The sequence that the context was made with. It stays as long as the context.
    #[must_use]
    pub fn first_sequence(&self) -> SequenceId {
        self.slots[0].id
    }

    /// All sequences, in the order in which they came.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = SequenceId> {
        self.slots.iter().map(|slot| slot.id)
    }

    /// Adds an empty sequence of the context's size. It sets addresses aside, and takes memory as it grows.
    ///
    /// # Errors
    /// [`Error::Kv`].
    pub fn add_sequence(&mut self) -> Result<SequenceId> {
        let stages = patiently(|| self.shared.sequences(self.n_ctx()))?;
        Ok(self.add(Slot::new(stages, &[])))
    }

    /// Adds a sequence with the tokens of another one, which goes its own way from here. Their memory is shared until one of the
    /// two writes where the other's tokens lie; then one granule is copied.
    ///
    /// # Errors
    /// [`Error::NoSuchSequence`], [`Error::Kv`].
    pub fn fork_sequence(&mut self, id: SequenceId) -> Result<SequenceId> {
        self.fork_prefix(id, usize::MAX)
    }

    /// As [`Context::fork_sequence`], of the first `len` tokens only.
    ///
    /// # Errors
    /// As [`Context::fork_sequence`].
    pub fn fork_prefix(&mut self, id: SequenceId, len: usize) -> Result<SequenceId> {
        let slot = self.slot_mut(id)?;
        let fork = patiently(|| slot.fork(len))?;
        Ok(self.add(fork))
    }

    /// Removes a sequence. Some of its memory is kept for the next one, until somebody else needs it.
    ///
    /// # Errors
    /// [`Error::NoSuchSequence`]; [`Error::FirstSequence`] for the first, which can be emptied but not removed.
    pub fn remove_sequence(&mut self, id: SequenceId) -> Result<()> {
        match self.index_of(id)? {
            0 => Err(Error::FirstSequence),
            index => {
                self.slots.remove(index);
                Ok(())
            }
        }
    }

    /// The tokens of a sequence.
    ///
    /// # Errors
    /// [`Error::NoSuchSequence`].
    pub fn sequence_tokens(&self, id: SequenceId) -> Result<&[TokenId]> {
        Ok(&self.slot(id)?.tokens)
    }

    /// The cache behind a sequence, to look at: where the model's layers are in several [stages](crate::Model::stages), that of the
    /// first of them.
    ///
    /// # Errors
    /// [`Error::NoSuchSequence`].
    pub fn sequence_of(&self, id: SequenceId) -> Result<&Sequence> {
        Ok(self.slot(id)?.first())
    }

    /// The caches behind a sequence, one for each of the model's [stages](crate::Model::stages).
    ///
    /// # Errors
    /// [`Error::NoSuchSequence`].
    pub fn stages_of(&self, id: SequenceId) -> Result<&[Sequence]> {
        Ok(&self.slot(id)?.stages)
    }

    /// Forgets all but the first `len` tokens of a sequence (nothing where there are not more).
    ///
    /// # Errors
    /// [`Error::NoSuchSequence`].
    pub fn truncate_sequence(&mut self, id: SequenceId, len: usize) -> Result<()> {
        self.slot_mut(id)?.truncate(len)
    }

    /// Forgets these tokens of a sequence. Those behind them move up: queries are turned to meet their keys, which stay as they
    /// were stored. What they took up of the meaning of the forgotten ones, they keep.
    ///
    /// # Errors
    /// [`Error::NoSuchSequence`]; [`Error::Kv`] if it does not have these tokens.
    pub fn remove_tokens(&mut self, id: SequenceId, tokens: Range<usize>) -> Result<()> {
        self.slot_mut(id)?.remove(tokens)
    }

    /// Keeps these tokens of a sequence and forgets the others, as [`Context::remove_tokens`] does.
    ///
    /// # Errors
    /// As [`Context::remove_tokens`].
    pub fn keep_tokens(&mut self, id: SequenceId, tokens: Range<usize>) -> Result<()> {
        self.slot_mut(id)?.keep(tokens)
    }

    /// Keeps the first `first` tokens of a sequence and the last `last`, and answers how many were forgotten: a window that
    /// slides over a text of any length. The first few draw so much attention that the rest goes wrong without them (Xiao et
    /// al., 2023); 4 are enough. Granules in which no token lies any more go back at once.
    ///
    /// # Errors
    /// [`Error::NoSuchSequence`]; [`Error::Kv`] for positions beyond 2^31.
    pub fn slide_sequence(&mut self, id: SequenceId, first: usize, last: usize) -> Result<usize> {
        let slot = self.slot_mut(id)?;
        let end = slot.tokens.len().saturating_sub(last);
        if first < end {
            slot.remove(first..end)?;
        }
        Ok(end.saturating_sub(first))
    }

    fn add(&mut self, slot: Slot) -> SequenceId {
        let id = slot.id;
        self.slots.push(slot);
        id
    }

    pub(super) fn index_of(&self, id: SequenceId) -> Result<usize> {
        // Ids count up, and new sequences come last; loaded ones keep the order too.
        self.slots.binary_search_by_key(&id, |slot| slot.id).map_err(|_| Error::NoSuchSequence { id })
    }

    pub(super) fn slot(&self, id: SequenceId) -> Result<&Slot> {
        Ok(&self.slots[self.index_of(id)?])
    }

    pub(super) fn slot_mut(&mut self, id: SequenceId) -> Result<&mut Slot> {
        let index = self.index_of(id)?;
        Ok(&mut self.slots[index])
    }
}
