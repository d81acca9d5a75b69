//! The encoders that look for their scales, against what their formats allow and against obvious encoders.

mod naive;

use granule_quant::{BlockQ4_K, BlockQ5_K, BlockQ6_K, DType, Error, Isa, encode};
use proptest::prelude::*;

const FITTED: [DType; 3] = [DType::Q4_K, DType::Q5_K, DType::Q6_K];

fn encoded(dtype: DType, x: &[f32]) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; dtype.row_bytes(x.len())?];
    encode(dtype, x, &mut bytes).map(|()| bytes)
}

/// The largest quant of a type.
fn high(dtype: DType) -> f64 {
    match dtype {
        DType::Q4_K => 15.0,
        _ => 31.0,
    }
}

/// What the obvious encoder makes of a block, without the roundings of its scales: the range of each group in even steps, as
/// fine as the group with the widest range allows the others to be.
fn obvious(dtype: DType, x: &[f32]) -> Vec<f64> {
    let x = naive::widen(x);
    if dtype == DType::Q6_K {
        let scales: Vec<f64> =
            x.chunks(16).map(|x| x.iter().fold(0.0, |m: f64, x| m.max(x.abs())) / 31.0).collect();
        let d = scales.iter().fold(0.0, |m: f64, s| m.max(*s)) / 127.0;
        let group = |(x, s): (&[f64], &f64)| {
            let scale = d * if d > 0.0 { (s / d).ceil() } else { 0.0 };
            x.iter().map(|x| if scale > 0.0 { scale * (x / scale).round() } else { 0.0 }).collect::<Vec<_>>()
        };
        return x.chunks(16).zip(&scales).flat_map(group).collect();
    }
    let low = |x: &[f64]| x.iter().fold(0.0, |m: f64, x| m.min(*x));
    let lines: Vec<_> = x
        .chunks(32)
        .map(|x| (low(x), (x.iter().fold(low(x), |m, x| m.max(*x)) - low(x)) / high(dtype)))
        .collect();
    let d = lines.iter().fold(0.0, |m: f64, line| m.max(line.1)) / 63.0;
    let dmin = lines.iter().fold(0.0, |m: f64, line| m.max(-line.0)) / 63.0;
    let steps = |x: f64, d: f64| if d > 0.0 { (x / d).round() } else { 0.0 };
    let group = |(x, (low, s)): (&[f64], &(f64, f64))| {
        let (scale, minimum) = (d * steps(*s, d), -dmin * steps(-low, dmin));
        let q =
            |x: f64| if scale > 0.0 { ((x - minimum) / scale).round().clamp(0.0, high(dtype)) } else { 0.0 };
        x.iter().map(|x| scale * q(*x) + minimum).collect::<Vec<_>>()
    };
    x.chunks(32).zip(&lines).flat_map(group).collect()
}

/// Squared error of a block, an error of a large number weighing more; by groups of `len`.
fn error(x: &[f32], back: &[f64], len: usize) -> f64 {
    let group = |(x, back): (&[f64], &[f64])| {
        let usual = (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
        x.iter().zip(back).map(|(x, back)| (usual + x.abs()) * (x - back).powi(2)).sum::<f64>()
    };
    naive::widen(x).chunks(len).zip(back.chunks(len)).map(group).sum()
}

/// 256 numbers of one or of several orders of magnitude.
fn block() -> impl Strategy<Value = Vec<f32>> {
    let even = prop::collection::vec(-1.0f32..1.0, 256);
    let heavy = prop::collection::vec((-1.0f32..1.0).prop_map(|x| x * x * x * x * x), 256);
    let groups =
        prop::collection::vec((0.001f32..1.0, -1.0f32..1.0, prop::collection::vec(-1.0f32..1.0, 16)), 16)
            .prop_map(|groups| {
                groups.into_iter().flat_map(|(s, m, x)| x.into_iter().map(move |x| s * x + m)).collect()
            });
    let sparse = prop::collection::vec(prop_oneof![9 => Just(0.0f32), 1 => -1.0f32..1.0], 256);
    let scale =
        prop_oneof![Just(1.0f32), Just(0.03f32), Just(1000.0f32), (-10i32..10).prop_map(|e| 2f32.powi(e))];
    (prop_oneof![even, heavy, groups, sparse], scale)
        .prop_map(|(x, s): (Vec<f32>, f32)| x.iter().map(|x| x * s).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 300 }))]

    #[test]
    fn every_path_equals_the_reference(x in naive::row(8), y in naive::row(8)) {
        let x = [x, y].concat();
        for dtype in FITTED {
            let mut expected = vec![0xa5; dtype.row_bytes(x.len()).unwrap()];
            let done = Isa::SCALAR.encode(dtype, &x, &mut expected);
            for isa in Isa::available() {
                let mut bytes = vec![0xa5; expected.len()];
                prop_assert_eq!(isa.encode(dtype, &x, &mut bytes), done.clone());
                prop_assert_eq!(&bytes, &expected, "{}", isa);
            }
            if done.is_err() {
                prop_assert!(expected.iter().all(|&b| b == 0xa5));
            }
        }
    }

    /// Each number became the nearest that its group's scale and minimum allow: half a step away, or at an end.
    #[test]
    fn quants_are_the_nearest(x in block()) {
        for dtype in FITTED {
            let bytes = encoded(dtype, &x).unwrap();
            let back = naive::decode(dtype, &bytes);
            for (i, (x, back)) in naive::widen(&x).into_iter().zip(&back).enumerate() {
                let (step, low, high) = naive::steps(dtype, &bytes, i);
                let nearest = if step == 0.0 { low } else { (low + ((x - low) / step).round() * step).clamp(low, high) };
                let slack = 1e-5 * (step + x.abs());
                prop_assert!((x - back).abs() <= (x - nearest).abs() + slack, "{} {}: {} {}", dtype, i, x, back);
                if (low..=high).contains(&x) {
                    prop_assert!((x - back).abs() <= step / 2.0 + slack);
                }
            }
        }
    }

    #[test]
    fn it_is_no_worse_than_the_obvious(x in block()) {
        for dtype in FITTED {
            let len = if dtype == DType::Q6_K { 16 } else { 32 };
            let back = naive::decode(dtype, &encoded(dtype, &x).unwrap());
            let (fitted, plain) = (error(&x, &back, len), error(&x, &obvious(dtype, &x), len));
            prop_assert!(fitted <= 1.001 * plain + 1e-20, "{}: {} and {}", dtype, fitted, plain);
        }
    }

    /// A power of two goes through, as long as scales stay normal in f16.
    #[test]
    fn powers_of_two_go_through(x in block(), by in -3i32..=3) {
        let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        prop_assume!(largest > 0.0);
        let x: Vec<f32> = x.iter().map(|x| x / largest * 1024.0).collect();
        let other: Vec<f32> = x.iter().map(|x| x * 2f32.powi(by)).collect();
        for dtype in FITTED {
            let backs = [&x, &other].map(|x| naive::decode(dtype, &encoded(dtype, x).unwrap()));
            for (a, b) in backs[0].iter().zip(&backs[1]) {
                prop_assert_eq!(a * naive::two_to(by), *b);
            }
        }
    }
}

#[test]
fn zeros_are_zeros() {
    for zero in [0.0, -0.0] {
        let q4: BlockQ4_K = bytemuck::pod_read_unaligned(&encoded(DType::Q4_K, &[zero; 256]).unwrap());
        assert_eq!((q4.d.to_bits(), q4.dmin.to_bits(), q4.scales, q4.q), (0, 0, [0; 12], [0; 128]));
        let q5: BlockQ5_K = bytemuck::pod_read_unaligned(&encoded(DType::Q5_K, &[zero; 256]).unwrap());
        assert_eq!(
            (q5.d.to_bits(), q5.dmin.to_bits(), q5.scales, q5.h, q5.q),
            (0, 0, [0; 12], [0; 32], [0; 128])
        );
        let q6: BlockQ6_K = bytemuck::pod_read_unaligned(&encoded(DType::Q6_K, &[zero; 256]).unwrap());
        // Quant 32 stands for zero.
        assert_eq!((q6.d.to_bits(), q6.scales, q6.q, q6.h), (0, [0; 16], [0; 128], [0xaa; 64]));
    }
}

#[test]
fn groups_of_zeros_stay_zeros_beside_others() {
    let x: Vec<f32> = (0..256).map(|i| if i / 32 % 2 == 0 { 0.0 } else { (i as f32).sin() }).collect();
    for dtype in FITTED {
        let back = naive::decode(dtype, &encoded(dtype, &x).unwrap());
        for (x, back) in x.iter().zip(back) {
            assert!(*x != 0.0 || back == 0.0, "{dtype}");
            assert!((f64::from(*x) - back).abs() < 0.1, "{dtype}");
        }
    }
}

/// Where the scale of a block would round to nothing, the smallest there is takes its place, as long as that serves.
#[test]
fn small_numbers_are_kept_as_long_as_f16_allows() {
    for dtype in FITTED {
        let error = |unit: f64| {
            let x: Vec<f32> = (0..256).map(|i| (f64::from(i).sin() * unit) as f32).collect();
            let back = naive::decode(dtype, &encoded(dtype, &x).unwrap());
            let pairs = naive::widen(&x).into_iter().zip(back);
            pairs.map(|(x, back)| (x - back).abs()).fold(0.0, f64::max) / unit
        };
        let steps = if dtype == DType::Q6_K { 62.0 } else { high(dtype) };
        // Scales of 6 or 8 bits times the smallest f16 still have some steps here.
        assert!(error(naive::two_to(-24) * steps * 8.0) < 2.0 / steps, "{dtype}");
        assert!(error(1e-30) <= 1.0 && error(1e-44) <= 1.0, "{dtype}");
    }
}

#[test]
fn scales_beyond_f16_are_named() {
    for dtype in FITTED {
        for beyond in [-1e12, 1e12, f32::MAX] {
            let mut x = [1.0f32; 512];
            (x[300], x[310]) = (beyond / 2.0, beyond);
            assert_eq!(encoded(dtype, &x), Err(Error::Overflow { index: 310, dtype }));
            // The largest scale and minimum of any type here is 63 times 65504.
            (x[300], x[310]) = (0.0, 60_000.0f32.copysign(beyond));
            assert!(encoded(dtype, &x).is_ok(), "{dtype}");
        }
    }
}
