//! Tests of the text half of the engine: GGUF files, tokenizers, chat templates, sampling.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail as tests do

mod chat;
mod gguf;
mod pairs;
mod reference;
mod sampling;
mod shards;
mod tokenizer;
mod twin;
mod vocabulary;
