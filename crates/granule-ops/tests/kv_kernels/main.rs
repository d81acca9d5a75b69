//! `kv_append` and `attention` on a CUDA device, the simulated one or a real one, against the host's twins and against
//! ten obvious lines in f64.
//!
//! A [`case::Case`] says types, shapes and where rows are; [`cache::Cache`] has the bytes; [`naive`] is the oracle.
#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod cache;
mod case;
mod cuda;
mod naive;
#[path = "../support/random.rs"]
mod random;
