//! The residual sum.

mod cpu;

pub use cpu::add;
