//! What makes four bits enough: keys and values are turned into a form that quantizes well before they are stored, and
//! attention folds the turning out exactly.
//!
//! Each head's channels are shifted and scaled, each by numbers of its own, and then rotated into one another, so that what
//! a block of 32 shares one scale for are numbers of one size and no outliers. With `H` the orthonormal Hadamard matrix:
//!
//! | stored | instead of | folded out |
//! | --- | --- | --- |
//! | `k' = H ((k - c) * a)` | the rotated key `k` | `q.k = H(q / a).k' + q.c`; where all keys of a softmax meet the same `q`, `q.c` is the same for all and drops out |
//! | `v' = H ((v - c) * a)` | the value `v` | `sum w v = H(sum w v') / a + c`, as the weights of a softmax sum to 1 |
//!
//! `c` and `a` are tables of the model ([`KvTransforms`], one [`KvTransform`] a layer, one [`KvFold`] for its keys and one for
//! its values), made once and the same for every sequence. A head of `d` channels is rotated in parts as wide as the largest power of two
//! that divides `d`.

mod fold;
mod hadamard;

pub use fold::KvFold;

use crate::Error;
use crate::error::expect_len;

/// The transform of one layer: of its keys, its values, or both.
#[derive(Clone, Debug, PartialEq)]
pub struct KvTransform {
    n_kv_heads: usize,
    head_dim: usize,
    keys: Option<KvFold>,
    values: Option<KvFold>,
}

impl KvTransform {
    /// A transform of keys, values, or both; `None` leaves them as they are.
    ///
    /// # Errors
    /// [`Error::Shape`] if the two are not of one shape, which is also that of a layer without either.
    pub fn new(
        n_kv_heads: usize,
        head_dim: usize,
        keys: Option<KvFold>,
        values: Option<KvFold>,
    ) -> Result<Self, Error> {
        for fold in keys.iter().chain(&values) {
            expect_len("heads of a transform", fold.n_kv_heads(), n_kv_heads)?;
            expect_len("elements of a transform's head", fold.head_dim(), head_dim)?;
        }
        Ok(Self { n_kv_heads, head_dim, keys, values })
    }

    /// Key-value heads of the layer.
    #[must_use]
    pub fn n_kv_heads(&self) -> usize {
        self.n_kv_heads
    }

    /// Elements of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// The tables for rotated keys.
    #[must_use]
    pub fn key_fold(&self) -> Option<&KvFold> {
        self.keys.as_ref()
    }

    /// The tables for values.
    #[must_use]
    pub fn value_fold(&self) -> Option<&KvFold> {
        self.values.as_ref()
    }

    /// A rotated key (head_dim elements of KV head `head`) into what is stored.
    #[inline]
    pub fn keys(&self, head: usize, key: &mut [f32]) {
        if let Some(fold) = &self.keys {
            fold.store(head, key);
        }
    }

    /// A value (head_dim elements) into what is stored.
    #[inline]
    pub fn values(&self, head: usize, value: &mut [f32]) {
        if let Some(fold) = &self.values {
            fold.store(head, value);
        }
    }

    /// A rotated query (head_dim elements, of a query head that reads KV head `head`) into the form in which it meets stored
    /// keys; answers `q.c`, which is to be added to the scores where they meet scores of another turn of the query.
    #[inline]
    pub fn query(&self, head: usize, query: &mut [f32]) -> f32 {
        self.keys.as_ref().map_or(0.0, |fold| fold.meet(head, query))
    }

    /// Attention's mean of stored values (head_dim elements; weights that sum to 1) into that of the values themselves.
    #[inline]
    pub fn output(&self, head: usize, out: &mut [f32]) {
        if let Some(fold) = &self.values {
            fold.restore(head, out);
        }
    }
}

/// The transforms of all layers of a model. They change the bytes that are stored: rows stored with some mean nothing to others.
#[derive(Clone, Debug, PartialEq)]
pub struct KvTransforms {
    layers: Vec<KvTransform>,
}

impl KvTransforms {
    /// The transforms of a model's layers, in order.
    #[must_use]
    pub fn new(layers: Vec<KvTransform>) -> Self {
        Self { layers }
    }

    /// A layer's transform.
    #[must_use]
    pub fn layer(&self, layer: usize) -> Option<&KvTransform> {
        self.layers.get(layer)
    }

    /// Bytes of all tables.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let folds = self.layers.iter().flat_map(|layer| layer.keys.iter().chain(&layer.values));
        folds.map(KvFold::bytes).sum()
    }
}
