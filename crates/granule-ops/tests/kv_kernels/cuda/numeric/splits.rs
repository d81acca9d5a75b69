//! Contexts long enough for many splits: every round of the loops that put them together, and rings that go round.

use granule_quant::DType;

use super::{attends, share};
use crate::cache::Cache;
use crate::case::Case;
use crate::cuda::Cuda;
use crate::naive;

/// 10 and 35 splits of 64 keys, where a thread block has 8 warps for them and a warp 32 lanes.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn attention_puts_many_splits_together() {
    let cuda = Cuda::new();
    for types in [[DType::Q4_0, DType::Q4_0], [DType::F16, DType::F16]] {
        for rows in [600, 2200] {
            attends(&cuda, &Case::plain(types, 64, [1, 1], &[(rows, 1)]));
        }
    }
    attends(&cuda, &Case::plain([DType::F16, DType::Q8_0], 96, [1, 2], &[(600, 1), (5, 1)]));
    let mut case = Case::plain([DType::Q8_0, DType::Q4_0], 128, [1, 3], &[(700, 2), (300, 1)]);
    case.transform = true;
    attends(&cuda, &case);
}

/// The same cache in 1, 2, 9 and 33 parts: what changes is the order of sums. One part is a ring that goes round many times,
/// 33 are more than there are keys for.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn attention_does_not_depend_on_the_number_of_splits() {
    let cuda = Cuda::new();
    for (types, head_dim) in
        [([DType::Q4_0, DType::Q4_0], 64), ([DType::F16, DType::F16], 128), ([DType::BF16, DType::F32], 80)]
    {
        let mut case = Case::plain(types, head_dim, [1, 2], &[(400, 2)]);
        case.sequences.push((vec![(3, 90, 0), (200, 150, -40)], 1));
        let caches: Vec<Cache> = (0u64..)
            .zip(&case.sequences)
            .map(|(i, (segments, _))| Cache::filled(&case, segments, (i + 1) * 1000))
            .collect();
        let q = case.numbers(case.tokens() * case.n_heads() * case.head_dim, 99);
        let exact = naive::attention(&case, &caches, &q);
        for splits in [1, 2, 9, 33] {
            case.splits = Some(splits);
            let worst = exact.check(&format!("{splits} splits"), &case, &cuda.attention(&case, &caches, &q));
            assert!(worst <= share(&case), "{splits} splits: errors of {worst} of their bound, {case:?}");
        }
    }
}

/// What a GPU has time for: the context that attention is measured with, by the rule's own splits.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn attention_of_32_thousand_rows_on_a_gpu() {
    let cuda = Cuda::new();
    let (rows, several) = if granule_sim::Sim::find().is_none() { (32_768, 5_000) } else { (1_000, 130) };
    for types in [[DType::F16, DType::F16], [DType::Q8_0, DType::Q8_0], [DType::Q4_0, DType::Q4_0]] {
        for head_dim in [64, 128] {
            attends(&cuda, &Case::plain(types, head_dim, [1, 4], &[(rows, 1), (several, 1)]));
        }
    }
}
