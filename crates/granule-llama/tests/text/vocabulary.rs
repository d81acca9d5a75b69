//! Vocabularies made by hand, for tests.

use granule_llama::gguf::{Array, Gguf, GgufWriter, Value};
use granule_llama::{Error, TokenId, Tokenizer};

/// Token types as files number them.
pub(crate) const NORMAL: i32 = 1;
pub(crate) const UNKNOWN: i32 = 2;
pub(crate) const CONTROL: i32 = 3;
pub(crate) const USER_DEFINED: i32 = 4;
pub(crate) const BYTE: i32 = 6;

/// What a file says of its tokenizer.
#[derive(Clone, Debug)]
pub(crate) struct Vocabulary {
    pub(crate) model: &'static str,
    pub(crate) pre: Option<&'static str>,
    pub(crate) tokens: Vec<String>,
    pub(crate) types: Vec<i32>,
    pub(crate) scores: Vec<f32>,
    pub(crate) merges: Vec<String>,
    pub(crate) extra: Vec<(&'static str, Value)>,
}

impl Vocabulary {
    /// A `llama` vocabulary: `<unk>`, `<s>`, `</s>`, all bytes, then these.
    pub(crate) fn spm(tokens: &[(&str, f32)]) -> Self {
        let mut v = Self::spm_without_bytes(&[]);
        for byte in 0..=255u8 {
            v.push(&format!("<0x{byte:02X}>"), BYTE, 0.0);
        }
        tokens.iter().for_each(|(text, score)| v.push(text, NORMAL, *score));
        v
    }

    /// The same without bytes.
    pub(crate) fn spm_without_bytes(tokens: &[(&str, f32)]) -> Self {
        let mut v = Self {
            model: "llama",
            pre: None,
            tokens: Vec::new(),
            types: Vec::new(),
            scores: Vec::new(),
            merges: Vec::new(),
            extra: Vec::new(),
        };
        v.push("<unk>", UNKNOWN, 0.0);
        v.push("<s>", CONTROL, 0.0);
        v.push("</s>", CONTROL, 0.0);
        tokens.iter().for_each(|(text, score)| v.push(text, NORMAL, *score));
        v
    }

    /// A `gpt2` vocabulary: all bytes, then what the merge rules make, in their order.
    pub(crate) fn bpe(pre: &'static str, merges: &[(&str, &str)]) -> Self {
        let mut v = Self { model: "gpt2", pre: Some(pre), ..Self::spm_without_bytes(&[]) };
        v.tokens.clear();
        v.types.clear();
        v.scores.clear();
        byte_alphabet().into_iter().for_each(|c| v.push(&c.to_string(), NORMAL, 0.0));
        for (left, right) in merges {
            v.merges.push(format!("{left} {right}"));
            let joined = format!("{left}{right}");
            if !v.tokens.contains(&joined) {
                v.push(&joined, NORMAL, 0.0);
            }
        }
        v
    }

    pub(crate) fn push(&mut self, text: &str, ty: i32, score: f32) {
        self.tokens.push(text.to_owned());
        self.types.push(ty);
        self.scores.push(score);
    }

    pub(crate) fn with(mut self, text: &str, ty: i32) -> Self {
        self.push(text, ty, 0.0);
        self
    }

    pub(crate) fn set(mut self, key: &'static str, value: Value) -> Self {
        self.extra.push((key, value));
        self
    }

    /// The id of the token with this text.
    pub(crate) fn id(&self, text: &str) -> TokenId {
        let at = self.tokens.iter().position(|t| t == text).unwrap_or_else(|| panic!("no token {text:?}"));
        TokenId::new(at as u32)
    }

    pub(crate) fn gguf(&self) -> Gguf {
        let mut file = GgufWriter::new(3).unwrap();
        let mut set = |key: &str, value| file.set(key, value).unwrap();
        set("tokenizer.ggml.model", Value::String(self.model.into()));
        if let Some(pre) = self.pre {
            set("tokenizer.ggml.pre", Value::String(pre.into()));
        }
        set("tokenizer.ggml.tokens", Value::Array(Array::String(self.tokens.iter().collect())));
        set("tokenizer.ggml.token_type", Value::Array(Array::I32(self.types.clone())));
        if self.model == "llama" {
            set("tokenizer.ggml.scores", Value::Array(Array::F32(self.scores.clone())));
        } else {
            set("tokenizer.ggml.merges", Value::Array(Array::String(self.merges.iter().collect())));
        }
        self.extra.iter().for_each(|(key, value)| set(key, value.clone()));
        Gguf::parse(&file.to_bytes()).unwrap()
    }

    pub(crate) fn try_tokenizer(&self) -> Result<Tokenizer, Error> {
        Tokenizer::from_metadata(self.gguf().metadata())
    }

    pub(crate) fn tokenizer(&self) -> Tokenizer {
        self.try_tokenizer().unwrap()
    }
}

/// The characters that stand for the bytes 0 to 255 in `gpt2` vocabularies, by the recipe of GPT-2's `encoder.py`:
/// printable ones stand for themselves, the others get the next number behind 255.
pub(crate) fn byte_alphabet() -> Vec<char> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    let mut alphabet = Vec::new();
    for byte in 0..256u32 {
        let code = if printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        alphabet.push(char::from_u32(code).unwrap());
    }
    alphabet
}
