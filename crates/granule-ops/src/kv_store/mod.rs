//! Storing new keys and values in the cache, in the cache's own types.

mod cpu;

pub use cpu::kv_store;
