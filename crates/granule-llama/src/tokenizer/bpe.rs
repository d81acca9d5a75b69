//! The `gpt2` tokenizer: byte-level byte-pair encoding, in which the pair whose rule stands first merges first.
//!
//! Source: Sennrich et al., Neural Machine Translation of Rare Words with Subword Units (2016); the alphabet of bytes
//! is that of GPT-2's `encoder.py`. Pieces are numbers here, never strings: a token's number, or one behind the
//! vocabulary's end for a piece that only merge rules name.

use super::TokenId;
use super::merge::{self, Merger};
use super::pre::PreTokenizer;
use super::vocab::Vocab;
use crate::error::{Error, Result, excerpt};
use crate::gguf::Metadata;
use std::cmp::Reverse;
use std::collections::HashMap;

const MERGES: &str = "tokenizer.ggml.merges";

pub(super) struct Bpe {
    pre: PreTokenizer,
    /// What a pair of pieces becomes, and the place of the rule that says so.
    merges: HashMap<(u32, u32), Merge>,
    /// The piece of each single byte.
    bytes: Box<[u32; 256]>,
}

#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    merged: u32,
}

/// A piece of a word.
#[derive(Clone, Copy)]
struct Piece {
    number: u32,
    /// In bytes.
    len: u32,
}

impl merge::Piece for Piece {
    fn len(self) -> u32 {
        self.len
    }
}

/// Numbers for pieces that are no tokens.
struct Interner<'a> {
    vocab: &'a Vocab,
    others: HashMap<Box<[u8]>, u32>,
}

impl Interner<'_> {
    fn number(&mut self, bytes: &[u8]) -> Result<u32> {
        if let Some(token) = self.vocab.find(bytes) {
            return Ok(token.get());
        }
        if let Some(&number) = self.others.get(bytes) {
            return Ok(number);
        }
        let count = self.vocab.len() + self.others.len();
        let number = u32::try_from(count).map_err(|_| Error::VocabularySize { count })?;
        self.others.insert(bytes.into(), number);
        Ok(number)
    }
}

impl Bpe {
    pub(super) fn read(metadata: &Metadata, vocab: &Vocab, pre: PreTokenizer) -> Result<Self> {
        let mut interner = Interner { vocab, others: HashMap::new() };
        let mut bytes = Box::new([0; 256]);
        for (byte, number) in (0u8..=255).zip(bytes.iter_mut()) {
            *number = interner.number(&[byte])?;
        }
        let rules = metadata.get_strings(MERGES)?;
        let mut merges = HashMap::with_capacity(rules.len());
        let mut joined = Vec::new();
        for (rank, rule) in (0u32..).zip(rules.iter()) {
            let parts = rule
                .split_once(' ')
                .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '));
            let Some((left, right)) = parts else {
                return Err(Error::InvalidMerge { index: rank as usize, rule: excerpt(rule) });
            };
            joined.clear();
            // A rule with a character that stands for no byte applies to no text.
            let Some(left_len) = push_bytes(left, &mut joined) else { continue };
            let Some(_) = push_bytes(right, &mut joined) else { continue };
            let pair = (interner.number(&joined[..left_len])?, interner.number(&joined[left_len..])?);
            let merged = interner.number(&joined)?;
            merges.entry(pair).or_insert(Merge { rank, merged });
        }
        Ok(Self { pre, merges, bytes })
    }

    /// Append the tokens of `text`.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<TokenId>) -> Result<()> {
        let mut merger = Merger::new();
        for word in self.pre.words(text) {
            let word = word.as_bytes();
            if self.pre.ignores_merges()
                && let Some(token) = vocab.find(word)
            {
                out.push(token);
                continue;
            }
            let pieces = word.iter().map(|&b| Piece { number: self.bytes[usize::from(b)], len: 1 });
            let pair = |left: Piece, right: Piece| {
                let merge = self.merges.get(&(left.number, right.number))?;
                Some((Reverse(merge.rank), Piece { number: merge.merged, len: left.len + right.len }))
            };
            let mut at = 0;
            for piece in merger.merge(word.len(), pieces, pair)? {
                let bytes = &word[at..at + piece.len as usize];
                at += bytes.len();
                if (piece.number as usize) < vocab.len() {
                    out.push(TokenId(piece.number));
                } else {
                    for byte in bytes {
                        vocab.push_bytes(std::slice::from_ref(byte), out)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Append the bytes that `text` stands for and return their number, `None` where a character stands for none.
fn push_bytes(text: &str, out: &mut Vec<u8>) -> Option<usize> {
    let before = out.len();
    for c in text.chars() {
        out.push(byte_of_char(c)?);
    }
    Some(out.len() - before)
}

/// The byte that a character of a `gpt2` vocabulary stands for: printable Latin-1 stands for itself, the other 68
/// bytes, in order, are U+0100 and what follows.
pub(super) fn byte_of_char(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}
