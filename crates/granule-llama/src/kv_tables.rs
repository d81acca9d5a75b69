//! The tables of a model's transform, and the bytes that stand for them in state files.
//!
//! Rows that were stored with one set of tables mean nothing with another, and the last bits of what a model's tables are depend
//! on the machine that computed them. So the tables themselves say what rows were made with: they are compared in full, they go into
//! a state file, and are taken from it.
//!
//! ```text
//! kind u32 | layers u32 | KV heads u32 | head dim u32 | of keys u32 | of values u32 |        little endian; the last two 0 or 1
//! and of each layer, where it has them:   keys' constants | keys' scales | values' constants        f32, KV heads x head dim each
//! ```
//!
//! The kind is what is done with the tables: 1 is [`granule_ops::KvTransform`], with 1 for the scale of values.

use std::ops::Range;

use granule_bank::{Bank, Charge, Owner};
use granule_device::Bytes;
use granule_kv::KvShape;
use granule_ops::{KvFold, KvTransform, KvTransforms};

use crate::error::Result;

/// What is done with the tables. Another arithmetic is another kind.
const KIND: u32 = 1;
const HEADER: usize = 6;

/// A layer's tables of keys, kv heads x head dim each.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeyTables {
    pub(crate) constants: Vec<f32>,
    pub(crate) scales: Vec<f32>,
}

/// A layer's tables; all layers of a model have those of the same sides.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LayerTables {
    pub(crate) keys: Option<KeyTables>,
    /// Constants, kv heads x head dim.
    pub(crate) values: Option<Vec<f32>>,
}

/// A model's transforms, for as long as a context uses them.
#[derive(Debug)]
pub(crate) struct Tables {
    /// No others of the process have it.
    #[cfg(feature = "cuda")]
    id: u64,
    transforms: KvTransforms,
    bytes: Vec<u8>,
    charge: Charge,
}

impl PartialEq for Tables {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Tables {
    /// The tables of all layers, in order; `bank` pays for them.
    ///
    /// # Errors
    /// [`Error::Bank`](crate::Error::Bank), [`Error::Ops`](crate::Error::Ops) for numbers that are not finite, or scales without an
    /// inverse.
    pub(crate) fn new(bank: &Bank, shape: KvShape, layers: &[LayerTables]) -> Result<Self> {
        let transform = |layer: &LayerTables| -> Result<KvTransform> {
            let KvShape { n_kv_heads, head_dim, .. } = shape;
            let fold = |constants: &[f32], scales: Vec<f32>| {
                KvFold::new(n_kv_heads, head_dim, constants.to_vec(), scales)
            };
            let keys = layer.keys.as_ref().map(|keys| fold(&keys.constants, keys.scales.clone()));
            let values = layer.values.as_ref().map(|values| fold(values, vec![1.0; values.len()]));
            Ok(KvTransform::new(n_kv_heads, head_dim, keys.transpose()?, values.transpose()?)?)
        };
        let transforms = KvTransforms::new(layers.iter().map(transform).collect::<Result<_>>()?);
        let bytes = write(shape, layers);
        let held = Bytes::from_usize(transforms.bytes() + bytes.len());
        let charge = bank.charge(&Owner::new("kv transform"), held)?;
        Ok(Self {
            #[cfg(feature = "cuda")]
            id: next_id(),
            transforms,
            bytes,
            charge,
        })
    }

    /// Those of some of the heads; `shape` is that of all of them.
    ///
    /// # Errors
    /// As [`Tables::new`].
    pub(crate) fn part(&self, bank: &Bank, shape: KvShape, kv_heads: Range<usize>) -> Result<Self> {
        let at = kv_heads.start * shape.head_dim..kv_heads.end * shape.head_dim;
        let own = |table: &Vec<f32>| table[at.clone()].to_vec();
        let layer = |layer: LayerTables| LayerTables {
            keys: layer.keys.map(|KeyTables { constants, scales }| KeyTables {
                constants: own(&constants),
                scales: own(&scales),
            }),
            values: layer.values.map(|values| own(&values)),
        };
        // What was written is read.
        let layers = read(shape, &self.bytes).unwrap_or_default().into_iter().map(layer);
        let shape = KvShape { n_kv_heads: kv_heads.len(), ..shape };
        Self::new(bank, shape, &layers.collect::<Vec<_>>())
    }

    /// What copies of them are known by.
    #[cfg(feature = "cuda")]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn transforms(&self) -> &KvTransforms {
        &self.transforms
    }

    /// What stands for them in a state file: equal where they are.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Memory that they take.
    pub(crate) fn held(&self) -> Bytes {
        self.charge.size()
    }
}

/// Bytes of all tables of a shape as a device has them: constants, scales and inverses of keys, of values, or of both.
pub(crate) fn fold_bytes(shape: KvShape, keys: bool, values: bool) -> usize {
    let sides = usize::from(keys) + usize::from(values);
    shape.n_layers * sides * KvFold::bytes_of(shape.n_kv_heads, shape.head_dim)
}

/// What [`Tables::held`] will be, of tables of keys, of values, or of both.
pub(crate) fn held_bytes(shape: KvShape, keys: bool, values: bool) -> usize {
    let KvShape { n_layers, n_kv_heads, head_dim } = shape;
    let each = 2 * usize::from(keys) + usize::from(values);
    let written = size_of::<u32>() * (HEADER + n_layers * each * n_kv_heads * head_dim);
    fold_bytes(shape, keys, values) + written
}

#[cfg(feature = "cuda")]
fn next_id() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn write(shape: KvShape, layers: &[LayerTables]) -> Vec<u8> {
    let KvShape { n_layers, n_kv_heads, head_dim } = shape;
    let has = |side: fn(&LayerTables) -> bool| usize::from(layers.iter().any(side));
    let sides = [has(|layer| layer.keys.is_some()), has(|layer| layer.values.is_some())];
    let numbers = [KIND as usize, n_layers, n_kv_heads, head_dim, sides[0], sides[1]];
    // A model's shape is far below 2^32.
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|&number| (number as u32).to_le_bytes()).collect();
    for layer in layers {
        let keys = layer.keys.iter().flat_map(|keys| [&keys.constants, &keys.scales]);
        for table in keys.chain(&layer.values) {
            bytes.extend(table.iter().flat_map(|number| number.to_le_bytes()));
        }
    }
    bytes
}

/// The tables that these bytes stand for, of each layer; `None` where they are no tables of this shape.
pub(crate) fn read(shape: KvShape, bytes: &[u8]) -> Option<Vec<LayerTables>> {
    let (header, tables) = bytes.split_at_checked(HEADER * 4)?;
    let header: Vec<u32> = header.as_chunks().0.iter().map(|&four| u32::from_le_bytes(four)).collect();
    let KvShape { n_layers, n_kv_heads, head_dim } = shape;
    let &[kind, layers, heads, dim, keys @ 0..=1, values @ 0..=1] = header.as_slice() else { return None };
    let found = [layers, heads, dim].map(|number| number as usize);
    if kind != KIND || found != [n_layers, n_kv_heads, head_dim] {
        return None;
    }
    let width = n_kv_heads * head_dim;
    let each = 2 * keys as usize + values as usize;
    let (tables, rest) = tables.as_chunks();
    if !rest.is_empty() || tables.len() != n_layers * each * width {
        return None;
    }
    let mut tables = tables.chunks_exact(width.max(1));
    let mut table = || -> Option<Vec<f32>> {
        Some(tables.next()?.iter().map(|&four| f32::from_le_bytes(four)).collect())
    };
    let mut layer = || -> Option<LayerTables> {
        let keys = if keys == 1 { Some(KeyTables { constants: table()?, scales: table()? }) } else { None };
        Some(LayerTables { keys, values: if values == 1 { Some(table()?) } else { None } })
    };
    (0..n_layers).map(|_| layer()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: KvShape = KvShape { n_layers: 3, n_kv_heads: 2, head_dim: 4 };

    fn layers(keys: bool, values: bool) -> Vec<LayerTables> {
        let table = |at: usize| (0..8).map(|i| (at * 8 + i) as f32 * 0.37 - 3.0).collect::<Vec<f32>>();
        let layer = |layer| LayerTables {
            keys: keys.then(|| KeyTables { constants: table(layer), scales: table(layer + 3) }),
            values: values.then(|| table(layer + 6)),
        };
        (0..3).map(layer).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        for (keys, values) in [(true, true), (true, false), (false, true)] {
            let layers = layers(keys, values);
            let bytes = write(SHAPE, &layers);
            let tables = 2 * usize::from(keys) + usize::from(values);
            assert_eq!(bytes.len(), 4 * (6 + 3 * tables * 8));
            assert_eq!(held_bytes(SHAPE, keys, values) - fold_bytes(SHAPE, keys, values), bytes.len());
            assert_eq!(read(SHAPE, &bytes), Some(layers));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let bytes = write(SHAPE, &layers(true, true));
        for len in 0..bytes.len() {
            assert_eq!(read(SHAPE, &bytes[..len]), None, "{len}");
        }
        assert_eq!(read(SHAPE, &[&bytes[..], &[0; 4]].concat()), None);
        // Every number of the header counts.
        for at in (0..4 * HEADER).step_by(4) {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_eq!(read(SHAPE, &other), None, "{at}");
        }
        assert_eq!(read(KvShape { head_dim: 8, ..SHAPE }, &bytes), None);
    }
}
