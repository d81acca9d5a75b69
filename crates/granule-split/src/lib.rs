//! Weights that live on several devices at once, and the collectives that let a layer run on all of them.
#![doc = include_str!("../README.md")]

mod buffer;
pub mod comm;
mod error;
pub mod plan;

pub use buffer::{Lanes, LanesOptions, SplitBuffer};
pub use comm::{Communicator, Traffic};
pub use error::{Error, Result};
pub use plan::{
    BufferPlan, MAX_RANKS, Padding, RankShape, Role, Shard, Shares, Split, SplitShape, TensorSplit,
    TransformerSplit,
};
