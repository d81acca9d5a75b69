//! A model of Llama-3.2-1B's shape: its widths, heads and vocabulary, with weights of the types that its usual files mix, and of random
//! bits. Of its 16 layers a test has one or two: layers are alike, and what a split can get wrong is in one and in the
//! hidden states that the next is given.

use std::path::{Path, PathBuf};

use granule_quant::DType;
use granule_split::Shares;

use crate::support::make::{Made, Shape, Vocab};

pub(crate) const N_VOCAB: usize = 128_256;

/// Even and uneven shares of 2, 3 and 4 ranks: blocks of 256 are the query heads of one of its eight key-value heads.
pub(crate) const SHARES: [&[u64]; 6] =
    [&[1, 1], &[3, 1], &[1, 1, 1], &[1, 2, 5], &[1, 1, 1, 1], &[4, 1, 2, 1]];

pub(crate) fn shares(of: &[u64]) -> Shares {
    Shares::ratio(of).unwrap()
}

/// The model with so many layers, as a file in `folder`.
pub(crate) fn made(n_layers: usize, folder: &Path) -> PathBuf {
    let shape = Shape {
        n_embd: 2048,
        n_layers,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: Some(64),
        n_ff: 8192,
        n_ctx: 8192,
        rope_base: Some(500_000.0),
        rope_freqs: true,
        // In turn, the table first: a layer has seven.
        weights: vec![DType::Q4_K, DType::Q4_K, DType::Q6_K, DType::Q4_K],
        vocab: Vocab::Bpe,
        seed: 32,
        ..Shape::default()
    };
    let made = Made::large(&shape, N_VOCAB);
    made.write(folder)
}
