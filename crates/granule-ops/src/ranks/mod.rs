//! What the ranks of a group do with each other's memory, on CUDA devices: add it up in the order of the ranks, and put parts of it
//! together.
//!
//! Memory is told by address alone: it is other devices', other threads write other parts of it, and a sum may be written over one
//! of its terms.

mod cuda;

pub use cuda::{gather, sum};

/// The most ranks of one launch.
pub const MAX_RANKS: usize = 16;
