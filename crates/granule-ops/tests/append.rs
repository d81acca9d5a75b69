//! Appending to a KV cache against its naive twin: rotation in a line, the transform's own functions, the scalar codec, one
//! head and one token at a time.

#![allow(clippy::unwrap_used, reason = "a test may")]
use std::num::NonZeroUsize;

use granule_device::DeviceSliceMut;
use granule_ops::kv_append::{self, AppendShape};
use granule_ops::{Error, KvRowLayout, KvSinks, KvTransform, KvViewMut, Rope, Threads};
use granule_quant::{DType, planar_bytes, planar_from_ggml, scalar};
use proptest::prelude::*;

mod support;
use support::{numbers, transform};

const KV: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0];

fn threads(n: usize) -> Threads {
    Threads::new(NonZeroUsize::new(n).unwrap()).unwrap()
}

/// A layer that starts at byte 32 of its rows, `sinks` of them kept behind byte 16 of the range.
fn layout(k_type: DType, v_type: DType, n_kv_heads: usize, head_dim: usize, sinks: usize) -> KvRowLayout {
    let elements = n_kv_heads * head_dim;
    let (k, v) = (planar_bytes(k_type, elements).unwrap(), planar_bytes(v_type, elements).unwrap());
    let k_scales = 32 + k.quants.next_multiple_of(16);
    let v_quants = k_scales + k.scales.next_multiple_of(16);
    let v_scales = v_quants + v.quants.next_multiple_of(16);
    let bytes = sinks * elements * 2;
    KvRowLayout {
        k_type,
        v_type,
        n_kv_heads,
        head_dim,
        row_stride: v_scales + v.scales.next_multiple_of(16) + 48,
        rows_at: if sinks > 0 { 16 + 2 * bytes + 16 } else { 0 },
        k_quants: 32,
        k_scales,
        v_quants,
        v_scales,
        sinks: (sinks > 0).then_some(KvSinks { rows: sinks, k: 16, v: 16 + bytes }),
    }
}

/// What lies in a row, a sink and nowhere else after one token was appended.
fn store_naively(layout: &KvRowLayout, transform: Option<&KvTransform>, token: &Token<'_>, range: &mut [u8]) {
    let head_dim = layout.head_dim;
    for keys in [true, false] {
        let mut x = if keys { token.k.to_vec() } else { token.v.to_vec() };
        for (head, x) in x.chunks_exact_mut(head_dim).enumerate() {
            if keys {
                for (pair, turn) in x.chunks_exact_mut(2).zip(token.angles.chunks_exact(2)) {
                    let (a, b) = (pair[0], pair[1]);
                    pair[0] = a * turn[0] - b * turn[1];
                    pair[1] = a * turn[1] + b * turn[0];
                }
            }
            match transform {
                Some(transform) if keys => transform.keys(head, x),
                Some(transform) => transform.values(head, x),
                None => {}
            }
        }
        let (dtype, quants, scales, sink) = if keys {
            (layout.k_type, layout.k_quants, layout.k_scales, layout.sinks.map(|s| s.k))
        } else {
            (layout.v_type, layout.v_quants, layout.v_scales, layout.sinks.map(|s| s.v))
        };
        let mut ggml = vec![0; dtype.row_bytes(x.len()).unwrap()];
        scalar::encode(dtype, &x, &mut ggml).unwrap();
        let len = planar_bytes(dtype, x.len()).unwrap();
        let (mut q, mut d) = (vec![0; len.quants], vec![0; len.scales]);
        planar_from_ggml(dtype, &ggml, &mut q, &mut d).unwrap();
        let row = layout.rows_at + token.row * layout.row_stride;
        range[row + quants..][..q.len()].copy_from_slice(&q);
        range[row + scales..][..d.len()].copy_from_slice(&d);
        if let (Some(at), true) = (sink, layout.sinks.is_some_and(|s| token.row < s.rows)) {
            let at = at + token.row * x.len() * 2;
            scalar::encode(DType::F16, &x, &mut range[at..at + x.len() * 2]).unwrap();
        }
    }
}

struct Token<'a> {
    row: usize,
    k: &'a [f32],
    v: &'a [f32],
    angles: &'a [f32],
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Every byte of the range, for appends that begin among the sinks, behind them, and end in either.
    #[test]
    fn an_append_is_rotate_transform_encode_token_by_token(
        k_type in prop::sample::select(&KV[..]), v_type in prop::sample::select(&KV[..]),
        n_kv_heads in 1usize..4, blocks in 1usize..5, odd in 0usize..8, unrotated in 0usize..8,
        with_transform: bool, sinks in prop::sample::select(vec![0usize, 1, 4]),
        first in 0usize..7, tokens in 0usize..30, spare in 0usize..3, n_threads in 1usize..4, seed: u64,
    ) {
        let blocky = k_type.is_quantized() || v_type.is_quantized() || with_transform;
        let head_dim = if blocky { blocks * 32 } else { blocks * 32 - 2 * odd };
        let layout = layout(k_type, v_type, n_kv_heads, head_dim, sinks);
        let width = n_kv_heads * head_dim;
        let transform = with_transform.then(|| transform(n_kv_heads, head_dim, seed));
        let dims = head_dim - 2 * unrotated;
        let mut angles = vec![0.0; tokens * dims];
        Rope::new(dims, 10_000.0, 1.0, None).unwrap().angles(first + 100, tokens, &mut angles).unwrap();
        let (mut k, mut v) = (numbers(seed, tokens * width), numbers(!seed, tokens * width));

        let mut want = vec![0xaau8; layout.rows_at + (first + tokens + spare) * layout.row_stride];
        let mut got = want.clone();
        for i in 0..tokens {
            let (row, at) = (first + i, i * width..(i + 1) * width);
            let token = Token { row, k: &k[at.clone()], v: &v[at], angles: &angles[i * dims..(i + 1) * dims] };
            store_naively(&layout, transform.as_ref(), &token, &mut want);
        }
        let (area, rows) = got.split_at_mut(layout.rows_at);
        let area = (sinks > 0).then(|| DeviceSliceMut::from(area));
        let rows = DeviceSliceMut::from(&mut rows[first * layout.row_stride..]);
        let mut view = KvViewMut::new(layout, area, rows, first, tokens + spare).unwrap();
        let shape = AppendShape { rope_dims: dims, angles: &angles, transform: transform.as_ref() };
        kv_append::cpu(&threads(n_threads), &shape, &mut view, &mut k, &mut v).unwrap();
        prop_assert!(got == want);
    }
}

#[test]
fn what_cannot_be_stored_is_refused() {
    let pool = threads(2);
    let plain = AppendShape { rope_dims: 0, angles: &[], transform: None };
    let layout = layout(DType::Q4_0, DType::Q8_0, 1, 32, 4);
    let mut bytes = vec![0u8; layout.rows_at + 8 * layout.row_stride];
    let mut append = |shape: &AppendShape<'_>, k: &mut [f32], v: &mut [f32]| {
        let (area, rows) = bytes.split_at_mut(layout.rows_at);
        let mut view = KvViewMut::new(layout, Some(area.into()), DeviceSliceMut::from(rows), 0, 8).unwrap();
        kv_append::cpu(&pool, shape, &mut view, k, v)
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (in_keys, token) in [(true, 0), (true, 7), (false, 3), (false, 6)] {
            let (mut k, mut v) = ([0.5f32; 256], [0.5f32; 256]);
            if in_keys {
                k[token * 32 + 9] = bad
            } else {
                v[token * 32 + 9] = bad
            }
            let refused = append(&plain, &mut k, &mut v);
            assert!(
                matches!(refused, Err(Error::Quant(granule_quant::Error::NotFinite { .. }))),
                "{refused:?}"
            );
            let transform = transform(1, 32, 5);
            let shape = AppendShape { transform: Some(&transform), ..plain };
            let refused = append(&shape, &mut k, &mut v);
            assert!(
                matches!(refused, Err(Error::Quant(granule_quant::Error::NotFinite { .. }))),
                "{refused:?}"
            );
        }
    }
    // 4-bit blocks reach further than f16: in a sink that counts.
    let overflow = append(&plain, &mut [1e5; 32], &mut [0.0; 32]);
    assert!(matches!(overflow, Err(Error::Quant(granule_quant::Error::Overflow { .. }))), "{overflow:?}");
    assert!(matches!(append(&plain, &mut [0.0; 288], &mut [0.0; 288]), Err(Error::Shape { .. })));
    assert!(matches!(append(&plain, &mut [0.0; 32], &mut [0.0; 64]), Err(Error::Shape { .. })));
    assert!(matches!(append(&plain, &mut [0.0; 31], &mut [0.0; 31]), Err(Error::Shape { .. })));
    let turned = AppendShape { rope_dims: 16, angles: &[0.0; 16], transform: None };
    assert!(matches!(append(&turned, &mut [0.0; 64], &mut [0.0; 64]), Err(Error::Shape { .. })));
    let turned = AppendShape { rope_dims: 34, angles: &[0.0; 34], transform: None };
    assert!(matches!(append(&turned, &mut [0.0; 32], &mut [0.0; 32]), Err(Error::Dimension { .. })));
    let other = transform(2, 32, 1);
    let shape = AppendShape { transform: Some(&other), ..plain };
    assert!(matches!(append(&shape, &mut [0.0; 32], &mut [0.0; 32]), Err(Error::Shape { .. })));
}
