//! Every number: attention within its bound of the exact result and of the host's twin, appended bytes those of the twin.

mod faults;
mod graphs;
mod splits;
mod step;

use std::num::NonZeroUsize;

use granule_device::{DeviceSlice, DeviceSliceMut};
use granule_ops::attention::{self, AttentionItem, AttentionShape};
use granule_ops::kv_append::{self, AppendShape};
use granule_ops::{KvViewMut, Threads};
use granule_quant::DType;

use super::Cuda;
use crate::cache::Cache;
use crate::case::{Case, TYPES};
use crate::naive;

/// The host's twin.
fn on_host(case: &Case, caches: &[Cache], q: &[f32]) -> Vec<f32> {
    let threads = Threads::new(NonZeroUsize::MIN).unwrap();
    let (rope, transform) = (case.rope(), case.kv_transform());
    let items: Vec<AttentionItem<'_>> = case
        .sequences
        .iter()
        .zip(caches)
        .map(|((segments, tokens), cache)| {
            let view = cache.view(DeviceSlice::from(&cache.bytes[..]), segments);
            AttentionItem { cache: view, n_tokens: *tokens }
        })
        .collect();
    let shape = AttentionShape {
        n_heads: case.n_heads(),
        scale: case.scale(),
        transform: transform.as_ref(),
        rope: Some(&rope),
    };
    let scratch = attention::scratch_len(&threads, &case.layout(), case.n_heads(), case.tokens());
    let (mut out, mut scratch) = (vec![0.0; q.len()], vec![0.0; scratch]);
    attention::cpu(&threads, &shape, q, &items, &mut out, &mut scratch).unwrap();
    out
}

/// How much of its bound an error may take, in the emulator, whose products are exact but for the last bit. Where neither
/// keys nor values are in blocks, what is left over is f32's rounding: a second 16-bit term that is forgotten is seen.
fn share(case: &Case) -> f64 {
    let blocks = case.k_type.is_quantized() || case.v_type.is_quantized();
    match (granule_sim::Sim::find(), blocks) {
        // A GPU's tensor cores cut where the emulator rounds.
        (None, _) => 1.0,
        (Some(_), true) => 0.1,
        (Some(_), false) => 0.02,
    }
}

/// Attention of random queries over random caches.
fn attends(cuda: &Cuda, case: &Case) {
    let caches: Vec<Cache> = (0u64..)
        .zip(&case.sequences)
        .map(|(i, (segments, _))| Cache::filled(case, segments, (i + 1) * 1000))
        .collect();
    let q = case.numbers(case.tokens() * case.n_heads() * case.head_dim, 99);
    let exact = naive::attention(case, &caches, &q);
    let worst = exact.check("the device", case, &cuda.attention(case, &caches, &q));
    assert!(worst <= share(case), "errors of {worst} of their bound, {case:?}");
    exact.check("the twin", case, &on_host(case, &caches, &q));
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn attention_reads_every_pair_of_types() {
    let cuda = Cuda::new();
    for head_dim in [64, 128] {
        for k in TYPES {
            for v in TYPES {
                attends(&cuda, &Case::plain([k, v], head_dim, [2, 4], &[(21, 1)]));
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn attention_takes_groups_of_any_size() {
    let cuda = Cuda::new();
    for (heads, group) in [(1, 1), (3, 1), (3, 3), (1, 4), (2, 8), (1, 12), (1, 16)] {
        for types in [[DType::Q4_0, DType::Q4_0], [DType::F16, DType::F16]] {
            attends(&cuda, &Case::plain(types, 64, [heads, group], &[(33, 1)]));
        }
    }
}

/// Around tiles of 16 keys, splits of 64, and the end of a warp's ring; steps of several tokens.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn attention_ends_where_sequences_end() {
    let cuda = Cuda::new();
    for rows in [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 129, 200] {
        let types = if rows % 2 == 0 { [DType::Q8_0, DType::Q4_0] } else { [DType::Q4_0, DType::F16] };
        attends(&cuda, &Case::plain(types, 64, [1, 3], &[(rows, 1)]));
    }
    for (rows, tokens) in [(2, 2), (16, 2), (17, 3), (66, 5), (20, 20)] {
        attends(&cuda, &Case::plain([DType::Q8_0, DType::Q8_0], 64, [1, 2], &[(rows, tokens)]));
        attends(&cuda, &Case::plain([DType::F16, DType::Q4_0], 128, [1, 1], &[(rows, tokens)]));
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn attention_takes_sequences_of_different_lengths() {
    let cuda = Cuda::new();
    let batch = [(1, 1), (70, 3), (17, 1), (130, 1)];
    for (types, head_dim) in
        [([DType::Q4_0, DType::Q4_0], 64), ([DType::F16, DType::BF16], 64), ([DType::Q8_0, DType::Q4_0], 96)]
    {
        attends(&cuda, &Case::plain(types, head_dim, [2, 2], &batch));
    }
}

/// Head dimensions that have no kernel of their own.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn attention_takes_any_even_head() {
    let cuda = Cuda::new();
    for (head_dim, types) in [
        (2, [DType::F32, DType::F16]),
        (10, [DType::BF16, DType::F32]),
        (32, [DType::Q4_0, DType::Q8_0]),
        (80, [DType::F16, DType::BF16]),
        (96, [DType::Q8_0, DType::Q4_0]),
        (256, [DType::Q4_0, DType::Q4_0]),
    ] {
        attends(&cuda, &Case::plain(types, head_dim, [2, 3], &[(19, 1), (70, 2)]));
    }
}

/// Cut, shifted and with sinks: segments that begin and end anywhere, in front of and behind row 4, with turns.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn attention_follows_segments_turns_and_sinks() {
    let cuda = Cuda::new();
    let sequences = vec![
        (vec![(0, 40, 0)], 2),
        (vec![(0, 2, 0), (9, 30, -7), (50, 1, 3)], 1),
        (vec![(3, 20, 0), (40, 70, -16)], 3),
        (vec![(30, 5, 0), (8, 3, 0)], 1),
        (vec![(0, 3, 0)], 3),
    ];
    for (types, head_dim, transform) in [
        ([DType::Q4_0, DType::Q4_0], 64, true),
        ([DType::Q8_0, DType::F16], 64, true),
        ([DType::F16, DType::Q4_0], 128, true),
        ([DType::Q4_0, DType::Q8_0], 128, false),
        ([DType::F16, DType::F32], 64, false),
        ([DType::Q4_0, DType::Q4_0], 96, true),
        ([DType::F16, DType::BF16], 80, true),
    ] {
        let mut case = Case::plain(types, head_dim, [2, 2], &[]);
        case.sequences = sequences.clone();
        case.transform = transform;
        attends(&cuda, &case);
    }
}

/// Queries from the tiny to the huge, whose two terms have to stay within their types.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn attention_takes_queries_of_any_size() {
    let cuda = Cuda::new();
    for types in [[DType::F16, DType::F16], [DType::BF16, DType::BF16], [DType::Q4_0, DType::Q4_0]] {
        let case = Case::plain(types, 64, [1, 2], &[(20, 1)]);
        let caches = [Cache::filled(&case, &case.sequences[0].0, 1000)];
        for size in [0.0, 1e-30, 1e-4, 1.0, 30.0] {
            let q: Vec<f32> = case.numbers(128, 3).iter().map(|x| x * size).collect();
            let exact = naive::attention(&case, &caches, &q);
            exact.check(&format!("queries of {size}"), &case, &cuda.attention(&case, &caches, &q));
        }
    }
}

/// What is not a number stays none, and only where it is seen.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn attention_hides_no_nan() {
    let cuda = Cuda::new();
    for (types, head_dim) in
        [([DType::F16, DType::F16], 64), ([DType::Q4_0, DType::Q8_0], 64), ([DType::F32, DType::F32], 96)]
    {
        let case = Case::plain(types, head_dim, [2, 2], &[(20, 1)]);
        let caches = [Cache::filled(&case, &case.sequences[0].0, 1000)];
        let mut q = case.numbers(4 * head_dim, 3);
        q[head_dim + 5] = f32::NAN;
        let got = cuda.attention(&case, &caches, &q);
        for (head, out) in got.chunks_exact(head_dim).enumerate() {
            assert_eq!(out.iter().all(|x| x.is_nan()), head == 1, "head {head} of {case:?}");
            assert_eq!(out.iter().any(|x| x.is_nan()), head == 1, "head {head} of {case:?}");
        }
    }
}

/// The twin's bytes.
fn append_on_host(case: &Case, caches: &mut [Cache], angles: &[f32], k: &[f32], v: &[f32]) {
    let threads = Threads::new(NonZeroUsize::MIN).unwrap();
    let (layout, transform) = (case.layout(), case.kv_transform());
    let mut token = 0;
    for ((segments, tokens), cache) in case.sequences.iter().zip(caches) {
        let &(first, len, _) = segments.last().unwrap();
        let row = first + len - tokens;
        let start = layout.rows_at + row * layout.row_stride;
        let (before, rows) = cache.bytes.split_at_mut(start);
        let sinks = layout.sinks.map(|_| DeviceSliceMut::from(&mut before[..layout.rows_at]));
        let rows = DeviceSliceMut::from(&mut rows[..tokens * layout.row_stride]);
        let mut view = KvViewMut::new(layout, sinks, rows, row, *tokens).unwrap();
        let of = |x: &[f32], each: usize| x[token * each..(token + tokens) * each].to_vec();
        let (mut k, mut v) = (of(k, layout.elements()), of(v, layout.elements()));
        let angles = of(angles, case.rope_dims);
        let shape = AppendShape { rope_dims: case.rope_dims, angles: &angles, transform: transform.as_ref() };
        kv_append::cpu(&threads, &shape, &mut view, &mut k, &mut v).unwrap();
        token += tokens;
    }
}

/// Appends random tokens there and here.
fn appends(cuda: &Cuda, case: &Case) {
    let mut there: Vec<Cache> =
        case.sequences.iter().map(|(segments, _)| Cache::untouched(case, segments)).collect();
    let mut here = there.clone();
    let elements = case.tokens() * case.n_kv_heads * case.head_dim;
    let (k, v) = (case.numbers(elements, 1), case.numbers(elements, 2));
    let mut angles = vec![0.0; case.tokens() * case.rope_dims];
    case.rope().angles(12_345, case.tokens(), &mut angles).unwrap();
    cuda.append(case, &mut there, &angles, &k, &v).unwrap();
    append_on_host(case, &mut here, &angles, &k, &v);
    for (i, (there, here)) in there.iter().zip(&here).enumerate() {
        let differs = there.bytes.iter().zip(&here.bytes).position(|(a, b)| a != b);
        assert_eq!(differs, None, "byte of sequence {i}, {case:?}");
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn append_writes_the_bytes_of_its_twin() {
    let cuda = Cuda::new();
    for k in TYPES {
        for v in TYPES {
            for (head_dim, transform) in [(64, false), (128, true), (96, true), (256, true)] {
                let mut case = Case::plain([k, v], head_dim, [3, 1], &[(1, 1), (9, 4)]);
                case.sequences.push((vec![(0, 2, 0), (7, 6, -3)], 5));
                case.sequences.push((vec![(2, 4, 0)], 4));
                case.transform = transform;
                appends(&cuda, &case);
            }
        }
    }
}

/// Heads whose places are no multiples of 16, and rotations of nothing and of all.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn append_takes_heads_of_any_even_size() {
    let cuda = Cuda::new();
    for head_dim in [2, 6, 10, 34, 80, 130] {
        for types in [[DType::F32, DType::F16], [DType::BF16, DType::F32]] {
            for (rope_dims, transform) in [(0, false), (head_dim, true)] {
                let mut case = Case::plain(types, head_dim, [3, 1], &[(3, 2), (1, 1)]);
                (case.rope_dims, case.transform) = (rope_dims, transform);
                appends(&cuda, &case);
            }
        }
    }
}

/// A step as a model makes it: append, then attention over what was there and what is new.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_is_appended_is_attended_to() {
    let cuda = Cuda::new();
    let mut case = Case::plain([DType::Q4_0, DType::Q4_0], 64, [2, 4], &[(20, 3), (6, 6)]);
    case.transform = true;
    let mut caches: Vec<Cache> =
        case.sequences.iter().map(|(segments, _)| Cache::filled(&case, segments, 1000)).collect();
    let elements = case.tokens() * 128;
    let (k, v) = (case.numbers(elements, 1), case.numbers(elements, 2));
    let mut angles = vec![0.0; case.tokens() * case.rope_dims];
    case.rope().angles(17, case.tokens(), &mut angles).unwrap();
    cuda.append(&case, &mut caches, &angles, &k, &v).unwrap();
    let q = case.numbers(case.tokens() * 8 * 64, 3);
    let exact = naive::attention(&case, &caches, &q);
    let worst = exact.check("the device", &case, &cuda.attention(&case, &caches, &q));
    assert!(worst <= share(&case), "errors of {worst} of their bound");
}
