//! The vector paths of x86-64, one folder per instruction set; each has the modules of [`crate::scalar`].
//!
//! Functions that name instructions are `#[target_feature]` functions; what makes calling them sound is that an
//! [`Isa`](crate::Isa) of their kind exists only where the CPU has the instructions.

//avx2
pub(crate) mod avx512;
