//! The layout: where each layer's keys and values lie in a token's row. Pure arithmetic.

use granule_device::Bytes;
use granule_ops::{KvRowLayout, KvSinks};
use granule_quant::planar_bytes;

use crate::grid::Grid;
use crate::{Error, KvType};

/// What a cache has to hold of each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Layers.
    pub n_layers: usize,
    /// KV heads of a layer.
    pub n_kv_heads: usize,
    /// Elements of one head, of keys and of values alike.
    pub head_dim: usize,
}

/// Every plane starts at a multiple of this many bytes, so that kernels can load 16 at a time.
const PLANE_ALIGN: usize = 16;

/// Rows of this many bytes and more are kept apart as [`spread`] says.
const SPREAD_FROM: usize = 4096;
/// A cache line.
const LINE: usize = 64;

/// An element of a sink: f16.
const SINK_BYTES: usize = 2;

/// Where everything lies. A *row* is one token in one *group* of layers; a group is one range of addresses.
///
/// ```text
/// one group in its range      rows_at: row 0               row 1
/// | sinks                     | layer 0          | layer 1 | … | layer 0          | layer 1 | …
/// 0                           |<------------- row_stride ----->|
///
/// one layer of a row          K quants | K scales | V quants | V scales      each from a multiple of 16 B
/// bytes, f16, 8 heads of 64       1024 |        0 |     1024 |        0      2048 in all
///        q8_0                      512 |       32 |      512 |       32      1088
///        q4_0                      256 |       32 |      256 |       32       576
///
/// sinks, each layer in turn   K of rows 0, 1, … | V of rows 0, 1, …          f16, each from a multiple of 16 B
/// bytes, 4 rows                            4096 |              4096          8192 a layer
/// ```
///
/// A row whose bytes, from 4 KiB on, are a multiple of 512 ends with 64 bytes that hold nothing: those of Llama 3.2 1B, 16 layers
/// of 576 (q4_0), are 9,280 bytes apart and not 9,216. A cache finds a line's place by its address: at a multiple of 4 KiB the
/// same part of all rows has one set of a first-level cache, eight lines, at a multiple of 512 bytes eight sets at most; and what
/// attention reads is gone before it is read again.
///
/// A plane holds the heads one after another without padding: K quants are `n_kv_heads x head_dim` elements, K scales one f16
/// for each 32 of them, and none for f32, f16 and bf16. The *sinks* are there where a transform is (see
/// [`KvTransform`](granule_ops::KvTransform)): the first few rows are kept in f16 besides, because attention to the first
/// tokens of a text is so strong that their keys and values must not lose what 4 bits lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    shape: KvShape,
    k: KvType,
    v: KvType,
    layers_per_row: usize,
    sinks: usize,
    /// The first layer of a row; the others lie `layer_bytes` further each. Its `row_stride` is that of a full group.
    first: KvRowLayout,
    layer_bytes: usize,
    /// One layer's sinks, of K and as much again of V.
    sink_plane: usize,
}

impl KvLayout {
    /// The layout for a shape, with the types of keys and values, how many layers share a row, by default all, and how many
    /// rows are kept in f16 besides: 0 where there is no transform.
    ///
    /// All layers in one row makes a token's growth one range's growth, wastes at most one part-filled granule for each
    /// sequence instead of one for each layer, and lets a fork share all but the last few tokens. One layer per row makes
    /// attention read memory densely. Both give the same numbers.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::LayersPerRow`]; [`Error::HeadDim`] where a type's blocks do not fit the heads: a multiple of
    /// 32 for q8_0 and q4_0, an even number for the others.
    pub fn new(
        shape: KvShape,
        k: KvType,
        v: KvType,
        layers_per_row: Option<usize>,
        sinks: usize,
    ) -> Result<KvLayout, Error> {
        let KvShape { n_layers, n_kv_heads, head_dim } = shape;
        let impossible = || Error::Shape { n_layers, n_kv_heads, head_dim };
        if n_layers == 0 || n_kv_heads == 0 || head_dim == 0 {
            return Err(impossible());
        }
        let layers_per_row = layers_per_row.unwrap_or(n_layers);
        if layers_per_row == 0 || layers_per_row > n_layers {
            return Err(Error::LayersPerRow { layers_per_row, n_layers });
        }
        for kv_type in [k, v] {
            // Positions turn pairs of elements, so a head is pairs.
            let multiple = kv_type.dtype().block_len().max(2);
            if !head_dim.is_multiple_of(multiple) {
                return Err(Error::HeadDim { kv_type, head_dim, multiple });
            }
        }
        let elements = n_kv_heads.checked_mul(head_dim).ok_or_else(impossible)?;
        let plane = |start: usize, len: usize| start.checked_add(len)?.checked_next_multiple_of(PLANE_ALIGN);
        let ends = |kv_type: KvType, start: usize| {
            let bytes = planar_bytes(kv_type.dtype(), elements).ok()?;
            let scales = plane(start, bytes.quants)?;
            Some((scales, plane(scales, bytes.scales)?))
        };
        let (k_scales, v_quants) = ends(k, 0).ok_or_else(impossible)?;
        let (v_scales, layer_bytes) = ends(v, v_quants).ok_or_else(impossible)?;
        let sink_plane = sinks
            .checked_mul(elements)
            .and_then(|elements| plane(0, elements.checked_mul(SINK_BYTES)?))
            .ok_or_else(impossible)?;
        // No part of a group may be beyond what one slice can hold.
        let all_sinks = sink_plane.checked_mul(2).and_then(|plane| plane.checked_mul(n_layers));
        let whole =
            layer_bytes.checked_mul(n_layers).zip(all_sinks).and_then(|(row, at)| row.checked_add(at));
        let whole = whole.and_then(|bytes| bytes.checked_add(LINE.checked_mul(n_layers)?));
        whole.filter(|&bytes| isize::try_from(bytes).is_ok()).ok_or_else(impossible)?;
        let first = KvRowLayout {
            k_type: k.dtype(),
            v_type: v.dtype(),
            n_kv_heads,
            head_dim,
            row_stride: spread(layer_bytes * layers_per_row),
            rows_at: 2 * sink_plane * layers_per_row,
            k_quants: 0,
            k_scales,
            v_quants,
            v_scales,
            sinks: (sinks > 0).then_some(KvSinks { rows: sinks, k: 0, v: sink_plane }),
        };
        Ok(KvLayout { shape, k, v, layers_per_row, sinks, first, layer_bytes, sink_plane })
    }

    /// What the cache holds of each token.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// The type of the keys.
    pub fn k_type(&self) -> KvType {
        self.k
    }

    /// The type of the values.
    pub fn v_type(&self) -> KvType {
        self.v
    }

    /// How many layers share a row.
    pub fn layers_per_row(&self) -> usize {
        self.layers_per_row
    }

    /// How many rows are kept in f16 besides; 0 where there is no transform.
    pub fn sinks(&self) -> usize {
        self.sinks
    }

    /// How many ranges a sequence has: layers over layers per row, rounded up.
    pub fn groups(&self) -> usize {
        self.shape.n_layers.div_ceil(self.layers_per_row)
    }

    /// From one row of a group to the next; the last group may have fewer layers than the others.
    pub fn row_stride(&self, group: usize) -> Bytes {
        Bytes::from_usize(self.stride(group))
    }

    /// What lies before a group's row 0: its sinks.
    pub fn rows_at(&self, group: usize) -> Bytes {
        Bytes::from_usize(self.grid_start(group))
    }

    /// One token in all layers: the sum of the row strides.
    pub fn token_bytes(&self) -> Bytes {
        Bytes::from_usize((0..self.groups()).map(|group| self.stride(group)).sum())
    }

    /// What a sequence of `tokens` holds with granules of this size, nothing of it shared: each group in whole granules.
    /// `None` beyond what can be counted.
    pub fn held_bytes(&self, tokens: usize, granule: Bytes) -> Option<Bytes> {
        (0..self.groups()).try_fold(Bytes::ZERO, |sum, group| {
            if tokens == 0 {
                return Some(sum);
            }
            let rows = self.row_stride(group).checked_mul(tokens as u64)?.checked_add(self.rows_at(group))?;
            sum.checked_add(rows.checked_next_multiple_of(granule)?)
        })
    }

    /// Addresses that a sequence for up to `n_ctx` tokens sets aside, with granules of this size: twice as many rows, so that what is
    /// behind a window that slides can be given back before its addresses are used again, each group in whole granules. `None`
    /// beyond what can be counted.
    pub fn reserved_bytes(&self, n_ctx: usize, granule: Bytes) -> Option<Bytes> {
        (0..self.groups()).try_fold(Bytes::ZERO, |sum, group| {
            sum.checked_add(self.range_bytes(group, self.rows_for(n_ctx)).checked_next_multiple_of(granule)?)
        })
    }

    /// How many rows a context of this size has addresses for.
    pub(crate) fn rows_for(&self, n_ctx: usize) -> usize {
        self.sinks.saturating_add(n_ctx.saturating_mul(2)).max(1)
    }

    /// Addresses of a group with so many rows.
    pub(crate) fn range_bytes(&self, group: usize, rows: usize) -> Bytes {
        self.row_stride(group).saturating_mul(rows as u64).saturating_add(self.rows_at(group))
    }

    /// Where a layer is: which group, and where its planes are in that group's rows.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`].
    pub fn layer(&self, layer: usize) -> Result<(usize, KvRowLayout), Error> {
        let n_layers = self.shape.n_layers;
        if layer >= n_layers {
            return Err(Error::NoSuchLayer { layer, n_layers });
        }
        let (group, index) = (layer / self.layers_per_row, layer % self.layers_per_row);
        let (at, sinks_at) = (index * self.layer_bytes, index * 2 * self.sink_plane);
        let first = self.first;
        let moved = |sinks: KvSinks| KvSinks { k: sinks_at + sinks.k, v: sinks_at + sinks.v, ..sinks };
        let row = KvRowLayout {
            row_stride: self.stride(group),
            rows_at: self.grid_start(group),
            sinks: first.sinks.map(moved),
            k_quants: at + first.k_quants,
            k_scales: at + first.k_scales,
            v_quants: at + first.v_quants,
            v_scales: at + first.v_scales,
            ..first
        };
        Ok((group, row))
    }

    pub(crate) fn stride(&self, group: usize) -> usize {
        spread(self.layer_bytes * self.layers_in(group))
    }

    /// Where a group's rows lie in granules of this size.
    pub(crate) fn grid(&self, group: usize, granule: usize) -> Grid {
        Grid { rows_at: self.grid_start(group), stride: self.stride(group), granule, sinks: self.sinks }
    }

    fn grid_start(&self, group: usize) -> usize {
        2 * self.sink_plane * self.layers_in(group)
    }

    fn layers_in(&self, group: usize) -> usize {
        let before = group * self.layers_per_row;
        self.shape.n_layers.saturating_sub(before).min(self.layers_per_row)
    }
}

/// From one row of this many bytes to the next.
fn spread(bytes: usize) -> usize {
    if bytes >= SPREAD_FROM && bytes.is_multiple_of(8 * LINE) { bytes + LINE } else { bytes }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_of(kv_type: KvType, elements: usize) -> (usize, usize) {
        match kv_type {
            KvType::F32 => (elements * 4, 0),
            KvType::F16 | KvType::BF16 => (elements * 2, 0),
            KvType::Q8_0 => (elements, elements / 32 * 2),
            KvType::Q4_0 => (elements / 2, elements / 32 * 2),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]
        /// Against the picture drawn byte by byte: no two planes share a byte, each is whole and aligned, and a group's rows
        /// hold its layers and only the padding besides.
        #[test]
        fn planes_are_whole_aligned_and_apart(
            n_layers in 1..6usize,
            n_kv_heads in 1..5usize,
            blocks in 1..4usize,
            odd in 0..16usize,
            k in proptest::sample::select(KvType::ALL),
            v in proptest::sample::select(KvType::ALL),
            layers_per_row in 1..6usize,
            sinks in 0..6usize,
        ) {
            let quantized = [k, v].iter().any(|t| matches!(t, KvType::Q8_0 | KvType::Q4_0));
            let head_dim = if quantized { blocks * 32 } else { blocks * 32 - 2 * odd };
            let shape = KvShape { n_layers, n_kv_heads, head_dim };
            let layout = KvLayout::new(shape, k, v, Some(layers_per_row), sinks);
            prop_assert_eq!(layout.is_err(), layers_per_row > n_layers);
            let Ok(layout) = layout else { return Ok(()) };
            let mut rows: Vec<Vec<Option<usize>>> =
                (0..layout.groups()).map(|group| vec![None; layout.row_stride(group).get() as usize]).collect();
            let mut sink_bytes: Vec<Vec<Option<usize>>> =
                (0..layout.groups()).map(|group| vec![None; layout.rows_at(group).get() as usize]).collect();
            let mut used = vec![0; layout.groups()];
            for layer in 0..n_layers {
                let (group, row) = layout.layer(layer).unwrap();
                prop_assert_eq!(group, layer / layers_per_row);
                prop_assert_eq!(row.row_stride, rows[group].len());
                prop_assert_eq!(row.rows_at, sink_bytes[group].len());
                prop_assert_eq!(row.rows_at % 16, 0);
                prop_assert_eq!(row.sinks.map_or(0, |sinks| sinks.rows), sinks);
                for (index, start) in row.sinks.into_iter().flat_map(|sinks| [sinks.k, sinks.v]).enumerate() {
                    prop_assert_eq!(start % 16, 0);
                    for byte in &mut sink_bytes[group][start..start + sinks * n_kv_heads * head_dim * 2] {
                        prop_assert_eq!(byte.replace(layer * 2 + index), None);
                    }
                }
                let ((kq, ks), (vq, vs)) = (bytes_of(k, n_kv_heads * head_dim), bytes_of(v, n_kv_heads * head_dim));
                let planes = [(row.k_quants, kq), (row.k_scales, ks), (row.v_quants, vq), (row.v_scales, vs)];
                for (index, (start, len)) in planes.into_iter().enumerate() {
                    prop_assert_eq!(start % 16, 0);
                    used[group] += len.next_multiple_of(16);
                    for byte in &mut rows[group][start..start + len] {
                        prop_assert_eq!(byte.replace(layer * 4 + index), None);
                    }
                }
            }
            for (row, used) in rows.iter().zip(used) {
                let apart = if used >= 4096 && used % 512 == 0 { 64 } else { 0 };
                prop_assert_eq!(row.len(), used + apart);
            }
            prop_assert_eq!(layout.token_bytes().get() as usize, rows.iter().map(Vec::len).sum::<usize>());
            let beyond = layout.layer(n_layers);
            prop_assert!(matches!(beyond, Err(Error::NoSuchLayer { layer: _, n_layers: _ })), "no such layer");
        }
    }

    /// The numbers in the drawings.
    #[test]
    fn the_rulers_say_what_is_so() {
        let shape = KvShape { n_layers: 2, n_kv_heads: 8, head_dim: 64 };
        let planes = |kv_type| {
            let layout = KvLayout::new(shape, kv_type, kv_type, None, 4).unwrap();
            let [(_, row), (_, second)] = [0, 1].map(|layer| layout.layer(layer).unwrap());
            let layer = second.k_quants;
            [
                row.k_scales,
                row.v_quants - row.k_scales,
                row.v_scales - row.v_quants,
                layer - row.v_scales,
                layer,
            ]
        };
        assert_eq!(planes(KvType::F16), [1024, 0, 1024, 0, 2048]);
        assert_eq!(planes(KvType::Q8_0), [512, 32, 512, 32, 1088]);
        assert_eq!(planes(KvType::Q4_0), [256, 32, 256, 32, 576]);
        let layout = KvLayout::new(shape, KvType::Q4_0, KvType::Q4_0, None, 4).unwrap();
        let sinks = layout.layer(1).unwrap().1.sinks.unwrap();
        assert_eq!((sinks.k, sinks.v, layout.rows_at(0).get()), (8192, 8192 + 4096, 2 * 8192));
    }

    #[test]
    fn an_8b_model_by_hand() {
        let shape = KvShape { n_layers: 32, n_kv_heads: 8, head_dim: 128 };
        let bytes = |k, v| KvLayout::new(shape, k, v, None, 0).unwrap().token_bytes().get();
        assert_eq!(bytes(KvType::F16, KvType::F16), 32 * 2 * 1024 * 2 + 64);
        assert_eq!(bytes(KvType::Q8_0, KvType::Q8_0), 32 * 2 * (1024 + 64) + 64);
        assert_eq!(bytes(KvType::Q4_0, KvType::F32), 32 * (512 + 64 + 4096) + 64);
        let layout = KvLayout::new(shape, KvType::F16, KvType::F16, Some(5), 0).unwrap();
        assert_eq!(layout.groups(), 7);
        assert_eq!(layout.row_stride(6), Bytes::from_usize(2 * 4096 + 64));
        let granule = Bytes::mib(2);
        assert_eq!(layout.held_bytes(1, granule), Some(Bytes::mib(14)));
        assert_eq!(layout.held_bytes(usize::MAX, granule), None);
        let strides = |layers_per_row| {
            let shape = KvShape { n_layers: 16, n_kv_heads: 8, head_dim: 64 };
            KvLayout::new(shape, KvType::Q4_0, KvType::Q4_0, Some(layers_per_row), 0)
                .unwrap()
                .row_stride(0)
                .get()
        };
        assert_eq!([1, 7, 8, 16].map(strides), [576, 7 * 576, 8 * 576 + 64, 16 * 576 + 64]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let shape = KvShape { n_layers: 2, n_kv_heads: 3, head_dim: 48 };
        let refused = KvLayout::new(shape, KvType::F16, KvType::Q4_0, None, 0);
        assert!(matches!(refused, Err(Error::HeadDim { kv_type: KvType::Q4_0, head_dim: 48, multiple: 32 })));
        KvLayout::new(shape, KvType::F16, KvType::BF16, None, 0).unwrap();
        let odd = KvLayout::new(KvShape { head_dim: 47, ..shape }, KvType::F32, KvType::F16, None, 0);
        assert!(matches!(odd, Err(Error::HeadDim { kv_type: KvType::F32, head_dim: 47, multiple: 2 })));
        let too_many = KvLayout::new(shape, KvType::F16, KvType::F16, None, usize::MAX / 200);
        assert!(matches!(too_many, Err(Error::Shape { .. })));
        assert!(matches!(
            KvLayout::new(shape, KvType::F16, KvType::F16, Some(0), 0),
            Err(Error::LayersPerRow { .. })
        ));
        assert!(matches!(
            KvLayout::new(shape, KvType::F16, KvType::F16, Some(3), 0),
            Err(Error::LayersPerRow { .. })
        ));
        for shape in [
            KvShape { n_layers: 0, ..shape },
            KvShape { n_kv_heads: 0, ..shape },
            KvShape { head_dim: 0, ..shape },
            KvShape { n_layers: usize::MAX, ..shape },
            KvShape { n_kv_heads: usize::MAX, ..shape },
            KvShape { n_layers: 1 << 40, n_kv_heads: 1 << 20, head_dim: 64 },
        ] {
            assert!(
                matches!(KvLayout::new(shape, KvType::F32, KvType::F32, None, 0), Err(Error::Shape { .. })),
                "{shape:?}"
            );
        }
    }
}
