//! A `libcuda.so` without a GPU: the CUDA driver API over a model of devices, streams and memory.
//!
//! `api` is the C side: one function per driver call, arguments checked for null, everything else handed to
//! `model`. `model` is safe Rust and decides everything: which operation may run, who may touch which byte, what is
//! a bug of the program. `machine` is the only place that maps and moves memory.

mod api;
mod code;
mod config;
mod emulator;
mod machine;
mod model;
