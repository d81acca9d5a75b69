//! The workloads: what is allocated, how large and for how long. All are drawn from seeds and the same everywhere.

pub mod churn;
pub mod decode;
pub mod model;
pub mod residency;

pub use churn::{Sizes, churn};
pub use decode::decode;
pub use model::Model;
pub use residency::{KvBlocks, Residency, residency};
