//! Tokenizers against a folder of reference answers and models, which is not part of the project: run with
//! `GRANULE_REFERENCE=DIR cargo test -p granule-llama --test text -- --ignored`. `DIR` holds `models/`
//! and `oracles/`, and may hold `SmolLM2-135M-Instruct.Q4_1.gguf`, without which its answers are an error.

use granule_llama::gguf::{Array, Gguf, GgufWriter, Strings, Value};
use granule_llama::{ChatMessage, ChatTemplate, EncodeOptions, TokenId, Tokenizer};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

fn folder() -> PathBuf {
    std::env::var_os("GRANULE_REFERENCE")
        .expect("GRANULE_REFERENCE names the folder of reference answers")
        .into()
}

fn tokenizer(path: &Path) -> Tokenizer {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let gguf = Gguf::parse(&bytes).unwrap();
    let start = Instant::now();
    let tokenizer = Tokenizer::from_metadata(gguf.metadata()).unwrap();
    println!("{}: {} tokens in {:?}", path.display(), tokenizer.n_vocab(), start.elapsed());
    tokenizer
}

fn ids(value: &serde_json::Value) -> Vec<TokenId> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
#[ignore = "needs the reference folder"]
fn vocabularies_agree_with_llama_cpp() {
    for name in ["llama-bpe", "llama-spm"] {
        let path = folder().join(format!("models/ggml-vocab-{name}.gguf"));
        let t = tokenizer(&path);
        let read = |ext| std::fs::read_to_string(format!("{}.{ext}", path.display())).unwrap();
        let (texts, answers) = (read("inp"), read("out"));
        // Each text is followed by the separator, the last one too.
        let texts: Vec<&str> = texts.split_terminator("\n__ggml_vocab_test__\n").collect();
        let answers: Vec<&str> = answers.lines().collect();
        assert_eq!(texts.len(), answers.len());
        for (text, answer) in texts.iter().zip(answers) {
            let want: Vec<TokenId> =
                answer.split_whitespace().map(|n| n.parse::<u32>().unwrap().into()).collect();
            let got = t.encode(text, EncodeOptions { add_bos: Some(false), parse_special: false }).unwrap();
            assert_eq!(got, want, "{name} {text:?}");
            assert_eq!(t.decode(&want).unwrap(), *text, "{name}");
        }
    }
}

#[test]
#[ignore = "needs the reference folder"]
fn models_agree_with_llama_cpp() {
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(folder().join("oracles").join(name)).unwrap()).unwrap()
    };
    let raw = EncodeOptions { add_bos: None, parse_special: true };
    let third_party = read("third_party.json");
    for (name, file) in [
        ("smollm2-135m-instruct.q4_1", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("tinystories-656k.q8_0", "models/third-party/tinystories-656k.q8_0.gguf"),
        ("stories260k.f32", "models/third-party/stories260k.f32.gguf"),
    ] {
        let t = tokenizer(&folder().join(file));
        let answers = &third_party[name];
        for case in answers["tokens"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let got = t.encode(text, raw).unwrap();
            if !case["ids"].is_null() {
                assert_eq!(got, ids(&case["ids"]), "{name} {text:?}");
            }
        }
        for case in answers["greedy"].as_array().unwrap() {
            let prompt = case["prompt"].as_str().unwrap();
            assert_eq!(t.encode(prompt, raw).unwrap(), ids(&case["prompt_tokens"]), "{name} {prompt:?}");
            let text = t.decode(&ids(&case["tokens"])).unwrap();
            assert_eq!(text.trim_start(), case["text"].as_str().unwrap().trim_start());
        }
    }
    chats_agree(&third_party["smollm2-135m-instruct.q4_1"]["greedy"]);
    let t = tokenizer(&folder().join("models/tales-5m.q8_0.gguf"));
    for (ty, cases) in read("greedy.json").as_object().unwrap() {
        for case in cases.as_array().unwrap() {
            let prompt = case["prompt"].as_str().unwrap();
            assert_eq!(t.encode(prompt, raw).unwrap(), ids(&case["prompt_tokens"]), "{ty} {prompt:?}");
            assert_eq!(t.decode(&ids(&case["tokens"])).unwrap(), case["text"].as_str().unwrap());
        }
    }
}

/// SmolLM2's own template makes the prompts that the answers were made with, token for token.
fn chats_agree(answers: &serde_json::Value) {
    let gguf =
        Gguf::parse(&std::fs::read(folder().join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap()).unwrap();
    let t = Tokenizer::from_metadata(gguf.metadata()).unwrap();
    let template = ChatTemplate::from_metadata(gguf.metadata(), &t).unwrap();
    let ada = ["My name is Ada.", "Nice to meet you, Ada!", "What is my name?"];
    let chats =
        [(1, &["What is the capital of France?"][..]), (2, &["Write a haiku about memory."]), (3, &ada)];
    for (at, said) in chats {
        let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
        let messages: Vec<_> = said.iter().enumerate().map(|(i, s)| ChatMessage::new(role(i), *s)).collect();
        let prompt = template.encode(&t, &messages, true).unwrap();
        assert_eq!(prompt.text, answers[at]["prompt"].as_str().unwrap());
        assert_eq!(prompt.tokens, ids(&answers[at]["prompt_tokens"]));
    }
}

/// The part of `llama-bpe` that the texts of `data/llama.inp` can reach: single bytes, every token and every merge
/// rule whose text, in the alphabet of bytes, occurs in one of them, and the two special tokens that the file names.
fn reduced(whole: &Gguf, texts: &str) -> Vec<u8> {
    let m = whole.metadata();
    let alphabet = crate::vocabulary::byte_alphabet();
    let reachable: HashSet<String> = {
        let text: Vec<char> = texts.bytes().map(|b| alphabet[usize::from(b)]).collect();
        (1..48).flat_map(|len| text.windows(len).map(|w| w.iter().collect())).collect()
    };
    let keep = |text: &str| text.chars().count() == 1 || reachable.contains(text);
    let tokens = m.get_strings("tokenizer.ggml.tokens").unwrap();
    let types = m.get_u32s("tokenizer.ggml.token_type").unwrap();
    let special = ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"];
    let special_ids = special.map(|key| m.get_u32(key).unwrap());
    let kept: Vec<u32> = (0..tokens.len() as u32)
        .filter(|id| special_ids.contains(id) || keep(tokens.get(*id as usize).unwrap()))
        .collect();
    let merges: Strings = m
        .get_strings("tokenizer.ggml.merges")
        .unwrap()
        .iter()
        .filter(|rule| keep(&rule.replace(' ', "")))
        .collect();

    let mut out = GgufWriter::new(3).unwrap();
    let mut set = |key: &str, value| out.set(key, value).unwrap();
    for key in ["general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"] {
        set(key, m.get(key).unwrap().clone());
    }
    let strings = kept.iter().map(|&id| tokens.get(id as usize).unwrap()).collect();
    set("tokenizer.ggml.tokens", Value::Array(Array::String(strings)));
    let kept_types = kept.iter().map(|&id| types[id as usize] as i32).collect();
    set("tokenizer.ggml.token_type", Value::Array(Array::I32(kept_types)));
    set("tokenizer.ggml.merges", Value::Array(Array::String(merges)));
    for (key, id) in special.into_iter().zip(special_ids) {
        set(key, Value::U32(kept.iter().position(|&k| k == id).unwrap() as u32));
    }
    set("granule.whole_ids", Value::Array(Array::U32(kept)));
    out.to_bytes()
}

#[test]
#[ignore = "needs the reference folder"]
fn reduced_vocabulary_is_part_of_the_whole() {
    let models = folder().join("models");
    let whole = Gguf::parse(&std::fs::read(models.join("ggml-vocab-llama-bpe.gguf")).unwrap()).unwrap();
    let texts = std::fs::read_to_string(models.join("ggml-vocab-llama-bpe.gguf.inp")).unwrap();
    let made = reduced(&whole, &texts);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama-bpe-reduced.gguf");
    if std::env::var_os("GRANULE_WRITE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    assert!(std::fs::read(&path).unwrap() == made, "write it anew with GRANULE_WRITE=1");
}
