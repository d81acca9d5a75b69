//! Tokenizers: special tokens, start tokens, what is refused, and texts made to hurt.

use crate::vocabulary::{BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary};
use granule_llama::gguf::{Array, Value};
use granule_llama::tokenizer::TokenKind;
use granule_llama::{EncodeOptions, Error, TextStream, TokenId, Tokenizer};
use std::time::{Duration, Instant};

const PLAIN: EncodeOptions = EncodeOptions { add_bos: Some(false), parse_special: false };
const SPECIAL: EncodeOptions = EncodeOptions { add_bos: Some(false), parse_special: true };

fn texts<'a>(t: &'a Tokenizer, text: &str, options: EncodeOptions) -> Vec<&'a str> {
    t.encode(text, options).unwrap().into_iter().map(|id| t.token_text(id).unwrap()).collect()
}

#[test]
fn specials_are_found_only_where_allowed() {
    let v = Vocabulary::spm(&[("▁a", -1.0), ("a", -2.0), ("▁", -3.0)])
        .with("<|x|>", CONTROL)
        .with("<|x|>y", CONTROL)
        .with("[u]", USER_DEFINED);
    let t = v.tokenizer();
    // Each text after a special token gets its space; the longest of several wins; the unknown token is one, too.
    assert_eq!(texts(&t, "a<|x|>a", SPECIAL), ["▁a", "<|x|>", "▁a"]);
    assert_eq!(texts(&t, "<|x|>y<unk>", SPECIAL), ["<|x|>y", "<unk>"]);
    let plain = t.encode("a<|x|>a</s><s><unk>", PLAIN).unwrap();
    let normal = |id: &TokenId| [TokenKind::Normal, TokenKind::Byte].contains(&t.token_kind(*id).unwrap());
    assert!(plain.iter().all(normal));
    assert_eq!(t.decode(&plain).unwrap(), "a<|x|>a</s><s><unk>");
    // What the vocabulary's maker defined is one token wherever it stands.
    assert_eq!(texts(&t, "a[u]a", PLAIN), ["▁a", "[u]", "▁a"]);
    assert_eq!(t.decode(&t.encode("[u]", PLAIN).unwrap()).unwrap(), "[u]");
    // Special tokens are no text.
    assert_eq!(t.decode(&t.encode("<s>a<|x|>", SPECIAL).unwrap()).unwrap(), "a");
    assert_eq!(texts(&t, "", SPECIAL), [""; 0]);
}

#[test]
fn merging_never_makes_a_control_token() {
    let parts =
        [("<", -1.0), ("/s>", -1.0), ("s>", -1.0), ("/", -2.0), ("s", -3.0), (">", -4.0), ("▁", -9.0)];
    let t = Vocabulary::spm(&parts).tokenizer();
    assert_eq!(texts(&t, "</s>", PLAIN), ["▁", "<", "/s>"]);

    let v = Vocabulary::bpe("llama-bpe", &[("e", "n"), ("en", "d")]);
    let end = v.id("end");
    let t = v.set("tokenizer.ggml.eos_token_id", Value::U32(end.get())).tokenizer();
    assert_eq!(texts(&t, "end", PLAIN), ["e", "n", "d"]);
    assert_eq!(texts(&t, "end", SPECIAL), ["end"]);
}

#[test]
fn start_tokens() {
    let both =
        |t: &Tokenizer, add_bos| t.encode("", EncodeOptions { add_bos, parse_special: true }).unwrap().len();
    let spm = || Vocabulary::spm(&[]);
    let bpe = |pre| {
        let v = Vocabulary::bpe(pre, &[]).with("<b>", CONTROL);
        let id = v.id("<b>").get();
        v.set("tokenizer.ggml.bos_token_id", Value::U32(id))
    };
    let flag = |v: Vocabulary, on| v.set("tokenizer.ggml.add_bos_token", Value::Bool(on)).tokenizer();
    for (v, silent) in [(spm(), 1), (bpe("llama-bpe"), 1), (bpe("smollm"), 0)] {
        let t = v.tokenizer();
        assert_eq!((both(&t, None), both(&t, Some(true)), both(&t, Some(false))), (silent, 1, 0));
        assert_eq!(t.adds_bos(), silent == 1);
        assert_eq!(both(&flag(v.clone(), true), None), 1);
        assert_eq!(both(&flag(v, false), None), 0);
    }
    // In a raw prompt the start token's text is one more, as in llama.cpp.
    let t = spm().tokenizer();
    let two = t.encode("<s>", EncodeOptions { add_bos: None, parse_special: true }).unwrap();
    assert_eq!(two, [TokenId::new(1); 2]);
    // Where there is none, none is put in front.
    assert_eq!(both(&Vocabulary::bpe("llama-bpe", &[]).tokenizer(), Some(true)), 0);
}

#[test]
fn end_tokens() {
    let mut v = Vocabulary::bpe("llama-bpe", &[]);
    for (text, ty) in [
        ("<|end_of_text|>", CONTROL),
        ("<|eot_id|>", NORMAL),
        ("<|eom_id|>", USER_DEFINED),
        ("<|im_end|>", CONTROL),
        ("<|endoftext|>", CONTROL),
        ("</s>", CONTROL),
        ("<|mine|>", CONTROL),
        ("<|turn|>", CONTROL),
        ("<|other|>", CONTROL),
    ] {
        v.push(text, ty, 0.0);
    }
    let id = |text| Value::U32(v.id(text).get());
    let t = v
        .clone()
        .set("tokenizer.ggml.eos_token_id", id("<|mine|>"))
        .set("tokenizer.ggml.eot_token_id", id("<|turn|>"))
        .tokenizer();
    for (at, text) in v.tokens.iter().enumerate().skip(256) {
        let token = TokenId::new(at as u32);
        assert_eq!(t.is_eog(token), text != "<|other|>", "{text}");
        // All of them steer, whatever the file says: they are no text and no message makes one.
        assert_eq!(t.token_bytes(token), Some(&[][..]), "{text}");
        assert!(!t.encode(text, PLAIN).unwrap().contains(&token));
        assert_eq!(t.encode(text, SPECIAL).unwrap(), [token]);
    }
    assert_eq!(t.eog().len(), 8);
}

#[test]
fn text_that_the_vocabulary_lacks() {
    // SentencePiece with bytes, without, and with some.
    let t = Vocabulary::spm(&[("▁", -1.0)]).tokenizer();
    assert_eq!(texts(&t, "é", PLAIN), ["▁", "<0xC3>", "<0xA9>"]);
    let t = Vocabulary::spm_without_bytes(&[("▁", -1.0), ("a", -1.0)]).with("<0xC3>", BYTE).tokenizer();
    assert_eq!(texts(&t, "éaxx", PLAIN), ["▁", "<unk>", "a", "<unk>", "<unk>"]);
    assert_eq!(t.decode(&t.encode("éax", PLAIN).unwrap()).unwrap(), "a");

    let mut v = Vocabulary::bpe("smollm", &[]);
    v.tokens[usize::from(b'x')] = "<none>".into();
    let error = v.tokenizer().encode("axa", PLAIN).unwrap_err();
    assert!(matches!(&error, Error::NoTokenFor { what } if what == "`x`"), "{error}");
    let t = v.set("tokenizer.ggml.unknown_token_id", Value::U32(0)).tokenizer();
    let ids: Vec<u32> = t.encode("axa", PLAIN).unwrap().into_iter().map(TokenId::get).collect();
    assert_eq!(ids, [97, 0, 97]);
}

#[test]
fn the_space_in_front_is_the_files_choice() {
    let v = Vocabulary::spm(&[("▁a", -1.0), ("a", -2.0), ("▁", -3.0)]);
    let t = v.clone().tokenizer();
    assert_eq!(texts(&t, "a a", PLAIN), ["▁a", "▁a"]);
    assert_eq!(t.decode(&t.encode(" a", PLAIN).unwrap()).unwrap(), " a");
    let t = v.set("tokenizer.ggml.add_space_prefix", Value::Bool(false)).tokenizer();
    assert_eq!(texts(&t, "a a", PLAIN), ["a", "▁a"]);
    assert_eq!(t.decode(&t.encode(" a", PLAIN).unwrap()).unwrap(), " a");
}

#[test]
fn streams_begin_or_go_on() {
    let v = Vocabulary::spm(&[("▁a", -1.0)]);
    let t = v.tokenizer();
    let (a, start) = (v.id("▁a"), TokenId::new(1));
    let mut begins = TextStream::new();
    assert_eq!(begins.push(&t, start).unwrap(), "");
    assert_eq!(begins.push(&t, a).unwrap(), "a");
    assert_eq!(begins.push(&t, a).unwrap(), " a");
    assert_eq!(TextStream::continuing().push(&t, a).unwrap(), " a");

    let byte = |b: u8| v.id(&format!("<0x{b:02X}>"));
    let mut s = TextStream::new();
    let pieces: Vec<String> = "é🙂".bytes().map(|b| s.push(&t, byte(b)).unwrap().to_owned()).collect();
    assert_eq!(pieces, ["", "é", "", "", "", "🙂"]);
    assert_eq!(s.push(&t, byte(0xf0)).unwrap(), "");
    assert_eq!(s.push(&t, byte(b'x')).unwrap(), "\u{fffd}x");
    assert_eq!(s.push(&t, byte(0xff)).unwrap(), "\u{fffd}");
    assert_eq!(s.push(&t, byte(0xe2)).unwrap(), "");
    let beyond = TokenId::new(v.tokens.len() as u32);
    assert!(matches!(s.push(&t, beyond), Err(Error::TokenOutOfRange { .. })));
    assert_eq!(s.finish(), "\u{fffd}");
    assert_eq!(s.finish(), "");
    assert!(matches!(t.decode(&[beyond]), Err(Error::TokenOutOfRange { .. })));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let mut v = Vocabulary::bpe("llama-bpe", &[]);
    for pre in ["llama-bpe", "llama3", "llama-v3", "smollm"] {
        v.pre = Some(pre);
        v.try_tokenizer().unwrap();
    }
    for (pre, name) in [(Some("qwen2"), "qwen2"), (None, "(none)")] {
        v.pre = pre;
        let error = v.try_tokenizer().unwrap_err();
        assert!(matches!(&error, Error::UnsupportedPreTokenizer { pre } if pre == name), "{error}");
    }
    v.model = "t5";
    let error = v.try_tokenizer().unwrap_err();
    assert!(matches!(&error, Error::UnsupportedTokenizer { model } if model == "t5"), "{error}");
}

#[test]
fn vocabularies_that_contradict_themselves_are_refused() {
    let refused = |v: Vocabulary, words: &str| {
        let error = v.try_tokenizer().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    let spm = || Vocabulary::spm(&[("▁a", -1.0)]);
    let mut v = spm();
    v.scores.pop();
    refused(v, "`tokenizer.ggml.scores` has 259 entries, but the vocabulary has 260 tokens");
    let mut v = spm();
    v.types.push(NORMAL);
    refused(v, "`tokenizer.ggml.token_type` has 261 entries");
    let mut v = spm();
    v.types[259] = 7;
    refused(v, "token 259 (`▁a`) of the vocabulary has a type");
    let mut v = spm();
    v.types[259] = BYTE;
    refused(v, "token 259 (`▁a`) of the vocabulary is a byte");
    let mut v = spm();
    v.scores[259] = f32::NAN;
    refused(v, "token 259 (`▁a`) of the vocabulary has a score that is no number");
    refused(
        spm().set("tokenizer.ggml.eos_token_id", Value::U32(260)),
        "names token 260, but the vocabulary ends at 260",
    );
    refused(
        spm().set("tokenizer.ggml.bos_token_id", Value::I32(-1)),
        "`tokenizer.ggml.bos_token_id` must be an integer",
    );
    refused(spm().with(&"x".repeat(70_000), NORMAL), "is longer than 65536 bytes");
    let empty = Vocabulary { tokens: vec![], types: vec![], scores: vec![], ..spm() };
    refused(empty, "a vocabulary of 0 tokens");
    for rule in ["ab", " ab", "ab ", "a b c", ""] {
        let mut v = Vocabulary::bpe("smollm", &[("a", "b")]);
        v.merges.push(rule.into());
        refused(v, &format!("merge rule 1 (`{rule}`) is not two pieces"));
    }
    let missing = granule_llama::gguf::GgufWriter::new(3).unwrap();
    let gguf = granule_llama::gguf::Gguf::parse(&missing.to_bytes()).unwrap();
    let error = Tokenizer::from_metadata(gguf.metadata()).unwrap_err();
    assert!(matches!(&error, Error::MissingKey { key } if key == "tokenizer.ggml.model"), "{error}");
    refused(spm().set("tokenizer.ggml.add_bos_token", Value::U8(1)), "must be a bool, but it is the u8 1");
}

#[test]
fn odd_vocabularies_are_taken_as_they_are() {
    // Two tokens of one text: the first is used, both can be read. An empty token is found nowhere.
    let v = Vocabulary::spm(&[("▁a", -1.0), ("▁a", -1.0), ("", -1.0)]);
    let t = v.tokenizer();
    assert_eq!(t.encode("a", PLAIN).unwrap(), [TokenId::new(259)]);
    assert_eq!(t.decode(&[TokenId::new(260), TokenId::new(261)]).unwrap(), "a");
    // No types at all: bytes are known by their text, end and start by the file's ids.
    let mut file = granule_llama::gguf::GgufWriter::new(3).unwrap();
    let mut set = |key, value| file.set(key, value).unwrap();
    set("tokenizer.ggml.model", Value::String("llama".into()));
    let tokens = ["<unk>", "<s>", "</s>", "<0x41>", "▁"];
    set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens.iter().collect())));
    set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0; 5])));
    let gguf = granule_llama::gguf::Gguf::parse(&file.to_bytes()).unwrap();
    let t = Tokenizer::from_metadata(gguf.metadata()).unwrap();
    assert_eq!(texts(&t, "A", PLAIN), ["▁", "<0x41>"]);
    assert_eq!(texts(&t, "</s>", SPECIAL), ["</s>"]);
    assert_eq!(t.unknown(), Some(TokenId::new(0)));
    let v = Vocabulary::spm(&[]).with("<u>", UNKNOWN);
    assert_eq!(texts(&v.tokenizer(), "<u>", SPECIAL), ["<u>"]);
}

/// A second or so on an idle machine; a quadratic loop would take hours.
#[test]
fn long_texts_take_no_longer_than_they_must() {
    let run = |c: &str, n: usize| c.repeat(n);
    let doubling = |c: &str| -> Vec<(String, f32)> {
        (1..=5).map(|i| (run(c, 1 << i), -(i as f32))).chain([(c.to_owned(), -9.0)]).collect()
    };
    let tokens: Vec<(String, f32)> = [doubling("a"), doubling("▁"), doubling("\n")].concat();
    let tokens: Vec<(&str, f32)> = tokens.iter().map(|(t, s)| (t.as_str(), *s)).collect();
    let spm = Vocabulary::spm(&tokens).with("<|x|>", CONTROL).tokenizer();
    let pairs = |c: &str| (0..5).map(|i| (run(c, 1 << i), run(c, 1 << i))).collect::<Vec<_>>();
    let merges = [pairs("a"), pairs("Ġ"), pairs("Ċ")].concat();
    let merges: Vec<(&str, &str)> = merges.iter().map(|(l, r)| (l.as_str(), r.as_str())).collect();
    let bpe = |pre| Vocabulary::bpe(pre, &merges).with("<|x|>", CONTROL).tokenizer();
    let (llama, smollm) = (bpe("llama-bpe"), bpe("smollm"));

    const LEN: usize = 1 << 20;
    for text in ["a", " ", "\n", "'", "1", "\u{a0}", "世", "<|x|>", "<|x|", " \n", "a ", "\r\n ", "!\n", "é'"]
    {
        // What merges all the way is the slow part, and long enough once.
        let len = if text == "a" { LEN } else { LEN / 4 };
        let long = run(text, len / text.len());
        for t in [&spm, &llama, &smollm] {
            let start = Instant::now();
            let ids = t.encode(&long, SPECIAL).unwrap();
            assert!(start.elapsed() < Duration::from_secs(20), "{text:?} {t:?} took {:?}", start.elapsed());
            if !text.contains("|x|>") {
                assert_eq!(t.decode(&ids).unwrap(), long);
            }
        }
    }
    assert_eq!(llama.encode(&run("a", LEN), PLAIN).unwrap().len(), LEN / 32);
}
