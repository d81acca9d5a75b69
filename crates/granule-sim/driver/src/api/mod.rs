//! The C side: every driver function by topic, each a few lines over `model`.
#![allow(non_snake_case, reason = "these are the driver's names")]
#![allow(unreachable_pub, reason = "exported by name, to C")]
#![allow(clippy::missing_safety_doc, reason = "the contract of each function is the CUDA driver API's")]
#![allow(clippy::too_many_arguments, reason = "the driver's signatures")]

mod blas;
mod context;
mod control;
mod device;
mod enter;
mod error;
mod event;
mod graph;
mod lookup;
mod memory;
mod module;
mod nccl;
mod occupancy;
mod pool;
mod stream;
mod unsupported;
mod virtual_memory;
