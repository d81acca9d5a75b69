//! The reference Llama engine: GGUF, tokenizers, forward pass, sampling, generation.

pub mod chat;
mod error;
pub mod gguf;
pub mod sample;
pub mod tokenizer;

pub use chat::{ChatMessage, ChatPrompt, ChatTemplate};
pub use error::{Error, Result};
pub use sample::{Sampler, SamplingOptions};
pub use tokenizer::{EncodeOptions, TextStream, TokenId, Tokenizer};
