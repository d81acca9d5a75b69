//! What a model will need of a device's memory, to the byte, and what fits where.
#![doc = include_str!("../README.md")]

mod context;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
mod fit;
mod heaps;
pub mod host;
mod shape;
mod stage;
mod weights;

pub use context::{ContextShape, DryContext};
pub use error::Error;
pub use fit::{most, shares};
pub use shape::{MatrixShape, ModelShape};
pub use stage::{Compute, Part, Stage, StageMemory};
pub use weights::{LOADING_PIECES, Places, loading_piece};
