//! Dequantizing rows of Q8_0 or Q4_0 blocks, plain or planar, into rows of f32, f16 or bf16.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

pub use cpu::cpu;
#[cfg(feature = "cuda")]
pub use cuda::cuda;

use crate::Error;
use crate::rows::{RowShape, check_pair, is_cached, is_float};

fn check(from: &RowShape, to: &RowShape) -> Result<(), Error> {
    check_pair("dequantize", from, to, is_cached, is_float)
}
