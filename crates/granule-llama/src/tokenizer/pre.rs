//! Pre-tokenizers: how a `gpt2` text is parted into words before pairs are merged.
//!
//! The rules are published as regular expressions with look-ahead; they are scanned by hand here, because a
//! backtracking matcher gives up on hostile text, and these scans look at each character a bounded number of times.

use crate::error::{Error, Result, excerpt};
use crate::gguf::Metadata;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// The pre-tokenizers that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    /// Llama 3's:
    /// `'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}`
    /// `| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    LlamaBpe,
    /// SmolLM's: each `\p{N}` alone; between them GPT-2's
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Smollm,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

impl Class {
    fn of(c: char) -> Self {
        if c.is_ascii() {
            return match c {
                'a'..='z' | 'A'..='Z' => Self::Letter,
                '0'..='9' => Self::Number,
                _ if c.is_whitespace() => Self::Space,
                _ => Self::Other,
            };
        }
        match c.general_category_group() {
            GeneralCategoryGroup::Letter => Self::Letter,
            GeneralCategoryGroup::Number => Self::Number,
            _ if c.is_whitespace() => Self::Space,
            _ => Self::Other,
        }
    }
}

impl PreTokenizer {
    pub(super) fn read(metadata: &Metadata) -> Result<Self> {
        match metadata.find_str("tokenizer.ggml.pre")? {
            Some("llama-bpe" | "llama3" | "llama-v3") => Ok(Self::LlamaBpe),
            Some("smollm") => Ok(Self::Smollm),
            other => Err(Error::UnsupportedPreTokenizer { pre: excerpt(other.unwrap_or("(none)")) }),
        }
    }

    /// Whether a word that is a token is taken whole, without looking at the merge rules.
    pub(super) fn ignores_merges(self) -> bool {
        self == Self::LlamaBpe
    }

    /// The words of a text, in order; together they are the text.
    pub(super) fn words(self, text: &str) -> impl Iterator<Item = &str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let len = match self {
                Self::LlamaBpe => llama_word(rest),
                Self::Smollm => smollm_word(rest),
            };
            let (word, after) = rest.split_at(len);
            rest = after;
            Some(word)
        })
    }
}

/// Bytes of the characters from the beginning for which `wanted` is true.
fn span(text: &str, wanted: impl Fn(char) -> bool) -> usize {
    text.find(|c| !wanted(c)).unwrap_or(text.len())
}

fn class_at(text: &str, at: usize) -> Option<Class> {
    text.get(at..)?.chars().next().map(Class::of)
}

/// Bytes of a contraction such as `'s` or `'ll` at the beginning, 0 where there is none.
fn contraction(text: &str, fold_case: bool) -> usize {
    let lower = |at: usize| match text.as_bytes().get(at) {
        Some(b) if fold_case => b.to_ascii_lowercase(),
        Some(&b) => b,
        None => 0,
    };
    if lower(0) != b'\'' {
        return 0;
    }
    match (lower(1), lower(2)) {
        (b's' | b't' | b'm' | b'd', _) => 2,
        (b'r' | b'v', b'e') | (b'l', b'l') => 3,
        _ => 0,
    }
}

/// Bytes of the white space that begins a text, of which `run` bytes are white: all of it where `end` says that
/// nothing follows, else all but its last character, which belongs to the word that follows.
fn white(text: &str, run: usize, end: bool) -> usize {
    let last = text[..run].chars().next_back().map_or(0, char::len_utf8);
    if end || run == last { run } else { run - last }
}

/// Bytes of the first word of a text that is not empty, by Llama 3's rules.
fn llama_word(text: &str) -> usize {
    let Some(first) = text.chars().next() else { return 0 };
    let class = Class::of(first);
    let short = contraction(text, true);
    if short > 0 {
        return short;
    }
    // [^\r\n\p{L}\p{N}]?\p{L}+
    let letter = |c| Class::of(c) == Class::Letter;
    let mark = match class {
        Class::Letter => Some(0),
        Class::Space | Class::Other if !matches!(first, '\r' | '\n') => Some(first.len_utf8()),
        _ => None,
    };
    if let Some(mark) = mark.filter(|&mark| class_at(text, mark) == Some(Class::Letter)) {
        return mark + span(&text[mark..], letter);
    }
    // \p{N}{1,3}
    if class == Class::Number {
        return text.chars().take(3).take_while(|&c| Class::of(c) == Class::Number).map(char::len_utf8).sum();
    }
    // ` ?[^\s\p{L}\p{N}]+[\r\n]*`
    let space = usize::from(first == ' ');
    if class_at(text, space) == Some(Class::Other) {
        let end = space + span(&text[space..], |c| Class::of(c) == Class::Other);
        return end + span(&text[end..], |c| matches!(c, '\r' | '\n'));
    }
    // \s*[\r\n]+|\s+(?!\S)|\s+
    let run = span(text, |c| Class::of(c) == Class::Space);
    match text[..run].rfind(['\r', '\n']) {
        Some(last) => last + 1,
        None => white(text, run, run == text.len()),
    }
}

/// Bytes of the first word of a text that is not empty, by SmolLM's rules.
fn smollm_word(text: &str) -> usize {
    let Some(first) = text.chars().next() else { return 0 };
    if Class::of(first) == Class::Number {
        return first.len_utf8();
    }
    let short = contraction(text, false);
    if short > 0 {
        return short;
    }
    let space = usize::from(first == ' ');
    if let Some(class @ (Class::Letter | Class::Other)) = class_at(text, space) {
        return space + span(&text[space..], |c| Class::of(c) == class);
    }
    let run = span(text, |c| Class::of(c) == Class::Space);
    // A number parts the text, so that white space before one ends it.
    white(text, run, matches!(class_at(text, run), None | Some(Class::Number)))
}
