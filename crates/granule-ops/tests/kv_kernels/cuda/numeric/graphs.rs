//! Tables with a capacity: decode steps captured once and replayed over other sequences.

use granule_device::{Buffer, Bytes, DeviceSlice};
use granule_ops::attention::{self, cuda_scratch_len};
use granule_ops::{Error, KvCounts, KvTable};
use granule_quant::DType;

use super::share;
use crate::cache::Cache;
use crate::case::{Case, Rows};
use crate::cuda::Cuda;
use crate::naive;

fn capacity(case: &Case) -> KvCounts {
    let mut counts = KvCounts::default();
    (counts.sequences, counts.segments, counts.turned) = (3, 5, 5);
    (counts.tokens, counts.most_tokens, counts.most_rows) = (3, 1, 700);
    counts.turn_dims = case.rope_dims;
    counts
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_captured_step_is_replayed_over_other_sequences() {
    let cuda = Cuda::new();
    for transform in [false, true] {
        let mut case = Case::plain([DType::Q8_0, DType::Q4_0], 64, [2, 4], &[]);
        case.transform = transform;
        let (tables, rope) = (cuda.tables(&case), case.rope());
        let shape = Cuda::shape(&case, &tables);
        let mut table = KvTable::with_capacity(capacity(&case));
        let row = shape.n_heads * 64;
        let mut memory = cuda.upload(&vec![0; table.bytes()]);
        let mut q = cuda.floats(&vec![0.0; 3 * row]);
        let mut out = cuda.floats(&vec![0.0; 3 * row]);
        let need = cuda_scratch_len(&cuda.kernels, &shape, table.counts()).unwrap();
        let mut scratch = cuda.device().alloc(Bytes::from_usize(need)).unwrap();
        let mut launch = |memory: &Buffer, q: &Buffer| {
            let view = table.on(memory.slice(..table.bytes()).unwrap()).unwrap();
            let (q, out) = (q.slice(..3 * row * 4).unwrap(), out.slice_mut(..3 * row * 4).unwrap());
            let scratch = scratch.slice_mut(..).unwrap();
            // SAFETY: all memory stays to the test's end, and each run is waited for before anything else touches it.
            unsafe { attention::cuda(&cuda.kernels, &cuda.stream, &shape, &view, q, out, scratch) }.unwrap();
        };
        // Modules cannot be loaded in a capture. An empty table is a step without tokens.
        launch(&memory, &q);
        cuda.stream.synchronize().unwrap();
        cuda.stream.begin_capture().unwrap();
        launch(&memory, &q);
        let graph = cuda.stream.end_capture().unwrap().instantiate().unwrap();

        let steps: [Vec<Vec<Rows>>; 4] = [
            vec![vec![(0, 40, 0)], vec![(0, 600, 0)], vec![(2, 17, 0)]],
            vec![vec![(0, 9, 0), (20, 70, -11), (100, 3, 5)], vec![(7, 1, 0)]],
            vec![vec![(0, 41, 0)]],
            vec![vec![(0, 3, 0), (50, 300, 2)], vec![(0, 5, 0), (8, 60, 0)], vec![(1, 1, 0)]],
        ];
        for (i, sequences) in steps.into_iter().enumerate() {
            case.sequences = sequences.into_iter().map(|segments| (segments, 1)).collect();
            let caches: Vec<Cache> = (0u64..)
                .zip(&case.sequences)
                .map(|(k, (segments, _))| Cache::filled(&case, segments, (k + 1) * 1000 + i as u64))
                .collect();
            let there: Vec<Buffer> = caches.iter().map(|cache| cuda.upload(&cache.bytes)).collect();
            table.clear();
            for ((segments, _), (cache, buffer)) in case.sequences.iter().zip(caches.iter().zip(&there)) {
                let view = cache.view(buffer.slice(..cache.bytes.len()).unwrap(), segments);
                table.push(&view, 1, Some(&rope)).unwrap();
            }
            let mut bytes = vec![0xff; table.bytes()];
            table.write(&mut bytes).unwrap();
            let numbers = case.numbers(case.tokens() * row, 7 + i as u64);
            let put = |bytes: &[u8], to: &mut Buffer| {
                cuda.device().copy(DeviceSlice::from(bytes), to.slice_mut(..bytes.len()).unwrap()).unwrap();
            };
            put(&bytes, &mut memory);
            put(bytemuck::cast_slice(&numbers), &mut q);
            // SAFETY: what the graph's kernels touch is there, and nothing else touches it until they were waited for.
            unsafe { graph.launch(&cuda.stream) }.unwrap();
            cuda.stream.synchronize().unwrap();
            let exact = naive::attention(&case, &caches, &numbers);
            let worst = exact.check(&format!("replay {i}"), &case, &cuda.download(&out, numbers.len()));
            assert!(worst <= share(&case), "replay {i}: errors of {worst} of their bound");
        }
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_table_takes_no_more_than_its_capacity() {
    let cuda = Cuda::new();
    let case = Case::plain([DType::F16, DType::F16], 64, [1, 1], &[(9, 1)]);
    let cache = Cache::filled(&case, &[(0, 9, 0)], 1);
    let there = cuda.upload(&cache.bytes);
    let view = |segments: &[Rows]| cache.view(there.slice(..cache.bytes.len()).unwrap(), segments);
    let rope = case.rope();
    let fits = |change: fn(&mut KvCounts), segments: &[Rows]| {
        let mut counts = capacity(&case);
        change(&mut counts);
        let mut table = KvTable::with_capacity(counts);
        let bytes = table.bytes();
        let said = table.push(&view(segments), 1, Some(&rope));
        // Whatever is in it, it is as large as it was made.
        assert_eq!((table.bytes(), *table.counts()), (bytes, counts));
        assert!(matches!(said, Ok(()) | Err(Error::Dimension { .. })), "{said:?}");
        said.is_ok()
    };
    let (one, two): (&[Rows], &[Rows]) = (&[(0, 9, 0)], &[(0, 4, 0), (4, 5, -1)]);
    assert!(fits(|_| (), one) && fits(|_| (), two));
    assert!(fits(|c| c.most_rows = 9, one) && !fits(|c| c.most_rows = 8, one));
    assert!(
        !fits(|c| c.sequences = 0, one) && !fits(|c| c.tokens = 0, one) && !fits(|c| c.most_tokens = 0, one)
    );
    assert!(fits(|c| c.segments = 2, two) && !fits(|c| c.segments = 1, two) && !fits(|c| c.turned = 1, two));
    assert!(fits(|c| c.turn_dims = 0, one) && !fits(|c| c.turn_dims = 0, two));
}
