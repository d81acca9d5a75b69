//! Generation: an iterator that writes a text behind a prompt, piece by piece.

use std::time::{Duration, Instant};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::sample::{Sampler, SamplingOptions};
use crate::tokenizer::{TextStream, TokenId};

/// How to write.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// How each token is chosen.
    pub sampling: SamplingOptions,
    /// The most tokens to write. None: until the model ends its text or the context is full.
    pub n_predict: Option<usize>,
    /// Texts that end the generation where they occur; they are not part of what is written.
    pub stop: Vec<String>,
    /// Whether the text goes on right behind the prompt's. It then keeps the space in front that `llama`
    /// vocabularies write at the beginning of each word; otherwise it is a text of its own, without it.
    pub continues: bool,
}

/// A piece of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The token behind it; none where only text that had been held back is left.
    pub token: Option<TokenId>,
    /// Its text, always whole characters; empty while a character or a stop text may still be incomplete.
    pub text: String,
}

/// As [`Piece`], its text lent until the next one is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceRef<'a> {
    /// The token behind it; none where only text that had been held back is left.
    pub token: Option<TokenId>,
    /// Its text, as a [`Piece`] has it.
    pub text: &'a str,
}

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// The model ended its text.
    EndOfText,
    /// This stop text was written.
    Stop(String),
    /// `n_predict` tokens were written.
    Length,
    /// The context holds no more tokens.
    ContextFull,
    /// The context's [`crate::CancelToken`] was set.
    Cancelled,
    /// An error ended it, which the iterator gave out.
    Failed,
}

/// How much was done, and how long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationStats {
    /// Tokens of the prompt that were computed.
    pub n_prompt: usize,
    /// How long that took.
    pub prompt_time: Duration,
    /// Tokens written, an end token included.
    pub n_generated: usize,
    /// Tokens computed after the prompt.
    pub n_decoded: usize,
    /// How long these took, sampling included.
    pub decode_time: Duration,
}

/// A generation that is going on. Dropping it ends it; the context keeps what was computed.
#[derive(Debug)]
pub struct Generation<'a> {
    context: &'a mut Context,
    sampler: Sampler,
    text: TextStream,
    held: StopText,
    n_predict: usize,
    /// The token that was written last and is not in the cache yet.
    pending: Option<TokenId>,
    finish: Option<Finish>,
    stats: GenerationStats,
}

impl Context {
    /// Appends `prompt` and returns an iterator over what the model writes behind it.
    ///
    /// # Errors
    /// Those of [`Context::eval`], and [`Error::InvalidSampling`]; the context is then as it was.
    pub fn generate(&mut self, prompt: &[TokenId], options: GenerateOptions) -> Result<Generation<'_>> {
        self.generate_reporting(prompt, options, &mut |_| {})
    }

    /// As [`Context::generate`], and calls `progress` with the tokens done after each batch of the prompt.
    ///
    /// # Errors
    /// As [`Context::generate`].
    pub fn generate_reporting(
        &mut self,
        prompt: &[TokenId],
        options: GenerateOptions,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Generation<'_>> {
        let mut sampler = Sampler::new(options.sampling)?;
        let start = Instant::now();
        let reused = self.eval_prompt(prompt, progress)?;
        for &token in self.tokens() {
            sampler.accept(token);
        }
        let text = if options.continues { TextStream::continuing() } else { TextStream::new() };
        let stats = GenerationStats {
            n_prompt: prompt.len() - reused,
            prompt_time: start.elapsed(),
            ..GenerationStats::default()
        };
        let n_predict = options.n_predict.unwrap_or(usize::MAX);
        let finish = (n_predict == 0).then_some(Finish::Length);
        let held = StopText::new(options.stop);
        Ok(Generation { context: self, sampler, text, held, n_predict, pending: None, finish, stats })
    }
}

impl Generation<'_> {
    /// Why it ended; none while it goes on.
    #[must_use]
    pub fn finish(&self) -> Option<&Finish> {
        self.finish.as_ref()
    }

    /// How much was done so far.
    #[must_use]
    pub fn stats(&self) -> GenerationStats {
        self.stats
    }

    /// The context, to look at while the generation goes on.
    #[must_use]
    pub fn context(&self) -> &Context {
        self.context
    }

    /// The next piece, without a copy of its text: what [`Iterator::next`] gives, for loops that take no memory. `None` once
    /// it has ended.
    ///
    /// # Errors
    /// Those of [`Context::eval`]; the generation then has ended.
    pub fn next_piece(&mut self) -> Option<Result<PieceRef<'_>>> {
        if self.finish.is_some() {
            return None;
        }
        let start = Instant::now();
        let token = self.advance();
        self.stats.decode_time += start.elapsed();
        Some(match token {
            Ok(token) => Ok(PieceRef { token, text: &self.held.ready }),
            Err(error) => {
                // An error is told once; there is nothing behind it.
                self.finish = Some(Finish::Failed);
                Err(error)
            }
        })
    }

    /// Computes the next token; its text is what is ready.
    fn advance(&mut self) -> Result<Option<TokenId>> {
        self.held.ready.clear();
        // A padded table has rows that stand for no token.
        let n_vocab = self.context.model().tokenizer().n_vocab();
        let mut drawn = None;
        if let Some(token) = self.pending.take() {
            match self.evaluated(token, n_vocab) {
                Ok(next) => {
                    self.stats.n_decoded += 1;
                    drawn = next;
                }
                Err(Error::ContextFull { .. }) => return Ok(self.end(Finish::ContextFull, None)),
                Err(Error::Cancelled) => return Ok(self.end(Finish::Cancelled, None)),
                Err(other) => return Err(other),
            }
        }
        let token = match drawn {
            Some(token) => token,
            None => {
                let logits = self.context.logits()?;
                self.sampler.sample(logits.get(..n_vocab).unwrap_or(logits))?
            }
        };
        self.stats.n_generated += 1;
        let tokenizer = self.context.model().tokenizer();
        if tokenizer.is_eog(token) {
            return Ok(self.end(Finish::EndOfText, Some(token)));
        }
        let stopped = self.held.push(self.text.push(tokenizer, token)?);
        self.pending = Some(token);
        if let Some(stop) = stopped {
            self.finish = Some(Finish::Stop(stop));
        } else if self.stats.n_generated >= self.n_predict {
            return Ok(self.end(Finish::Length, Some(token)));
        }
        Ok(Some(token))
    }

    /// Computes what is behind a token; answers the next one where it was drawn along the way.
    fn evaluated(&mut self, token: TokenId, n_vocab: usize) -> Result<Option<TokenId>> {
        #[cfg(feature = "cuda")]
        if let Some(next) = self.context.draw(token, &mut self.sampler, n_vocab)? {
            return Ok(Some(next));
        }
        #[cfg(not(feature = "cuda"))]
        let _ = n_vocab;
        self.context.eval(&[token])?;
        Ok(None)
    }

    /// Ends the generation with everything that was held back.
    fn end(&mut self, finish: Finish, token: Option<TokenId>) -> Option<TokenId> {
        let stopped = self.held.push(self.text.finish());
        self.finish = Some(stopped.map_or(finish, Finish::Stop));
        self.held.let_go();
        token
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Result<Piece>> {
        let piece = self.next_piece()?;
        Some(piece.map(|PieceRef { token, text }| Piece { token, text: text.to_owned() }))
    }
}

/// Holds text back while it may be the beginning of a stop text.
#[derive(Debug)]
struct StopText {
    stops: Vec<String>,
    held: String,
    /// Text that can no longer be part of a stop text, for the caller to take.
    ready: String,
}

impl StopText {
    fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new(), ready: String::new() }
    }

    /// Adds text and makes ready what can no longer be part of a stop text; where one occurs, that is what is before the
    /// first, which is the answer.
    fn push(&mut self, text: &str) -> Option<String> {
        self.held.push_str(text);
        let first = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop))).min();
        if let Some((at, stop)) = first {
            self.ready.push_str(&self.held[..at]);
            self.held.clear();
            return Some(stop.clone());
        }
        let mut keep = 0;
        for stop in &self.stops {
            let ends =
                stop.char_indices().map(|(at, _)| at).skip(1).filter(|&at| self.held.ends_with(&stop[..at]));
            keep = ends.max().unwrap_or(0).max(keep);
        }
        let settled = self.held.len() - keep;
        self.ready.push_str(&self.held[..settled]);
        self.held.drain(..settled);
        None
    }

    /// Makes ready what was held back.
    fn let_go(&mut self) {
        self.ready.push_str(&self.held);
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::StopText;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let mut held = StopText::new(stops.iter().map(|&s| s.to_owned()).collect());
        for piece in pieces {
            if let Some(stop) = held.push(piece) {
                return (held.ready, Some(stop));
            }
        }
        held.let_go();
        (held.ready, None)
    }

    #[test]
    fn a_stop_text_over_pieces_is_found_and_left_out() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".into(), Some("END".into())));
        assert_eq!(run(&["END"], &["one E", "N", "x"]), ("one ENx".into(), None));
        assert_eq!(run(&["END"], &["one EN"]), ("one EN".into(), None));
        assert_eq!(run(&["", "né"], &["caf", "n", "é"]), ("caf".into(), Some("né".into())));
        assert_eq!(run(&["bc", "abcd"], &["xabc"]), ("xa".into(), Some("bc".into())));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            stops in prop::collection::vec("[ab]{1,3}", 0..3), text in "[abc]{0,20}", cuts in prop::collection::vec(0usize..20, 0..6),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let (out, stop) = run(&stops, &pieces);
            // Naive: which stop text is complete first, as the text is written character by character?
            let ends = stops.iter().filter_map(|s| Some((text.find(s)? + s.len(), text.find(s)?, *s)));
            match (stop, ends.clone().min()) {
                (None, None) => prop_assert_eq!(out, text),
                (Some(_), Some(_)) => {
                    // A piece may complete several at once; the one that begins first counts.
                    prop_assert!(ends.clone().any(|(_, at, _)| out == text[..at]), "{out} of {text}");
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
