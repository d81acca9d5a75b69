//! Evaluation: tokens of one sequence or of many, in steps of at most a batch, and the logits behind them.
//!
//! A step takes tokens of as many sequences as fit: each weight is read once for all of them. Sequences come in the order of
//! the call, and one is begun only when those before it end in the same step; so the sequences that end in a step follow
//! one another, and so do their rows of logits.

use std::ops::Range;

use super::{Context, SequenceId};
use crate::engine::{Batch, Part, patiently};
use crate::error::{Error, Result};
use crate::tokenizer::TokenId;

/// Logit rows that are computed at a time when a caller wants those of many tokens.
const LOGIT_ROWS: usize = 16;

/// What a call appends to one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    slot: usize,
    /// Tokens of the sequence before the call.
    before: usize,
    /// Tokens of the call that are appended.
    done: usize,
}

/// Whose logits a call is for.
enum Wanted<'a> {
    /// Those behind each sequence's last token.
    Last,
    /// Those of the one sequence's tokens from this index on, for the function.
    Each(usize, &'a mut dyn FnMut(usize, &[f32])),
}

impl Context {
    /// Appends `tokens` and returns the logits behind the last one, n_vocab long.
    ///
    /// # Errors
    /// [`Error::NoTokens`], [`Error::ContextFull`], [`Error::Cancelled`], [`Error::Kv`] if there is no memory for the
    /// rows, [`Error::Pool`] if there is none to compute with, [`Error::Device`] if the model's file was cut short. The context is then as it was.
    pub fn eval(&mut self, tokens: &[TokenId]) -> Result<&[f32]> {
        self.eval_reporting(tokens, &mut |_| {})
    }

    /// As [`Context::eval`], and calls `progress` with the tokens done after each batch.
    ///
    /// # Errors
    /// As [`Context::eval`].
    pub fn eval_reporting(&mut self, tokens: &[TokenId], progress: &mut dyn FnMut(usize)) -> Result<&[f32]> {
        self.append(&[(self.first_sequence(), tokens)], progress, Wanted::Last)?;
        self.logits()
    }

    /// Appends `tokens` and hands the logits behind each of those from index `first_wanted` on to `sink`, with the
    /// index into `tokens`; none where there are not as many.
    ///
    /// # Errors
    /// As [`Context::eval`]; `sink` may then have been called for some.
    pub fn eval_each(
        &mut self,
        tokens: &[TokenId],
        first_wanted: usize,
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        let wanted = Wanted::Each(first_wanted, sink);
        self.append(&[(self.first_sequence(), tokens)], &mut |_| {}, wanted)
    }

    /// Appends `tokens` and returns the logits behind each, tokens x n_vocab. For large vocabularies
    /// [`Context::eval_each`] needs less memory.
    ///
    /// # Errors
    /// As [`Context::eval`].
    pub fn eval_all(&mut self, tokens: &[TokenId]) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        self.eval_each(tokens, 0, &mut |_, row| all.extend_from_slice(row))?;
        Ok(all)
    }

    /// Appends to each of these sequences its tokens, all in one go, so that each weight is read once for all of them (in as
    /// many goes as it takes where there are more tokens than [`ContextOptions::n_batch`](crate::ContextOptions)). Answers the
    /// logits behind the last token of each, n_vocab long, in the order of the call.
    ///
    /// A sequence's logits are those it would have alone, within the rounding of sums that are grouped by the number of
    /// rows; which sequences stand beside it, and in which order, makes no difference. On a GPU sums over a context are cut by the
    /// longest sequence of the batch, which does make one, as small.
    ///
    /// # Errors
    /// As [`Context::eval`]; [`Error::NoSuchSequence`], and [`Error::SequenceTwice`] where one is named twice. All sequences are
    /// then as they were.
    pub fn eval_batch<'a>(
        &'a mut self,
        batch: &[(SequenceId, &[TokenId])],
    ) -> Result<impl ExactSizeIterator<Item = &'a [f32]> + use<'a>> {
        self.append(batch, &mut |_| {}, Wanted::Last)?;
        let n_vocab = self.model.config().n_vocab;
        Ok(self.rows.as_slice()?[..batch.len() * n_vocab].chunks_exact(n_vocab))
    }

    /// The logits behind the last token that was evaluated, n_vocab long; of a batch, behind its first sequence's. They are there
    /// until something else was evaluated or a state loaded: a call that fails leaves them, and so does taking tokens back.
    ///
    /// # Errors
    /// [`Error::NoLogits`] where nothing was evaluated yet, or where [`Context::eval_each`] was not asked for the last token's.
    ///
    /// While [`Context::generate`] draws on a GPU they stay there until they are asked for, which can then fail with what a copy
    /// can fail with; and a call that fails does not leave them.
    pub fn logits(&self) -> Result<&[f32]> {
        #[cfg(feature = "cuda")]
        if let Some(drawn) = &self.drawn {
            return self.drawn_from(drawn);
        }
        if self.has_logits { Ok(self.last.as_slice()?) } else { Err(Error::NoLogits) }
    }

    fn append(
        &mut self,
        items: &[(SequenceId, &[TokenId])],
        progress: &mut dyn FnMut(usize),
        wanted: Wanted<'_>,
    ) -> Result<()> {
        self.begin(items)?;
        let done = self.steps(items, progress, wanted);
        self.settle(done)
    }

    /// Checks all of a call before any of it is done.
    pub(super) fn begin(&mut self, items: &[(SequenceId, &[TokenId])]) -> Result<()> {
        let (n_ctx, n_vocab) = (self.n_ctx(), self.model.config().n_vocab);
        self.lanes.clear();
        for &(id, tokens) in items {
            let slot = self.index_of(id)?;
            let before = self.slots[slot].tokens.len();
            if self.lanes.iter().any(|lane| lane.slot == slot) {
                return Err(Error::SequenceTwice { id });
            }
            if tokens.is_empty() {
                return Err(Error::NoTokens);
            }
            if tokens.len() > n_ctx - before {
                return Err(Error::ContextFull { added: tokens.len(), used: before, n_ctx });
            }
            if let Some(bad) = tokens.iter().find(|token| token.index() >= n_vocab) {
                return Err(Error::TokenOutOfRange { id: bad.get(), n_vocab });
            }
            self.lanes.push(Lane { slot, before, done: 0 });
        }
        if items.is_empty() { Err(Error::NoTokens) } else { self.room_for_logits(items.len()) }
    }

    fn room_for_logits(&mut self, rows: usize) -> Result<()> {
        let elements = rows * self.model.config().n_vocab;
        if self.rows.len() < elements {
            self.rows = patiently(|| self.engine.room_for_logits(elements))?;
        }
        Ok(())
    }

    /// All of a call, a batch at a time. Answers which row has the logits behind the first sequence's last token, if one has.
    fn steps(
        &mut self,
        items: &[(SequenceId, &[TokenId])],
        progress: &mut dyn FnMut(usize),
        mut wanted: Wanted<'_>,
    ) -> Result<Option<usize>> {
        let (total, mut done) = (items.iter().map(|(_, tokens)| tokens.len()).sum::<usize>(), 0);
        let mut last = None;
        while done < total {
            let first_lane = self.plan(items)?;
            self.step()?;
            match &mut wanted {
                Wanted::Last => {
                    self.last_logits(items, first_lane)?;
                    last = Some(0);
                }
                Wanted::Each(first, sink) => {
                    let mut at = first.saturating_sub(done);
                    while at < self.batch.len() {
                        let end = self.batch.len().min(at + LOGIT_ROWS);
                        self.room_for_logits(end - at)?;
                        let rows = self.logits_of(at..end)?;
                        (at..end).zip(rows).for_each(|(row, logits)| sink(done + row, logits));
                        last = Some(end - at - 1);
                        at = end;
                    }
                }
            }
            self.model.weights().check()?;
            done += self.batch.len();
            progress(done);
        }
        Ok(last)
    }

    /// Chooses what the next step computes, and has rows prepared for it; answers the first lane that has a part in it.
    pub(super) fn plan(&mut self, items: &[(SequenceId, &[TokenId])]) -> Result<usize> {
        self.parts.clear();
        self.batch.clear();
        let mut first = None;
        for (index, (lane, (_, tokens))) in self.lanes.iter_mut().zip(items).enumerate() {
            let left = tokens.len() - lane.done;
            let wanted = left.min(self.n_batch - self.batch.len());
            if left == 0 {
                continue;
            }
            if wanted == 0 {
                break;
            }
            first.get_or_insert(index);
            // Fewer than asked for where the cache's free rows are cut up.
            let slot = &mut self.slots[lane.slot];
            let mut n = patiently(|| slot.prepare(wanted))?;
            if slot.first().position() != slot.first().len() {
                // How rows are cut up, after tokens were removed, depends on a rank's own memory.
                n = self.engine.agree(n)?;
            }
            self.batch.extend_from_slice(&tokens[lane.done..lane.done + n]);
            self.parts.push(Part { sequence: lane.slot, n });
            lane.done += n;
            if n < left {
                break;
            }
        }
        Ok(first.unwrap_or(0))
    }

    /// One step, whose rows are prepared, through all layers.
    fn step(&mut self) -> Result<()> {
        let batch = Batch {
            sequences: &mut self.slots,
            parts: &self.parts,
            tokens: &self.batch,
            tables: self.shared.parts(),
        };
        self.engine.step(&self.model, batch, &self.cancel, None)?;
        self.commit()
    }

    /// Makes a step's rows part of its sequences.
    pub(super) fn commit(&mut self) -> Result<()> {
        let mut tokens = &self.batch[..];
        for &Part { sequence, n } in &self.parts {
            let (own, rest) = tokens.split_at(n);
            self.slots[sequence].commit(own)?;
            tokens = rest;
        }
        Ok(())
    }

    /// Computes the logits of the sequences that ended with the step that was computed last; its parts are those of the
    /// lanes from `first_lane` on.
    fn last_logits(&mut self, items: &[(SequenceId, &[TokenId])], first_lane: usize) -> Result<()> {
        let lanes = self.lanes[first_lane..].iter().zip(&items[first_lane..]).zip(&self.parts);
        let ended = lanes.take_while(|((lane, (_, tokens)), _)| lane.done == tokens.len());
        let ends = ended.scan(0, |end, (_, part)| {
            *end += part.n;
            Some(*end - 1)
        });
        patiently(|| self.engine.logits(&self.model, ends.clone(), &mut self.rows, first_lane))
    }

    /// Computes the logits of some rows of the step that was computed last.
    fn logits_of(&mut self, rows: Range<usize>) -> Result<impl Iterator<Item = &[f32]>> {
        let (n_vocab, n) = (self.model.config().n_vocab, rows.len());
        patiently(|| self.engine.logits(&self.model, rows.clone(), &mut self.rows, 0))?;
        Ok(self.rows.as_slice()?[..n * n_vocab].chunks_exact(n_vocab))
    }

    /// Keeps what a call has computed, or takes back what it appended before it failed.
    fn settle(&mut self, done: Result<Option<usize>>) -> Result<()> {
        self.engine.rest();
        match done {
            Ok(row) => self.keep_logits(row),
            Err(error) => Err(self.undo(error)),
        }
    }

    /// Takes back what a call appended before it failed.
    pub(super) fn undo(&mut self, error: Error) -> Error {
        self.engine.abort(&error);
        // All of them first: nothing of what follows may keep a sequence from being what it was.
        for lane in &self.lanes {
            // Tokens at the end, which are there, can always be taken back.
            let _ = self.slots[lane.slot].truncate(lane.before);
        }
        if matches!(error, Error::Kv(_) | Error::Pool(_)) {
            for lane in &self.lanes {
                // What its rows got is what the rest did not. What the device refuses to take stays for the next call, and the
                // caller hears what went wrong first.
                let _ = self.slots[lane.slot].trim();
            }
        }
        error
    }

    /// There are no logits from here on.
    pub(super) fn forget_logits(&mut self) {
        self.has_logits = false;
        #[cfg(feature = "cuda")]
        {
            self.drawn = None;
        }
    }

    /// Puts this row where [`Context::logits`] finds it, whatever the next call does with its rows.
    fn keep_logits(&mut self, row: Option<usize>) -> Result<()> {
        self.forget_logits();
        if let Some(row) = row {
            let n_vocab = self.model.config().n_vocab;
            let row = &self.rows.as_slice()?[row * n_vocab..][..n_vocab];
            self.last.as_mut_slice()?.copy_from_slice(row);
            self.has_logits = true;
        }
        Ok(())
    }
}
