//! What each rank has of layers that are split: heads, feed-forward elements and vocabulary, by the shares of its group.

use std::num::NonZeroUsize;
use std::sync::Arc;

use granule_bank::Bank;
use granule_device::DeviceKind;
use granule_ops::Threads;
use granule_split::{RankShape, SplitShape, TransformerSplit};

use crate::config::Config;
use crate::error::Result;
use crate::placement::{Placement, Span, StageRank};
use crate::weights::{Layer, Tensor, Weights};

/// A rank's part of some layers, among those of all ranks.
#[derive(Clone, Debug)]
pub(crate) struct RankSplit {
    pub(crate) rank: usize,
    pub(crate) all: Arc<[RankShape]>,
    /// How many ranks of the group share this process's threads.
    sharing: usize,
}

impl RankSplit {
    pub(crate) fn own(&self) -> &RankShape {
        &self.all[self.rank]
    }

    /// Its share of these threads, in a pool of its own where several ranks have one.
    pub(crate) fn threads(&self, all: [&Threads; 2]) -> Result<[Threads; 2]> {
        if self.sharing < 2 {
            return Ok(all.map(Threads::clone));
        }
        let counts = self.thread_counts(all.map(Threads::count));
        let [one, many] = counts.map(|count| NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN));
        let pool = Threads::new(one.max(many))?;
        Ok([pool.limited(one), pool.limited(many)])
    }

    /// Its share of so many threads.
    pub(crate) fn thread_counts(&self, all: [usize; 2]) -> [usize; 2] {
        all.map(|count| if self.sharing < 2 { count } else { (count / self.sharing).max(1) })
    }

    /// The part as others are told of it.
    pub(crate) fn told(&self) -> StageRank {
        let RankShape { heads, kv_heads, ff, vocab } = self.own().clone();
        StageRank { rank: self.rank, ranks: self.all.len(), heads, kv_heads, ff, vocab }
    }
}

/// What of some layers their split depends on.
pub(crate) fn shape(config: &Config, layers: &[Layer]) -> SplitShape {
    let block = |of: fn(&Layer) -> &Tensor| {
        layers.iter().map(|layer| of(layer).dtype().block_len()).max().unwrap_or(1)
    };
    SplitShape {
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        n_ff: config.n_ff,
        n_vocab: config.n_vocab,
        heads_block: block(|layer| &layer.attn_output),
        ff_block: block(|layer| &layer.ffn_down),
    }
}

/// Of each part of a model that is here, what it is where its layers are split.
///
/// # Errors
/// [`Error::Split`](crate::Error::Split) that names the dimension which cannot be split so, and into how many parts it can.
pub(crate) fn splits(
    placement: &Placement,
    spans: &[(Bank, Span)],
    config: &Config,
    weights: &Weights,
) -> Result<Vec<Option<RankSplit>>> {
    let mut splits: Vec<Option<RankSplit>> = Vec::with_capacity(spans.len());
    for (at, (_, span)) in spans.iter().enumerate() {
        let Some(((rank, _), group)) = span.rank.zip(placement.group(span.stage)) else {
            splits.push(None);
            continue;
        };
        // Ranks of one stage follow one another.
        let before = at.checked_sub(1).filter(|&before| spans[before].1.stage == span.stage);
        if let Some(Some(before)) = before.map(|before| splits[before].clone()) {
            splits.push(Some(RankSplit { rank, ..before }));
            continue;
        }
        let shape = shape(config, &weights.layers[span.layers.clone()]);
        let all = TransformerSplit::new(&shape, &group.shares)?.ranks().into();
        let on_host = group.banks.iter().filter(|bank| bank.device().kind() == DeviceKind::Host);
        let sharing = if group.remote.is_some() { 1 } else { on_host.count() };
        splits.push(Some(RankSplit { rank, all, sharing }));
    }
    Ok(splits)
}
