//! ggml block formats: a bit-exact codec and SIMD products, on plain slices.
#![doc = include_str!("../README.md")]
//!
//! # Map
//! | to | call |
//! | --- | --- |
//! | know a type's name, id and sizes | [`DType`] |
//! | read a block's bytes | [`BlockQ8_0`], [`BlockQ4_0`], [`BlockQ4_1`], [`BlockQ5_0`], [`BlockQ5_1`], [`BlockIQ4_NL`]; of 256 elements [`BlockQ2_K`], [`BlockQ3_K`], [`BlockQ4_K`], [`BlockQ5_K`], [`BlockQ6_K`], [`BlockIQ4_XS`], [`BlockIQ2_XXS`] |
//! | convert rows | [`encode`], [`decode`] |
//! | convert rows of a KV cache | [`planar_bytes`], [`encode_planar`], [`decode_planar`], [`planar_from_ggml`], [`ggml_from_planar`] |
//! | attend to a tile of rows of a KV cache | [`HeadRows`], [`Isa::prepare_queries`], [`Isa::scores`], [`Isa::softmax_tile`], [`Isa::weighted_sums`] |
//! | prepare activations | [`quantize_row`], [`QuantizedRow`], [`QuantizedMatrix`] |
//! | multiply | [`dot_q8`], [`dot_f32`], [`gemm_q8`], [`gemm_f32`], [`Tile`] |
//! | pack weights for the CPU at hand, and multiply these | [`Packing`], [`quantize_fixed`], [`FixedMatrix`] |
//! | multiply `F16` and `BF16` weights with many tokens | [`Isa::gemm_bf16`], [`Bf16Matrix`] |
//! | lay weights out for a GPU | [`WeightPlanes`], [`pack_planes`], [`pack_planes_rows`], [`decode_planes`] |
//! | gate a feed-forward | [`Isa::swiglu`] |
//! | choose the instructions | [`Isa`] |
//! | see what all of this means | [`scalar`] |

mod activation;
mod attend;
mod bf16;
mod block;
mod codec;
mod dot;
mod dtype;
mod error;
mod expand;
mod fit;
mod gemm;
mod isa;
mod packed;
mod planar;
mod planes;
pub mod scalar;
mod swiglu;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86;

pub use activation::{FixedMatrix, QuantizedMatrix, QuantizedRow, quantize_fixed, quantize_row};
pub use attend::{ATTEND_TILE, HeadRows, RunningSoftmax, TileShape, fetch_rows, query_words};
pub use bf16::Bf16Matrix;
pub use block::{
    BLOCK_LEN, BlockIQ2_XXS, BlockIQ4_NL, BlockIQ4_XS, BlockQ2_K, BlockQ3_K, BlockQ4_0, BlockQ4_1, BlockQ4_K,
    BlockQ5_0, BlockQ5_1, BlockQ5_K, BlockQ6_K, BlockQ8_0, SUPER_BLOCK_LEN,
};
pub use codec::{decode, encode};
pub use dot::{dot_f32, dot_q8};
pub use dtype::DType;
pub use error::Error;
pub use gemm::{Tile, gemm_f32, gemm_q8};
pub use isa::Isa;
pub use packed::{PANEL_ROWS, Packing};
pub use planar::{
    PlanarBytes, decode_planar, encode_planar, ggml_from_planar, planar_bytes, planar_from_ggml,
};
pub use planes::{WeightPlanes, decode_planes, pack_planes, pack_planes_rows};
