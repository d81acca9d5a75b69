//! The bytes of a case's caches, on the host, and what they stand for.

use granule_device::DeviceSlice;
use granule_ops::{KvRowLayout, KvSegment, KvView};
use granule_quant::{DType, decode, decode_planar, encode, encode_planar, planar_bytes};

use crate::case::{Case, Rows};

/// What no kernel has written.
pub(crate) const UNTOUCHED: u8 = 0xa5;

/// One sequence's range of addresses.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cache {
    pub(crate) layout: KvRowLayout,
    pub(crate) bytes: Vec<u8>,
}

/// Rows that a range has, to hold these segments.
fn rows_of(segments: &[Rows]) -> usize {
    segments.iter().map(|&(row, len, _)| row + len).max().unwrap_or(0)
}

impl Cache {
    pub(crate) fn untouched(case: &Case, segments: &[Rows]) -> Cache {
        let layout = case.layout();
        Cache { layout, bytes: vec![UNTOUCHED; layout.rows_at + rows_of(segments) * layout.row_stride] }
    }

    /// Random keys and values in every row of the segments, and in the sinks those that f16 makes of them.
    pub(crate) fn filled(case: &Case, segments: &[Rows], salt: u64) -> Cache {
        let mut cache = Cache::untouched(case, segments);
        let elements = cache.layout.elements();
        for &(first, len, _) in segments {
            for row in first..first + len {
                let x = case.numbers(2 * elements, salt + row as u64);
                cache.put(row, &x[..elements], &x[elements..]);
            }
        }
        cache
    }

    /// Stores a row as the host does.
    pub(crate) fn put(&mut self, row: usize, k: &[f32], v: &[f32]) {
        let layout = self.layout;
        let start = layout.rows_at + row * layout.row_stride;
        for (dtype, quants, scales, x) in [
            (layout.k_type, layout.k_quants, layout.k_scales, k),
            (layout.v_type, layout.v_quants, layout.v_scales, v),
        ] {
            let bytes = planar_bytes(dtype, x.len()).unwrap();
            let (before, after) = self.bytes[start..].split_at_mut(scales);
            encode_planar(dtype, x, &mut before[quants..quants + bytes.quants], &mut after[..bytes.scales])
                .unwrap();
        }
        if let Some(sinks) = layout.sinks.filter(|sinks| row < sinks.rows) {
            let bytes = layout.elements() * 2;
            for (at, x) in [(sinks.k, k), (sinks.v, v)] {
                let at = at + row * bytes;
                encode(DType::F16, x, &mut self.bytes[at..at + bytes]).unwrap();
            }
        }
    }

    /// Keys and values of a row as attention has to read them.
    pub(crate) fn get(&self, row: usize) -> [Vec<f32>; 2] {
        let layout = self.layout;
        let elements = layout.elements();
        if let Some(sinks) = layout.sinks.filter(|sinks| row < sinks.rows) {
            return [sinks.k, sinks.v].map(|at| {
                let mut x = vec![0.0; elements];
                let at = at + row * elements * 2;
                decode(DType::F16, &self.bytes[at..at + elements * 2], &mut x).unwrap();
                x
            });
        }
        let start = layout.rows_at + row * layout.row_stride;
        [(layout.k_type, layout.k_quants, layout.k_scales), (layout.v_type, layout.v_quants, layout.v_scales)]
            .map(|(dtype, quants, scales)| {
                let bytes = planar_bytes(dtype, elements).unwrap();
                let mut x = vec![0.0; elements];
                let row = &self.bytes[start..];
                let (quants, scales) =
                    (&row[quants..quants + bytes.quants], &row[scales..scales + bytes.scales]);
                decode_planar(dtype, quants, scales, &mut x).unwrap();
                x
            })
    }

    /// A view of `memory`, which holds these bytes, here or elsewhere.
    pub(crate) fn view<'a>(&self, memory: DeviceSlice<'a>, segments: &[Rows]) -> KvView<'a> {
        let layout = self.layout;
        let runs = segments.iter().map(|&(row, len, turn)| {
            let start = layout.rows_at + row * layout.row_stride;
            KvSegment {
                rows: memory.subslice(start..start + len * layout.row_stride).unwrap(),
                row,
                len,
                turn,
            }
        });
        let sinks = layout.sinks.map(|_| memory.subslice(..layout.rows_at).unwrap());
        KvView::new(layout, sinks, runs.collect()).unwrap()
    }
}
