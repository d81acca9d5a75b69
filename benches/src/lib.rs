//! What the benchmarks of allocators are made of. The benchmarks themselves live under `benches/`, committed results under
//! `record/`, and what replays a trace on other allocators of a GPU under `peers/`.
//!
//! A [`Script`] is a list of allocations and frees, drawn before anything is timed. A [`Subject`] is an allocator, a
//! [`Player`] runs the one on the other. What a sceptic asks first:
//!
//! - **Is the same work timed for each subject?** The same loop over the same operations, compiled anew for each subject
//!   (nothing goes through a vtable), with the same table of live blocks. Blocks are written straight into the table and freed
//!   where they lie. What a block's size costs (a lease knows its heap, a floor's block is an index) is the subject's to pay.
//! - **Is one inlined where another is called?** All that is written in Rust is asked to be inlined, floors and pool alike: small
//!   ones would be anyhow. The host's allocators are behind the calls that they always are.
//! - **Is it the loop that is measured?** [`subjects::Nothing`] is a subject that does nothing; its time is printed, and ratios
//!   are of times from which it has been taken off, which makes them larger.
//! - **Can the compiler take the work away?** The address of each block goes through `black_box`, and the block itself into a
//!   table that the next free reads.
//! - **Is a pair always served by the block that was just freed?** In [`workload::churn()`] the block that is freed and the size
//!   that is asked for next have nothing to do with each other; there is no pair that hits the same block by construction.
//! - **Does a predictor learn the sizes?** A cycle is at least 2^17 operations of random sizes and slots.
//! - **Is the steady state steady?** A cycle ends with the sizes that it began with, so a subject that keeps what it is given
//!   back needs nothing new from the second cycle on: calls to the device in later cycles are counted and are all its own.
//! - **Is one subject measured while the machine is slow?** Compared subjects take turns of a few milliseconds; the ratio is
//!   the median of the turns' ratios ([`play::compare`]).
//! - **What do the clock's own 20 ns do?** It is read once for 64 operations.

pub mod crowd;
pub mod machine;
pub mod play;
pub mod report;
pub mod script;
pub mod subject;
pub mod subjects;
pub mod table;
pub mod traced;
pub mod workload;

pub use play::{Player, Timing};
pub use script::{Op, Phase, Script};
pub use subject::{Footprint, Handle, Subject};
