//! A transformer's arithmetic on quantized weights and a quantized KV cache.
//!
//! One folder per operation; inside it, `cpu.rs` is the host's way and `cuda.rs` launches the kernel. Temporaries are handed in
//! by the caller, so nothing here takes memory for numbers in a decode step. What small lists there are: a [`KvView`] has four
//! segments in itself and a list of more; a CUDA launch gathers its arguments in three (captured graphs make none). Shapes
//! stand on every argument and are checked before anything is written; all arrays are row-major, the last dimension dense.
//!
//! | operation | what it computes |
//! | --- | --- |
//! | [`embed`](embed()) | rows of the embedding table |
//! | [`rms_norm`] | root mean square normalization |
//! | [`Rope`], [`rotate`] | rotary positions over adjacent pairs |
//! | [`matmul`] | activations with one to four weights of any type |
//! | [`kv_append`] | new keys and values: rotated, transformed, encoded into the cache, in one pass |
//! | [`KvTransform`] | what makes four bits enough, before keys and values are stored |
//! | [`attention`] | causal attention of a batch of sequences that reads the cache's types directly through a [`KvView`] |
//! | `attention_prefill` | the same for the many query tokens of prompts, on the tensor cores of a CUDA device (feature `cuda`) |
//! | [`activate`] | activations in the [form](activate::Form) that products on a CUDA device read: as they are, normalized, or through SwiGLU |
//! | `product` | those activations with weights in planes: `matmul` on a CUDA device (feature `cuda`) |
//! | `product::cuda_blas` | the same for many tokens by NVIDIA's cuBLAS, where it is installed (feature `cublas`) |
//! | `sample` | tokens drawn from logits on a CUDA device: top-k, top-p, min-p, temperature (feature `cuda`) |
//! | `ranks` | sums and parts of what lies in the memory of several ranks of a group, on a CUDA device (feature `cuda`) |
//! | [`swiglu`], [`add`] | the feed-forward's gate, the residual |
//! | [`softmax`] | probabilities |
//! | [`quantize`], [`dequantize`] | [rows](Rows) of floats into rows of blocks, and back |
//! | [`relayout`] | rows of blocks between the plain and the planar layout |
//! | [`pack_weights`] | rows of weights from the layout of files into the planes that a device's products take |
//! | [`fill`], [`compare`] | a pattern over memory; how two stretches of memory differ |
//!
//! The last six, [`embed`](embed()), [`rope`], [`kv_append`] and [`attention`] run on CUDA devices too (feature `cuda`): `quantize::cpu` and `quantize::cuda` are
//! twins. What a step's sequences are, kernels read in a `KvTable`.
//!
//! ```
//! use granule_ops::{Threads, rms_norm};
//! use std::num::NonZeroUsize;
//!
//! let threads = Threads::new(NonZeroUsize::MIN)?;
//! assert_eq!(threads.count(), 1);
//! let mut out = [0.0; 2];
//! rms_norm(&threads, &[3.0, 4.0], &[1.0, 1.0], 0.0, &mut out)?;
//! assert!((out[0] - 3.0 / 12.5f32.sqrt()).abs() < 1e-6);
//! # Ok::<(), granule_ops::Error>(())
//! ```
//!
//! Not for: deciding where bytes lie (that is `granule-bank` and `granule-kv`), or knowing a model's shape.

/// The README's example, compiled and run with those of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod activate;
mod add;
pub mod attention;
#[cfg(feature = "cuda")]
pub mod attention_prefill;
pub mod compare;
pub mod dequantize;
pub mod embed;
mod error;
pub mod fill;
#[cfg(feature = "cuda")]
mod kernels;
pub mod kv_append;
#[cfg(feature = "cuda")]
mod kv_table;
mod kv_transform;
mod kv_view;
#[cfg(feature = "cuda")]
mod launch;
mod matmul;
mod matrix;
#[cfg(feature = "cuda")]
mod matvec;
mod norm;
pub mod pack_weights;
#[cfg(feature = "cuda")]
mod planar_matrix;
#[cfg(feature = "cuda")]
pub mod product;
pub mod quantize;
#[cfg(feature = "cuda")]
pub mod ranks;
pub mod relayout;
pub mod rope;
mod rows;
#[cfg(feature = "cuda")]
pub mod sample;
#[cfg(feature = "cublas")]
mod scale_rows;
mod softmax;
mod swiglu;
mod threads;
#[cfg(feature = "cublas")]
mod unpack_weights;

pub use add::add;
pub use attention::{AttentionItem, AttentionShape};
pub use embed::embed;
pub use error::Error;
#[cfg(feature = "cuda")]
pub use kernels::{DeviceFacts, Kernels};
#[cfg(feature = "cuda")]
pub use kv_table::{KvCounts, KvTable, KvTableView, KvTransformTables};
pub use kv_transform::{KvFold, KvTransform, KvTransforms};
pub use kv_view::{KvRowLayout, KvSegment, KvSinks, KvView, KvViewMut};
pub use matmul::{Activations, Precision, QuantScratch, matmul};
pub use matrix::Matrix;
pub use norm::rms_norm;
#[cfg(feature = "cuda")]
pub use planar_matrix::PlanarMatrix;
pub use rope::{Rope, rotate};
pub use rows::{PLANE_ALIGN, Planes, RowShape, Rows, RowsMut};
pub use softmax::{log_softmax_at, softmax};
pub use swiglu::swiglu;
pub use threads::Threads;
