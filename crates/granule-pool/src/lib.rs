//! A stream-ordered size-class pool for temporary device memory, over a bank's granules.
#![doc = include_str!("../README.md")]

pub mod adaptor;
mod arena;
mod capture;
mod clocks;
mod dry;
mod error;
mod extra;
mod heap;
mod ladder;
mod lease;
#[doc(hidden)]
pub mod policy;
mod pool;
pub mod replay;
mod scratch;
mod shell;
mod slice;
mod source;
mod stats;
mod sync;

pub use capture::CapturedMemory;
pub use dry::{DryHeap, DryLease};
pub use error::Error;
pub use heap::Heap;
pub use lease::Lease;
pub use pool::{Pool, PoolOptions};
pub use scratch::{Frame, Scratch, ScratchArena};
pub use slice::PoolSlice;
pub use stats::{HeapStats, PoolStats};
