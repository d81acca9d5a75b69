//! Prompts that are remembered: what any context of the model has computed need not be computed again.

use std::sync::Arc;

use granule_kv::{Hit, PrefixKey};

use super::{Context, SequenceId};
use crate::error::Result;
use crate::tokenizer::TokenId;

impl Context {
    /// Appends a prompt as [`Context::eval`] does, and answers how many of its tokens did not have to be computed: where the
    /// context is empty and [`ContextOptions::prefix_cache`](crate::ContextOptions) is on, the longest beginning that the model
    /// remembers is taken from there, and the whole is remembered for the next time. `progress` is told of the tokens done.
    /// [`Context::logits`] has those behind the last token.
    ///
    /// # Errors
    /// As [`Context::eval`].
    pub fn eval_prompt(&mut self, tokens: &[TokenId], progress: &mut dyn FnMut(usize)) -> Result<usize> {
        let first = self.first_sequence();
        let reused = if self.tokens().is_empty() { self.take_prefix(first, tokens)? } else { 0 };
        let done = self.eval_reporting(&tokens[reused..], &mut |done| progress(reused + done)).map(|_| ());
        if let Err(error) = done {
            if reused > 0 {
                // Tokens at the end can always be taken back; the caller hears what went wrong first.
                let _ = self.clear();
            }
            return Err(error);
        }
        self.remember(first)?;
        Ok(reused)
    }

    /// Has an empty sequence begin with the longest remembered beginning of `tokens`, at most all but the last one, and answers
    /// how many tokens that is; 0 also where [`ContextOptions::prefix_cache`](crate::ContextOptions) is off, the sequence is not
    /// empty, or what is remembered cannot be shared: it may be computed all the same, and is counted in
    /// [`PrefixStats::failed`](granule_kv::PrefixStats::failed). The sequence then lies at other addresses. It holds what it took by
    /// itself: the remembered prompt may be forgotten meanwhile.
    ///
    /// # Errors
    /// [`Error::NoSuchSequence`](crate::Error::NoSuchSequence).
    pub fn take_prefix(&mut self, id: SequenceId, tokens: &[TokenId]) -> Result<usize> {
        let is_empty = self.slot(id)?.tokens.is_empty();
        let Some((_, wanted)) = tokens.split_last().filter(|_| is_empty && self.options.prefix_cache) else {
            return Ok(0);
        };
        let wanted: Vec<u32> = wanted.iter().copied().map(TokenId::get).collect();
        let places = self.model.all_prefixes().iter().zip(self.prefix_keys()?);
        // Every place has a part of it, or it is of no use.
        let found: Option<Vec<Hit>> =
            places.map(|(prefixes, key)| prefixes.lookup(&key, &wanted).ok().flatten()).collect();
        let found = found.unwrap_or_default();
        // One may have forgotten what another remembers, also in another process.
        let matched = self.engine.agree(found.iter().map(|hit| hit.matched).min().unwrap_or(0))?;
        if matched == 0 {
            return Ok(0);
        }
        let cut = |hit: Hit| {
            let mut sequence = hit.sequence;
            sequence.truncate(matched).map(|()| sequence)
        };
        let Ok(stages) = found.into_iter().map(cut).collect::<Result<Vec<_>, _>>() else { return Ok(0) };
        let slot = self.slot_mut(id)?;
        slot.stages = stages;
        slot.tokens.extend_from_slice(&tokens[..matched]);
        Ok(matched)
    }

    /// Remembers a sequence's tokens, for [`Context::take_prefix`] of any context; answers whether they are remembered now: not
    /// where [`ContextOptions::prefix_cache`](crate::ContextOptions) is off, where tokens were removed from the middle, or where
    /// there is no memory for it, which costs time later and nothing now.
    ///
    /// # Errors
    /// [`Error::NoSuchSequence`](crate::Error::NoSuchSequence).
    pub fn remember(&mut self, id: SequenceId) -> Result<bool> {
        if !self.options.prefix_cache {
            self.slot(id)?;
            return Ok(false);
        }
        let keys = self.prefix_keys()?;
        // The memory of what is remembered is parked with its cache, so that has to stay.
        self.model.caches().keep(&self.shared);
        let model = Arc::clone(&self.model);
        let slot = self.slot_mut(id)?;
        let tokens = slot.numbers();
        let stages = model.all_prefixes().iter().zip(&keys).zip(&mut slot.stages);
        // All of them, also where one does not: what it has of other prompts is used with this one's beginning.
        let kept = stages.map(|((prefixes, key), rows)| prefixes.insert(key, &tokens, rows).unwrap_or(false));
        Ok(kept.filter(|kept| !kept).count() == 0)
    }

    /// Under what each stage remembers.
    fn prefix_keys(&self) -> Result<Vec<PrefixKey>> {
        let identity = self.kv_identity()?;
        let keys =
            self.shared.caches.iter().map(|cache| PrefixKey::new(&identity, cache.layout(), self.n_ctx()));
        Ok(keys.collect())
    }
}
