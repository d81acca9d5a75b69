//! Tokens in ggml's layout, in and out.

use granule_device::Bytes;
use granule_kv::{Error, KvCache, KvLayout, KvShape, KvType};

use crate::support::{Open, bank, exact};

const SHAPE: KvShape = KvShape { n_layers: 3, n_kv_heads: 3, head_dim: 64 };

/// The bytes of one token of a type in ggml's own rows.
fn row_bytes(kv_type: KvType) -> usize {
    let elements = SHAPE.n_kv_heads * SHAPE.head_dim;
    match kv_type {
        KvType::F32 => elements * 4,
        KvType::Q8_0 => elements / 32 * 34,
        KvType::Q4_0 => elements / 32 * 18,
        _ => elements * 2,
    }
}

fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 + seed * 17 + index / 251) as u8).collect()
}

pub(crate) fn ggml_rows_go_both_ways(open: Open<'_>) {
    let bank = bank(open, 60, 0);
    for &k in KvType::ALL {
        for (v, layers_per_row) in [(KvType::F16, 1), (KvType::Q4_0, 2), (KvType::Q8_0, 3)] {
            let layout = KvLayout::new(SHAPE, k, v, Some(layers_per_row), 0).unwrap();
            let cache = KvCache::new(&bank, layout, exact()).unwrap();
            let mut sequence = cache.sequence(40).unwrap();
            let (kb, vb) = (row_bytes(k), row_bytes(v));
            sequence.prepare(12).unwrap();
            for layer in 0..3 {
                sequence.import(layer, &bytes(layer, 12 * kb), &bytes(layer + 9, 12 * vb)).unwrap();
            }
            sequence.commit(12).unwrap();
            sequence.remove(4..6).unwrap();
            for layer in 0..3 {
                let (keys, values) = sequence.export(layer, 2..10).unwrap();
                let expected = |all: Vec<u8>, each: usize| {
                    [&all[2 * each..4 * each], &all[6 * each..12 * each]].concat()
                };
                assert!(keys == expected(bytes(layer, 12 * kb), kb), "{k}, layer {layer}");
                assert!(values == expected(bytes(layer + 9, 12 * vb), vb), "{v}, layer {layer}");
            }
            assert!(matches!(sequence.export(0, 5..11), Err(Error::NoSuchTokens { .. })));
            assert!(matches!(sequence.export(3, 0..1), Err(Error::NoSuchLayer { .. })));
            sequence.prepare(2).unwrap();
            let short = sequence.import(0, &bytes(0, 2 * kb), &bytes(0, 2 * vb - 1));
            assert!(matches!(short, Err(Error::Length { what: "values", .. })), "{short:?}");
            let long = sequence.import(0, &bytes(0, 3 * kb), &bytes(0, 3 * vb));
            assert!(matches!(long, Err(Error::NotPrepared { requested: 3, prepared: 2 })), "{long:?}");
        }
    }
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

pub(crate) fn a_transform_has_no_plain_form(open: Open<'_>) {
    let bank = bank(open, 60, 0);
    let layout = KvLayout::new(SHAPE, KvType::Q4_0, KvType::Q4_0, None, 4).unwrap();
    let mut sequence = KvCache::new(&bank, layout, exact()).unwrap().sequence(10).unwrap();
    sequence.prepare(1).unwrap();
    assert!(matches!(sequence.export(0, 0..0), Err(Error::Transformed)));
    assert!(matches!(sequence.import(0, &[], &[]), Err(Error::Transformed)));
}
