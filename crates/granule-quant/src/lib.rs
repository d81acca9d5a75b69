//! ggml block formats: a bit-exact codec and SIMD dot products.

mod activation;
mod block;
mod codec;
mod dot;
mod dtype;
mod error;
mod gemm;
mod isa;
mod planar;
pub mod scalar;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86;

pub use activation::{QuantizedMatrix, QuantizedRow, quantize_row};
pub use block::{BLOCK_LEN, BlockQ4_0, BlockQ4_1, BlockQ8_0};
pub use codec::{decode, encode};
pub use dot::{dot_f32, dot_q8};
pub use dtype::DType;
pub use error::Error;
pub use gemm::{Tile, gemm_f32, gemm_q8};
pub use isa::Isa;
pub use planar::{
    PlanarBytes, axpy_planar, decode_planar, dot_planar, encode_planar, ggml_from_planar, planar_bytes,
    planar_from_ggml,
};
