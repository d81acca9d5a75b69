//! Finding special tokens in a text.

use super::TokenId;
use crate::error::{Error, Result, excerpt};
use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

/// No real vocabulary comes near this; it bounds the automaton that a hostile one asks for.
const MAX_TOTAL_BYTES: usize = 1 << 24;

/// A piece of a text that is parted at its special tokens. Texts are not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment<'a> {
    Special(TokenId),
    Text(&'a str),
}

/// A set of tokens that are found in a text as a whole: leftmost first, the longest of those that begin there.
pub(super) struct Specials {
    automaton: Option<AhoCorasick>,
    tokens: Vec<TokenId>,
}

impl Specials {
    pub(super) fn new<'a>(specials: impl Iterator<Item = (TokenId, &'a str)>) -> Result<Self> {
        let mut texts = Vec::new();
        let mut tokens = Vec::new();
        let mut total = 0usize;
        for (token, text) in specials.filter(|(_, text)| !text.is_empty()) {
            total += text.len();
            if total > MAX_TOTAL_BYTES {
                let (id, text) = (token.get(), excerpt(text));
                let problem = "is one special token too many: their texts exceed 16 MiB";
                return Err(Error::InvalidToken { id, text, problem });
            }
            texts.push(text);
            tokens.push(token);
        }
        if texts.is_empty() {
            return Ok(Self { automaton: None, tokens });
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(&texts)
            // Only more patterns or states than the limit above admits can fail.
            .map_err(|_| Error::VocabularySize { count: texts.len() })?;
        Ok(Self { automaton: Some(automaton), tokens })
    }

    /// Part a text at the tokens of this set.
    pub(super) fn split<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Fragment<'a>> {
        let mut matches = self.automaton.as_ref().map(|automaton| automaton.find_iter(text));
        let mut at = 0;
        let mut pending = None;
        std::iter::from_fn(move || {
            if let Some(token) = pending.take() {
                return Some(Fragment::Special(token));
            }
            let (start, end) = match matches.as_mut().and_then(Iterator::next) {
                Some(found) => {
                    pending = self.tokens.get(found.pattern().as_usize()).copied();
                    (found.start(), found.end())
                }
                None => (text.len(), text.len()),
            };
            let before = text.get(at..start).unwrap_or_default();
            at = end;
            match before {
                "" => pending.take().map(Fragment::Special),
                _ => Some(Fragment::Text(before)),
            }
        })
    }
}
