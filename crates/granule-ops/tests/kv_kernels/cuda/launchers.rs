//! What launchers do beside numbers: what they refuse, and the flag.

use granule_device::{Bytes, DeviceSlice};
use granule_ops::attention::{self, CudaAttention, cuda_scratch_len};
use granule_ops::{Error, KvRowLayout, KvSinks, KvTable, KvTransformTables};
use granule_quant::DType;

use super::Cuda;
use crate::cache::Cache;
use crate::case::{Case, TYPES};

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn append_flags_what_cannot_be_stored() {
    let cuda = Cuda::new();
    for dtype in TYPES {
        for (i, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38].into_iter().enumerate() {
            for key in [false, true] {
                let mut case = Case::plain([DType::F32, DType::F32], 64, [2, 1], &[(3, 2)]);
                (if key { &mut case.k_type } else { &mut case.v_type }).clone_from(&dtype);
                case.rope_dims = 0;
                let mut caches = [Cache::untouched(&case, &case.sequences[0].0)];
                let (mut k, mut v) = (case.numbers(256, 1), case.numbers(256, 2));
                (if key { &mut k } else { &mut v })[200] = bad;
                let said = cuda.append(&case, &mut caches, &[], &k, &v);
                let (nan, big) =
                    (!bad.is_finite(), bad.is_finite() && !matches!(dtype, DType::F32 | DType::BF16));
                match said {
                    Ok(()) => assert!(!nan && !big, "{bad} as {dtype}"),
                    Err(Error::Flagged { not_finite, overflow, .. }) => {
                        assert_eq!((not_finite, overflow), (nan, big), "{bad} as {dtype}, {i}");
                    }
                    Err(other) => unreachable!("{other}"),
                }
                // The rows before those of the step are nobody's to write.
                let layout = case.layout();
                assert!(
                    caches[0].bytes[..layout.row_stride].iter().all(|&byte| byte == crate::cache::UNTOUCHED)
                );
            }
        }
    }
}

/// Sinks are f16 whatever the type of the rows.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn append_flags_what_a_sink_cannot_hold() {
    let cuda = Cuda::new();
    let mut case = Case::plain([DType::F32, DType::F32], 64, [1, 1], &[(2, 1), (9, 1)]);
    (case.rope_dims, case.transform) = (0, true);
    for token in [0, 1] {
        let mut caches: Vec<Cache> =
            case.sequences.iter().map(|(segments, _)| Cache::untouched(&case, segments)).collect();
        let (k, mut v) = (case.numbers(128, 1), case.numbers(128, 2));
        v[token * 64] = 1e9;
        let said = cuda.append(&case, &mut caches, &[], &k, &v);
        assert_eq!(matches!(said, Err(Error::Flagged { overflow: true, not_finite: false, .. })), token == 0);
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn tables_refuse_what_kernels_cannot_follow() {
    let cuda = Cuda::new();
    let case = Case::plain([DType::F16, DType::F16], 64, [1, 1], &[(8, 1)]);
    let cache = Cache::filled(&case, &[(0, 8, 0)], 1);
    let there = cuda.upload(&cache.bytes);
    let all = there.slice(..cache.bytes.len()).unwrap();
    let push = |table: &mut KvTable, segments: &[(usize, usize, i32)], tokens| {
        table.push(&cache.view(all, segments), tokens, None)
    };
    let mut table = KvTable::new();
    assert!(matches!(push(&mut table, &[(0, 8, 0)], 0), Err(Error::Dimension { .. })));
    assert!(matches!(push(&mut table, &[(0, 8, 0)], 9), Err(Error::Shape { .. })));
    // A step's rows are the end of one segment.
    assert!(matches!(push(&mut table, &[(0, 4, 0), (6, 2, 0)], 3), Err(Error::Dimension { .. })));
    assert!(matches!(push(&mut table, &[(0, 4, 0), (4, 2, -1)], 1), Err(Error::NoRope)));
    let on_host = cache.view(DeviceSlice::from(&cache.bytes[..]), &[(0, 8, 0)]);
    assert!(matches!(table.push(&on_host, 1, None), Err(Error::NotOnDevice { .. })));
    assert_eq!(table.counts(), KvTable::new().counts());
    push(&mut table, &[(0, 8, 0)], 1).unwrap();
    let other = Case::plain([DType::F32, DType::F16], 64, [1, 1], &[(8, 1)]);
    let other = Cache::filled(&other, &[(0, 8, 0)], 1);
    let buffer = cuda.upload(&other.bytes);
    let view = other.view(buffer.slice(..other.bytes.len()).unwrap(), &[(0, 8, 0)]);
    assert!(matches!(table.push(&view, 1, None), Err(Error::Layouts)));
    assert!(matches!(table.write(&mut [0; 47]), Err(Error::Shape { want: 48, .. })));
    assert!(matches!(table.on(DeviceSlice::from(&[0; 48][..])), Err(Error::NotOnDevice { .. })));
    assert!(matches!(table.on(all.subslice(8..56).unwrap()), Err(Error::Alignment { .. })));
    table.clear();
    assert_eq!(table.bytes(), 0);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn attention_refuses_what_does_not_fit() {
    let cuda = Cuda::new();
    let case = Case::plain([DType::Q8_0, DType::Q4_0], 64, [2, 2], &[(8, 2)]);
    let cache = Cache::filled(&case, &[(0, 8, 0)], 1);
    let there = cuda.upload(&cache.bytes);
    let mut table = KvTable::new();
    table.push(&cache.view(there.slice(..cache.bytes.len()).unwrap(), &[(0, 8, 0)]), 2, None).unwrap();
    let mut bytes = vec![0; table.bytes()];
    table.write(&mut bytes).unwrap();
    let memory = cuda.upload(&bytes);
    let view = table.on(memory.slice(..).unwrap()).unwrap();
    let (q, mut out) = (cuda.floats(&[0.0; 512]), cuda.floats(&[0.0; 512]));
    let tables = cuda.tables(&case);
    let need = cuda_scratch_len(&cuda.kernels, &Cuda::shape(&case, &tables), table.counts()).unwrap();
    let mut scratch = cuda.device().alloc(Bytes::from_usize(need)).unwrap();
    let mut attend = |layout: KvRowLayout, n_heads: usize, queries: usize, room: usize| {
        let transform = KvTransformTables::default();
        let shape = CudaAttention { layout, n_heads, scale: 0.125, transform, splits: None };
        let (q, out) = (q.slice(..queries * 4).unwrap(), out.slice_mut(..queries * 4).unwrap());
        let scratch = scratch.slice_mut(..room).unwrap();
        // SAFETY: all memory stays to the test's end.
        unsafe { attention::cuda(&cuda.kernels, &cuda.stream, &shape, &view, q, out, scratch) }
    };
    let layout = case.layout();
    assert!(matches!(attend(layout, 3, 512, need), Err(Error::Dimension { .. })));
    assert!(matches!(attend(layout, 4, 511, need), Err(Error::Shape { .. })));
    assert!(matches!(attend(layout, 4, 512, 64), Err(Error::Shape { .. })));
    assert!(matches!(
        attend(KvRowLayout { k_type: DType::Q4_1, ..layout }, 4, 512, need),
        Err(Error::Type { .. })
    ));
    assert!(matches!(
        attend(KvRowLayout { head_dim: 258, ..layout }, 4, 512, need),
        Err(Error::Dimension { .. })
    ));
    assert!(matches!(
        attend(KvRowLayout { v_quants: 8, ..layout }, 4, 512, need),
        Err(Error::Alignment { .. })
    ));
    let stride = layout.row_stride + 16;
    assert!(matches!(
        attend(KvRowLayout { row_stride: stride, ..layout }, 4, 512, need),
        Err(Error::Layouts)
    ));
    let sinks = Some(KvSinks { rows: 5, k: 0, v: 0 });
    assert!(matches!(attend(KvRowLayout { sinks, ..layout }, 4, 512, need), Err(Error::Dimension { .. })));
    attend(layout, 4, 512, need).unwrap();
    cuda.stream.synchronize().unwrap();
}
