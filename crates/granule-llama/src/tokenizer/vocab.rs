//! The vocabulary of a file: its tokens, what each stands for, and which are special.

use super::TokenId;
use super::bpe::byte_of_char;
use super::pre::PreTokenizer;
use super::special::Specials;
use crate::error::{Error, Result, excerpt};
use crate::gguf::{Metadata, Strings};
use std::collections::HashMap;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const EOM: &str = "tokenizer.ggml.eom_token_id";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";

/// Tokens that end a generation by their text, whatever the file says of them (as in llama.cpp).
const EOG_TEXTS: [&str; 6] =
    ["</s>", "<|eot_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<|eom_id|>"];

/// No real token comes near this, and it bounds the work that a hostile vocabulary can ask for.
const MAX_TOKEN_BYTES: usize = 1 << 16;

/// U+2581, which stands for a space in `llama` vocabularies.
pub(super) const SPACE_MARK: char = '▁';

/// What a token is, by the file's `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenKind {
    /// Plain text.
    Normal,
    /// Stands for text that the vocabulary lacks.
    Unknown,
    /// Steers the model and is no text: `<s>`, `<|eot_id|>`.
    Control,
    /// Text that is always one token, found before anything else is.
    UserDefined,
    /// Plain text that the model was never trained on.
    Unused,
    /// One byte.
    Byte,
}

/// Which of the two kinds of vocabulary it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Spm,
    Bpe(PreTokenizer),
}

pub(super) struct Vocab {
    texts: Strings,
    kinds: Vec<TokenKind>,
    /// What each token stands for in a text, one after the other.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Tokens that text can become, by the bytes they are matched with: a `llama` token's text as the file has it,
    /// a `gpt2` token's true bytes. Of several with the same bytes, the first.
    lookup: HashMap<Box<[u8]>, TokenId>,
    /// Tokens for single bytes.
    pub(super) byte_tokens: [Option<TokenId>; 256],
    pub(super) bos: Option<TokenId>,
    pub(super) eos: Option<TokenId>,
    pub(super) unknown: Option<TokenId>,
    /// Ascending.
    pub(super) eog: Vec<TokenId>,
    pub(super) add_bos: bool,
    /// Whether a space is put in front of a text.
    pub(super) space_prefix: bool,
    /// What `parse_special` finds.
    pub(super) all_special: Specials,
    /// What is found in any text.
    pub(super) user_defined: Specials,
}

impl Vocab {
    pub(super) fn read(metadata: &Metadata, family: Family) -> Result<Self> {
        let texts = metadata.get_strings(TOKENS)?.clone();
        let n_vocab = texts.len();
        if n_vocab == 0 || u32::try_from(n_vocab).is_err() {
            return Err(Error::VocabularySize { count: n_vocab });
        }
        let special = |key, default: Option<u32>| match metadata.find_u32(key)? {
            Some(id) if id as usize >= n_vocab => Err(Error::SpecialTokenOutOfRange { key, id, n_vocab }),
            Some(id) => Ok(Some(TokenId(id))),
            None => Ok(default.filter(|&id| (id as usize) < n_vocab).map(TokenId)),
        };
        // The ids that SentencePiece gives when nobody says otherwise.
        let spm = |id| (family == Family::Spm).then_some(id);
        let bos = special(BOS, spm(1))?;
        let eos = special(EOS, spm(2))?;
        let unknown = special(UNKNOWN, spm(0))?;
        let (eot, eom) = (special(EOT, None)?, special(EOM, None)?);

        let mut kinds = read_kinds(metadata, &texts, family)?;
        let mut eog: Vec<TokenId> = [eos, eot, eom].into_iter().flatten().collect();
        for (id, text) in texts.iter().enumerate() {
            if EOG_TEXTS.contains(&text) {
                eog.push(TokenId(id as u32));
            }
        }
        eog.sort_unstable();
        eog.dedup();
        // Tokens that steer are no text, even where the file forgot to say so.
        for &token in eog.iter().chain(&bos) {
            if kinds[token.index()] != TokenKind::Unknown {
                kinds[token.index()] = TokenKind::Control;
            }
        }

        let add_bos = metadata.find_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(match family {
            Family::Spm => true,
            Family::Bpe(pre) => pre == PreTokenizer::LlamaBpe,
        });
        let space_prefix =
            family == Family::Spm && metadata.find_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let of_kinds = |wanted: &[TokenKind]| {
            let found = (0u32..).zip(texts.iter()).zip(&kinds).filter(|(_, kind)| wanted.contains(kind));
            Specials::new(found.map(|((id, text), _)| (TokenId(id), text)))
        };
        let all_special = of_kinds(&[TokenKind::Control, TokenKind::UserDefined, TokenKind::Unknown])?;
        let user_defined = of_kinds(&[TokenKind::UserDefined])?;
        let mut vocab = Self {
            texts,
            kinds,
            bytes: Vec::new(),
            ends: Vec::with_capacity(n_vocab),
            lookup: HashMap::with_capacity(n_vocab),
            byte_tokens: [None; 256],
            bos,
            eos,
            unknown,
            eog,
            add_bos,
            space_prefix,
            all_special,
            user_defined,
        };
        vocab.fill(family)?;
        Ok(vocab)
    }

    /// Work out what each token stands for and how it is found.
    fn fill(&mut self, family: Family) -> Result<()> {
        for (id, (text, &kind)) in (0u32..).zip(self.texts.iter().zip(&self.kinds)) {
            let token = TokenId(id);
            if text.len() > MAX_TOKEN_BYTES {
                return Err(invalid(id, text, "is longer than 65536 bytes"));
            }
            let start = self.bytes.len();
            match kind {
                TokenKind::Control | TokenKind::Unknown => {}
                TokenKind::UserDefined => self.bytes.extend_from_slice(text.as_bytes()),
                TokenKind::Byte => {
                    let Some(byte) = parse_byte(text) else {
                        return Err(invalid(id, text, "is a byte, but is not written like <0x0A>"));
                    };
                    self.bytes.push(byte);
                    self.byte_tokens[usize::from(byte)].get_or_insert(token);
                }
                TokenKind::Normal | TokenKind::Unused => match family {
                    Family::Spm => {
                        self.bytes.extend_from_slice(text.replace(SPACE_MARK, " ").as_bytes());
                        if !text.is_empty() {
                            self.lookup.entry(text.as_bytes().into()).or_insert(token);
                        }
                    }
                    Family::Bpe(_) => {
                        let mut findable = !text.is_empty();
                        for c in text.chars() {
                            match byte_of_char(c) {
                                Some(byte) => self.bytes.push(byte),
                                // Never written by a byte-level tokenizer, so no text leads to this token.
                                None => {
                                    findable = false;
                                    self.bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                                }
                            }
                        }
                        let bytes = &self.bytes[start..];
                        if let ([byte], true) = (bytes, findable) {
                            self.byte_tokens[usize::from(*byte)].get_or_insert(token);
                        }
                        if findable {
                            self.lookup.entry(bytes.into()).or_insert(token);
                        }
                    }
                },
            }
            self.ends.push(self.bytes.len());
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    pub(super) fn text(&self, token: TokenId) -> Option<&str> {
        self.texts.get(token.index())
    }

    pub(super) fn kind(&self, token: TokenId) -> Option<TokenKind> {
        self.kinds.get(token.index()).copied()
    }

    pub(super) fn bytes(&self, token: TokenId) -> Option<&[u8]> {
        let end = *self.ends.get(token.index())?;
        let start = if token.0 == 0 { 0 } else { *self.ends.get(token.index() - 1)? };
        self.bytes.get(start..end)
    }

    /// The token that these bytes become as a whole.
    pub(super) fn find(&self, bytes: &[u8]) -> Option<TokenId> {
        self.lookup.get(bytes).copied()
    }

    /// Append the tokens of the bytes one by one; where one of them has none, a single unknown token for all.
    pub(super) fn push_bytes(&self, bytes: &[u8], out: &mut Vec<TokenId>) -> Result<()> {
        let before = out.len();
        out.extend(bytes.iter().map_while(|&b| self.byte_tokens[usize::from(b)]));
        if out.len() - before == bytes.len() {
            return Ok(());
        }
        out.truncate(before);
        let Some(unknown) = self.unknown else {
            return Err(Error::NoTokenFor {
                what: format!("`{}`", excerpt(&String::from_utf8_lossy(bytes))),
            });
        };
        out.push(unknown);
        Ok(())
    }
}

fn invalid(id: u32, text: &str, problem: &'static str) -> Error {
    Error::InvalidToken { id, text: excerpt(text), problem }
}

/// The kinds as the file has them; a file that says nothing has plain text and, in `llama` vocabularies, bytes.
fn read_kinds(metadata: &Metadata, texts: &Strings, family: Family) -> Result<Vec<TokenKind>> {
    let plain = |text: &str| match family {
        Family::Spm if parse_byte(text).is_some() => TokenKind::Byte,
        _ => TokenKind::Normal,
    };
    let Some(types) = metadata.find_u32s(TYPES)? else { return Ok(texts.iter().map(plain).collect()) };
    if types.len() != texts.len() {
        return Err(Error::VocabularyLength { key: TYPES, found: types.len(), expected: texts.len() });
    }
    let kinds = (0u32..).zip(texts.iter()).zip(types).map(|((id, text), ty)| {
        Ok(match ty {
            // Undefined and normal.
            0 | 1 => plain(text),
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => return Err(invalid(id, text, "has a type that is none of 0 to 6")),
        })
    });
    kinds.collect()
}

/// The byte of a text such as `<0x0A>`.
fn parse_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if hex { u8::from_str_radix(digits, 16).ok() } else { None }
}
