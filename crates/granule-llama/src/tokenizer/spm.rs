//! The `llama` tokenizer: SentencePiece's byte-pair encoding, in which the pair that makes the token of the highest
//! score merges first.
//!
//! Source: Kudo and Richardson, SentencePiece (2018), `bpe_model.cc`, and llama.cpp's reading of it: a character that
//! is no token becomes its bytes, or the unknown token where the vocabulary lacks one of them.

use super::TokenId;
use super::merge::Merger;
use super::vocab::{SPACE_MARK, Vocab};
use crate::error::{Error, Result, excerpt};
use crate::gguf::Metadata;

const SCORES: &str = "tokenizer.ggml.scores";

pub(super) struct Spm {
    /// By token: its score as an integer of the same order.
    keys: Vec<i32>,
    /// Bytes of the longest token.
    longest: usize,
}

/// A piece of the text: bytes from `start` to `end`.
#[derive(Clone, Copy, PartialEq)]
struct Span {
    start: usize,
    end: usize,
}

impl Spm {
    pub(super) fn read(metadata: &Metadata, vocab: &Vocab) -> Result<Self> {
        let scores = metadata.get_f32s(SCORES)?;
        if scores.len() != vocab.len() {
            return Err(Error::VocabularyLength { key: SCORES, found: scores.len(), expected: vocab.len() });
        }
        let text = |id: u32| vocab.text(TokenId(id)).unwrap_or_default();
        if let Some(id) = (0u32..).zip(scores.iter()).find_map(|(id, score)| score.is_nan().then_some(id)) {
            return Err(Error::InvalidToken {
                id,
                text: excerpt(text(id)),
                problem: "has a score that is no number",
            });
        }
        let longest = (0..vocab.len() as u32).map(|id| text(id).len()).max().unwrap_or(0);
        Ok(Self { keys: scores.iter().map(|&score| ordered(score)).collect(), longest })
    }

    /// Append the tokens of `text`, with a space in front of it where `space_prefix` says so.
    pub(super) fn encode(
        &self,
        vocab: &Vocab,
        text: &str,
        space_prefix: bool,
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        let mut marked = String::with_capacity(text.len() + SPACE_MARK.len_utf8());
        if space_prefix {
            marked.push(SPACE_MARK);
        }
        marked.extend(text.chars().map(|c| if c == ' ' { SPACE_MARK } else { c }));
        let bytes = marked.as_bytes();

        let characters = marked.char_indices().map(|(start, c)| Span { start, end: start + c.len_utf8() });
        let pair = |left: Span, right: Span| {
            let span = Span { start: left.start, end: right.end };
            if span.end - span.start > self.longest {
                return None;
            }
            let token = vocab.find(&bytes[span.start..span.end])?;
            Some((*self.keys.get(token.index())?, span))
        };
        for span in Merger::new().merge(characters, pair) {
            let piece = &bytes[span.start..span.end];
            match vocab.find(piece) {
                Some(token) => out.push(token),
                None => vocab.push_bytes(piece, out)?,
            }
        }
        Ok(())
    }
}

/// An integer that orders as the float does, for floats that are numbers; both zeros are one.
fn ordered(score: f32) -> i32 {
    let bits = (score + 0.0).to_bits().cast_signed();
    // Negative floats order backwards by their bits: turn all but the sign.
    if bits < 0 { bits ^ i32::MAX } else { bits }
}
