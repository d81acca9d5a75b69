//! Tokenizers from a GGUF file's own metadata: text to token ids and back.
//!
//! Two kinds, as files name them: `llama` (SentencePiece's byte-pair merges by score, bytes where a character is
//! missing) and `gpt2` (byte-level byte-pair merges by rank after a pre-tokenizer, `llama-bpe` or `smollm`). Special
//! tokens are found in the text only where the caller allows it, so that a user's words cannot forge them. All of it
//! takes time linear in the text, up to a logarithm, whatever the text is.

mod bpe;
mod merge;
mod pre;
mod special;
mod spm;
mod text_stream;
mod vocab;

use crate::error::{Error, Result};
use crate::gguf::Metadata;
use special::Fragment;
use std::fmt;
use vocab::Vocab;

pub use text_stream::TextStream;
pub use vocab::TokenKind;

/// The number of a token in its model's vocabulary.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[repr(transparent)]
#[serde(transparent)]
pub struct TokenId(u32);

impl TokenId {
    /// The token with this number.
    #[must_use]
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Its number as an index, of logits for example.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl From<u32> for TokenId {
    fn from(id: u32) -> Self {
        Self(id)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How to turn text into tokens. The default: a start token where the file asks for one, and special tokens taken
/// as plain text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the start token in front; `None` does what the file asks for ([`Tokenizer::adds_bos`]).
    pub add_bos: Option<bool>,
    /// Recognize special tokens such as `<|im_start|>` in the text. Leave it off for text of unknown origin.
    pub parse_special: bool,
}

enum Algorithm {
    Spm(spm::Spm),
    Bpe(bpe::Bpe),
}

/// A model's tokenizer.
///
/// ```
/// use granule_llama::gguf::{Array, Gguf, GgufWriter, Value};
/// use granule_llama::tokenizer::{EncodeOptions, Tokenizer};
///
/// // A vocabulary of four tokens; a model's file brings some ten thousand.
/// let mut file = GgufWriter::new(3)?;
/// file.set("tokenizer.ggml.model", Value::String("llama".into()))?;
/// file.set("tokenizer.ggml.tokens", Value::Array(Array::String(["<unk>", "<s>", "▁", "hi"].iter().collect())))?;
/// file.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0, 0.0, -2.0, -1.0])))?;
/// file.set("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![2, 3, 1, 1])))?;
/// # file.set("tokenizer.ggml.eos_token_id", Value::U32(1))?;
/// # file.set("tokenizer.ggml.bos_token_id", Value::U32(1))?;
/// let gguf = Gguf::parse(&file.to_bytes())?;
///
/// let tokenizer = Tokenizer::from_metadata(gguf.metadata())?;
/// let tokens = tokenizer.encode("?", EncodeOptions::default())?;
/// assert_eq!(tokens, [1.into(), 2.into(), 0.into()]); // start, the space put in front, unknown
/// # Ok::<(), granule_llama::Error>(())
/// ```
pub struct Tokenizer {
    vocab: Vocab,
    algorithm: Algorithm,
}

impl Tokenizer {
    /// Build the tokenizer that a file's metadata describe.
    ///
    /// # Errors
    /// [`Error::UnsupportedTokenizer`] and [`Error::UnsupportedPreTokenizer`] by name; a clear error for each way
    /// in which a vocabulary can contradict itself.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let model = metadata.get_str("tokenizer.ggml.model")?;
        match model {
            "llama" => {
                let vocab = Vocab::read(metadata, vocab::Family::Spm)?;
                let algorithm = Algorithm::Spm(spm::Spm::read(metadata, &vocab)?);
                Ok(Self { vocab, algorithm })
            }
            "gpt2" => {
                let pre = pre::PreTokenizer::read(metadata)?;
                let vocab = Vocab::read(metadata, vocab::Family::Bpe(pre))?;
                let algorithm = Algorithm::Bpe(bpe::Bpe::read(metadata, &vocab, pre)?);
                Ok(Self { vocab, algorithm })
            }
            _ => Err(Error::UnsupportedTokenizer { model: crate::error::excerpt(model) }),
        }
    }

    /// How many tokens there are.
    #[must_use]
    pub fn n_vocab(&self) -> usize {
        self.vocab.len()
    }

    /// The start token.
    #[must_use]
    pub fn bos(&self) -> Option<TokenId> {
        self.vocab.bos
    }

    /// The end token.
    #[must_use]
    pub fn eos(&self) -> Option<TokenId> {
        self.vocab.eos
    }

    /// The token that stands for text which the vocabulary lacks.
    #[must_use]
    pub fn unknown(&self) -> Option<TokenId> {
        self.vocab.unknown
    }

    /// Whether the file asks for a start token in front of a text; where it says nothing, `llama` and `llama-bpe`
    /// vocabularies do.
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.vocab.add_bos
    }

    /// Whether a model that writes this token has finished: the file's end tokens (of text, turn and message) and
    /// those that are known by their text, such as `<|im_end|>`.
    #[must_use]
    pub fn is_eog(&self, token: TokenId) -> bool {
        self.vocab.eog.contains(&token)
    }

    /// All tokens of which [`Tokenizer::is_eog`] is true, ascending.
    #[must_use]
    pub fn eog(&self) -> &[TokenId] {
        &self.vocab.eog
    }

    /// A token's entry in the vocabulary, as the file writes it: `▁the`, `Ġthe`, `<0x0A>`, `<|eot_id|>`.
    #[must_use]
    pub fn token_text(&self, token: TokenId) -> Option<&str> {
        self.vocab.text(token)
    }

    /// What kind of token it is.
    #[must_use]
    pub fn token_kind(&self, token: TokenId) -> Option<TokenKind> {
        self.vocab.kind(token)
    }

    /// The bytes of text that a token stands for: none for special tokens; possibly a part of a character.
    #[must_use]
    pub fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        self.vocab.bytes(token)
    }

    /// Turn text into tokens.
    ///
    /// # Errors
    /// [`Error::NoTokenFor`] where a character has no token and the vocabulary has no unknown token either.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<TokenId>> {
        let mut out = Vec::new();
        if options.add_bos.unwrap_or(self.vocab.add_bos) {
            out.extend(self.vocab.bos);
        }
        let specials = if options.parse_special { &self.vocab.all_special } else { &self.vocab.user_defined };
        // A text's beginning counts as following a special token: both get the space in front.
        let mut after_special = true;
        for fragment in specials.split(text) {
            self.encode_fragment(fragment, &mut after_special, &mut out)?;
        }
        Ok(out)
    }

    /// The texts of the tokens that steer the model, which no message may forge.
    pub(crate) fn steering_texts(&self) -> impl Iterator<Item = &str> {
        let steers =
            |id: &u32| matches!(self.vocab.kind(TokenId(*id)), Some(TokenKind::Control | TokenKind::Unknown));
        let texts = (0..self.vocab.len() as u32).filter(steers).filter_map(|id| self.vocab.text(TokenId(id)));
        texts.filter(|text| !text.is_empty())
    }

    /// Turn a text into tokens in which some characters are in disguise: special tokens are found in the disguised
    /// text, everything else is made of what `reveal` turns it back into. A start token comes in front where the file
    /// asks for one and the text does not begin with it.
    pub(crate) fn encode_disguised(
        &self,
        text: &str,
        reveal: impl Fn(&str) -> String,
    ) -> Result<Vec<TokenId>> {
        let mut out = Vec::new();
        let mut after_special = true;
        for fragment in self.vocab.all_special.split(text) {
            match fragment {
                Fragment::Special(_) => self.encode_fragment(fragment, &mut after_special, &mut out)?,
                Fragment::Text(text) => {
                    for fragment in self.vocab.user_defined.split(&reveal(text)) {
                        self.encode_fragment(fragment, &mut after_special, &mut out)?;
                    }
                }
            }
        }
        if let Some(bos) = self.vocab.bos.filter(|_| self.vocab.add_bos)
            && out.first() != Some(&bos)
        {
            out.insert(0, bos);
        }
        Ok(out)
    }

    fn encode_fragment(
        &self,
        fragment: Fragment<'_>,
        after_special: &mut bool,
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        match fragment {
            Fragment::Special(token) => out.push(token),
            Fragment::Text(text) => match &self.algorithm {
                Algorithm::Spm(spm) => {
                    spm.encode(&self.vocab, text, *after_special && self.vocab.space_prefix, out)?;
                }
                Algorithm::Bpe(bpe) => bpe.encode(&self.vocab, text, out)?,
            },
        }
        *after_special = matches!(fragment, Fragment::Special(_));
        Ok(())
    }

    /// Turn tokens into bytes. Special tokens give nothing; the space that a `llama` vocabulary puts in front of a
    /// text is dropped again, so that this is the inverse of [`Tokenizer::encode`] for every text in which no special
    /// token and no unknown character was found.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`].
    pub fn decode_bytes(&self, tokens: &[TokenId]) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut start = true;
        for &token in tokens {
            out.extend_from_slice(self.piece(token, &mut start)?);
        }
        Ok(out)
    }

    /// [`Tokenizer::decode_bytes`] as text; what is not UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`].
    pub fn decode(&self, tokens: &[TokenId]) -> Result<String> {
        let bytes = self.decode_bytes(tokens)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// A token's bytes within a text: `start` says whether no text came before it, and is updated.
    fn piece(&self, token: TokenId, start: &mut bool) -> Result<&[u8]> {
        let bytes = self
            .vocab
            .bytes(token)
            .ok_or(Error::TokenOutOfRange { id: token.get(), n_vocab: self.vocab.len() })?;
        if bytes.is_empty() || !std::mem::take(start) || !self.vocab.space_prefix {
            return Ok(bytes);
        }
        Ok(bytes.strip_prefix(b" ").unwrap_or(bytes))
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algorithm = match self.algorithm {
            Algorithm::Spm(_) => "llama",
            Algorithm::Bpe(_) => "gpt2",
        };
        f.debug_struct("Tokenizer")
            .field("model", &algorithm)
            .field("n_vocab", &self.n_vocab())
            .finish_non_exhaustive()
    }
}
