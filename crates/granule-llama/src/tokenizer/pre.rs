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

#[cfg(test)]
mod tests {
    use super::*;
    use fancy_regex::Regex;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static LLAMA: LazyLock<Regex> = LazyLock::new(|| {
        let pattern = concat!(
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|",
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        );
        Regex::new(pattern).unwrap()
    });
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\p{N}|\P{N}+").unwrap());
    static GPT2: LazyLock<Regex> = LazyLock::new(|| {
        let pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        Regex::new(pattern).unwrap()
    });

    /// The published expressions, run by an engine of regular expressions.
    fn twin(pre: PreTokenizer, text: &str) -> Vec<&str> {
        fn split<'t>(regex: &Regex, text: &'t str) -> Vec<&'t str> {
            regex.find_iter(text).map(|m| m.unwrap().as_str()).collect()
        }
        match pre {
            PreTokenizer::LlamaBpe => split(&LLAMA, text),
            PreTokenizer::Smollm => {
                split(&NUMBER, text).into_iter().flat_map(|part| split(&GPT2, part)).collect()
            }
        }
    }

    fn text() -> impl Strategy<Value = String> {
        let often = prop::sample::select(vec![
            " ",
            " ",
            "  ",
            "\n",
            "\r",
            "\r\n",
            "\t",
            "\u{a0}",
            "\u{3000}",
            "\u{85}",
            "\u{200b}",
            "'",
            "'s",
            "'S",
            "'ll",
            "'Ve",
            "'rE",
            "'d",
            "a",
            "word",
            "é",
            "e\u{301}",
            "ß",
            "ǅ",
            "ʰ",
            "世",
            "ﬀ",
            "1",
            "22",
            "4444",
            "½",
            "Ⅷ",
            "٣",
            "_",
            "!",
            "--",
            "…",
            "€",
            "🙂",
            "\u{ad}",
            "\0",
            "\u{e000}",
            "\u{10ffff}",
        ])
        .prop_map(str::to_owned);
        let piece = prop_oneof![6 => often, 1 => "[ -\u{17f}]".prop_map(String::from)];
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

        #[test]
        fn words_are_what_the_expressions_find(text in text()) {
            for pre in [PreTokenizer::LlamaBpe, PreTokenizer::Smollm] {
                let words: Vec<&str> = pre.words(&text).collect();
                prop_assert_eq!(&words, &twin(pre, &text), "{:?}", pre);
                prop_assert_eq!(words.concat(), text.as_str());
            }
        }
    }

    #[test]
    fn classes_are_unicodes() {
        let all: String = ('\0'..=char::MAX).collect();
        let set = |pattern: &str| -> std::collections::HashSet<char> {
            let regex = Regex::new(pattern).unwrap();
            regex.find_iter(&all).flat_map(|m| m.unwrap().as_str().chars()).collect()
        };
        let [letters, numbers, spaces, unassigned] = [r"\p{L}+", r"\p{N}+", r"\s+", r"\p{Cn}+"].map(set);
        // The two libraries may know different versions of Unicode, in which characters are added, never changed.
        let old = |c: &char| {
            !unassigned.contains(c) && c.general_category() != unicode_properties::GeneralCategory::Unassigned
        };
        for c in all.chars().filter(old) {
            let class = match () {
                () if letters.contains(&c) => Class::Letter,
                () if numbers.contains(&c) => Class::Number,
                () if spaces.contains(&c) => Class::Space,
                () => Class::Other,
            };
            assert!(Class::of(c) == class, "{c:?}");
        }
    }
}
