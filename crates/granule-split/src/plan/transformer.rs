//! A transformer over ranks: which heads, which feed-forward elements, which rows of the output layer each of them has.
//!
//! A layer is split by output rows and then by input columns, so that its ranks meet twice: every rank has some key-value heads with
//! the query heads that read them, and multiplies what they attended to with those columns of the attention's output; and it has some
//! elements between the two products of the feed-forward part. What is then missing is a sum over ranks.

use std::cmp::Ordering;
use std::ops::Range;

use granule_quant::DType;

use super::{MAX_RANKS, Shares, Split, TensorSplit, divide};
use crate::{Error, Result};

/// What widths are cut at where that can be: products of packed weights and of bf16 take 32 columns and 16 rows at a time. Without it
/// they would still be right.
const WIDTH: usize = 32;

/// The numbers of a transformer that a split depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitShape {
    /// Query heads of a layer.
    pub n_heads: usize,
    /// Key-value heads of a layer; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Hidden elements of the feed-forward part.
    pub n_ff: usize,
    /// Rows of the output layer.
    pub n_vocab: usize,
    /// Elements of a block of the weights that are multiplied with what the heads attended to, so have `n_heads` x `head_dim` columns: the
    /// largest of all layers' [`DType::block_len`].
    pub heads_block: usize,
    /// The same of the weights with `n_ff` columns.
    pub ff_block: usize,
}

/// What one rank has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankShape {
    /// Its query heads.
    pub heads: Range<usize>,
    /// Its key-value heads: those that its query heads read. Where there are more ranks than heads, several ranks have the same one.
    pub kv_heads: Range<usize>,
    /// Its feed-forward elements.
    pub ff: Range<usize>,
    /// Its rows of the output layer.
    pub vocab: Range<usize>,
}

/// What a tensor is in a layer, which tells how it is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Makes queries: `n_heads` x `head_dim` rows, split by query heads.
    Query,
    /// Makes keys or values: `n_kv_heads` x `head_dim` rows, split by key-value heads.
    KeyValue,
    /// Takes what was attended to: `n_heads` x `head_dim` columns, split by query heads.
    AttentionOutput,
    /// Makes the feed-forward elements, gates among them: `n_ff` rows.
    FfnUp,
    /// Takes the feed-forward elements: `n_ff` columns.
    FfnDown,
    /// Makes logits: `n_vocab` rows.
    Output,
    /// Whole on every rank.
    Whole,
}

/// A transformer over ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransformerSplit {
    shape: SplitShape,
    ranks: Vec<RankShape>,
}

impl SplitShape {
    /// The numbers of ranks that the whole shape can be split over, ascending; never empty for a shape that a model can have.
    ///
    /// # Errors
    /// [`Error::Shape`] for a shape that no model has.
    pub fn legal_ranks(&self) -> Result<Vec<usize>> {
        self.check()?;
        let most = self.most_by_heads().min(self.n_ff / self.ff_block).min(self.n_vocab).min(MAX_RANKS);
        Ok((1..=most).collect())
    }

    fn check(&self) -> Result<()> {
        let Self { n_heads, n_kv_heads, head_dim, n_ff, n_vocab, heads_block, ff_block } = *self;
        let wrong = |what: String| Err(Error::Shape { what });
        if [n_heads, n_kv_heads, head_dim, n_ff, n_vocab, heads_block, ff_block].contains(&0) {
            return wrong(format!("a model with nothing in a dimension: {self:?}"));
        }
        if !n_heads.is_multiple_of(n_kv_heads) {
            return wrong(format!("{n_heads} query heads are no multiple of {n_kv_heads} key-value heads"));
        }
        match n_heads.checked_mul(head_dim) {
            Some(width) if width.is_multiple_of(heads_block) => {}
            _ => return wrong(format!("{n_heads} heads of {head_dim} are no whole blocks of {heads_block}")),
        }
        if !n_ff.is_multiple_of(ff_block) {
            return wrong(format!("{n_ff} feed-forward elements are no whole blocks of {ff_block}"));
        }
        Ok(())
    }

    /// Query heads of one key-value head.
    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Key-value heads that stay together for the sake of the blocks behind them. It divides the number of them, since all query heads
    /// are a whole number of blocks.
    fn kv_unit(&self) -> usize {
        unit(self.heads_block, self.group() * self.head_dim)
    }

    /// Query heads that stay together for that; divides a group where `kv_unit` is 1.
    fn head_unit(&self) -> usize {
        unit(self.heads_block, self.head_dim)
    }

    /// Ranks that the heads go round for.
    fn most_by_heads(&self) -> usize {
        match self.kv_unit() {
            1 => self.n_kv_heads.saturating_mul(self.group() / self.head_unit()),
            unit => self.n_kv_heads / unit,
        }
    }

    /// Query heads and key-value heads of each rank.
    fn heads(&self, shares: &Shares) -> Result<Vec<(Range<usize>, Range<usize>)>> {
        let (group, unit, ranks) = (self.group(), self.kv_unit(), shares.ranks());
        let most = self.most_by_heads();
        if ranks > most {
            let legal = (1..=most.min(MAX_RANKS)).collect();
            return Err(if unit == 1 && group > 1 {
                let (dimension, unit) = ("query heads", self.head_unit());
                Error::Indivisible { dimension, size: self.n_heads, unit, ranks, legal }
            } else {
                let dimension = "key-value heads";
                Error::Indivisible { dimension, size: self.n_kv_heads, unit, ranks, legal }
            });
        }
        if ranks <= self.n_kv_heads {
            let kv_heads = divide("key-value heads", self.n_kv_heads, unit, shares)?;
            return Ok(kv_heads.into_iter().map(|kv| (kv.start * group..kv.end * group, kv)).collect());
        }
        self.replicated(shares)
    }

    /// As [`SplitShape::heads`], where there are more ranks than key-value heads: each head has some consecutive ranks, which divide its
    /// query heads. Of all ways to do so, one in which the rank with most to do for its share has least; of those the one that gives
    /// more ranks to the first heads.
    fn replicated(&self, shares: &Shares) -> Result<Vec<(Range<usize>, Range<usize>)>> {
        let (group, unit, ranks) = (self.group(), self.head_unit(), shares.ranks());
        let most = group / unit;
        let of =
            |ranks: Range<usize>| divide("query heads of a key-value head", group, unit, &shares.some(ranks));
        // best[first] = what is best for the heads from this one on, if rank `first` is its first: the load, and how many ranks
        // it has. From the last head to the first.
        let mut best: Vec<Vec<Option<(Load, usize)>>> = vec![vec![None; ranks + 1]; self.n_kv_heads];
        for head in (0..self.n_kv_heads).rev() {
            for first in head..ranks {
                for n in (1..=most.min(ranks - first)).rev() {
                    let rest = match best.get(head + 1) {
                        None if first + n == ranks => Load::NONE,
                        None => continue,
                        Some(next) => match next[first + n] {
                            Some((load, _)) => load,
                            None => continue,
                        },
                    };
                    let own = of(first..first + n)?.into_iter().zip(&shares.weights()[first..]);
                    let load =
                        own.map(|(heads, &weight)| Load::new(heads.len(), weight)).fold(rest, Load::max);
                    if best[head][first].is_none_or(|(least, _)| load.cmp(least) == Ordering::Less) {
                        best[head][first] = Some((load, n));
                    }
                }
            }
        }
        let mut first = 0;
        let mut all = Vec::with_capacity(ranks);
        for (head, best) in best.iter().enumerate() {
            // There is a way, since there are no more ranks than the heads go round for.
            let n = best[first].map_or(0, |(_, n)| n);
            let own = of(first..first + n)?.into_iter();
            all.extend(
                own.map(|heads| (head * group + heads.start..head * group + heads.end, head..head + 1)),
            );
            first += n;
        }
        Ok(all)
    }

    /// What a width of `n` elements in such blocks is cut at.
    fn width(&self, n: usize, block: usize, shares: &Shares) -> usize {
        let wide = block.max(WIDTH);
        if wide.is_multiple_of(block) && n / wide >= shares.ranks() { wide } else { block }
    }
}

impl TransformerSplit {
    /// A transformer of this shape over as many ranks as there are shares.
    ///
    /// Up to as many ranks as key-value heads have whole groups of them; of more, several have the same key-value head, and its query
    /// heads divided among them. Widths are cut at multiples of 32 where there are enough of those, else at blocks; the output layer's
    /// rows at multiples of 32, else anywhere.
    ///
    /// # Errors
    /// [`Error::Indivisible`], naming the first dimension that has not enough for so many; [`Error::Shape`] for a shape that no model has.
    pub fn new(shape: &SplitShape, shares: &Shares) -> Result<TransformerSplit> {
        shape.check()?;
        let heads = shape.heads(shares)?;
        let ff = divide(
            "feed-forward elements",
            shape.n_ff,
            shape.width(shape.n_ff, shape.ff_block, shares),
            shares,
        )?;
        let vocab = divide("the vocabulary", shape.n_vocab, shape.width(shape.n_vocab, 1, shares), shares)?;
        let ranks = heads.into_iter().zip(ff).zip(vocab);
        let ranks = ranks.map(|(((heads, kv_heads), ff), vocab)| RankShape { heads, kv_heads, ff, vocab });
        Ok(TransformerSplit { shape: *shape, ranks: ranks.collect() })
    }

    /// What each rank has.
    #[must_use]
    pub fn ranks(&self) -> &[RankShape] {
        &self.ranks
    }

    /// The whole's shape.
    #[must_use]
    pub fn shape(&self) -> &SplitShape {
        &self.shape
    }

    /// How a tensor of `rows` x `cols` that is this in a layer is split.
    ///
    /// # Errors
    /// [`Error::Shape`] where its rows or columns are not those of the shape, or its blocks are larger than the shape's were.
    pub fn tensor(&self, role: Role, dtype: DType, rows: usize, cols: usize) -> Result<TensorSplit> {
        let dim = self.shape.head_dim;
        let parts = |of: fn(&RankShape) -> &Range<usize>, each: usize| {
            self.ranks.iter().map(of).map(|part| part.start * each..part.end * each).collect()
        };
        let (split, parts) = match role {
            Role::Query => (Split::Column, parts(|rank| &rank.heads, dim)),
            Role::KeyValue => (Split::Column, parts(|rank| &rank.kv_heads, dim)),
            Role::AttentionOutput => (Split::Row, parts(|rank| &rank.heads, dim)),
            Role::FfnUp => (Split::Column, parts(|rank| &rank.ff, 1)),
            Role::FfnDown => (Split::Row, parts(|rank| &rank.ff, 1)),
            Role::Output => (Split::Column, parts(|rank| &rank.vocab, 1)),
            Role::Whole => return TensorSplit::replicated(dtype, rows, cols, self.ranks.len()),
        };
        TensorSplit::new(dtype, rows, cols, split, parts)
    }
}

/// How many heads a rank has for its weight.
#[derive(Clone, Copy, Debug)]
struct Load {
    heads: u128,
    weight: u128,
}

impl Load {
    const NONE: Load = Load { heads: 0, weight: 1 };

    fn new(heads: usize, weight: u64) -> Load {
        Load { heads: heads as u128, weight: u128::from(weight) }
    }

    fn cmp(self, other: Load) -> Ordering {
        (self.heads * other.weight).cmp(&(other.heads * self.weight))
    }

    fn max(self, other: Load) -> Load {
        if self.cmp(other) == Ordering::Less { other } else { self }
    }
}

/// How many pieces of `each` elements stay together, so that they are a whole number of blocks.
fn unit(block: usize, each: usize) -> usize {
    block / gcd(block, each)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
