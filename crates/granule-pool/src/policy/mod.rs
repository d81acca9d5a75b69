//! The policy of the pool: which bytes a request gets, decided on offsets and ids. Pure: no `unsafe`, no device, no clock
//! but the caller's.
//!
//! ```text
//!  request -> Class -> Cache   one LIFO per class, in each heap: the hit needs nothing else of this module
//!                 \-> Space    spans of places, some of which have memory: cut by two-level segregated fit
//!  free    -> Stamp            which streams may still use the memory, and up to which tick of each
//!  taker   -> Clock            which ticks of other streams come before this stream's next work
//! ```
//!
//! All offsets and sizes are bytes and multiples of [`UNIT`]; every table is deterministic: the same calls in the same order
//! give the same blocks.

#![forbid(unsafe_code)]

mod cache;
mod class;
mod clock;
mod space;
mod stamp;

pub use cache::Cache;
pub use class::Class;
pub use clock::Clock;
pub use space::{Block, BlockId, Growth, InUse, Space, SpaceCounts, SpanId, Stale};
pub use stamp::{Stamp, StreamId, Tick};

/// What every offset and size is a multiple of, in bytes: the alignment of every block.
pub const UNIT: u64 = 256;

/// How many cases a property test runs: Miri is some hundred times slower, and looks for something else.
#[cfg(test)]
pub(crate) fn few_under_miri(cases: u32) -> proptest::test_runner::Config {
    let cases = if cfg!(miri) { cases.min(5) } else { cases };
    proptest::test_runner::Config { cases, failure_persistence: None, ..Default::default() }
}

/// How long a random sequence of calls is, at most.
#[cfg(test)]
pub(crate) const fn short_under_miri(calls: usize) -> usize {
    if cfg!(miri) { calls / 3 } else { calls }
}
