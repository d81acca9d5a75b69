//! Driver calls that fail, one after the other, in each launcher: nothing stays held, and the next step is as if nothing had
//! been.

use granule_device::{Bytes, DeviceSlice, DeviceSliceMut, FaultPlan};
use granule_ops::attention::{self, cuda_scratch_len};
use granule_ops::kv_append::{self, CudaAppend};
use granule_ops::{Error, Kernels, attention_prefill};
use granule_quant::DType;

use crate::cache::Cache;
use crate::case::Case;
use crate::cuda::Cuda;

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn every_failing_call_of_a_step_leaves_everything_usable() {
    let cuda = Cuda::new();
    let device = cuda.device().clone();
    // Turned and transformed: three launches of attention.
    let mut case = Case::plain([DType::Q8_0, DType::Q4_0], 64, [1, 1], &[]);
    case.sequences = vec![(vec![(0, 5, 0), (9, 4, -4)], 2)];
    case.transform = true;
    let caches: Vec<Cache> =
        case.sequences.iter().map(|(segments, _)| Cache::filled(&case, segments, 5)).collect();
    let there: Vec<_> = caches.iter().map(|cache| cuda.upload(&cache.bytes)).collect();
    let (table, memory) = cuda.table(&case, &caches, &there);
    let tables = cuda.tables(&case);
    let shape = Cuda::shape(&case, &tables);
    let tokens = case.tokens();
    let [k, v] = [1, 2].map(|salt| cuda.floats(&case.numbers(tokens * 64, salt)));
    let mut angles = vec![0.0; tokens * case.rope_dims];
    case.rope().angles(33, tokens, &mut angles).unwrap();
    let angles_there = cuda.floats(&angles);
    let append = CudaAppend {
        layout: case.layout(),
        rope_dims: case.rope_dims,
        angles: angles_there.slice(..4 * angles.len()).unwrap(),
        transform: tables.slices(),
    };
    let row = tokens * case.n_heads() * 64;
    let q = cuda.floats(&case.numbers(row, 3));
    let need = cuda_scratch_len(&cuda.kernels, &shape, table.counts()).unwrap();
    let mut scratch = device.alloc(Bytes::from_usize(need)).unwrap();
    let mut out = [cuda.floats(&vec![0.0; row]), cuda.floats(&vec![0.0; row])];
    let mut run = || -> Result<[Vec<u8>; 2], Error> {
        let (kernels, stream) = (Kernels::new(&device)?, device.stream()?);
        let view = table.on(memory.slice(..table.bytes())?)?;
        let bytes = 4 * row;
        let [few, many] = &mut out;
        // SAFETY: all memory stays until the stream was waited for, which its drop does where this ends early.
        unsafe {
            let (k, v) = (k.slice(..256 * tokens)?, v.slice(..256 * tokens)?);
            kv_append::cuda(&kernels, &stream, &append, &view, k, v)?;
            let (q, scratch) = (q.slice(..bytes)?, scratch.slice_mut(..)?);
            attention::cuda(&kernels, &stream, &shape, &view, q, few.slice_mut(..bytes)?, scratch)?;
            attention_prefill::cuda(&kernels, &stream, &shape, &view, q, many.slice_mut(..bytes)?)?;
        }
        stream.synchronize()?;
        kernels.check()?;
        let get = |from: DeviceSlice<'_>| {
            let mut bytes = vec![0; from.len()];
            device.copy(from, DeviceSliceMut::from(&mut bytes[..])).map(|()| bytes)
        };
        Ok([get(few.slice(..bytes)?)?, get(many.slice(..bytes)?)?])
    };
    let expected = run().unwrap();
    let (before, counted) = (device.live(), device.calls_made());
    assert!(run().unwrap() == expected);
    let calls = device.calls_made() - counted;
    assert!(calls > 10, "{calls} calls");
    for n in 1..=calls + 1 {
        let guard = device.inject_fault(FaultPlan::nth(n));
        let (done, fired) = (run(), guard.fired());
        drop(guard);
        assert!(done.is_ok() || fired, "call {n} of {calls}: {:?}", done.err());
        assert!(done.is_err() || done.unwrap() == expected, "call {n} of {calls}: another result");
        assert_eq!(device.live(), before, "call {n} of {calls}");
        assert!(run().unwrap() == expected, "after call {n} of {calls}");
    }
}
