//! A step of sequences with few and with many query tokens, each by its kernel, against f64.

use granule_ops::AttentionItem;
use granule_ops::attention::{CudaStep, StepCounts, step};
use granule_quant::DType;

use crate::cache::Cache;
use crate::case::Case;
use crate::cuda::Cuda;
use crate::naive;

/// The part of a case that is these sequences, in this order.
fn part(case: &Case, order: &[usize]) -> Case {
    Case { sequences: order.iter().map(|&i| case.sequences[i].clone()).collect(), ..case.clone() }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn each_sequence_of_a_step_gets_the_kernel_that_suits_it() {
    let cuda = Cuda::new();
    for (types, transform) in [([DType::Q8_0, DType::Q4_0], true), ([DType::F16, DType::F16], false)] {
        // Sequences that decode between two prompts of 64 rows of queries and more, one of them turned.
        let mut case = Case::plain(types, 64, [2, 4], &[(33, 1), (40, 17), (70, 3)]);
        case.sequences.push((vec![(0, 9, 0), (30, 20, -11)], 16));
        case.sequences.push((vec![(5, 8, 2)], 1));
        case.transform = transform;
        let caches: Vec<Cache> = (0u64..)
            .zip(&case.sequences)
            .map(|(i, (segments, _))| Cache::filled(&case, segments, (i + 1) * 1000))
            .collect();
        let there: Vec<_> = caches.iter().map(|cache| cuda.upload(&cache.bytes)).collect();
        let items: Vec<AttentionItem<'_>> = case
            .sequences
            .iter()
            .zip(caches.iter().zip(&there))
            .map(|((segments, n_tokens), (cache, buffer))| AttentionItem {
                cache: cache.view(buffer.slice(..cache.bytes.len()).unwrap(), segments),
                n_tokens: *n_tokens,
            })
            .collect();
        let (tables, rope) = (cuda.tables(&case), case.rope());
        let shape = Cuda::shape(&case, &tables);
        let mut sequences = CudaStep::new();
        sequences.fill(&cuda.kernels, shape.n_heads, &items, Some(&rope)).unwrap();
        assert_eq!(sequences.order(), [0, 2, 4, 1, 3]);
        let mut bytes = vec![0; sequences.bytes()];
        sequences.write(&mut bytes).unwrap();
        let memory = cuda.upload(&bytes);
        let view = sequences.on(memory.slice(..bytes.len()).unwrap()).unwrap();
        assert_eq!(view.tables().map(|table| table.counts().sequences), [3, 2]);

        let ordered = part(&case, sequences.order());
        let caches: Vec<Cache> = sequences.order().iter().map(|&i| caches[i].clone()).collect();
        let q = ordered.numbers(ordered.tokens() * shape.n_heads * 64, 99);
        let need = sequences.scratch_len(&cuda.kernels, &shape).unwrap();
        let got = cuda.attend(&q, need, |q, out, scratch| {
            // SAFETY: all memory stays until `attend` has waited for the stream, and only these launches touch it.
            unsafe { step(&cuda.kernels, &cuda.stream, &shape, &view, q, out, scratch) }
        });
        let mut exact = naive::attention(&ordered, &caches, &q);
        // Prompts meet f16 queries and weights; what they are held to in full stands with their own tests.
        let few = 5 * shape.n_heads * 64;
        exact.bound[few..].iter_mut().for_each(|bound| *bound *= 16.0);
        exact.check("the step", &ordered, &got);
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_step_that_is_refused_is_empty() {
    let cuda = Cuda::new();
    let case = Case::plain([DType::F16, DType::F16], 64, [1, 4], &[(40, 1), (40, 20)]);
    let cache = Cache::filled(&case, &[(0, 40, 0)], 1);
    let there = cuda.upload(&cache.bytes);
    let item = |segments: &[(usize, usize, i32)], n_tokens| AttentionItem {
        cache: cache.view(there.slice(..cache.bytes.len()).unwrap(), segments),
        n_tokens,
    };
    let mut step = CudaStep::new();
    step.fill(&cuda.kernels, 4, &[item(&[(0, 40, 0)], 1), item(&[(0, 40, 0)], 20)], None).unwrap();
    assert_eq!((step.order(), step.bytes()), (&[0, 1][..], 2 * 48));
    // Turned, without the model's rotation.
    let refused = step.fill(&cuda.kernels, 4, &[item(&[(0, 40, 0)], 1), item(&[(0, 40, 3)], 20)], None);
    assert!(matches!(refused, Err(granule_ops::Error::NoRope)));
    assert_eq!((step.order().len(), step.bytes()), (0, 0));
    let refused = step.fill(&cuda.kernels, 3, &[item(&[(0, 40, 0)], 1)], None);
    assert!(refused.is_ok(), "one KV head takes any number of query heads");
    step.fill(&cuda.kernels, 0, &[item(&[(0, 40, 0)], 1)], None).unwrap_err();
    assert_eq!(step.order().len(), 0);
}

/// Sizes from shapes alone are those of the step itself.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_step_takes_what_was_planned() {
    let cuda = Cuda::new();
    let steps: [&[(usize, usize)]; 5] = [
        &[(40, 1)],
        &[(40, 40)],
        &[(64, 63), (7, 7), (300, 1)],
        &[(2000, 20)],
        &[(33, 1), (40, 17), (70, 3)],
    ];
    for (types, heads) in [([DType::F16, DType::F16], [1, 4]), ([DType::Q8_0, DType::Q4_0], [2, 4])] {
        for sequences in steps {
            let case = Case::plain(types, 64, heads, sequences);
            let caches: Vec<Cache> =
                case.sequences.iter().map(|(segments, _)| Cache::filled(&case, segments, 1)).collect();
            let there: Vec<_> = caches.iter().map(|cache| cuda.upload(&cache.bytes)).collect();
            let items = case.sequences.iter().zip(caches.iter().zip(&there));
            let items: Vec<AttentionItem<'_>> = items
                .map(|((segments, n_tokens), (cache, buffer))| AttentionItem {
                    cache: cache.view(buffer.slice(..cache.bytes.len()).unwrap(), segments),
                    n_tokens: *n_tokens,
                })
                .collect();
            let tables = cuda.tables(&case);
            let (shape, facts) = (Cuda::shape(&case, &tables), cuda.kernels.facts());
            let mut step = CudaStep::new();
            step.fill(&cuda.kernels, shape.n_heads, &items, None).unwrap();
            let sizes: Vec<_> = items.iter().map(|item| (item.n_tokens, item.cache.len())).collect();
            let planned = StepCounts::of(&facts, &shape.layout, shape.n_heads, &sizes).unwrap();
            assert_eq!(planned.bytes(), step.bytes(), "{sequences:?}");
            let scratch = planned.scratch_bytes(&facts, &shape.layout, shape.n_heads).unwrap();
            assert_eq!(scratch, step.scratch_len(&cuda.kernels, &shape).unwrap(), "{sequences:?}");
        }
    }
}
