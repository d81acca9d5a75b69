//! The transforms of a model's keys and values ([`granule_ops::KvTransform`]), made from what the model makes of a short text.
//!
//! They are made when the first context needs them, from the first [`TOKENS`] tokens of a text that is built in, in batches of one
//! size, so that they are the same for every context, sequence, fork and number of threads; they are kept with the model
//! from then on. What is computed in between is given back. Another processor may round differently, and its tables differ in
//! their last bits: so a state file carries its tables, and a context that loads it goes on with those ([`Tables`]).
//!
//! For each channel of each KV head, over the text's tokens but the sinks, keys and queries as if they stood at up to [`PLACES`]
//! positions each, their own and every [`TOKENS`] further on: slow channels turn by less than a round in the text, and what they have in
//! common there is wrong a thousand tokens later.
//!
//! | | constant | scale |
//! | --- | --- | --- |
//! | keys | mean of `k` | `(mean q^2 / variance of k)^(1/4)` |
//! | values | mean of `v` | the same for all |
//!
//! The scale is the one for which scores suffer least: a block's quantization error grows with the size of what is stored, `sum
//! a^2 var(k)`, and is met by queries of the size `sum q^2 / a^2`; the product of the two is least, by Cauchy and Schwarz, where
//! each channel has the same part in both.
//!
//! What the parts buy: the perplexity that 4 bits cost SmolLM2-135M-Instruct (7.83, 16 windows of 512 tokens), measured with one side
//! quantized and the other in f16, the tables from 512 tokens:
//!
//! | keys | cost | values | cost |
//! | --- | --- | --- | --- |
//! | constant, scale, rotation over 64 channels, 4 sinks in f16 | 1.3% | constant, rotation over 64, sinks | 0.2% |
//! | without sinks | 3.3% | a scale besides | 0.5% |
//! | without the rotation | 3.1% | constant, order by size, rotation over 32, sinks | 0.5% |
//! | constant, order by size, rotation over 32, sinks | 3.5% | rotation over 32, sinks | 0.9% |
//!
//! Plain blocks on both sides cost 30%.

use std::sync::{Arc, Mutex, PoisonError};

use granule_device::Bytes;
use granule_kv::{KvCache, KvLayout, KvOptions, KvShape, KvType, Sequence};
use granule_ops::rotate;

use crate::cancel::CancelToken;
use crate::config::Config;
use crate::context::RANK_TIMEOUT;
use crate::engine::{Batch, Engine, How, Observer, Part, patiently};
use crate::error::Result;
use crate::kv_tables::{KeyTables, LayerTables, Tables};
use crate::model::Model;

/// Prose, numbers, code, and a few words in other languages.
const TEXT: &str = include_str!("calibration.txt");
/// Tokens of the text that are looked at.
pub(crate) const TOKENS: usize = 256;
/// Positions that each key and query counts at, at most: enough for 2,048 tokens, and none that the model was not trained for.
const PLACES: usize = 8;
/// Computed in one go.
pub(crate) const BATCH: usize = 64;
/// Tokens at the start whose keys and values are kept in 16 bits beside a transform, and are not counted for it: they are unlike
/// all others, and are attended to more than any.
pub(crate) const SINKS: usize = 4;
/// What a channel's mean square counts as, at least, in parts of its head's: a text this short may leave it unused.
const LEAST: f64 = 1e-4;

/// Whether keys and values are transformed before they are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvTransformMode {
    /// Where the type gains from it: keys and values of 4 bits. The tables are made when a model's first such context is, which
    /// takes as long as a prompt of 256 tokens.
    #[default]
    Auto,
    /// Nothing is: the stored bytes are plain ggml blocks of the rotated keys and the values.
    None,
}

impl std::fmt::Display for KvTransformMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::None => "none",
        })
    }
}

/// What a model keeps: the tables of keys alone, of values alone, and of both, each once it was asked for.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<[Option<Arc<Tables>>; 3]>);

impl Kept {
    /// The tables for a cache of these types, made now if they are needed and were not made yet; then `progress` is told.
    ///
    /// # Errors
    /// [`Error::Kv`](crate::Error::Kv), [`Error::Pool`](crate::Error::Pool) and [`Error::Bank`](crate::Error::Bank) if
    /// there is no memory to make them, [`Error::Ops`](crate::Error::Ops) if the model's keys or values are not finite,
    /// [`Error::Cancelled`](crate::Error::Cancelled). Nothing is kept then.
    pub(crate) fn tables(
        &self,
        model: &Model,
        k: KvType,
        v: KvType,
        cancel: &CancelToken,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<Arc<Tables>>> {
        let (keys, values) = (gains(k), gains(v));
        let place = match (keys, values) {
            (false, false) => return Ok(None),
            (true, false) => 0,
            (false, true) => 1,
            (true, true) => 2,
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tables) = &kept[place] {
            return Ok(Some(Arc::clone(tables)));
        }
        // Anew where another context is captured meanwhile: what was summed up until then would be counted twice.
        let layers = patiently(|| make(model, keys, values, cancel, progress))?;
        let tables = Arc::new(Tables::new(model.tables_bank(), model.config().kv_shape(), &layers)?);
        kept[place] = Some(Arc::clone(&tables));
        Ok(Some(tables))
    }
}

/// Whether a type loses less with a transform than the transform costs.
pub(crate) fn gains(kv_type: KvType) -> bool {
    kv_type == KvType::Q4_0
}

/// Computes the text and makes each layer's tables from its keys, queries and values.
fn make(
    model: &Model,
    keys: bool,
    values: bool,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<LayerTables>> {
    let config = model.config();
    let mut tokens = model.tokenizer().encode(TEXT, Default::default())?;
    tokens.truncate(TOKENS.min(config.n_ctx_train));
    let options = KvOptions::new().ahead(0).parked(Bytes::ZERO);
    let (mut layouts, mut sequences) = (Vec::new(), Vec::new());
    for place in model.places() {
        let shape = KvShape { n_layers: place.span.len(), ..place.config.kv_shape() };
        let layout = KvLayout::new(shape, KvType::F32, KvType::F32, None, 0)?;
        sequences.push(KvCache::new(&place.bank, layout, options)?.sequence(tokens.len())?);
        layouts.push(layout);
    }
    let how = How { graphs: false, cublas: None, timeout: RANK_TIMEOUT };
    let mut engine = Engine::new(model, &layouts, how)?;
    let mut sums = vec![Sums::new(config); config.n_layers];
    let mut rest = &tokens[..];
    while !rest.is_empty() {
        progress(tokens.len() - rest.len(), tokens.len());
        let first = sequences.first().map_or(0, Sequence::len);
        let n = rest.len().min(BATCH);
        // Nothing was ever removed from them, so all of it has room.
        sequences.iter_mut().try_for_each(|sequence| sequence.prepare(n).map(|_| ()))?;
        let (batch, behind) = rest.split_at(n);
        rest = behind;
        let skip = SINKS.saturating_sub(first);
        let mut places = Places::new(model, first, batch.len())?;
        let mut observe = |layer: usize, q: &[f32], k: &[f32], v: &[f32]| -> Result<()> {
            let sums = &mut sums[layer];
            sums.add_values(config, skip, v);
            places.visit(q, k, &mut |q, k| sums.add_scores(config, skip, q, k))
        };
        let parts = [Part { sequence: 0, n: batch.len() }];
        let step = Batch {
            sequences: std::slice::from_mut(&mut sequences),
            parts: &parts,
            tokens: batch,
            tables: None,
        };
        engine.step(model, step, cancel, Some(&mut observe as Observer<'_>))?;
        sequences.iter_mut().try_for_each(|sequence| sequence.commit(n))?;
    }
    progress(tokens.len(), tokens.len());
    let layer = |sums: &Sums| LayerTables {
        keys: keys.then(|| sums.keys(config)),
        values: values.then(|| sums.values()),
    };
    Ok(sums.iter().map(layer).collect())
}

/// A batch's keys and queries at all the positions that they count at.
struct Places<'a> {
    config: &'a Config,
    /// For each place, cosines and sines of all tokens: for keys, which are not rotated yet, and for queries, which are rotated
    /// to the first one.
    turns: Vec<[Vec<f32>; 2]>,
    k: Vec<f32>,
    q: Vec<f32>,
}

impl<'a> Places<'a> {
    fn new(model: &'a Model, first: usize, tokens: usize) -> Result<Self> {
        let (config, rope) = (model.config(), model.rope());
        let turns = |place: usize| -> Result<[Vec<f32>; 2]> {
            let mut keys = vec![0.0; tokens * config.rope_dims];
            rope.angles(first + place * TOKENS, tokens, &mut keys)?;
            let mut further = vec![0.0; config.rope_dims];
            rope.angles(place * TOKENS, 1, &mut further)?;
            Ok([keys, further.repeat(tokens)])
        };
        let places = (config.n_ctx_train / TOKENS).clamp(1, PLACES);
        let turns = (0..places).map(turns).collect::<Result<_>>()?;
        Ok(Self { config, turns, k: Vec::new(), q: Vec::new() })
    }

    /// Shows queries and keys at each place.
    fn visit(&mut self, q: &[f32], k: &[f32], look: &mut dyn FnMut(&[f32], &[f32])) -> Result<()> {
        let Config { n_heads, n_kv_heads, head_dim, rope_dims, .. } = *self.config;
        for [for_keys, for_queries] in &self.turns {
            k.clone_into(&mut self.k);
            q.clone_into(&mut self.q);
            rotate(&mut self.k, n_kv_heads, head_dim, rope_dims, for_keys)?;
            rotate(&mut self.q, n_heads, head_dim, rope_dims, for_queries)?;
            look(&self.q, &self.k);
        }
        Ok(())
    }
}

/// Sums for each channel of a layer's KV heads.
#[derive(Clone)]
struct Sums {
    /// Values that were added.
    tokens: f64,
    v: Vec<f64>,
    /// Keys that were added, a token's once for each place.
    keys: f64,
    k: Vec<f64>,
    k_squares: Vec<f64>,
    /// Of all queries that read the head, divided by how many they are.
    q_squares: Vec<f64>,
}

impl Sums {
    fn new(config: &Config) -> Self {
        let zeros = || vec![0.0; config.kv_width()];
        Self { tokens: 0.0, v: zeros(), keys: 0.0, k: zeros(), k_squares: zeros(), q_squares: zeros() }
    }

    /// Adds a batch's values but those of its first `skip` tokens.
    fn add_values(&mut self, config: &Config, skip: usize, v: &[f32]) {
        for v in v.chunks_exact(config.kv_width()).skip(skip) {
            self.tokens += 1.0;
            self.v.iter_mut().zip(v).for_each(|(sum, &v)| *sum += f64::from(v));
        }
    }

    /// Adds a batch's queries and keys but those of its first `skip` tokens.
    fn add_scores(&mut self, config: &Config, skip: usize, q: &[f32], k: &[f32]) {
        let group = config.n_heads / config.n_kv_heads;
        let rows = q.chunks_exact(config.q_width()).zip(k.chunks_exact(config.kv_width()));
        for (q, k) in rows.skip(skip) {
            self.keys += 1.0;
            for ((sum, squares), &k) in self.k.iter_mut().zip(&mut self.k_squares).zip(k) {
                *sum += f64::from(k);
                *squares += f64::from(k) * f64::from(k);
            }
            for (head, q) in q.chunks_exact(config.head_dim).enumerate() {
                let sums = &mut self.q_squares[head / group * config.head_dim..];
                for (sum, &q) in sums.iter_mut().zip(q) {
                    *sum += f64::from(q) * f64::from(q) / group as f64;
                }
            }
        }
    }

    fn keys(&self, config: &Config) -> KeyTables {
        let n = self.keys.max(1.0);
        let (mut constants, mut scales) = (Vec::new(), Vec::new());
        for head in 0..config.n_kv_heads {
            let at = head * config.head_dim..(head + 1) * config.head_dim;
            let means: Vec<f64> = self.k[at.clone()].iter().map(|sum| sum / n).collect();
            let squares = self.k_squares[at.clone()].iter().map(|sum| sum / n);
            let variances = squares.zip(&means).map(|(square, mean)| square - mean * mean).collect();
            scales.extend(balance(variances, self.q_squares[at].iter().map(|sum| sum / n).collect()));
            constants.extend(means.iter().map(|&mean| mean as f32));
        }
        KeyTables { constants, scales }
    }

    /// The constants.
    fn values(&self) -> Vec<f32> {
        self.v.iter().map(|sum| (sum / self.tokens.max(1.0)) as f32).collect()
    }
}

/// The scale of each channel of a head from the mean squares of what is stored and of what it meets; what is stored keeps its
/// size as a whole.
fn balance(mut stored: Vec<f64>, mut met: Vec<f64>) -> Vec<f32> {
    for squares in [&mut stored, &mut met] {
        let mean = squares.iter().sum::<f64>() / squares.len() as f64;
        // Where nothing is known of any channel, all are alike.
        let least = if mean > 0.0 { mean * LEAST } else { 1.0 };
        squares.iter_mut().for_each(|square| *square = square.max(least));
    }
    let scales: Vec<f64> = stored.iter().zip(&met).map(|(k, q)| (q / k).powf(0.25)).collect();
    let after: f64 = stored.iter().zip(&scales).map(|(k, a)| k * a * a).sum();
    let norm = (stored.iter().sum::<f64>() / after).sqrt();
    scales.iter().map(|a| (a * norm) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No other scales make the product of what is stored and what it meets smaller.
    #[test]
    fn balanced_scales_are_the_best() {
        let (k, q) = (vec![4.0, 0.25, 1.0, 9.0], vec![1.0, 16.0, 0.5, 2.0]);
        let scales: Vec<f64> = balance(k.clone(), q.clone()).iter().map(|&a| f64::from(a)).collect();
        let cost = |scales: &[f64]| {
            let stored: f64 = k.iter().zip(scales).map(|(k, a)| k * a * a).sum();
            stored * q.iter().zip(scales).map(|(q, a)| q / (a * a)).sum::<f64>()
        };
        let best = cost(&scales);
        let bound: f64 = k.iter().zip(&q).map(|(k, q)| (k * q).sqrt()).sum();
        assert!((best - bound * bound).abs() < 1e-5 * best, "{best} for {}", bound * bound);
        for channel in 0..4 {
            for factor in [0.9, 1.1] {
                let mut other = scales.clone();
                other[channel] *= factor;
                assert!(cost(&other) > best);
            }
        }
        let size: f64 = k.iter().zip(&scales).map(|(k, a)| k * a * a).sum();
        assert!((size - k.iter().sum::<f64>()).abs() < 1e-5);
    }

    #[test]
    fn channels_that_are_never_used_get_scales_too() {
        for (k, q) in [
            (vec![0.0; 4], vec![0.0; 4]),
            (vec![0.0, 1.0], vec![1.0, 0.0]),
            (vec![-1e-18, 0.0], vec![1.0, 1.0]),
        ] {
            assert!(balance(k, q).iter().all(|a| a.is_normal() && (1e-3..1e3).contains(a)));
        }
    }
}
