//! The `llama` tokenizer: SentencePiece's byte-pair encoding, in which the pair that makes the token of the highest
//! score merges first.
//!
//! Source: Kudo and Richardson, SentencePiece (2018), `bpe_model.cc`, and llama.cpp's reading of it: a character that
//! is no token becomes its bytes, or the unknown token where the vocabulary lacks one of them.

use super::TokenId;
use super::merge::{Merger, Piece};
use super::vocab::{SPACE_MARK, Vocab};
use crate::error::{Error, Result, excerpt};
use crate::gguf::Metadata;

const SCORES: &str = "tokenizer.ggml.scores";

pub(super) struct Spm {
    /// By token: its score as an integer of the same order.
    keys: Vec<i32>,
    /// Bytes of the longest token.
    longest: usize,
    /// Whether spaces occur in tokens only at the beginning, so that words can be merged one by one.
    by_word: bool,
}

/// A piece of a word: bytes from `start` to `end`.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

impl Piece for Span {
    fn len(self) -> u32 {
        self.end - self.start
    }
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
        let texts = (0..vocab.len() as u32).map(text);
        let longest = texts.clone().map(str::len).max().unwrap_or(0);
        let by_word = !texts.clone().any(|text| words(text).nth(1).is_some());
        Ok(Self { keys: scores.iter().map(|&score| ordered(score)).collect(), longest, by_word })
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
        let mut merger = Merger::new();
        if self.by_word {
            words(&marked).try_for_each(|word| self.encode_word(vocab, word, &mut merger, out))
        } else {
            self.encode_word(vocab, &marked, &mut merger, out)
        }
    }

    fn encode_word(
        &self,
        vocab: &Vocab,
        word: &str,
        merger: &mut Merger<i32, Span>,
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        let bytes = |span: Span| &word.as_bytes()[span.start as usize..span.end as usize];
        let mut end = 0;
        let characters = word.chars().map(|c| {
            let start = end;
            end += c.len_utf8() as u32;
            Span { start, end }
        });
        let pair = |left: Span, right: Span| {
            let span = Span { start: left.start, end: right.end };
            if span.len() as usize > self.longest {
                return None;
            }
            let token = vocab.find(bytes(span))?;
            Some((*self.keys.get(token.index())?, span))
        };
        for span in merger.merge(word.len(), characters, pair)? {
            match vocab.find(bytes(span)) {
                Some(token) => out.push(token),
                None => vocab.push_bytes(bytes(span), out)?,
            }
        }
        Ok(())
    }
}

/// A text parted in front of every space that follows something else. No token reaches over such a place if none has
/// one inside.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let begun = rest.trim_start_matches(SPACE_MARK);
        let spaces = rest.len() - begun.len();
        let (word, after) = rest.split_at(spaces + begun.find(SPACE_MARK).unwrap_or(begun.len()));
        rest = after;
        (!word.is_empty()).then_some(word)
    })
}

/// An integer that orders as the float does, for floats that are numbers; both zeros are one.
fn ordered(score: f32) -> i32 {
    let bits = (score + 0.0).to_bits().cast_signed();
    // Negative floats order backwards by their bits: turn all but the sign.
    if bits < 0 { bits ^ i32::MAX } else { bits }
}
