//! What makes four bits enough: keys and values are turned into a form that quantizes well before they are stored, and
//! attention folds the turning out exactly.
//!
//! All of it works on one head at a time, is made once per model ([`KvTransforms`], one [`KvTransform`] a layer), and is
//! the same for every sequence:
//!
//! | stored | instead of | folded out |
//! | --- | --- | --- |
//! | `k' = H P (k - c)` | the rotated key `k` | `q.k = (H P q).k' + q.c`; where all keys of a softmax meet the same `q`, `q.c` is the same for all and drops out |
//! | `v' = H v` | the value `v` | `sum w v = H^-1 sum w v'` |
//!
//! `c` is a constant (the mean of keys over some text), `P` an order of the channels that puts those of like size into one
//! block of 32, `H` the orthonormal Hadamard matrix over each block.

mod hadamard;

use crate::Error;
use crate::error::expect_len;

/// The largest head dimension that can be transformed.
pub(crate) const MAX_HEAD_DIM: usize = 512;

/// Channels that are rotated into one another: a block of the quantized types.
const BLOCK: usize = granule_quant::BLOCK_LEN;

/// The transform of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct KvTransform {
    n_kv_heads: usize,
    head_dim: usize,
    /// n_kv_heads x head_dim.
    k_constant: Vec<f32>,
    /// n_kv_heads x head_dim: channel `d` of the stored key is channel `order[d]` of the key.
    k_order: Vec<u16>,
}

impl KvTransform {
    /// A transform from its tables, both n_kv_heads x head_dim: what is subtracted from the rotated keys, and which channel
    /// of the key stands at each place of the stored one.
    ///
    /// # Errors
    /// [`Error::Dimension`] for a head dimension that is no multiple of 32 or beyond 512, or an order that is no
    /// permutation of a head's channels; [`Error::Shape`] for tables of another length; [`Error::Quant`] for a constant that
    /// is not finite.
    pub fn new(
        n_kv_heads: usize,
        head_dim: usize,
        k_constant: Vec<f32>,
        k_order: Vec<u16>,
    ) -> Result<Self, Error> {
        if head_dim == 0 || !head_dim.is_multiple_of(BLOCK) || head_dim > MAX_HEAD_DIM {
            return Err(Error::Dimension {
                what: "the head dimension of a transform",
                must: "a multiple of 32, up to 512",
                got: head_dim,
            });
        }
        let elements = n_kv_heads * head_dim;
        expect_len("a transform's constants", k_constant.len(), elements)?;
        expect_len("a transform's order", k_order.len(), elements)?;
        if let Some(index) = k_constant.iter().position(|c| !c.is_finite()) {
            return Err(granule_quant::Error::NotFinite { index }.into());
        }
        for order in k_order.chunks_exact(head_dim) {
            let mut seen = [false; MAX_HEAD_DIM];
            for &channel in order {
                let channel = usize::from(channel);
                if channel >= head_dim || std::mem::replace(&mut seen[channel], true) {
                    return Err(Error::Dimension {
                        what: "a channel of a transform's order",
                        must: "below the head dimension, and once in a head",
                        got: channel,
                    });
                }
            }
        }
        Ok(Self { n_kv_heads, head_dim, k_constant, k_order })
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

    /// What is subtracted from the rotated keys, kv heads x head dim.
    #[must_use]
    pub fn k_constants(&self) -> &[f32] {
        &self.k_constant
    }

    /// Which channel of a key stands at each place of the stored one, kv heads x head dim.
    #[must_use]
    pub fn k_orders(&self) -> &[u16] {
        &self.k_order
    }

    /// A rotated key (head_dim elements of KV head `head`) into what is stored.
    #[inline]
    pub fn keys(&self, head: usize, key: &mut [f32]) {
        let at = head * self.head_dim..(head + 1) * self.head_dim;
        for (x, c) in key.iter_mut().zip(&self.k_constant[at]) {
            *x -= c;
        }
        self.turn(head, key);
    }

    /// A value (head_dim elements) into what is stored.
    #[inline]
    pub fn values(&self, _head: usize, value: &mut [f32]) {
        hadamard::blocks(value);
    }

    /// A rotated query (head_dim elements, of a query head that reads KV head `head`) into the form in which it meets stored
    /// keys; answers `q.c`, which is to be added to the scores where they meet scores of another turn of the query.
    #[inline]
    pub fn query(&self, head: usize, query: &mut [f32]) -> f32 {
        let at = head * self.head_dim..(head + 1) * self.head_dim;
        let constant = query.iter().zip(&self.k_constant[at]).map(|(q, c)| q * c).sum();
        self.turn(head, query);
        constant
    }

    /// Attention's weighted sum of stored values (head_dim elements) into that of the values themselves.
    #[inline]
    pub fn output(&self, _head: usize, out: &mut [f32]) {
        hadamard::blocks(out);
    }

    /// Puts channels into their order and rotates each block.
    fn turn(&self, head: usize, x: &mut [f32]) {
        let mut copy = [0f32; MAX_HEAD_DIM];
        let copy = &mut copy[..self.head_dim];
        copy.copy_from_slice(x);
        let at = head * self.head_dim..(head + 1) * self.head_dim;
        for (x, &channel) in x.iter_mut().zip(&self.k_order[at]) {
            *x = copy[usize::from(channel)];
        }
        hadamard::blocks(x);
    }
}

/// The transforms of all layers of a model: they change the bytes that are stored, and are known by their [`id`](Self::id).
#[derive(Clone, Debug, PartialEq)]
pub struct KvTransforms {
    layers: Vec<KvTransform>,
    id: u64,
}

impl KvTransforms {
    /// The transforms of a model's layers, in order.
    #[must_use]
    pub fn new(layers: Vec<KvTransform>) -> Self {
        let mut id = Fnv::new();
        for layer in &layers {
            id.add(&(layer.n_kv_heads as u64).to_le_bytes());
            id.add(&(layer.head_dim as u64).to_le_bytes());
            layer.k_constant.iter().for_each(|c| id.add(&c.to_le_bytes()));
            layer.k_order.iter().for_each(|d| id.add(&d.to_le_bytes()));
        }
        Self { layers, id: id.0 }
    }

    /// A layer's transform.
    #[must_use]
    pub fn layer(&self, layer: usize) -> Option<&KvTransform> {
        self.layers.get(layer)
    }

    /// A hash of the bytes of all tables: equal transforms have equal ids. Rows stored under one id mean nothing under another.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }
}

/// FNV-1a (Fowler, Noll and Vo): short, and the same on every machine.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
