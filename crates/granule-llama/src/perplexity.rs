//! Perplexity over a text, by the measure customary for GGUF files.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::tokenizer::TokenId;

/// The perplexity of a text, so far or in the end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// `exp` of the mean negative log-likelihood.
    pub ppl: f64,
    /// Windows measured.
    pub chunks: usize,
    /// Tokens scored.
    pub tokens: usize,
}

impl Perplexity {
    /// How many windows of `n_ctx` a text of so many tokens has, at least one.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for windows of which nothing can be scored, [`Error::TextTooShort`] if there is no whole one.
    pub fn windows(tokens: usize, n_ctx: usize) -> Result<usize> {
        if n_ctx < 4 {
            return Err(Error::InvalidOption {
                option: "the context size",
                value: n_ctx,
                allowed: "at least 4",
            });
        }
        if tokens < n_ctx { Err(Error::TextTooShort { tokens, n_ctx }) } else { Ok(tokens / n_ctx) }
    }
}

/// Cuts `tokens` (tokenized once, start token included where the file asks for one) into windows of `n_ctx`, replaces
/// each window's first token by the start token where the file asks for one, and scores the second half of each:
/// for a window of 512 the 255 tokens from the 257th on but the first, which is the measure of llama.cpp's
/// `perplexity` tool. At most `chunks` windows; `report` is called after each.
///
/// # Errors
/// [`Error::ContextFull`] if the context holds fewer than `n_ctx` tokens, and those of [`Perplexity::windows`] and
/// [`Context::eval`].
pub fn perplexity(
    context: &mut Context,
    tokens: &[TokenId],
    n_ctx: usize,
    chunks: Option<usize>,
    report: &mut dyn FnMut(&Perplexity),
) -> Result<Perplexity> {
    Perplexity::windows(tokens.len(), n_ctx)?;
    let tokenizer = context.model().tokenizer();
    let start = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let (mut sum, mut so_far) = (0.0, Perplexity { ppl: f64::NAN, chunks: 0, tokens: 0 });
    for window in tokens.chunks_exact(n_ctx).take(chunks.unwrap_or(usize::MAX)) {
        let mut window = window.to_vec();
        if let (Some(first), Some(start)) = (window.first_mut(), start) {
            *first = start;
        }
        context.clear()?;
        let half = n_ctx / 2;
        context.eval_each(&window[..n_ctx - 1], half, &mut |i, logits| {
            sum -= granule_ops::log_softmax_at(logits, window[i + 1].index());
            so_far.tokens += 1;
        })?;
        so_far.chunks += 1;
        so_far.ppl = (sum / so_far.tokens as f64).exp();
        report(&so_far);
    }
    context.clear()?;
    Ok(so_far)
}
