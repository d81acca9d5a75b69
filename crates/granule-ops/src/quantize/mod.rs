//! Quantizing rows of f32, f16 or bf16 into rows of Q8_0 or Q4_0 blocks, plain or planar.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

pub use cpu::cpu;
#[cfg(feature = "cuda")]
pub use cuda::cuda;

use crate::Error;
use crate::rows::{RowShape, check_pair, is_cached, is_float};

fn check(from: &RowShape, to: &RowShape) -> Result<(), Error> {
    check_pair("quantize", from, to, is_float, is_cached)
}
