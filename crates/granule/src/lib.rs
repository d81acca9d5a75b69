//! Granule's library crates under one name: `granule::llama`, `granule::kv`, `granule::pool`, `granule::bank` and the floors below.
//!
//! ```no_run
//! use granule::llama::{Context, ContextOptions, GenerateOptions, LoadOptions, Model};
//!
//! let model = Model::load("model.gguf", LoadOptions::default())?;
//! let prompt = model.tokenizer().encode("Once upon a time", Default::default())?;
//! let mut context = Context::new(model, ContextOptions::default())?;
//! for piece in context.generate(&prompt, GenerateOptions::default())? {
//!     print!("{}", piece?.text);
//! }
//! println!("\n{:?}", context.memory_info());
//! # Ok::<(), granule::llama::Error>(())
//! ```
//!
//! An engine of your own may need only some of them; each is a crate by itself. This crate without its feature `cli` is
//! the names below and nothing else; with it, it is also the command `granule`.

#[doc(inline)]
pub use granule_bank as bank;
#[doc(inline)]
pub use granule_device as device;
#[doc(inline)]
pub use granule_kv as kv;
#[doc(inline)]
pub use granule_llama as llama;
#[doc(inline)]
pub use granule_ops as ops;
#[doc(inline)]
pub use granule_plan as plan;
#[doc(inline)]
pub use granule_pool as pool;
#[doc(inline)]
pub use granule_quant as quant;
#[doc(inline)]
pub use granule_split as split;
