//! The covering set: configurations of layers that are split, such that every two values of every two factors meet in one of them.
//! `host::covering` and `cuda::covering` compute them.
//!
//! | factor | values |
//! | --- | --- |
//! | weights | all types |
//! | shares | of 2, 3 and 4 ranks, even and uneven: all ways that there are to give ranks whole groups of heads |
//! | layers | all split; some whole before those that are, some behind, both |
//! | type of keys, type of values | 5 each |
//! | prompt | in one batch, or token by token |
//! | transform | auto, or none |
//!
//! Besides, a transform that is made (auto, and keys or values of 4 bits) meets every value of the other factors. `pairs.txt` has as
//! few rows as there are pairs of weights and shares. Its first [`SHORT`] have every value of every factor.
//!
//! All query heads of this model are one block of 256. Where weights have such blocks, `attn_output` keeps blocks of 32, and where
//! there are more ranks than `ffn_down` has blocks, so does that: what the file without would be is refused (`host::refused`).

mod pairs;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use granule_bank::Bank;
use granule_kv::KvType;
use granule_llama::{ContextOptions, KvTransformMode, Placement};
use granule_quant::DType;
use granule_split::Shares;

use crate::options;
use crate::tales::{LAYERS, tales_but, tales_of};

/// Rows at the beginning that are a set of their own, with every value of every factor: one for each type of weights.
pub(crate) const SHORT: usize = 16;
/// The shares of ranks.
pub(crate) const SHARES: [&[u64]; 6] =
    [&[1, 1], &[3, 1], &[1, 1, 1], &[2, 1, 1], &[1, 1, 1, 1], &[1, 2, 3, 4]];

/// Which layers are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Layers {
    All,
    /// Some are whole, before those that are split.
    Before,
    Behind,
    Both,
}

impl Layers {
    pub(crate) const ALL: [Layers; 4] = [Layers::All, Layers::Before, Layers::Behind, Layers::Both];

    fn name(self) -> &'static str {
        match self {
            Layers::All => "all",
            Layers::Before => "before",
            Layers::Behind => "behind",
            Layers::Both => "both",
        }
    }

    /// How many are whole before and behind.
    fn whole(self) -> [usize; 2] {
        match self {
            Layers::All => [0, 0],
            Layers::Before => [2, 0],
            Layers::Behind => [0, 2],
            Layers::Both => [1, 2],
        }
    }
}

/// One configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    pub(crate) weights: DType,
    pub(crate) shares: &'static [u64],
    pub(crate) layers: Layers,
    pub(crate) k: KvType,
    pub(crate) v: KvType,
    /// Whether the prompt is computed in one batch.
    pub(crate) batch: bool,
    pub(crate) transform: KvTransformMode,
}

impl Row {
    /// Whether keys or values are stored transformed.
    fn is_transformed(&self) -> bool {
        self.transform == KvTransformMode::Auto && [self.k, self.v].contains(&KvType::Q4_0)
    }

    pub(crate) fn ranks(&self) -> usize {
        self.shares.len()
    }

    /// The model, as a file in `folder`.
    pub(crate) fn file(&self, folder: &Path) -> PathBuf {
        match (self.weights.block_len(), self.ranks()) {
            (256, 4..) => tales_but(&["attn_output", "ffn_down"], self.weights, folder),
            (256, _) => tales_but(&["attn_output"], self.weights, folder),
            _ => tales_of(self.weights, folder),
        }
    }

    /// The layers over these banks: one for each rank, and those of the whole layers before and behind.
    pub(crate) fn placement(&self, ranks: &[Bank], [before, behind]: [&Bank; 2]) -> Placement {
        let [n_before, n_behind] = self.layers.whole();
        let shares = Shares::ratio(self.shares).unwrap();
        let split = LAYERS - n_before - n_behind;
        Placement::new().layers(before, n_before).split(ranks, shares, split).layers(behind, n_behind)
    }

    pub(crate) fn options(&self) -> ContextOptions {
        ContextOptions { kv_transform: self.transform, ..options(64, 32, self.k, self.v) }
    }

    /// The same with a cache that costs next to nothing.
    pub(crate) fn exact(&self) -> ContextOptions {
        ContextOptions { type_k: KvType::F16, type_v: KvType::F16, ..self.options() }
    }
}

impl FromStr for Row {
    type Err = String;

    fn from_str(line: &str) -> Result<Row, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [weights, shares, layers, k, v, prompt, transform] = words[..] else {
            return Err(format!("{} words", words.len()));
        };
        let one_of = |word: &str, first: &str, second: &str| match word {
            word if word == first => Ok(true),
            word if word == second => Ok(false),
            other => Err(format!("{other} is neither {first} nor {second}")),
        };
        let known = SHARES.into_iter().find(|known| Shares::ratio(known).unwrap().to_string() == shares);
        let layers = Layers::ALL.into_iter().find(|known| known.name() == layers);
        Ok(Row {
            weights: weights.parse().map_err(|error| format!("{error}"))?,
            shares: known.ok_or("no such shares")?,
            layers: layers.ok_or("no such layers")?,
            k: k.parse().map_err(|error| format!("{error}"))?,
            v: v.parse().map_err(|error| format!("{error}"))?,
            batch: one_of(prompt, "batch", "tokens")?,
            transform: match one_of(transform, "auto", "none")? {
                true => KvTransformMode::Auto,
                false => KvTransformMode::None,
            },
        })
    }
}

/// The set.
pub(crate) fn rows() -> Vec<Row> {
    let lines = include_str!("pairs.txt").lines().enumerate();
    lines.map(|(i, line)| line.parse().unwrap_or_else(|error| panic!("row {i}, {line}: {error}"))).collect()
}

/// Every configuration that there is.
pub(crate) fn product() -> Vec<Row> {
    let modes = [KvTransformMode::Auto, KvTransformMode::None];
    let mut rows = Vec::new();
    for (&weights, shares) in DType::ALL.iter().flat_map(|weights| SHARES.map(|shares| (weights, shares))) {
        for (layers, &k) in
            Layers::ALL.iter().flat_map(|&layers| KvType::ALL.iter().map(move |k| (layers, k)))
        {
            for (&v, transform) in KvType::ALL.iter().flat_map(|v| modes.map(|mode| (v, mode))) {
                let row = |batch| Row { weights, shares, layers, k, v, batch, transform };
                rows.extend([true, false].map(row));
            }
        }
    }
    rows
}
