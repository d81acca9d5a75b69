//! Every operation against its naive twin: a few obvious lines in f64 that share nothing with the fast path.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "support/random.rs"]
mod random;

use std::num::NonZeroUsize;

use granule_device::DeviceSlice;
use granule_ops::{
    Activations, Error, KvRowLayout, KvView, Matrix, Precision, QuantScratch, Rope, Threads, add, embed,
    log_softmax_at, matmul, rms_norm, rotate, softmax, swiglu,
};
use granule_quant::{DType, Isa, Packing, planar_bytes};
use proptest::prelude::*;
use random::numbers;

fn threads(n: usize) -> Threads {
    Threads::new(NonZeroUsize::new(n).unwrap()).unwrap()
}

/// A weight of `rows` x `cols`: its bytes, and the numbers that they stand for.
fn weight(dtype: DType, rows: usize, cols: usize, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let x = numbers(seed, rows * cols);
    let mut bytes = vec![0; dtype.row_bytes(cols).unwrap() * rows];
    let mut back = vec![0.0; rows * cols];
    granule_quant::scalar::encode(dtype, &x, &mut bytes).unwrap();
    granule_quant::scalar::decode(dtype, &bytes, &mut back).unwrap();
    (bytes, back)
}

const WEIGHTS: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1];

/// The bytes of a weight as this machine's products take them, where it has a form of its own for them.
fn pack(dtype: DType, bytes: &[u8], rows: usize, cols: usize) -> Option<(Packing, Vec<u8>)> {
    let packing = Isa::best().packing(dtype)?;
    let mut packed = vec![0; packing.bytes(rows, cols).unwrap()];
    packing.pack(bytes, cols, &mut packed).unwrap();
    Some((packing, packed))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn matmul_is_the_sum_of_products(
        dtypes in prop::collection::vec(prop::sample::select(&WEIGHTS[..]), 1..4),
        rows in prop::collection::vec(1usize..150, 3),
        tokens in prop_oneof![Just(1usize), 2usize..40], blocks in 1usize..5, tail in 0usize..32, n_threads in 1usize..4,
        seed: u64, packed: bool, precise: bool,
    ) {
        let packed = packed && Isa::best().packing(DType::Q4_0).is_some();
        let quantized = dtypes.iter().any(|d| d.is_quantized());
        let tail = if precise { tail } else { 0 };
        let halves = !quantized && !precise
            && dtypes.iter().any(|&d| Activations::bf16_pays(d, tokens, blocks * 32));
        let cols = blocks * 32 + if quantized { 0 } else { tail };
        let x = numbers(seed, tokens * cols);
        let pool = threads(n_threads);
        let (mut quants, mut scales, mut sums) =
            (vec![0i8; 2 * tokens * cols], vec![0f32; tokens * cols / 16], vec![0f32; tokens * cols / 16]);
        let activations = if quantized {
            let scratch = QuantScratch { quants: &mut quants, scales: &mut scales, sums: &mut sums };
            let precision = if precise { Precision::Precise } else { Precision::Fast };
            if packed {
                Activations::fixed(&pool, &x, tokens, cols, precision, scratch).unwrap()
            } else {
                Activations::quantized(&pool, &x, tokens, cols, precision, scratch).unwrap()
            }
        } else if halves {
            let scratch = QuantScratch { quants: &mut quants, scales: &mut scales, sums: &mut sums };
            Activations::bf16(&pool, &x, tokens, cols, scratch).unwrap()
        } else {
            Activations::plain(&x, tokens, cols).unwrap()
        };
        let weights: Vec<_> =
            dtypes.iter().zip(&rows).map(|(&d, &r)| (d, r, weight(d, r, cols, seed ^ r as u64))).collect();
        let mut outs: Vec<Vec<f32>> = weights.iter().map(|(_, r, _)| vec![f32::NAN; tokens * r]).collect();
        let forms: Vec<_> =
            weights.iter().map(|(d, r, (bytes, _))| pack(*d, bytes, *r, cols).filter(|_| packed)).collect();
        let mut products: Vec<_> = weights.iter().zip(&forms).zip(&mut outs)
            .map(|(((d, r, (bytes, _)), form), out)| {
                let matrix = match form {
                    Some((packing, bytes)) => Matrix::packed(*packing, *r, cols, DeviceSlice::from(&bytes[..])),
                    None => Matrix::new(*d, *r, cols, DeviceSlice::from(&bytes[..])),
                };
                (matrix.unwrap(), &mut out[..])
            })
            .collect();
        matmul(&pool, &activations, &mut products).unwrap();
        for ((dtype, rows, (_, w)), out) in weights.iter().zip(&outs) {
            for t in 0..tokens {
                let x = &x[t * cols..(t + 1) * cols];
                for r in 0..*rows {
                    let w = &w[r * cols..(r + 1) * cols];
                    let exact: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                    let magnitude: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x * w).abs()).sum();
                    // An 8-bit activation is off by at most half a step of max|x| / 127, max|x| < 1; that of a lone
                    // token by at most half a step of what 8 bits more leave of that.
                    let step: f64 = if dtype.is_quantized() {
                        let rest = if tokens == 1 || precise { 0.501 / 127.0 } else { 1.0 };
                        w.iter().map(|&w| f64::from(w).abs()).sum::<f64>() * 0.501 / 127.0 * rest
                    } else { 0.0 };
                    // Both factors of a product are off by half of the last of eight bits.
                    let rounding = if halves && *dtype != DType::F32 { 2f64.powi(-8) + 1e-5 } else { 1e-5 };
                    let bound = magnitude * rounding + step + 1e-6;
                    let got = f64::from(out[t * rows + r]);
                    prop_assert!((got - exact).abs() <= bound, "{dtype} {t},{r}: {got} for {exact}");
                }
            }
        }
    }

    #[test]
    fn rms_norm_divides_by_the_root_mean_square(n in 1usize..300, rows in 1usize..4, seed: u64) {
        let (x, w) = (numbers(seed, n * rows), numbers(!seed, n));
        let mut out = vec![0.0; x.len()];
        rms_norm(&threads(2), &x, &w, 1e-5, &mut out).unwrap();
        for (x, y) in x.chunks(n).zip(out.chunks(n)) {
            let mean: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / n as f64;
            for i in 0..n {
                let exact = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(w[i]);
                prop_assert!((f64::from(y[i]) - exact).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn rope_turns_adjacent_pairs(
        dims in prop::sample::select(vec![0usize, 2, 8, 64]), more in 0usize..3, n_heads in 1usize..4,
        tokens in 1usize..4, first in 0usize..5000, linear in prop::sample::select(vec![1f32, 4.0]), factors: bool, seed: u64,
    ) {
        let head_dim = dims + 2 * more + 2;
        let factor: Vec<f32> = numbers(seed, dims / 2).iter().map(|x| 2.0 + x).collect();
        let rope = Rope::new(dims, 10_000.0, linear, factors.then_some(&factor[..])).unwrap();
        let x = numbers(!seed, tokens * n_heads * head_dim);
        let (mut y, mut angles) = (x.clone(), vec![0.0; tokens * dims]);
        rope.angles(first, tokens, &mut angles).unwrap();
        rotate(&mut y, n_heads, head_dim, dims, &angles).unwrap();
        for (i, (x, y)) in x.chunks(head_dim).zip(y.chunks(head_dim)).enumerate() {
            let position = (first + i / n_heads) as f64 / f64::from(linear);
            for j in 0..head_dim / 2 {
                let mut angle = 0.0;
                if 2 * j < dims {
                    angle = position / 10_000f64.powf(2.0 * j as f64 / dims as f64);
                    if factors { angle /= f64::from(factor[j]) }
                }
                let (a, b) = (f64::from(x[2 * j]), f64::from(x[2 * j + 1]));
                prop_assert!((f64::from(y[2 * j]) - (a * angle.cos() - b * angle.sin())).abs() < 1e-6);
                prop_assert!((f64::from(y[2 * j + 1]) - (a * angle.sin() + b * angle.cos())).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn the_small_ones(n in 1usize..5000, seed: u64) {
        let (a, b) = (numbers(seed, n), numbers(!seed, n));
        let mut sum = a.clone();
        add(&threads(2), &mut sum, &b).unwrap();
        let mut gated = a.clone();
        swiglu(&threads(2), &mut gated, &b).unwrap();
        let mut probabilities: Vec<f32> = a.iter().map(|x| x * 20.0).collect();
        let exact: Vec<f64> = probabilities.iter().map(|&x| f64::from(x).exp()).collect();
        let log = log_softmax_at(&probabilities, n / 2);
        softmax(&mut probabilities);
        let total: f64 = exact.iter().sum();
        prop_assert!((log - (exact[n / 2] / total).ln()).abs() < 1e-9);
        for i in 0..n {
            let (x, y) = (f64::from(a[i]), f64::from(b[i]));
            prop_assert_eq!(sum[i], a[i] + b[i]);
            prop_assert!((f64::from(gated[i]) - x / (1.0 + (-x).exp()) * y).abs() < 1e-6);
            prop_assert!((f64::from(probabilities[i]) - exact[i] / total).abs() < 1e-6);
        }
    }

    #[test]
    fn embed_decodes_rows(dtype in prop::sample::select(&WEIGHTS[..]), ids in prop::collection::vec(0u32..20, 0..9), seed: u64) {
        let (bytes, table) = weight(dtype, 20, 64, seed);
        let matrix = Matrix::new(dtype, 20, 64, DeviceSlice::from(&bytes[..])).unwrap();
        let mut out = vec![f32::NAN; ids.len() * 64];
        embed(&matrix, ids.iter().copied(), &mut out).unwrap();
        for (id, row) in ids.iter().zip(out.chunks(64)) {
            prop_assert_eq!(row, &table[*id as usize * 64..][..64]);
        }
    }
}

/// Planes one after the other, each padded to 16 bytes, behind `lead` bytes of another layer.
fn layout(k_type: DType, v_type: DType, n_kv_heads: usize, head_dim: usize, lead: usize) -> KvRowLayout {
    let k = planar_bytes(k_type, n_kv_heads * head_dim).unwrap();
    let v = planar_bytes(v_type, n_kv_heads * head_dim).unwrap();
    let k_scales = lead + k.quants.next_multiple_of(16);
    let v_quants = k_scales + k.scales.next_multiple_of(16);
    let v_scales = v_quants + v.quants.next_multiple_of(16);
    let row_stride = v_scales + v.scales.next_multiple_of(16) + 32;
    KvRowLayout {
        k_type,
        v_type,
        n_kv_heads,
        head_dim,
        row_stride,
        rows_at: 0,
        k_quants: lead,
        k_scales,
        v_quants,
        v_scales,
        sinks: None,
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let pool = threads(1);
    let bytes = [0u8; 64];
    let matrix = |rows, cols| Matrix::new(DType::F32, rows, cols, DeviceSlice::from(&bytes[..]));
    assert!(matches!(matrix(4, 5), Err(Error::Shape { .. })));
    assert!(matrix(usize::MAX, usize::MAX).is_err());
    assert!(matches!(Matrix::new(DType::Q4_0, 1, 33, DeviceSlice::from(&bytes[..])), Err(Error::Quant(_))));
    let matrix = matrix(4, 4).unwrap();
    let mut out = [7.0; 4];
    assert!(matches!(
        embed(&matrix, [3, 4].into_iter(), &mut [0.0; 8]),
        Err(Error::TokenId { id: 4, rows: 4 })
    ));
    assert!(matches!(embed(&matrix, [3].into_iter(), &mut [0.0; 8]), Err(Error::Shape { .. })));
    let x = Activations::plain(&[0.0; 5], 1, 5).unwrap();
    assert!(matches!(matmul(&pool, &x, &mut [(matrix, &mut out)]), Err(Error::Shape { .. })));
    let quantized = [0u8; 18];
    let q = Matrix::new(DType::Q4_0, 1, 32, DeviceSlice::from(&quantized[..])).unwrap();
    let x = Activations::plain(&[0.0; 32], 1, 32).unwrap();
    assert!(matches!(matmul(&pool, &x, &mut [(q, &mut out[..1])]), Err(Error::NotQuantized { .. })));
    if let Some((packing, packed)) = pack(DType::Q4_0, &quantized, 1, 32) {
        assert!(Matrix::packed(packing, 17, 32, DeviceSlice::from(&packed[..])).is_err());
        let p = Matrix::packed(packing, 1, 32, DeviceSlice::from(&packed[..])).unwrap();
        let (mut quants, mut scales, mut sums) = ([0; 64], [0.0; 2], [0.0; 2]);
        macro_rules! scratch {
            () => {
                QuantScratch { quants: &mut quants, scales: &mut scales, sums: &mut sums }
            };
        }
        let x = Activations::quantized(&pool, &[0.0; 32], 1, 32, Precision::Fast, scratch!()).unwrap();
        assert!(matches!(
            matmul(&pool, &x, &mut [(p, &mut out[..1])]),
            Err(Error::Packed { packed: true, .. })
        ));
        let x = Activations::fixed(&pool, &[0.0; 32], 1, 32, Precision::Fast, scratch!()).unwrap();
        assert!(matches!(
            matmul(&pool, &x, &mut [(q, &mut out[..1])]),
            Err(Error::Packed { packed: false, .. })
        ));
        assert!(matches!(
            embed(&p, [0].into_iter(), &mut [0.0; 32]),
            Err(Error::Packed { packed: true, .. })
        ));
        assert!(Activations::fixed(&pool, &[f32::NAN; 32], 1, 32, Precision::Fast, scratch!()).is_err());
        assert!(matches!(
            Activations::fixed(&pool, &[0.0; 64], 2, 32, Precision::Fast, scratch!()),
            Err(Error::Shape { .. })
        ));
    }
    assert_eq!(out, [7.0; 4]);
    assert!(rms_norm(&pool, &[0.0; 5], &[1.0; 2], 0.0, &mut [0.0; 5]).is_err());
    assert!(matches!(Rope::new(7, 1.0, 1.0, None), Err(Error::Dimension { .. })));
    assert!(matches!(Rope::new(8, 1.0, 1.0, Some(&[1.0; 3])), Err(Error::Shape { .. })));
    assert!(matches!(rotate(&mut [0.0; 8], 1, 8, 10, &[0.0; 10]), Err(Error::Dimension { .. })));
    assert!(add(&pool, &mut [0.0; 2], &[0.0; 3]).is_err());
    assert!(swiglu(&pool, &mut [0.0; 2], &[0.0; 3]).is_err());
}

#[test]
fn a_view_must_hold_its_rows_and_heads_be_whole_blocks() {
    let bytes = vec![0u8; 1 << 16];
    let slice = DeviceSlice::from(&bytes[..]);
    let good = layout(DType::Q8_0, DType::F16, 2, 32, 0);
    let fits = bytes.len() / good.row_stride;
    assert_eq!(KvView::contiguous(slice, good, fits).unwrap().len(), fits);
    assert!(matches!(KvView::contiguous(slice, good, fits + 1), Err(Error::Shape { .. })));
    assert!(KvView::contiguous(slice, good, usize::MAX).is_err());
    // 2 x 16 elements are one block, but a head is half of it.
    let halves = KvRowLayout { head_dim: 16, ..good };
    assert!(matches!(KvView::contiguous(slice, halves, 1), Err(Error::Quant(_))));
    for bad in [
        KvRowLayout { k_scales: good.k_scales - 16, ..good },
        KvRowLayout { v_scales: good.row_stride, v_type: DType::Q8_0, ..good },
        KvRowLayout { row_stride: good.v_quants, ..good },
        KvRowLayout { v_quants: usize::MAX, ..good },
    ] {
        assert!(matches!(KvView::contiguous(slice, bad, 1), Err(Error::Shape { .. })), "{bad:?}");
    }
}
