//! Packed weights: their products against a naive twin in f64, and fixed-point activations against their rule.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod naive;

use granule_quant::{Bf16Matrix, DType, Error, FixedMatrix, Isa, PANEL_ROWS, Packing, Tile};
use proptest::prelude::*;

fn packings() -> Vec<Packing> {
    let types = DType::ALL.iter();
    types.flat_map(|&dtype| Isa::available().into_iter().filter_map(move |isa| isa.packing(dtype))).collect()
}

/// Rows of fixed-point numbers, and what they stand for.
struct Fixed {
    high: Vec<i8>,
    low: Vec<i8>,
    d: Vec<f32>,
    sums: Vec<[i32; 2]>,
}

impl Fixed {
    fn new(isa: Isa, x: &[f32], wide: bool) -> Self {
        let n = x.len();
        let low = if wide { vec![99; n] } else { Vec::new() };
        let mut fixed =
            Self { high: vec![99; n], low, d: vec![f32::NAN; n / 32], sums: vec![[99; 2]; n / 32] };
        isa.quantize_fixed(x, &mut fixed.high, &mut fixed.low, &mut fixed.d, &mut fixed.sums).unwrap();
        fixed
    }

    fn matrix(&self, rows: usize, k: usize) -> FixedMatrix<'_> {
        FixedMatrix::new(&self.high, &self.low, &self.d, &self.sums, rows, k).unwrap()
    }

    fn number(&self, i: usize) -> i32 {
        let high = i32::from(self.high[i]);
        self.low.get(i).map_or(high, |&low| 256 * high + i32::from(low))
    }

    fn value(&self, i: usize) -> f64 {
        f64::from(self.d[i / 32]) * f64::from(self.number(i))
    }
}

/// A product as the documentation defines it, and the sum of the magnitudes that its bound is stated in.
fn product(dtype: DType, row: &[u8], x: &[f64]) -> (f64, f64) {
    let (w, m): (Vec<_>, Vec<_>) = naive::parts(dtype, row).into_iter().unzip();
    let (mut sum, mut sizes) = naive::dot(&w, x);
    let group = if dtype == DType::Q2_K { 16 } else { 32 };
    for (m, x) in m.chunks(group).zip(x.chunks(group)) {
        let minimum = m[0] * x.iter().sum::<f64>();
        sum += minimum;
        sizes += minimum.abs();
    }
    (sum, sizes)
}

/// A type's packing, rows of weights at an odd address, and the columns that they meet.
fn case() -> impl Strategy<Value = (Packing, Vec<u8>, [usize; 3], Vec<f32>)> {
    // Stretches of 16 runs, whole and not, and several of them.
    let runs = prop::sample::select(vec![0usize, 8, 16, 24, 40]);
    let shape = (0usize..40, runs, 0usize..9, 0usize..30);
    (prop::sample::select(packings()), shape).prop_flat_map(|(packing, (rows, runs, odd, c))| {
        let k = 32 * if packing.dtype().block_len() == 32 { runs + odd } else { runs };
        let w = naive::weights(packing.dtype(), rows * k).prop_map(|mut w| {
            w.insert(0, 0);
            w
        });
        (Just(packing), w, Just([rows, k, c]), naive::ordinary(c * k))
    })
}

fn check(packing: Packing, w: &[u8], [rows, k, c]: [usize; 3], x: &[f32], wide: bool) {
    let dtype = packing.dtype();
    let mut packed = vec![0xaa; packing.bytes(rows, k).unwrap()];
    packing.pack(w, k, &mut packed).unwrap();
    let fixed = Fixed::new(Isa::SCALAR, x, wide);
    let stride = rows + 3;
    let mut out = vec![f32::NAN; c * stride];
    packing.gemm(&packed, k, &fixed.matrix(c, k), Tile::new(&mut out, rows, c, stride).unwrap()).unwrap();
    for (col, out) in out.chunks(stride).enumerate() {
        assert!(out[rows..].iter().all(|x| x.is_nan()), "{dtype}: written behind the rows");
        let x: Vec<f64> = (col * k..(col + 1) * k).map(|i| fixed.value(i)).collect();
        for (r, &got) in out[..rows].iter().enumerate() {
            let row = &w[r * dtype.row_bytes(k).unwrap()..][..dtype.row_bytes(k).unwrap()];
            let (exact, sizes) = product(dtype, row, &x);
            let bound = (k as f64 / 32.0 + 8.0) * naive::two_to(-23) * sizes;
            assert!((f64::from(got) - exact).abs() <= bound, "{dtype} ({r}, {col}): {got} {exact}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    #[cfg_attr(miri, ignore = "there are no vector paths")]
    fn products_are_within_their_bound((packing, w, shape, x) in case(), wide in any::<bool>()) {
        check(packing, &w[1..], shape, &x, wide);
    }

    #[test]
    fn fixed_point_is_the_rule(x in naive::ordinary(96), wide in any::<bool>(), tiny in 0usize..3) {
        let mut x = x;
        // A block of zeros, and one whose scale has no inverse.
        match tiny {
            0 => x[..32].fill(0.0),
            1 => x[..32].iter_mut().for_each(|x| *x = x.signum() * 1e-44),
            _ => {}
        }
        let most = if wide { 32512.0 } else { 127.0f32 };
        for isa in Isa::available() {
            let fixed = Fixed::new(isa, &x, wide);
            for (b, x) in x.chunks(32).enumerate() {
                let d = x.iter().fold(0.0, |a: f32, x| a.max(x.abs())) / most;
                prop_assert_eq!(fixed.d[b], d);
                let inverse = if (1.0 / d).is_finite() { 1.0 / d } else { 0.0 };
                let numbers: Vec<i32> = (0..32).map(|j| fixed.number(b * 32 + j)).collect();
                let rule: Vec<i32> = x.iter().map(|x| (x * inverse).round() as i32).collect();
                prop_assert_eq!(&numbers, &rule, "{}", isa);
                let sums = [numbers.iter().sum::<i32>(), numbers[..16].iter().sum()];
                prop_assert_eq!(fixed.sums[b], sums, "{}", isa);
            }
        }
    }
}

proptest! {
    #[test]
    fn swiglu_is_its_formula(
        x in prop::collection::vec((prop_oneof![-10f32..10.0, -200f32..200.0, Just(0.0f32), Just(-0.0f32)], -3f32..3.0), 0..100)
    ) {
        let (gate, up): (Vec<_>, Vec<_>) = x.into_iter().unzip();
        for isa in Isa::available() {
            let mut out = gate.clone();
            isa.swiglu(&mut out, &up).unwrap();
            for ((&g, &u), &got) in gate.iter().zip(&up).zip(&out) {
                let (g, u) = (f64::from(g), f64::from(u));
                let exact = g / (1.0 + (-g).exp()) * u;
                let bound = exact.abs() * naive::two_to(-20) + 1e-34;
                prop_assert!((f64::from(got) - exact).abs() <= bound, "{isa} {g} {u}: {got} {exact}");
            }
            prop_assert!(isa.swiglu(&mut out, &[0.0; 101]).is_err());
        }
    }
}

/// Products in bf16, where there are any, against the sum over numbers that were rounded.
#[test]
fn bf16_products_are_sums_of_rounded_numbers() {
    for isa in Isa::available() {
        for dtype in DType::ALL.iter().copied().filter(|&dtype| isa.has_bf16_products(dtype, 32)) {
            for (rows, k, c) in
                [(1, 32, 1), (16, 64, 3), (65, 224, 8), (130, 96, 13), (0, 32, 2), (3, 0, 2), (64, 32, 0)]
            {
                let mut w = naive::bytes(rows * k * 2);
                naive::tame(dtype, &mut w);
                let x: Vec<f32> = (0..c * k).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
                let mut bits = vec![0; c * k];
                isa.round_bf16(&x, &mut bits).unwrap();
                let matrix = Bf16Matrix::new(&bits, c, k).unwrap();
                let mut out = vec![f32::NAN; c * (rows + 1)];
                let tile = Tile::new(&mut out, rows, c, rows + 1).unwrap();
                isa.gemm_bf16(dtype, &w, k, &matrix, tile).unwrap();
                let rounded = |x: f64| {
                    let bits = (x as f32).to_bits();
                    f64::from(f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000))
                };
                for (col, out) in out.chunks(rows + 1).enumerate() {
                    assert!(out[rows].is_nan());
                    let x: Vec<f64> = x[col * k..][..k].iter().map(|&x| rounded(f64::from(x))).collect();
                    for (r, &got) in out[..rows].iter().enumerate() {
                        let w = naive::decode(dtype, &w[r * k * 2..][..k * 2]).into_iter().map(rounded);
                        let (exact, sizes) = naive::dot(&w.collect::<Vec<_>>(), &x);
                        let bound = (k as f64 + 8.0) * naive::two_to(-23) * sizes;
                        assert!(
                            (f64::from(got) - exact).abs() <= bound,
                            "{dtype} ({r}, {col}): {got} {exact}"
                        );
                    }
                }
            }
        }
        let none = Bf16Matrix::new(&[0; 32], 1, 32).unwrap();
        let mut out = [7.0; 1];
        let tile = Tile::new(&mut out, 1, 1, 1).unwrap();
        assert!(matches!(
            isa.gemm_bf16(DType::F32, &[0; 128], 32, &none, tile),
            Err(Error::WrongProduct { .. })
        ));
        assert!(Bf16Matrix::new(&[0; 32], 2, 32).is_err());
        assert_eq!(out, [7.0]);
    }
}

/// More columns than meet a stretch at a time, and panels that have no partner.
#[test]
fn many_columns() {
    for packing in packings() {
        for (rows, k, c) in [(1, 768, 255), (17, 512, 257), (48, 768, 300), (33, 256, 9)] {
            let mut w = naive::bytes(rows * packing.dtype().row_bytes(k).unwrap());
            naive::tame(packing.dtype(), &mut w);
            let x: Vec<f32> = (0..c * k).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
            check(packing, &w, [rows, k, c], &x, false);
        }
    }
}

/// The largest sums that there can be: every code at its highest, every number at its extreme, in all orders of columns.
#[test]
fn extremes_do_not_overflow() {
    for packing in packings() {
        let k = 512;
        let bytes = packing.dtype().row_bytes(k).unwrap();
        let mut w = vec![0xff; 17 * bytes];
        naive::tame(packing.dtype(), &mut w);
        for sign in [1.0, -1.0] {
            for wide in [false, true] {
                let x: Vec<f32> =
                    (0..20 * k).map(|i| if i / k % 2 == 0 { sign } else { -sign * 3.0 }).collect();
                check(packing, &w, [17, k, 20], &x, wide);
            }
        }
    }
}

#[test]
fn wrong_lengths_are_errors_and_change_nothing() {
    for packing in packings() {
        let k = 256;
        let row = packing.dtype().row_bytes(k).unwrap();
        let bytes = packing.bytes(17, k).unwrap();
        assert_eq!(bytes, packing.bytes(2 * PANEL_ROWS, k).unwrap());
        let mut packed = vec![7; bytes];
        assert!(matches!(packing.pack(&vec![0; 17 * row - 1], k, &mut packed), Err(Error::Length { .. })));
        assert!(matches!(packing.pack(&vec![0; 17 * row], k, &mut packed[1..]), Err(Error::Length { .. })));
        assert!(matches!(packing.bytes(1, k + 1), Err(Error::RowLength { .. })));
        assert!(matches!(packing.bytes(usize::MAX, k), Err(Error::TooLarge { .. })));
        assert!(matches!(packing.bytes(1, usize::MAX & !255), Err(Error::TooLarge { .. })));
        assert!(packed.iter().all(|&b| b == 7));
        let x = Fixed::new(Isa::best(), &vec![1.0; k], true);
        let mut out = [7.0; 33];
        for (w, rows) in [(&packed[1..], 17), (&packed[..], 33)] {
            let tile = Tile::new(&mut out[..rows], rows, 1, rows).unwrap();
            assert!(packing.gemm(w, k, &x.matrix(1, k), tile).is_err());
        }
        let tile = Tile::new(&mut out[..17], 17, 1, 17).unwrap();
        assert!(packing.gemm(&packed, k, &x.matrix(2, 128), tile).is_err());
        assert!(out.iter().all(|&x| x == 7.0));
    }
    assert!(Isa::best().packing(DType::F16).is_none());
    assert!(Isa::SCALAR.packing(DType::Q4_0).is_none());
}
