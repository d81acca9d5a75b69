//! Sequences whose rows say which tokens they were made of: every byte depends on all tokens up to its own, on the layer and on
//! the plane. What was stored where is then seen from the bytes alone.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::ops::Range;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, HostOptions};
use granule_kv::{Error, KvCache, KvLayout, KvOptions, KvShape, KvType, Sequence};
use granule_ops::KvRowLayout;
use granule_quant::planar_bytes;

pub(crate) const GRANULE: usize = 4096;
pub(crate) const SHAPE: KvShape = KvShape { n_layers: 3, n_kv_heads: 2, head_dim: 32 };

pub(crate) fn bank(granules: u64) -> Bank {
    let granule = Bytes::from_usize(GRANULE);
    let options = HostOptions::new().granule(granule).capacity(granule.saturating_mul(granules));
    Bank::new(Device::host_with(options).unwrap(), BankOptions::new().cache(Bytes::ZERO)).unwrap()
}

pub(crate) fn layout(k: KvType, v: KvType, layers_per_row: usize) -> KvLayout {
    KvLayout::new(SHAPE, k, v, Some(layers_per_row), 0).unwrap()
}

/// One that keeps the first four rows once more.
pub(crate) fn layout_with_sinks(layers_per_row: usize) -> KvLayout {
    KvLayout::new(SHAPE, KvType::Q4_0, KvType::Q8_0, Some(layers_per_row), 4).unwrap()
}

pub(crate) fn cache(bank: &Bank, layers_per_row: usize) -> KvCache {
    cache_of(bank, layout(KvType::Q8_0, KvType::F16, layers_per_row))
}

/// Nothing ahead and nothing parked: what the bank holds is what is asked for.
pub(crate) fn cache_of(bank: &Bank, layout: KvLayout) -> KvCache {
    KvCache::new(bank, layout, KvOptions::new().ahead(0).parked(Bytes::ZERO)).unwrap()
}

fn mix(a: u64, b: u64) -> u64 {
    let z = (a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_add(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 30)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A number that names a list of tokens.
pub(crate) fn history(tokens: &[u32]) -> u64 {
    tokens.iter().fold(7, |so_far, &token| mix(so_far, u64::from(token) + 1))
}

fn bytes_of(history: u64, layer: usize, plane: usize) -> impl Iterator<Item = u8> {
    let seed = mix(history, (layer * 8 + plane) as u64);
    (0..).map(move |i| mix(seed, i) as u8)
}

pub(crate) fn planes(row: &KvRowLayout) -> [(usize, usize); 4] {
    let k = planar_bytes(row.k_type, row.elements()).unwrap();
    let v = planar_bytes(row.v_type, row.elements()).unwrap();
    [(row.k_quants, k.quants), (row.k_scales, k.scales), (row.v_quants, v.quants), (row.v_scales, v.scales)]
}

/// Where K and V of a sink lie.
fn sink_planes(layout: &KvRowLayout, row: usize) -> [Range<usize>; 2] {
    let (sinks, each) = (layout.sinks.unwrap(), layout.elements() * 2);
    [sinks.k, sinks.v].map(|at| at + row * each..at + (row + 1) * each)
}

/// Appends tokens behind those of `so_far`, and to them.
pub(crate) fn append(sequence: &mut Sequence, so_far: &mut Vec<u32>, tokens: &[u32]) -> Result<(), Error> {
    assert_eq!(sequence.len(), so_far.len());
    sequence.prepare(tokens.len())?;
    let all = [so_far.as_slice(), tokens].concat();
    for layer in 0..sequence.cache().layout().shape().n_layers {
        let mut view = sequence.rows_mut(layer)?;
        let (row_layout, first) = (*view.layout(), view.row());
        let mut rows = view.rows();
        let rows = rows.as_host_mut().unwrap().chunks_exact_mut(row_layout.row_stride);
        for (row, upto) in rows.zip(so_far.len() + 1..=all.len()) {
            for (plane, (at, len)) in planes(&row_layout).into_iter().enumerate() {
                let bytes = bytes_of(history(&all[..upto]), layer, plane);
                row[at..at + len].iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
            }
        }
        for (row, upto) in
            (first..row_layout.sinks.map_or(0, |sinks| sinks.rows)).zip(so_far.len() + 1..=all.len())
        {
            let mut sinks = view.sinks().unwrap();
            let sinks = sinks.as_host_mut().unwrap();
            for (plane, span) in [4, 5].into_iter().zip(sink_planes(&row_layout, row)) {
                let bytes = bytes_of(history(&all[..upto]), layer, plane);
                sinks[span].iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
            }
        }
    }
    sequence.commit(tokens.len())?;
    *so_far = all;
    Ok(())
}

/// A new sequence with these tokens.
pub(crate) fn sequence(cache: &KvCache, n_ctx: usize, tokens: &[u32]) -> Result<Sequence, Error> {
    let mut sequence = cache.sequence(n_ctx)?;
    append(&mut sequence, &mut Vec::new(), tokens)?;
    Ok(sequence)
}

/// Whether the sequence holds exactly these tokens, in every layer.
pub(crate) fn holds(sequence: &Sequence, tokens: &[u32]) -> bool {
    sequence.len() == tokens.len()
        && (0..sequence.cache().layout().shape().n_layers).all(|layer| {
            let view = sequence.view(layer, tokens.len()).unwrap();
            let stride = view.layout().row_stride;
            let rows = view
                .segments()
                .iter()
                .flat_map(|segment| segment.rows.as_host().unwrap().chunks_exact(stride).take(segment.len));
            rows.zip(1..=tokens.len()).all(|(row, upto)| {
                planes(view.layout()).into_iter().enumerate().all(|(plane, (at, len))| {
                    let bytes = bytes_of(history(&tokens[..upto]), layer, plane);
                    row[at..at + len].iter().copied().eq(bytes.take(len))
                })
            })
        })
}

/// What attention sees of a token in one layer.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen {
    /// The position that it stands at now.
    position: i64,
    planes: Vec<Vec<u8>>,
    sinks: Option<Vec<Vec<u8>>>,
}

/// All that attention sees of a sequence, wherever it lies.
pub(crate) fn seen(sequence: &Sequence) -> Vec<Seen> {
    let mut all = Vec::new();
    for layer in 0..sequence.cache().layout().shape().n_layers {
        let view = sequence.view(layer, sequence.len()).unwrap();
        let layout = *view.layout();
        let mut token = 0;
        for segment in view.segments() {
            for (index, row) in segment.rows.as_host().unwrap().chunks_exact(layout.row_stride).enumerate() {
                let row_number = segment.row + index;
                let sinks = (row_number < layout.sinks.map_or(0, |sinks| sinks.rows)).then(|| {
                    let bytes = view.sinks().unwrap().as_host().unwrap();
                    sink_planes(&layout, row_number).map(|span| bytes[span].to_vec()).to_vec()
                });
                let planes = planes(&layout).map(|(at, len)| row[at..at + len].to_vec()).to_vec();
                let mut before = 0;
                let stored = sequence.segments().iter().find_map(|own| {
                    before += own.len;
                    (token < before).then(|| own.stored + own.len - (before - token))
                });
                let position = stored.unwrap() as i64 + i64::from(segment.turn);
                all.push(Seen { position, planes, sinks });
                token += 1;
            }
        }
    }
    all
}
