//! Weights that live on several devices at once, and the collectives that let a layer run on all of them.
#![doc = include_str!("../README.md")]

pub mod comm;
mod error;
pub mod plan;

pub use comm::{Communicator, Traffic};
pub use error::{Error, Result};
pub use plan::{MAX_RANKS, RankShape, Role, Shard, Shares, Split, SplitShape, TensorSplit, TransformerSplit};
