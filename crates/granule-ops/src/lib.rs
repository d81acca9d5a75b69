//! A transformer's arithmetic on quantized weights and a quantized KV cache.
//!
//! One folder per operation; inside it, `cpu.rs` is the host's way. Temporaries are handed in by the caller, so
//! nothing here allocates in a decode step. Shapes stand on every argument and are checked before anything is
//! written; all arrays are row-major, the last dimension dense.
//!
//! | operation | what it computes |
//! | --- | --- |
//! | [`embed`] | rows of the embedding table |
//! | [`rms_norm`] | root mean square normalization |
//! | [`Rope`], [`rotate`] | rotary positions over adjacent pairs |
//! | [`matmul`] | activations with one to four weights of any type |
//! | [`kv_store`] | new keys and values, encoded into the cache |
//! | [`attention`] | causal attention that reads the cache's types directly through a [`KvView`] |
//! | [`swiglu`], [`add`] | the feed-forward's gate, the residual |
//! | [`softmax`] | probabilities |
//!
//! ```
//! use granule_ops::{Threads, rms_norm};
//! use std::num::NonZeroUsize;
//!
//! let threads = Threads::new(NonZeroUsize::MIN)?;
//! assert_eq!(threads.count(), 1);
//! let mut out = [0.0; 2];
//! rms_norm(&[3.0, 4.0], &[1.0, 1.0], 0.0, &mut out)?;
//! assert!((out[0] - 3.0 / 12.5f32.sqrt()).abs() < 1e-6);
//! # Ok::<(), granule_ops::Error>(())
//! ```
//!
//! Not for: deciding where bytes lie (that is `granule-bank` and `granule-kv`), or knowing a model's shape.

mod add;
mod attention;
mod embed;
mod error;
mod kv_store;
mod kv_view;
mod matmul;
mod matrix;
mod norm;
mod rope;
mod softmax;
mod swiglu;
mod threads;

pub use add::add;
pub use attention::{AttentionShape, attention, scratch_len as attention_scratch_len};
pub use embed::embed;
pub use error::Error;
pub use kv_store::kv_store;
pub use kv_view::{KvRowLayout, KvView, KvViewMut};
pub use matmul::{Activations, QuantScratch, matmul};
pub use matrix::Matrix;
pub use norm::rms_norm;
pub use rope::{Rope, rotate};
pub use softmax::{log_softmax_at, softmax};
pub use swiglu::swiglu;
pub use threads::Threads;
