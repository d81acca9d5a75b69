//! Ranks on the host: virtual devices, each with memory and threads of its own.

mod covering;
mod faults;
mod refused;
mod wide;
