//! The reference Llama engine: GGUF, tokenizers, the forward pass, sampling, generation.
//!
//! It is composed from Granule's own crates and shows that they are enough: weights stay in the mapped file (or in
//! memory that the bank pays for), keys and values in a growable [`granule_kv::Sequence`], activations in ranges of
//! granules, arithmetic in [`granule_ops`]. A [`Model`] is loaded once and shared; a [`Context`] is one sequence, or many.
//!
//! ```no_run
//! use granule_llama::{Context, ContextOptions, EncodeOptions, GenerateOptions, LoadOptions, Model};
//!
//! let model = Model::load("model.gguf", LoadOptions::default())?;
//! let prompt = model.tokenizer().encode("Once upon a time", EncodeOptions::default())?;
//! let mut context = Context::new(model, ContextOptions::default())?;
//! for piece in context.generate(&prompt, GenerateOptions::default())? {
//!     print!("{}", piece?.text);
//! }
//! println!("\n{:?}", context.memory_info());
//! # Ok::<(), granule_llama::Error>(())
//! ```
//!
//! What runs: `llama` files, GGUF version 2 or 3, in one file or several; weights in F32, F16, BF16, Q8_0, Q4_0,
//! Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL, IQ4_XS and IQ2_XXS, mixed as they may be; grouped-query attention; rotary positions with linear or Llama 3 scaling; SentencePiece
//! and byte-level BPE vocabularies. What does not is refused by name.
//!
//! Invariants: a call that fails leaves its context as it was; a context's memory never moves; what
//! [`Context::memory_info`] says is held is what the bank counts.
//!
//! # Many sequences
//!
//! Sequences of one context are computed together, each weight read once for all of them; they may begin with the same tokens,
//! whose memory they then share.
//!
//! ```no_run
//! # use granule_llama::{Context, ContextOptions, LoadOptions, Model};
//! # let model = Model::load("model.gguf", LoadOptions::default())?;
//! # let prompt = model.tokenizer().encode("Once upon a time", Default::default())?;
//! # let (yes, no) = (prompt[1], prompt[2]);
//! let mut context = Context::new(model, ContextOptions::default())?;
//! context.eval(&prompt)?;
//! let one = context.first_sequence();
//! let two = context.fork_sequence(one)?;
//! for logits in context.eval_batch(&[(one, &[yes]), (two, &[no])])? {
//!     println!("{} logits", logits.len());
//! }
//! # Ok::<(), granule_llama::Error>(())
//! ```
//!
//! # On a GPU
//!
//! A model is where its bank's memory is: with a bank over a CUDA device its weights, caches and computations are there, and
//! everything else is as above.
//!
//! ```no_run
//! # #[cfg(feature = "cuda")] {
//! # use granule_llama::{LoadOptions, Model};
//! use granule_bank::{Bank, BankOptions};
//! use granule_device::Device;
//!
//! let bank = Bank::new(Device::cuda(0)?, BankOptions::new())?;
//! let model = Model::load("model.gguf", LoadOptions { bank: Some(bank), ..LoadOptions::default() })?;
//! # }
//! # Ok::<(), granule_llama::Error>(())
//! ```
//!
//! # On several devices at once
//!
//! Layers may be split over banks, each of which is then a rank with some of every layer's heads, and all of them compute at the same
//! time: GPUs, or virtual devices of the host, which this example has two of.
//!
//! ```no_run
//! use granule_bank::{Bank, BankOptions};
//! use granule_device::Device;
//! use granule_llama::{LoadOptions, Model, ModelPlan, Placement};
//! use granule_split::Shares;
//!
//! let bank = || Ok::<_, Box<dyn std::error::Error>>(Bank::new(Device::host()?, BankOptions::new())?);
//! let n_layers = ModelPlan::open("model.gguf")?.config().n_layers;
//! let placement = Placement::new().split(&[bank()?, bank()?], Shares::equal(2)?, n_layers);
//! let model = Model::load("model.gguf", LoadOptions { placement: Some(placement), ..LoadOptions::default() })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Looking at it
//!
//! Whoever subscribes to [`tracing`] hears of steps and their layers, by the target `granule`; a profiler that is attached shows NVTX
//! ranges of the same names. Where nobody looks, a span costs two loads. An application that wants not even these sets `tracing`'s
//! `release_max_level_info`.
//!
//! | span | level | fields |
//! | --- | --- | --- |
//! | `step` | debug | `tokens` of all its sequences, `sequences` |
//! | `layer`, in a step | trace | `index` in the model, `device` |
//!
//! On a GPU a layer's span is the time in which its work is given to the stream, and a step's lasts until that has run. A step that is
//! replayed from a graph is one launch: it has no layers on the host, and takes neither device memory nor any of the host's heap.
//!
//! # Smaller files
//!
//! [`quantize()`] makes files in F16, BF16, Q8_0, Q4_0 and Q4_K_M of files with weights in F32, F16 or BF16, of any architecture.
//!
//! Not for: training, other architectures, deciding whose turn it is (a later crate).

mod cancel;
pub mod chat;
mod config;
mod context;
mod engine;
mod error;
mod generate;
pub mod gguf;
mod identity;
mod kv_tables;
mod kv_transform;
mod memory;
mod model;
mod packed;
mod perplexity;
mod placement;
mod plan;
mod quantize;
mod ranks;
pub mod sample;
mod shared;
pub mod tokenizer;
mod weights;

pub use cancel::CancelToken;
pub use chat::{ChatMessage, ChatPrompt, ChatTemplate};
pub use config::Config;
pub use context::{Context, ContextOptions, SequenceId};
pub use error::{Error, Result};
pub use generate::{Finish, GenerateOptions, Generation, GenerationStats, Piece, PieceRef};
pub use granule_kv::{KvOptions, KvType};
pub use granule_ops::Precision;
pub use kv_transform::KvTransformMode;
pub use memory::{DeviceMemory, MemoryInfo, RankTraffic, SequenceMemory};
pub use model::{LoadOptions, Model, Progress};
pub use perplexity::{Perplexity, perplexity};
pub use placement::{Placement, Stage, StageRank};
pub use plan::{Fits, GpuLayers, ModelPlan, PlannedText, Team};
pub use quantize::{QuantizeOptions, QuantizeTarget, Quantized, QuantizedTensor, quantize, unfinished_path};
pub use sample::{Sampler, SamplingOptions};
pub use tokenizer::{EncodeOptions, TextStream, TokenId, Tokenizer};
