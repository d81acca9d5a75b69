//! The tokenizers against naive twins: published rules, strings and quadratic loops, and nothing of the library.

use crate::vocabulary::{BYTE, CONTROL, UNKNOWN, Vocabulary, byte_alphabet};
use fancy_regex::Regex;
use granule_llama::{EncodeOptions, TextStream, TokenId};
use proptest::prelude::*;
use std::sync::LazyLock;

const PLAIN: EncodeOptions = EncodeOptions { add_bos: Some(false), parse_special: false };

/// SentencePiece's merging as one would explain it: while there is a pair of neighbours that is a token together, join
/// the one with the best score, the leftmost of those.
fn spm_twin(v: &Vocabulary, text: &str) -> Vec<u32> {
    let text_token = |piece: &str| {
        let fits = |i: &usize| v.tokens[*i] == piece && ![CONTROL, UNKNOWN, BYTE].contains(&v.types[*i]);
        (0..v.tokens.len()).find(fits)
    };
    if text.is_empty() {
        return Vec::new();
    }
    let text = format!(" {text}").replace(' ', "▁");
    let mut pieces: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for i in 1..pieces.len() {
            let joined = format!("{}{}", pieces[i - 1], pieces[i]);
            if let Some(token) = text_token(&joined)
                && best.is_none_or(|(score, _)| v.scores[token] > score)
            {
                best = Some((v.scores[token], i));
            }
        }
        let Some((_, i)) = best else { break };
        let right = pieces.remove(i);
        pieces[i - 1].push_str(&right);
    }
    let mut ids = Vec::new();
    for piece in pieces {
        if let Some(token) = text_token(&piece) {
            ids.push(token as u32);
            continue;
        }
        let byte_token = |b: u8| v.tokens.iter().position(|t| *t == format!("<0x{b:02X}>"));
        match piece.bytes().map(byte_token).collect::<Option<Vec<usize>>>() {
            Some(bytes) => ids.extend(bytes.into_iter().map(|t| t as u32)),
            None => ids.push(0),
        }
    }
    ids
}

static LLAMA: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = concat!(
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    );
    Regex::new(pattern).unwrap()
});
static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\p{N}|\P{N}+").unwrap());
static GPT2: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    Regex::new(pattern).unwrap()
});

/// Words by the published regular expressions, the digits of `smollm` cut out first.
fn words_twin<'a>(pre: &str, text: &'a str) -> Vec<&'a str> {
    fn split<'t>(regex: &Regex, text: &'t str) -> Vec<&'t str> {
        regex.find_iter(text).map(|m| m.unwrap().as_str()).collect()
    }
    match pre {
        "llama-bpe" => split(&LLAMA, text),
        _ => split(&NUMBER, text).into_iter().flat_map(|part| split(&GPT2, part)).collect(),
    }
}

/// Byte-pair encoding on strings of the byte alphabet: join the pair whose rule stands first, the leftmost of those.
fn bpe_twin(v: &Vocabulary, text: &str) -> Vec<u32> {
    let alphabet = byte_alphabet();
    let token = |piece: &str| {
        (0..v.tokens.len()).find(|&i| v.tokens[i] == piece && ![CONTROL, UNKNOWN].contains(&v.types[i]))
    };
    let mut ids = Vec::new();
    for word in words_twin(v.pre.unwrap(), text) {
        let word: String = word.bytes().map(|b| alphabet[usize::from(b)]).collect();
        if v.pre == Some("llama-bpe")
            && let Some(id) = token(&word)
        {
            ids.push(id as u32);
            continue;
        }
        let mut pieces: Vec<String> = word.chars().map(String::from).collect();
        loop {
            let rank =
                |i: &usize| v.merges.iter().position(|m| *m == format!("{} {}", pieces[*i - 1], pieces[*i]));
            let best = (1..pieces.len()).filter(|i| rank(i).is_some()).min_by_key(|i| rank(i));
            let Some(i) = best else { break };
            let right = pieces.remove(i);
            pieces[i - 1].push_str(&right);
        }
        for piece in pieces {
            match token(&piece) {
                Some(id) => ids.push(id as u32),
                None => ids.extend(piece.chars().map(|c| token(&c.to_string()).unwrap() as u32)),
            }
        }
    }
    ids
}

fn numbers(ids: &[TokenId]) -> Vec<u32> {
    ids.iter().map(|id| id.get()).collect()
}

/// Text in which the vocabularies below find something, with whatever else there is in between.
fn text() -> impl Strategy<Value = String> {
    let often = prop::sample::select(vec![
        "a", "b", "ab", "ba", "aab", "bb", " ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "'", "1", "12", "é",
        "▁", ".", "...", "\u{301}", "½", "世", "🙂", "\u{a0}", "<s>", "<0x41>",
    ])
    .prop_map(str::to_owned);
    let piece = prop_oneof![8 => often, 1 => any::<char>().prop_map(String::from)];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

fn word() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "▁", "é", "1", "'", "."]), 1..5)
        .prop_map(|pieces| pieces.concat())
}

fn spm_vocabulary() -> impl Strategy<Value = Vocabulary> {
    let tokens = prop::collection::vec((word(), -4i8..4), 0..24);
    (tokens, any::<bool>()).prop_map(|(tokens, bytes)| {
        let mut tokens: Vec<(&str, f32)> = tokens.iter().map(|(t, s)| (t.as_str(), f32::from(*s))).collect();
        tokens.push(("▁", -9.0));
        tokens.truncate(tokens.len() - usize::from(tokens.len().is_multiple_of(4)));
        if bytes { Vocabulary::spm(&tokens) } else { Vocabulary::spm_without_bytes(&tokens) }
    })
}

fn bpe_vocabulary() -> impl Strategy<Value = Vocabulary> {
    let part = || {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "Ġ", "Ã", "©", "'", ".", "Ċ"]), 1..4)
            .prop_map(|pieces| pieces.concat())
    };
    let merges = prop::collection::vec((part(), part()), 0..24);
    let pre = prop::sample::select(vec!["llama-bpe", "smollm"]);
    // Some merge results are no tokens: they are joined all the same, and come apart into bytes where they stay.
    (pre, merges, prop::collection::vec(any::<bool>(), 24)).prop_map(|(pre, merges, keep)| {
        let merges: Vec<(&str, &str)> = merges.iter().map(|(l, r)| (l.as_str(), r.as_str())).collect();
        let mut v = Vocabulary::bpe(pre, &merges);
        let keep = |i: usize| i < 256 || keep[(i - 256) % keep.len()];
        v.tokens = v.tokens.iter().enumerate().filter(|(i, _)| keep(*i)).map(|(_, t)| t.clone()).collect();
        v.types.truncate(v.tokens.len());
        v
    })
}

/// All pieces of a stream are what decoding gives at once, and no piece but the last holds a forced replacement.
fn check_stream(v: &Vocabulary, ids: &[TokenId]) {
    let t = v.tokenizer();
    let mut stream = TextStream::new();
    let mut streamed = String::new();
    for &id in ids {
        streamed.push_str(stream.push(&t, id).unwrap());
    }
    streamed.push_str(stream.finish());
    assert_eq!(streamed, t.decode(ids).unwrap());
    assert_eq!(streamed, String::from_utf8_lossy(&t.decode_bytes(ids).unwrap()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn spm_is_its_twin(v in spm_vocabulary(), text in text()) {
        let t = v.tokenizer();
        let ids = t.encode(&text, PLAIN).unwrap();
        prop_assert_eq!(numbers(&ids), spm_twin(&v, &text));
        check_stream(&v, &ids);
        // Bytes may spell the mark for a space, if it is no token; and it is itself not told from a space.
        if v.tokens.iter().any(|t| t == "▁") && !ids.contains(&TokenId::new(0)) {
            prop_assert_eq!(t.decode(&ids).unwrap(), text.replace('▁', " "));
        }
    }

    #[test]
    fn bpe_is_its_twin(v in bpe_vocabulary(), text in text()) {
        let t = v.tokenizer();
        let ids = t.encode(&text, PLAIN).unwrap();
        prop_assert_eq!(numbers(&ids), bpe_twin(&v, &text));
        check_stream(&v, &ids);
        prop_assert_eq!(t.decode(&ids).unwrap(), text);
    }

    #[test]
    fn any_tokens_stream_as_they_decode(ids in prop::collection::vec(0u32..300, 0..40)) {
        let v = Vocabulary::spm(&[("▁a", -1.0), ("é", -2.0), ("▁", -3.0)]).with("<x>", CONTROL);
        let ids: Vec<TokenId> = ids.iter().map(|id| TokenId::new(id % v.tokens.len() as u32)).collect();
        check_stream(&v, &ids);
    }
}
