//! The reference Llama engine: GGUF, tokenizers, forward pass, sampling, generation.

mod error;
pub mod gguf;
pub mod tokenizer;

pub use error::{Error, Result};
pub use tokenizer::{EncodeOptions, TextStream, TokenId, Tokenizer};
