//! Attention against its naive twin: a softmax in f64 over the decoded cache, one token and one head after the other.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::num::NonZeroUsize;

use granule_device::DeviceSlice;
use granule_ops::{
    AttentionItem, AttentionShape, Error, KvRowLayout, KvSegment, KvSinks, KvTransform, KvView, Rope,
    Threads, attention,
};
use granule_quant::{DType, decode_planar, encode, encode_planar, planar_bytes};
use half::f16;
use proptest::prelude::*;
use smallvec::SmallVec;
use support::{numbers, transform};

const KV: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0];

fn threads(n: usize) -> Threads {
    Threads::new(NonZeroUsize::new(n).unwrap()).unwrap()
}

/// Planes one after the other, each padded to 16 bytes, behind `lead` bytes of another layer.
fn layout(types: [DType; 2], n_kv_heads: usize, head_dim: usize, lead: usize, sinks: usize) -> KvRowLayout {
    let [k, v] = types.map(|dtype| planar_bytes(dtype, n_kv_heads * head_dim).unwrap());
    let k_scales = lead + k.quants.next_multiple_of(16);
    let v_quants = k_scales + k.scales.next_multiple_of(16);
    let v_scales = v_quants + v.quants.next_multiple_of(16);
    let row_stride = v_scales + v.scales.next_multiple_of(16) + 32;
    // Another layer's sinks are before this one's.
    let of_layer = sinks * n_kv_heads * head_dim * 2;
    let at = (sinks > 0).then_some(KvSinks { rows: sinks, k: of_layer, v: 2 * of_layer });
    KvRowLayout {
        k_type: types[0],
        v_type: types[1],
        n_kv_heads,
        head_dim,
        row_stride,
        rows_at: 3 * of_layer,
        k_quants: lead,
        k_scales,
        v_quants,
        v_scales,
        sinks: at,
    }
}

/// The range of one sequence, and what attention should read from it.
struct Memory {
    bytes: Vec<u8>,
    layout: KvRowLayout,
    /// Physical row, length, turn.
    segments: Vec<(usize, usize, i32)>,
    /// Tokens x kv heads x head dim, decoded: keys, values.
    stored: [Vec<f64>; 2],
}

impl Memory {
    /// Rows as an append would have left them, with numbers of their own in each segment.
    fn new(layout: KvRowLayout, segments: &[(usize, usize, i32)], seed: u64) -> Self {
        let rows = segments.iter().map(|(row, len, _)| row + len).max().unwrap();
        let mut bytes = vec![0xaau8; layout.rows_at + rows * layout.row_stride];
        let mut stored = [Vec::new(), Vec::new()];
        let width = layout.elements();
        for &(first, len, _) in segments {
            for row in first..first + len {
                let at = layout.rows_at + row * layout.row_stride;
                let planes = [
                    (layout.k_type, layout.k_quants, layout.k_scales, layout.sinks.map(|s| s.k)),
                    (layout.v_type, layout.v_quants, layout.v_scales, layout.sinks.map(|s| s.v)),
                ];
                for (which, (dtype, quants, scales, sink)) in planes.into_iter().enumerate() {
                    let x = numbers(seed ^ (2 * row + which) as u64, width);
                    let lengths = planar_bytes(dtype, width).unwrap();
                    let (mut q, mut d) = (vec![0; lengths.quants], vec![0; lengths.scales]);
                    encode_planar(dtype, &x, &mut q, &mut d).unwrap();
                    bytes[at + quants..][..q.len()].copy_from_slice(&q);
                    bytes[at + scales..][..d.len()].copy_from_slice(&d);
                    let mut decoded = vec![0f32; width];
                    if layout.sinks.is_some_and(|sinks| row < sinks.rows) {
                        let mut halves = vec![0; 2 * width];
                        encode(DType::F16, &x, &mut halves).unwrap();
                        bytes[sink.unwrap() + row * 2 * width..][..2 * width].copy_from_slice(&halves);
                        decoded = x.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
                    } else {
                        decode_planar(dtype, &q, &d, &mut decoded).unwrap();
                    }
                    stored[which].extend(decoded.into_iter().map(f64::from));
                }
            }
        }
        Self { bytes, layout, segments: segments.to_vec(), stored }
    }

    fn view(&self) -> KvView<'_> {
        let all = DeviceSlice::from(&self.bytes[..]);
        let stride = self.layout.row_stride;
        let segments: SmallVec<_> = self
            .segments
            .iter()
            .map(|&(row, len, turn)| {
                let start = self.layout.rows_at + row * stride;
                KvSegment { rows: all.subslice(start..start + len * stride).unwrap(), row, len, turn }
            })
            .collect();
        let sinks = self.layout.sinks.map(|_| all.subslice(..self.layout.rows_at).unwrap());
        KvView::new(self.layout, sinks, segments).unwrap()
    }

    fn len(&self) -> usize {
        self.segments.iter().map(|segment| segment.1).sum()
    }

    /// The turn of each token.
    fn turns(&self) -> Vec<i32> {
        self.segments.iter().flat_map(|&(_, len, turn)| vec![turn; len]).collect()
    }
}

const BASE: f32 = 10_000.0;

/// What attention is, and how far from it the fast way may be, for one token and head; `q` as it was handed in.
fn naive(
    memory: &Memory,
    shape: &AttentionShape<'_>,
    kv_head: usize,
    q: &[f32],
    seen: usize,
) -> (Vec<f64>, f64) {
    let (width, head_dim) = (memory.layout.elements(), memory.layout.head_dim);
    let dims = shape.rope.map_or(0, Rope::dims);
    let scale = f64::from(shape.scale);
    let row =
        |which: usize, token: usize| &memory.stored[which][token * width + kv_head * head_dim..][..head_dim];
    let (mut scores, mut off) = (Vec::new(), 0f64);
    for (token, turn) in memory.turns().into_iter().enumerate().take(seen) {
        let mut turned: Vec<f32> = q.to_vec();
        for i in 0..dims / 2 {
            let angle = -f64::from(turn) * f64::from(BASE).powf(-2.0 * i as f64 / dims as f64);
            let (a, b) = (f64::from(q[2 * i]), f64::from(q[2 * i + 1]));
            turned[2 * i] = (a * angle.cos() - b * angle.sin()) as f32;
            turned[2 * i + 1] = (a * angle.sin() + b * angle.cos()) as f32;
        }
        let constant = shape.transform.map_or(0.0, |t| t.query(kv_head, &mut turned));
        let key = row(0, token);
        let dot: f64 = turned.iter().zip(key).map(|(&q, k)| f64::from(q) * k).sum();
        scores.push((dot + f64::from(constant)) * scale);
        let largest = turned.iter().fold(0f64, |max, &x| max.max(f64::from(x).abs()));
        let size: f64 = turned.iter().zip(key).map(|(&q, k)| (f64::from(q) * k).abs()).sum();
        let size = size + f64::from(constant).abs();
        // f32, turning and transforming in f32; 15-bit queries where they meet quantized keys. Rounding is off by at most so
        // much in each element, all of one sign; random elements cancel to an eighth of that, and less.
        let terms = if memory.layout.k_type.is_quantized() {
            2f64.powi(-16) / 8.0 * largest * key.iter().map(|k| k.abs()).sum::<f64>()
        } else {
            0.0
        };
        off = off.max((terms + 1e-6 * size) * scale);
    }
    let top = scores.iter().copied().fold(f64::MIN, f64::max);
    let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
    let mut out = vec![0f64; head_dim];
    for (token, score) in scores.iter().enumerate() {
        let weight = (score - top).exp() / total;
        out.iter_mut().zip(row(1, token)).for_each(|(out, v)| *out += weight * v);
    }
    let largest = (0..seen).flat_map(|token| row(1, token)).fold(0f64, |max, v| max.max(v.abs()));
    // Weights off by a factor of at most exp(2 off), f32; and where values are quantized, weights rounded to 15 bits, of which
    // a tile of 64 is off by at most half a step each: random ones by an eighth of that.
    let rounded = if memory.layout.v_type.is_quantized() { 64.0 * 1.02 * 2f64.powi(-16) / 8.0 } else { 0.0 };
    let mut bound = largest * (2.5 * off + rounded + 2e-6);
    if let Some(transform) = shape.transform {
        let mut result: Vec<f32> = out.iter().map(|&x| x as f32).collect();
        transform.output(kv_head, &mut result);
        // It is linear but for its constant: what a change in one place can become in another.
        let mut shift = vec![0f32; head_dim];
        transform.output(kv_head, &mut shift);
        let gain: f64 = (0..head_dim)
            .map(|d| {
                let mut unit = vec![0f32; head_dim];
                unit[d] = 1.0;
                transform.output(kv_head, &mut unit);
                unit.iter().zip(&shift).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
            })
            .sum();
        bound = bound * gain + 1e-5;
        out = result.into_iter().map(f64::from).collect();
    }
    (out, bound)
}

/// Runs the call with several numbers of threads and holds each against the naive twin.
fn check(shape: &AttentionShape<'_>, items: &[(&Memory, usize)], seed: u64) {
    let layout = items[0].0.layout;
    let (head_dim, group) = (layout.head_dim, shape.n_heads / layout.n_kv_heads);
    let tokens: usize = items.iter().map(|item| item.1).sum();
    let q = numbers(seed, tokens * shape.n_heads * head_dim);
    let calls: Vec<_> =
        items.iter().map(|&(memory, n_tokens)| AttentionItem { cache: memory.view(), n_tokens }).collect();
    let mut expected = Vec::new();
    let mut at = 0;
    for &(memory, n_tokens) in items {
        for token in 0..n_tokens {
            for head in 0..shape.n_heads {
                let q = &q[((at + token) * shape.n_heads + head) * head_dim..][..head_dim];
                expected.push(naive(memory, shape, head / group, q, memory.len() - n_tokens + token + 1));
            }
        }
        at += n_tokens;
    }
    let mut first = Vec::new();
    for n_threads in [1, 2, 5] {
        let pool = threads(n_threads);
        let run = || {
            let mut out = vec![f32::NAN; q.len()];
            let mut scratch = vec![f32::NAN; attention::scratch_len(&pool, &layout, shape.n_heads, tokens)];
            attention::cpu(&pool, shape, &q, &calls, &mut out, &mut scratch).unwrap();
            out
        };
        let out = run();
        for (row, (got, (exact, bound))) in out.chunks(head_dim).zip(&expected).enumerate() {
            for (d, (&got, exact)) in got.iter().zip(exact).enumerate() {
                let off = (f64::from(got) - exact).abs();
                assert!(
                    off <= *bound,
                    "{} and {}, {n_threads} threads: row {row} element {d}: {got} for {exact}, allowed {bound:e}",
                    layout.k_type,
                    layout.v_type
                );
            }
        }
        assert_eq!(run(), out, "the same call, the same bits");
        if first.is_empty() {
            first = out;
        } else {
            assert_eq!(out, first, "{n_threads} threads");
        }
    }
}

/// A shape without turns or transforms.
fn plain(n_heads: usize, head_dim: usize) -> AttentionShape<'static> {
    AttentionShape { n_heads, scale: 2.0 / (head_dim as f32).sqrt(), transform: None, rope: None }
}

#[test]
fn every_pair_of_types_and_every_head() {
    for k in KV {
        for v in KV {
            let blocks = k.is_quantized() || v.is_quantized();
            let odd: &[usize] = if blocks { &[] } else { &[80, 22] };
            for head_dim in [&[32, 64, 96, 128], odd].concat() {
                for group in [1, 3, 4, 8] {
                    let seed = (head_dim * group) as u64;
                    let memory = Memory::new(layout([k, v], 2, head_dim, 48, 0), &[(3, 131, 0)], seed);
                    check(&plain(2 * group, head_dim), &[(&memory, 1)], seed);
                    check(&plain(2 * group, head_dim), &[(&memory, 9)], !seed);
                }
            }
        }
    }
}

#[test]
fn lengths_around_every_boundary() {
    // Tiles are 64 rows, stretches at least 256 and whole tiles.
    let lengths =
        [1, 2, 3, 4, 5, 63, 64, 65, 127, 128, 129, 511, 512, 513, 575, 576, 577, 1023, 1024, 1025, 1300];
    for (types, group) in [([DType::F16; 2], 4), ([DType::Q8_0; 2], 3), ([DType::Q4_0; 2], 8)] {
        for len in lengths {
            let memory = Memory::new(layout(types, 2, 32, 0, 0), &[(0, len, 0)], len as u64);
            for n_tokens in [1, 2, 5, 16, 33] {
                if n_tokens <= len {
                    check(&plain(2 * group, 32), &[(&memory, n_tokens)], n_tokens as u64);
                }
            }
        }
    }
}

/// A sequence of up to six segments, in any order in memory, some turned.
fn segments() -> impl Strategy<Value = Vec<(usize, usize, i32)>> {
    let segment =
        (0usize..80, prop_oneof![1usize..10, 60usize..70, 1usize..400], -3000i32..3000, any::<u32>());
    (prop::collection::vec(segment, 1..6), any::<bool>()).prop_map(|(mut segments, turns)| {
        let mut row = 0;
        for (at, len, turn, _) in &mut segments {
            // The first one may hold sinks.
            row += if row == 0 { *at % 6 } else { *at };
            *at = row;
            row += *len;
            *turn *= i32::from(turns);
        }
        segments.sort_by_key(|segment| segment.3);
        segments.into_iter().map(|(row, len, turn, _)| (row, len, turn)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn batches_of_segments_with_turns_sinks_and_transforms(
        k in prop::sample::select(&KV[..]), v in prop::sample::select(&KV[..]),
        group in prop::sample::select(vec![1usize, 2, 3, 4, 8]), n_kv_heads in 1usize..4,
        head_dim in prop::sample::select(vec![32usize, 64, 96, 128]), dims in prop::sample::select(vec![0usize, 16, 32]),
        sequences in prop::collection::vec((segments(), 1usize..40), 1..4),
        sinks in prop::sample::select(vec![0usize, 4]), transformed: bool, seed: u64,
    ) {
        let layout = layout([k, v], n_kv_heads, head_dim, 16, sinks);
        let rope = Rope::new(dims, BASE, 1.0, None).unwrap();
        let transform: Option<KvTransform> = transformed.then(|| transform(n_kv_heads, head_dim, seed));
        let shape = AttentionShape {
            n_heads: group * n_kv_heads, scale: 1.0 / (head_dim as f32).sqrt(), transform: transform.as_ref(), rope: Some(&rope),
        };
        let memories: Vec<_> = sequences.iter().map(|(segments, _)| Memory::new(layout, segments, seed)).collect();
        let items: Vec<_> = memories.iter().zip(&sequences).map(|(memory, (_, tokens))| (memory, (*tokens).min(memory.len()))).collect();
        check(&shape, &items, !seed);
    }
}

#[test]
fn many_sequences_in_one_call() {
    let layout = layout([DType::Q8_0, DType::Q4_0], 2, 32, 0, 0);
    let memories: Vec<_> =
        (0..40).map(|i| Memory::new(layout, &[(0, 1 + 37 * i % 600, 0)], i as u64)).collect();
    let items: Vec<_> = memories.iter().map(|memory| (memory, 1)).collect();
    check(&plain(8, 32), &items, 5);
}

/// Attention of one token each over these caches, on so many threads.
fn one_token_each(n_threads: usize, q: &[f32], caches: &[KvView<'_>], n_heads: usize) -> Vec<f32> {
    let (pool, layout) = (threads(n_threads), *caches[0].layout());
    let items: Vec<_> =
        caches.iter().map(|cache| AttentionItem { cache: cache.clone(), n_tokens: 1 }).collect();
    let mut out = vec![f32::NAN; q.len()];
    let mut scratch = vec![f32::NAN; attention::scratch_len(&pool, &layout, n_heads, caches.len())];
    attention::cpu(&pool, &plain(n_heads, layout.head_dim), q, &items, &mut out, &mut scratch).unwrap();
    out
}

#[test]
fn the_order_of_a_batch_changes_no_bit() {
    let layout = layout([DType::Q8_0, DType::Q4_0], 2, 64, 0, 0);
    let lengths = [700, 1, 65, 1500, 64, 3];
    let memories = lengths.map(|len| Memory::new(layout, &[(0, len, 0)], len as u64));
    let (n_heads, order) = (8, [3, 0, 5, 1, 4, 2]);
    let row = n_heads * 64;
    let q = numbers(11, lengths.len() * row);
    let views = memories.each_ref().map(|memory| memory.view());
    let alone = one_token_each(1, &q, &views, n_heads);
    for n_threads in [1, 2, 3, 40] {
        let straight = one_token_each(n_threads, &q, &views, n_heads);
        assert_eq!(straight, alone, "{n_threads} threads");
        let shuffled: Vec<KvView<'_>> = order.iter().map(|&i| views[i].clone()).collect();
        let queries: Vec<f32> = order.iter().flat_map(|&i| &q[i * row..(i + 1) * row]).copied().collect();
        let out = one_token_each(n_threads, &queries, &shuffled, n_heads);
        for (place, &i) in order.iter().enumerate() {
            assert_eq!(out[place * row..][..row], straight[i * row..][..row], "sequence {i}");
        }
    }
}

#[test]
fn rows_that_forks_share_are_read_as_their_own() {
    for types in [[DType::F16; 2], [DType::Q4_0; 2]] {
        // Row 500 on is the forks' own: in one range behind each other, as mappings of a granule would have it.
        let layout = layout(types, 2, 64, 16, 0);
        let parent = Memory::new(layout, &[(0, 900, 0)], 5);
        let fork = |segments: &[(usize, usize, i32)]| {
            let view = parent.view();
            let all = view.segments()[0].rows;
            let stride = layout.row_stride;
            let segments: SmallVec<_> = segments
                .iter()
                .map(|&(row, len, turn)| {
                    let rows = all.subslice(row * stride..(row + len) * stride).unwrap();
                    KvSegment { rows, row, len, turn }
                })
                .collect();
            KvView::new(layout, None, segments).unwrap()
        };
        let shared = [fork(&[(0, 600, 0)]), fork(&[(0, 500, 0), (700, 200, 0)]), fork(&[(0, 500, 0)])];
        let copies = [&[(0, 600, 0)][..], &[(0, 500, 0), (700, 200, 0)], &[(0, 500, 0)]];
        let copies = copies.map(|segments| Memory {
            segments: segments.to_vec(),
            bytes: parent.bytes.clone(),
            layout,
            stored: [vec![], vec![]],
        });
        let q = numbers(3, 3 * 4 * 64);
        for n_threads in [1, 2] {
            let apart = one_token_each(n_threads, &q, &copies.each_ref().map(|memory| memory.view()), 4);
            assert_eq!(one_token_each(n_threads, &q, &shared, 4), apart);
        }
    }
}

/// A cache that is cut where a granule ends, and one that is not, hold the same tokens.
#[test]
fn where_rows_are_cut_is_seen_by_nobody() {
    for types in [[DType::F16; 2], [DType::Q8_0; 2]] {
        let layout = layout(types, 2, 64, 16, 0);
        for cuts in [&[1][..], &[63, 64], &[200, 201, 500]] {
            let ends = cuts.iter().copied().chain([700]);
            let segments: Vec<_> = ends
                .scan(0, |row, end| Some((std::mem::replace(row, end), end)))
                .map(|(row, end)| (row, end - row, 0))
                .collect();
            let memory = Memory::new(layout, &segments, 9);
            assert_eq!(memory.bytes, Memory::new(layout, &[(0, 700, 0)], 9).bytes);
            check(&plain(4, 64), &[(&memory, 1)], 1);
            check(&plain(4, 64), &[(&memory, 20)], 2);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let pool = threads(2);
    let memory = Memory::new(layout([DType::F16; 2], 2, 32, 0, 0), &[(0, 10, 0)], 1);
    let turned = Memory::new(layout([DType::F16; 2], 2, 32, 0, 0), &[(0, 10, 1)], 1);
    let other = Memory::new(layout([DType::F16; 2], 2, 32, 16, 0), &[(0, 10, 0)], 1);
    let run = |n_heads: usize, items: &[(&Memory, usize)], q: usize, short: usize| {
        let items: Vec<_> = items
            .iter()
            .map(|&(memory, n_tokens)| AttentionItem { cache: memory.view(), n_tokens })
            .collect();
        let mut out = vec![7.0; q];
        let mut scratch = vec![0.0; attention::scratch_len(&pool, &memory.layout, 4, 16) - short];
        let done = attention::cpu(&pool, &plain(n_heads, 32), &vec![0.0; q], &items, &mut out, &mut scratch);
        assert!(done.is_ok() || out.iter().all(|&x| x == 7.0));
        done
    };
    assert!(run(4, &[(&memory, 1)], 128, 0).is_ok());
    assert!(run(4, &[], 0, 0).is_ok());
    assert!(matches!(run(3, &[(&memory, 1)], 96, 0), Err(Error::Dimension { got: 3, .. })));
    assert!(matches!(run(0, &[(&memory, 1)], 0, 0), Err(Error::Dimension { .. })));
    assert!(matches!(run(4, &[(&memory, 0)], 0, 0), Err(Error::Dimension { .. })));
    assert!(matches!(run(4, &[(&memory, 11)], 11 * 128, 0), Err(Error::Shape { got: 10, want: 11, .. })));
    assert!(matches!(run(4, &[(&memory, 1)], 127, 0), Err(Error::Shape { .. })));
    assert!(matches!(run(4, &[(&memory, 8), (&memory, 8)], 16 * 128, 1), Err(Error::Shape { .. })));
    assert!(matches!(run(4, &[(&turned, 1)], 128, 0), Err(Error::NoRope)));
    assert!(matches!(run(4, &[(&memory, 1), (&other, 1)], 256, 0), Err(Error::Layouts)));
}
