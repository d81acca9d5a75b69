//! Every path of every product against its naive twin in f64, within the bound that the documentation states.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod naive;

use granule_quant::{DType, Error, Isa, QuantizedMatrix, QuantizedRow, Tile, gemm_f32, gemm_q8};
use proptest::prelude::*;

/// The types of products with floats, or of those with quantized activations.
fn types(quantized: bool) -> Vec<DType> {
    DType::ALL.iter().copied().filter(|dtype| dtype.is_quantized() == quantized).collect()
}

/// Rows of activations with what they are made of.
#[derive(Clone, Debug)]
struct Activations {
    q: Vec<i8>,
    d: Vec<f32>,
    s: Vec<f32>,
    rows: usize,
    k: usize,
}

impl Activations {
    fn new(q: Vec<i8>, d: Vec<f32>, rows: usize, k: usize) -> Self {
        let sum = |q: &[i8]| q.iter().map(|&q| i32::from(q)).sum::<i32>() as f32;
        let s = q.chunks(32).zip(&d).map(|(q, d)| d * sum(q)).collect();
        Self { q, d, s, rows, k }
    }

    fn matrix(&self) -> QuantizedMatrix<'_> {
        QuantizedMatrix::new(&self.q, &self.d, &self.s, self.rows, self.k).unwrap()
    }

    fn row(&self) -> QuantizedRow<'_> {
        self.matrix().row(0)
    }
}

/// Quants of any value that the quantizer makes, scales that the quantizer might make.
fn activations(rows: usize, k: usize) -> impl Strategy<Value = Activations> {
    let quants = prop_oneof![Just(127i8), Just(-127i8), Just(0i8), -127..=127i8];
    let q = prop::collection::vec(quants, rows * k);
    let d = prop::collection::vec(prop_oneof![0.001f32..4.0, Just(0.0f32)], rows * k / 32);
    (q, d).prop_map(move |(q, d)| Activations::new(q, d, rows, k))
}

/// Dot product of quantized rows in f64: the sum, and the sum of the magnitudes that the bound is stated in.
fn dot_q8(dtype: DType, row: &[u8], x: QuantizedRow<'_>) -> (f64, f64) {
    let (w, m): (Vec<_>, Vec<_>) = naive::parts(dtype, row).into_iter().unzip();
    let x: Vec<f64> = x.q.iter().enumerate().map(|(j, &q)| f64::from(x.d[j / 32]) * f64::from(q)).collect();
    let (mut sum, mut sizes) = naive::dot(&w, &x);
    // Elements that share a minimum.
    let group = if dtype == DType::Q2_K { 16 } else { 32 };
    for (m, x) in m.chunks(group).zip(x.chunks(group)) {
        let minimum = m[0] * x.iter().sum::<f64>();
        sum += minimum;
        sizes += minimum.abs();
    }
    if dtype == DType::Q4_0 {
        for (block, x) in row.chunks(18).zip(x.chunks(32)) {
            let scale = naive::f16(u16::from_le_bytes([block[0], block[1]])).abs();
            sizes += 8.0 * scale * x.iter().map(|x| x.abs()).sum::<f64>();
        }
    }
    (sum, sizes)
}

fn bound_q8(n: usize, sizes: f64) -> f64 {
    (n as f64 / 32.0 + 8.0) * naive::two_to(-23) * sizes
}

fn bound_f32(n: usize, sizes: f64) -> f64 {
    (n as f64 + 8.0) * naive::two_to(-23) * sizes
}

/// Rows of weights at an odd address, as a file may have them, of whole blocks.
fn matrix(
    dtypes: Vec<DType>,
    shape: impl Strategy<Value = (usize, usize, usize)>,
) -> impl Strategy<Value = (DType, Vec<u8>, usize, usize, usize)> {
    (prop::sample::select(dtypes), shape).prop_flat_map(|(dtype, (rows, k, c))| {
        let k = k.next_multiple_of(dtype.block_len());
        naive::weights(dtype, rows * k).prop_map(move |mut w| {
            w.insert(0, 0);
            (dtype, w, rows, k, c)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 150 }))]

    #[test]
    fn dot_q8_is_within_its_bound(
        ((dtype, w, _, k, _), x) in matrix(types(true), (0usize..40).prop_map(|b| (1, b * 32, 1)))
            .prop_flat_map(|m| (Just(m.clone()), activations(1, m.3)))
    ) {
        let (exact, sizes) = dot_q8(dtype, &w[1..], x.row());
        for isa in Isa::available() {
            let got = f64::from(isa.dot_q8(dtype, &w[1..], x.row()));
            prop_assert!((got - exact).abs() <= bound_q8(k, sizes), "{} {}: {} {}", isa, dtype, got, exact);
        }
    }

    #[test]
    fn gemm_q8_is_within_its_bound(
        ((dtype, w, rows, k, c), x) in
            matrix(types(true), (0usize..40, 0usize..4, 0usize..20).prop_map(|(r, b, c)| (r, b * 32, c)))
            .prop_flat_map(|m| (Just(m.clone()), activations(m.4, m.3))),
        gap in 0usize..3,
    ) {
        check_gemm_q8(dtype, &w[1..], rows, k, c, &x, gap)?;
    }

    #[test]
    fn dot_f32_is_within_its_bound(
        ((dtype, w, _, k, _), x) in matrix(types(false), (0usize..150).prop_map(|k| (1, k, 1)))
            .prop_flat_map(|m| (Just(m.clone()), naive::ordinary(m.3)))
    ) {
        let (exact, sizes) = naive::dot(&naive::decode(dtype, &w[1..]), &naive::widen(&x));
        for isa in Isa::available() {
            let got = f64::from(isa.dot_f32(dtype, &w[1..], &x));
            prop_assert!((got - exact).abs() <= bound_f32(k, sizes), "{} {}: {} {}", isa, dtype, got, exact);
        }
    }

    #[test]
    fn gemm_f32_is_within_its_bound(
        ((dtype, w, rows, k, c), x) in matrix(types(false), (0usize..11, 0usize..70, 0usize..11))
            .prop_flat_map(|m| (Just(m.clone()), naive::ordinary(m.4 * m.3))),
        gap in 0usize..3,
    ) {
        check_gemm_f32(dtype, &w[1..], rows, k, c, &x, gap)?;
    }

    #[test]
    fn a_scale_that_is_not_finite_never_makes_a_finite_product(
        dtype in prop::sample::select(types(true)),
        seed in prop::collection::vec(any::<u8>(), 24 * 34),
        at: prop::sample::Index,
        x in activations(17, 768),
    ) {
        let mut row = seed[..dtype.row_bytes(768).unwrap()].to_vec();
        naive::tame(dtype, &mut row);
        let scales = row.chunks_mut(dtype.block_bytes()).flat_map(|block| {
            let at = |i: usize| naive::scales(dtype).contains(&i);
            block.iter_mut().enumerate().filter(move |(i, _)| at(*i)).map(|(_, upper)| upper)
        });
        let mut scales: Vec<&mut u8> = scales.collect();
        let at = at.index(scales.len());
        *scales[at] |= 0x7c;
        for isa in Isa::available() {
            prop_assert!(!isa.dot_q8(dtype, &row, x.row()).is_finite(), "{}", isa);
            let mut out = vec![0.0; 17];
            isa.gemm_q8(dtype, &row, 768, &x.matrix(), Tile::new(&mut out, 1, 17, 1).unwrap()).unwrap();
            prop_assert!(out.iter().all(|x| !x.is_finite()), "{}", isa);
        }
    }
}

fn check_gemm_f32(
    dtype: DType,
    w: &[u8],
    rows: usize,
    k: usize,
    c: usize,
    x: &[f32],
    gap: usize,
) -> Result<(), TestCaseError> {
    let (stride, w_exact) = (rows + gap, naive::decode(dtype, w));
    for isa in Isa::available() {
        let mut out = vec![-7.0; stride * c];
        isa.gemm_f32(dtype, w, k, x, Tile::new(&mut out, rows, c, stride).unwrap()).unwrap();
        for i in 0..c {
            let column = naive::widen(&x[i * k..][..k]);
            for r in 0..rows {
                let (exact, sizes) = naive::dot(&w_exact[r * k..][..k], &column);
                let got = f64::from(out[i * stride + r]);
                prop_assert!(
                    (got - exact).abs() <= bound_f32(k, sizes),
                    "{isa} {dtype} ({r}, {i}): {got} {exact}"
                );
            }
            prop_assert!(out[i * stride + rows..][..gap].iter().all(|&x| x == -7.0));
        }
    }
    Ok(())
}

fn check_gemm_q8(
    dtype: DType,
    w: &[u8],
    rows: usize,
    k: usize,
    c: usize,
    x: &Activations,
    gap: usize,
) -> Result<(), TestCaseError> {
    let (stride, row_bytes) = (rows + gap, dtype.row_bytes(k).unwrap());
    for isa in Isa::available() {
        let mut out = vec![-7.0; stride * c];
        isa.gemm_q8(dtype, w, k, &x.matrix(), Tile::new(&mut out, rows, c, stride).unwrap()).unwrap();
        for i in 0..c {
            for r in 0..rows {
                let (exact, sizes) = dot_q8(dtype, &w[r * row_bytes..][..row_bytes], x.matrix().row(i));
                let got = f64::from(out[i * stride + r]);
                prop_assert!(
                    (got - exact).abs() <= bound_q8(k, sizes),
                    "{isa} {dtype} ({r}, {i}): {got} {exact}"
                );
            }
            prop_assert!(out[i * stride + rows..][..gap].iter().all(|&x| x == -7.0));
        }
    }
    Ok(())
}

/// Shapes that need several panels and several groups of columns.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn large_products_are_within_their_bounds() {
    for dtype in types(true) {
        for (rows, k, c) in [(37, 32 * 75, 71), (16, 1024, 64), (3, 2080usize, 130)] {
            let k = k.next_multiple_of(dtype.block_len());
            let mut w = naive::bytes(dtype.row_bytes(rows * k).unwrap());
            naive::tame(dtype, &mut w);
            let q: Vec<i8> = naive::bytes(c * k).into_iter().map(|b| (b as i8).max(-127)).collect();
            let d: Vec<f32> = naive::bytes(c * k / 32).into_iter().map(|b| f32::from(b) / 64.0).collect();
            check_gemm_q8(dtype, &w, rows, k, c, &Activations::new(q, d, c, k), 1).unwrap();
        }
    }
    for dtype in types(false) {
        let (rows, k, c) = (9, 3000, 70);
        let mut w = naive::bytes(dtype.row_bytes(rows * k).unwrap());
        naive::tame(dtype, &mut w);
        let x: Vec<f32> = naive::bytes(c * k).into_iter().map(|b| f32::from(b) / 64.0 - 2.0).collect();
        check_gemm_f32(dtype, &w, rows, k, c, &x, 0).unwrap();
    }
}

#[test]
fn tiles_split_an_output_between_threads() {
    let (rows, k, c) = (10, 3, 4);
    let w: Vec<f32> = (0..rows * k).map(|i| i as f32).collect();
    let x: Vec<f32> = (0..c * k).map(|i| i as f32 - 5.0).collect();
    let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
    let mut whole = vec![0.0; rows * c];
    gemm_f32(DType::F32, &bytes, rows, k, &x, c, &mut whole, rows).unwrap();
    let mut halves = vec![0.0; rows * c];
    let (above, below) = Tile::new(&mut halves, rows, c, rows).unwrap().split_rows(6);
    assert_eq!((above.rows(), below.rows(), below.cols()), (6, 4, 4));
    std::thread::scope(|scope| {
        let (w_above, w_below) = bytes.split_at(6 * k * 4);
        scope.spawn(|| Isa::best().gemm_f32(DType::F32, w_above, k, &x, above).unwrap());
        Isa::best().gemm_f32(DType::F32, w_below, k, &x, below).unwrap();
    });
    assert_eq!(halves, whole);
    let (all, none) = Tile::new(&mut halves, rows, c, rows).unwrap().split_rows(11);
    assert_eq!((all.rows(), none.rows()), (10, 0));
}

#[test]
fn shapes_are_checked() {
    let mut out = [7.0; 8];
    let x = QuantizedMatrix::new(&[1; 64], &[1.0; 2], &[32.0; 2], 2, 32).unwrap();
    let row = [0; 34];
    let length = |what, expected, got| Err(Error::Length { what, expected, got });
    assert_eq!(gemm_q8(DType::Q8_0, &row, 1, 32, &x, &mut out[..1], 1), length("out", 2, 1));
    assert_eq!(gemm_q8(DType::Q8_0, &row, 2, 32, &x, &mut out, 1), length("out_stride", 2, 1));
    assert_eq!(gemm_q8(DType::Q8_0, &row, 2, 32, &x, &mut out, 2), length("w", 68, 34));
    assert_eq!(gemm_q8(DType::Q8_0, &[0; 68], 1, 64, &x, &mut out, 1), length("k of x", 64, 32));
    assert!(matches!(
        gemm_q8(DType::F16, &row, 1, 17, &x, &mut out, 1),
        Err(Error::WrongProduct { dtype: DType::F16, .. })
    ));
    assert!(matches!(
        gemm_f32(DType::Q4_0, &row, 1, 32, &[], 0, &mut out, 1),
        Err(Error::WrongProduct { dtype: DType::Q4_0, .. })
    ));
    assert_eq!(gemm_f32(DType::F16, &row, 1, 17, &[0.0; 16], 1, &mut out, 1), length("x", 17, 16));
    assert_eq!(out, [7.0; 8]);
    assert!(QuantizedMatrix::new(&[], &[], &[], usize::MAX, 32).is_err());
    assert!(QuantizedMatrix::new(&[0; 33], &[0.0], &[0.0], 1, 33).is_err());
    assert!(Tile::new(&mut out, 8, usize::MAX, 8).is_err());
    // A sum of no terms is zero.
    gemm_f32(DType::F32, &[], 4, 0, &[], 2, &mut out, 4).unwrap();
    assert_eq!(out, [0.0; 8]);
}

/// A caller that has checked nothing gets NaN, not a number and not a fault.
#[test]
#[cfg(not(debug_assertions))]
fn rows_that_do_not_fit_give_nan() {
    for isa in Isa::available() {
        let x = QuantizedRow { q: &[0; 32], d: &[0.0], s: &[0.0] };
        assert!(isa.dot_q8(DType::Q8_0, &[0; 33], x).is_nan());
        assert!(isa.dot_q8(DType::F32, &[0; 128], x).is_nan());
        assert!(isa.dot_f32(DType::F16, &[0; 5], &[0.0; 2]).is_nan());
    }
}
