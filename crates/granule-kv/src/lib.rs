//! A growable, forkable KV cache on virtual memory.
#![doc = include_str!("../README.md")]

mod cache;
mod error;
mod kv_type;
mod layout;
mod memory;
mod sequence;

pub use cache::KvCache;
pub use error::Error;
pub use kv_type::KvType;
pub use layout::{KvLayout, KvShape};
pub use memory::KvMemory;
pub use sequence::Sequence;
