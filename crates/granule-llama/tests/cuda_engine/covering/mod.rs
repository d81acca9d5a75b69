//! The covering set: configurations of the engine such that every two values of every two factors meet in one of them, and what
//! has to be true of it. `cuda::covering` computes them.
//!
//! | factor | values |
//! | --- | --- |
//! | weights | all types |
//! | split | the host and then the GPU, the GPU and then the host, a GPU and then the other |
//! | boundary | layers before it: 0 to 6, of six. Nothing on a GPU is no configuration |
//! | type of keys, type of values | 5 each |
//! | prompt | in one batch, or token by token |
//! | steps | as graphs, or launch by launch |
//! | transform | auto, or none |
//!
//! Besides, a transform that is made (auto, and keys or values of 4 bits) meets every value of the other factors. `pairs.txt` was
//! found by annealing from the 16 x 7 pairs of weights and boundaries, of which none can be left out; of triples of values it has
//! as many as that came to. Its first [`SHORT`] rows have every value of every factor, and run in every test run.

mod pairs;

use std::str::FromStr;

use granule_kv::KvType;
use granule_llama::KvTransformMode;
use granule_quant::DType;

use crate::tales::LAYERS;

/// Rows at the beginning that are a set of their own, with every value of every factor: one for each type of weights.
pub(crate) const SHORT: usize = 16;

/// What has the layers before the boundary, and those behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Split {
    HostThenGpu,
    GpuThenHost,
    GpuThenGpu,
}

impl Split {
    pub(crate) const ALL: [Split; 3] = [Split::HostThenGpu, Split::GpuThenHost, Split::GpuThenGpu];

    fn name(self) -> &'static str {
        match self {
            Split::HostThenGpu => "host+gpu",
            Split::GpuThenHost => "gpu+host",
            Split::GpuThenGpu => "gpu+gpu",
        }
    }
}

/// One configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    pub(crate) weights: DType,
    pub(crate) split: Split,
    /// Layers before the boundary.
    pub(crate) boundary: usize,
    pub(crate) k: KvType,
    pub(crate) v: KvType,
    /// Whether the prompt is computed in one batch.
    pub(crate) batch: bool,
    /// Whether steps of one token are replayed.
    pub(crate) graphs: bool,
    pub(crate) transform: KvTransformMode,
}

impl Row {
    /// Whether anything is on a GPU.
    fn is_valid(&self) -> bool {
        match self.split {
            Split::HostThenGpu => self.boundary < LAYERS,
            Split::GpuThenHost => (1..=LAYERS).contains(&self.boundary),
            Split::GpuThenGpu => self.boundary <= LAYERS,
        }
    }

    /// Whether keys or values are stored transformed.
    fn is_transformed(&self) -> bool {
        self.transform == KvTransformMode::Auto && [self.k, self.v].contains(&KvType::Q4_0)
    }
}

impl FromStr for Row {
    type Err = String;

    fn from_str(line: &str) -> Result<Row, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [weights, split, boundary, k, v, prompt, steps, transform] = words[..] else {
            return Err(format!("{} words", words.len()));
        };
        let one_of = |word: &str, first: &str, second: &str| match word {
            word if word == first => Ok(true),
            word if word == second => Ok(false),
            other => Err(format!("{other} is neither {first} nor {second}")),
        };
        let split = Split::ALL.into_iter().find(|known| known.name() == split);
        Ok(Row {
            weights: weights.parse().map_err(|error| format!("{error}"))?,
            split: split.ok_or("no such split")?,
            boundary: boundary.parse().map_err(|error| format!("{error}"))?,
            k: k.parse().map_err(|error| format!("{error}"))?,
            v: v.parse().map_err(|error| format!("{error}"))?,
            batch: one_of(prompt, "batch", "tokens")?,
            graphs: one_of(steps, "graphs", "launches")?,
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

/// Every configuration that there is, those of one model on the same places behind one another.
pub(crate) fn product() -> Vec<Row> {
    let modes = [KvTransformMode::Auto, KvTransformMode::None];
    let mut rows = Vec::new();
    for (&weights, split) in DType::ALL.iter().flat_map(|weights| Split::ALL.map(|split| (weights, split))) {
        for (boundary, &k) in (0..=LAYERS).flat_map(|boundary| KvType::ALL.iter().map(move |k| (boundary, k)))
        {
            for (&v, transform) in KvType::ALL.iter().flat_map(|v| modes.map(|mode| (v, mode))) {
                for (batch, graphs) in [(true, true), (true, false), (false, true), (false, false)] {
                    rows.push(Row { weights, split, boundary, k, v, batch, graphs, transform });
                }
            }
        }
    }
    rows.retain(Row::is_valid);
    rows
}
