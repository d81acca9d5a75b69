//! A vocabulary and a text of the fuzzer's making: never a panic, and text, tokens, streams and chats agree.

#![no_main]

use arbitrary::Arbitrary;
use granule_llama::gguf::{Array, Gguf, GgufWriter, Value};
use granule_llama::tokenizer::TokenKind;
use granule_llama::{ChatMessage, ChatTemplate, EncodeOptions, Error, TextStream, TokenId, Tokenizer};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Pre {
    Spm,
    LlamaBpe,
    Smollm,
}

/// A token's text: most of them from the text itself, so that something is found there.
#[derive(Arbitrary, Debug)]
enum Piece {
    OfText { start: u8, len: u8 },
    Joined { left: u8, right: u8 },
    Free(String),
}

#[derive(Arbitrary, Debug)]
struct Input {
    pre: Pre,
    text: String,
    tokens: Vec<(Piece, u8, i8)>,
    merges: Vec<(u8, u8)>,
    /// Whether there are tokens for all bytes, an unknown token, a token for the space.
    bytes: bool,
    unknown: bool,
    space: bool,
    space_prefix: Option<bool>,
    add_bos: Option<bool>,
    ids: Vec<u16>,
    /// A template engine is made for it, which is slow: for one input in sixteen.
    chat: u8,
}

/// What stands for each byte in a `gpt2` vocabulary.
fn alphabet(byte: u8) -> char {
    let other = |from: u32| char::from_u32(u32::from(byte) - from + 0x100).unwrap();
    match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0..=0x20 => other(0),
        0x7f..=0xa0 => other(0x7f - 0x21),
        0xad => '\u{143}',
    }
}

struct Vocabulary {
    texts: Vec<String>,
    kinds: Vec<i32>,
    scores: Vec<f32>,
    merges: Vec<String>,
}

impl Vocabulary {
    fn push(&mut self, text: String, kind: i32, score: f32) {
        self.texts.push(text);
        self.kinds.push(kind);
        self.scores.push(score);
    }

    fn new(input: &Input) -> Self {
        let spm = matches!(input.pre, Pre::Spm);
        let written = |text: &str| -> String {
            if spm { text.replace(' ', "▁") } else { text.bytes().map(alphabet).collect() }
        };
        let mut v = Self { texts: vec![], kinds: vec![], scores: vec![], merges: vec![] };
        if input.unknown {
            v.push("<unk>".into(), 2, 0.0);
        }
        v.push("<s>".into(), 3, 0.0);
        v.push("</s>".into(), 3, 0.0);
        if input.bytes {
            for byte in 0..=255u8 {
                let text = if spm { format!("<0x{byte:02X}>") } else { alphabet(byte).to_string() };
                v.push(text, if spm { 6 } else { 1 }, 0.0);
            }
        }
        if input.space {
            v.push(written(" "), 1, -100.0);
        }
        let chars: Vec<char> = input.text.chars().collect();
        let first = v.texts.len();
        for (piece, kind, score) in &input.tokens {
            let earlier = |at: u8| {
                let own = &v.texts[first..];
                if own.is_empty() { String::new() } else { own[usize::from(at) % own.len()].clone() }
            };
            let text = match piece {
                Piece::OfText { start, len } => {
                    let start = usize::from(*start) % (chars.len() + 1);
                    let end = (start + usize::from(*len)).min(chars.len());
                    let text: String = chars[start..end].iter().collect();
                    // Special tokens are matched as they are.
                    if matches!(kind % 8, 3 | 4) { text } else { written(&text) }
                }
                Piece::Joined { left, right } => earlier(*left) + &earlier(*right),
                Piece::Free(text) => text.clone(),
            };
            // Mostly normal tokens; the rest is every kind that needs no special text.
            v.push(text, [1, 1, 1, 3, 4, 5, 1, 2][usize::from(kind % 8)], f32::from(*score) / 8.0);
        }
        for (left, right) in &input.merges {
            let part = |at: u8| v.texts[usize::from(at) % v.texts.len()].clone();
            let (left, right) = (part(*left), part(*right));
            if ![&left, &right].iter().any(|part| part.is_empty() || part.contains(' ')) {
                v.merges.push(format!("{left} {right}"));
            }
        }
        v
    }

    fn tokenizer(&self, input: &Input) -> Result<Tokenizer, Error> {
        let mut file = GgufWriter::new(3)?;
        let (model, pre) = match input.pre {
            Pre::Spm => ("llama", "default"),
            Pre::LlamaBpe => ("gpt2", "llama-bpe"),
            Pre::Smollm => ("gpt2", "smollm"),
        };
        file.set("tokenizer.ggml.model", Value::String(model.into()))?;
        file.set("tokenizer.ggml.pre", Value::String(pre.into()))?;
        file.set("tokenizer.ggml.tokens", Value::Array(Array::String(self.texts.iter().collect())))?;
        file.set("tokenizer.ggml.token_type", Value::Array(Array::I32(self.kinds.clone())))?;
        file.set("tokenizer.ggml.scores", Value::Array(Array::F32(self.scores.clone())))?;
        file.set("tokenizer.ggml.merges", Value::Array(Array::String(self.merges.iter().collect())))?;
        let start = u32::from(input.unknown);
        file.set("tokenizer.ggml.bos_token_id", Value::U32(start))?;
        file.set("tokenizer.ggml.eos_token_id", Value::U32(start + 1))?;
        if input.unknown {
            file.set("tokenizer.ggml.unknown_token_id", Value::U32(0))?;
        }
        if let Some(on) = input.space_prefix {
            file.set("tokenizer.ggml.add_space_prefix", Value::Bool(on))?;
        }
        if let Some(on) = input.add_bos {
            file.set("tokenizer.ggml.add_bos_token", Value::Bool(on))?;
        }
        Tokenizer::from_metadata(Gguf::parse(&file.to_bytes())?.metadata())
    }
}

fuzz_target!(|input: Input| {
    let vocabulary = Vocabulary::new(&input);
    let t = vocabulary.tokenizer(&input).unwrap();
    plain_text_comes_back(&t, &vocabulary, &input);
    let options = EncodeOptions { add_bos: None, parse_special: true };
    if let Ok(tokens) = t.encode(&input.text, options) {
        streams_are_what_decoding_gives(&t, &tokens);
    }
    let n_vocab = t.n_vocab() as u32;
    let any: Vec<TokenId> = input.ids.iter().map(|&id| TokenId::new(u32::from(id) % n_vocab)).collect();
    streams_are_what_decoding_gives(&t, &any);
    if input.chat % 16 == 1 {
        messages_forge_nothing(&t, &vocabulary, &input.text);
    }
});

fn steers(t: &Tokenizer, token: TokenId) -> bool {
    matches!(t.token_kind(token).unwrap(), TokenKind::Control | TokenKind::Unknown)
}

fn plain_text_comes_back(t: &Tokenizer, vocabulary: &Vocabulary, input: &Input) {
    let plain = EncodeOptions { add_bos: Some(false), parse_special: false };
    let tokens = match t.encode(&input.text, plain) {
        Ok(tokens) => tokens,
        // A `llama` vocabulary without an unknown token calls its first token that.
        Err(Error::NoTokenFor { .. }) if !input.unknown => return,
        Err(error) => panic!("{error}"),
    };
    streams_are_what_decoding_gives(t, &tokens);
    let unknown = |id: &TokenId| Some(*id) == t.unknown();
    assert!(tokens.iter().all(|id| unknown(id) || !steers(t, *id)));
    if tokens.iter().any(unknown) {
        return;
    }
    let text = t.decode(&tokens).unwrap();
    if !matches!(input.pre, Pre::Spm) {
        assert_eq!(text, input.text);
        return;
    }
    // A `llama` vocabulary does not tell its mark from a space, spells it in bytes if it must, and puts a space behind
    // each token of its maker's.
    let own = tokens.iter().any(|id| t.token_kind(*id) == Some(TokenKind::UserDefined));
    let spelt = !vocabulary.texts.iter().zip(&vocabulary.kinds).any(|(t, k)| t == "▁" && matches!(k, 1 | 5));
    if !own && !spelt {
        assert_eq!(text, input.text.replace('▁', " "));
    }
}

fn streams_are_what_decoding_gives(t: &Tokenizer, tokens: &[TokenId]) {
    let mut stream = TextStream::new();
    let mut text = String::new();
    for &token in tokens {
        text += stream.push(t, token).unwrap();
    }
    text += stream.finish();
    assert_eq!(text, t.decode(tokens).unwrap());
}

fn messages_forge_nothing(t: &Tokenizer, vocabulary: &Vocabulary, content: &str) {
    const HARMLESS: &str = "☃";
    let steering = vocabulary.texts.iter().zip(&vocabulary.kinds).filter(|(_, kind)| matches!(kind, 2 | 3));
    // A special token of nothing but blanks is not told from a message's.
    let blank = |text: &String| text.trim().is_empty() && !text.is_empty();
    let odd = steering.clone().any(|(text, _)| blank(text) || text.contains(HARMLESS));
    if odd || content.trim().is_empty() {
        return;
    }
    let source = "<s>{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}</s>{% endfor %}";
    let template = ChatTemplate::new(source, t).unwrap();
    let specials = |content: &str| {
        let messages = [ChatMessage::new("user", content), ChatMessage::new("user", content)];
        let prompt = template.encode(t, &messages, false).ok()?;
        assert_eq!(prompt.text, template.render(&messages, false).unwrap());
        let steering = |id: &TokenId| steers(t, *id) && Some(*id) != t.unknown();
        Some(prompt.tokens.into_iter().filter(steering).collect::<Vec<_>>())
    };
    if let (Some(hostile), Some(harmless)) = (specials(content), specials(HARMLESS)) {
        assert_eq!(hostile, harmless);
    }
}
