//! A growable, forkable KV cache on virtual memory.
#![doc = include_str!("../README.md")]

mod cache;
mod error;
mod grid;
mod identity;
mod idle;
mod kv_type;
mod layout;
mod mapper;
mod memory;
mod options;
mod parking;
mod prefix;
mod segments;
mod sequence;
mod spare;
pub mod state;
mod stats;

pub use cache::KvCache;
pub use error::Error;
pub use identity::Identity;
pub use kv_type::KvType;
pub use layout::{KvLayout, KvShape};
pub use memory::KvMemory;
pub use options::KvOptions;
pub use prefix::{Hit, Pin, PrefixCache, PrefixKey, PrefixOptions, PrefixStats};
pub use segments::Segment;
pub use sequence::Sequence;
pub use stats::KvStats;
