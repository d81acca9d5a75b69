//! Embedding lookup: token ids to rows of the embedding table.

mod cpu;

pub use cpu::embed;
