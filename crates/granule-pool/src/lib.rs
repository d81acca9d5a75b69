//! A stream-ordered size-class pool for temporary device memory, over a bank's granules.
#![doc = include_str!("../README.md")]

#[doc(hidden)]
pub mod policy;
pub mod replay;
