//! Drawing on a GPU: of a generation's steps only the token that was drawn comes back to the host.

use std::sync::OnceLock;

use granule_pool::PoolSlice;

use super::Context;
use crate::engine::Batch;
use crate::error::{Error, Result};
use crate::sample::Sampler;
use crate::tokenizer::TokenId;

impl Context {
    /// Appends a token to the first sequence and draws the next one where the logits are, of the first `n` of them; `None` where
    /// that is on the host, which then evaluates and samples as ever. Nothing was done then.
    ///
    /// # Errors
    /// As [`Context::eval`] and [`Sampler::sample`]. Where no token could be drawn the given one stays appended, as between these
    /// two.
    pub(crate) fn draw(
        &mut self,
        token: TokenId,
        sampler: &mut Sampler,
        n: usize,
    ) -> Result<Option<TokenId>> {
        if !self.engine.draws() {
            return Ok(None);
        }
        let Some(draw) = sampler.draw_elsewhere() else { return Ok(None) };
        let items = [(self.first_sequence(), &[token][..])];
        let drawn = match self.begin(&items).and_then(|()| self.plan(&items)) {
            Err(error) => Err(error),
            Ok(_) => {
                let (parts, tokens, tables) = (&self.parts, &self.batch, self.shared.parts());
                let batch = Batch { sequences: &mut self.slots, parts, tokens, tables };
                self.engine.draw(&self.model, batch, &self.cancel, (&draw, n))
            }
        };
        let committed = drawn.and_then(|drawn| self.commit().map(|()| drawn));
        let drawn = match committed.and_then(|drawn| self.model.weights().check().map(|()| drawn)) {
            Ok(drawn) => drawn,
            Err(error) => {
                sampler.take_back();
                self.forget_drawn();
                return Err(self.undo(error));
            }
        };
        self.forget_logits();
        self.drawn = Some(OnceLock::new());
        if let Some(id) = drawn.token {
            let token = TokenId::new(id);
            sampler.accept(token);
            return Ok(Some(token));
        }
        // There is none: the host says why.
        sampler.take_back();
        sampler.sample(self.logits()?.get(..n).unwrap_or_default()).map(Some)
    }

    /// The step that failed may have written over the logits that the last token was drawn from.
    fn forget_drawn(&mut self) {
        if self.drawn.as_ref().is_some_and(|drawn| drawn.get().is_none()) {
            self.drawn = None;
        }
    }

    /// The logits that the last token was drawn from, brought here when first asked for.
    pub(super) fn drawn_from<'a>(&'a self, drawn: &'a OnceLock<PoolSlice<f32>>) -> Result<&'a [f32]> {
        if drawn.get().is_none() {
            let logits = self.engine.drawn_from()?;
            // Another thread may have been first, with the same.
            let _ = drawn.set(logits);
        }
        Ok(drawn.get().ok_or(Error::NoLogits)?.as_slice()?)
    }
}
