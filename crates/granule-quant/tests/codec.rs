//! Every path of the codec against the reference, bit for bit, and the reference against the formats' own promises.

mod naive;

use granule_quant::{
    BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, DType, Error, Isa, decode, encode,
    ggml_from_planar, planar_bytes, planar_from_ggml, scalar,
};
use proptest::prelude::*;

fn encoded(isa: Isa, dtype: DType, x: &[f32]) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0xa5; dtype.row_bytes(x.len())?];
    let done = isa.encode(dtype, x, &mut bytes);
    if done.is_err() {
        assert!(bytes.iter().all(|&b| b == 0xa5), "a call that failed has written");
    }
    done.map(|()| bytes)
}

/// Bits, with every NaN the same.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 1000 }))]

    #[test]
    fn encode_equals_the_reference(dtype in naive::any_dtype(), x in naive::row(0..6)) {
        let expected = encoded(Isa::SCALAR, dtype, &x);
        for isa in Isa::available() {
            prop_assert_eq!(&encoded(isa, dtype, &x), &expected, "{}", isa);
        }
    }

    #[test]
    fn floats_of_any_length_equal_the_reference(x in naive::row(2), n in 0usize..64) {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let expected = encoded(Isa::SCALAR, dtype, &x[..n]);
            for isa in Isa::available() {
                prop_assert_eq!(&encoded(isa, dtype, &x[..n]), &expected, "{}", isa);
                let Ok(bytes) = &expected else { continue };
                let (mut back, mut reference) = (vec![0.0; n], vec![0.0; n]);
                isa.decode(dtype, bytes, &mut back).unwrap();
                scalar::decode(dtype, bytes, &mut reference).unwrap();
                prop_assert_eq!(bits(&back), bits(&reference));
            }
        }
    }

    #[test]
    fn decode_equals_the_reference_and_the_twin(
        dtype in naive::any_dtype(),
        mut bytes in prop::collection::vec(any::<u8>(), 0..600),
        skip in 0usize..4,
    ) {
        bytes.drain(..skip.min(bytes.len()));
        let blocks = bytes.len() / dtype.block_bytes();
        let src = &bytes[..blocks * dtype.block_bytes()];
        let mut expected = vec![0.0; blocks * dtype.block_len()];
        scalar::decode(dtype, src, &mut expected).unwrap();
        for (x, twin) in expected.iter().zip(naive::decode(dtype, src)) {
            // Formats without minimums are exact in f32; else a rounding or two stand between.
            let minimums = [DType::Q4_1, DType::Q5_1, DType::Q2_K, DType::Q4_K, DType::Q5_K].contains(&dtype);
            let slack = if minimums { twin.abs().max(1e6) * naive::two_to(-23) } else { 0.0 };
            let same = (x.is_nan() && twin.is_nan()) || f64::from(*x) == twin;
            prop_assert!(same || (f64::from(*x) - twin).abs() <= slack, "{} {}", x, twin);
        }
        for isa in Isa::available() {
            let mut x = vec![0.0; expected.len()];
            isa.decode(dtype, src, &mut x).unwrap();
            prop_assert_eq!(bits(&x), bits(&expected), "{}", isa);
        }
    }

    #[test]
    fn planes_are_a_permutation(dtype in naive::any_dtype(), x in naive::row(0..6)) {
        let n = x.len();
        let Ok(size) = planar_bytes(dtype, n) else {
            prop_assert!(dtype.is_quantized() && ![DType::Q8_0, DType::Q4_0].contains(&dtype));
            return Ok(());
        };
        prop_assert_eq!(size.quants + size.scales, dtype.row_bytes(n).unwrap());
        for isa in Isa::available() {
            let (mut quants, mut scales) = (vec![0xa5; size.quants], vec![0xa5; size.scales]);
            let done = isa.encode_planar(dtype, &x, &mut quants, &mut scales);
            let ggml = encoded(Isa::SCALAR, dtype, &x);
            prop_assert_eq!(&done, &ggml.clone().map(drop));
            let Ok(ggml) = ggml else {
                prop_assert!(quants.iter().chain(&scales).all(|&b| b == 0xa5));
                continue;
            };
            let mut back = vec![0; ggml.len()];
            ggml_from_planar(dtype, &quants, &scales, &mut back).unwrap();
            prop_assert_eq!(&back, &ggml);
            let (mut quants_again, mut scales_again) = (vec![0; size.quants], vec![0; size.scales]);
            planar_from_ggml(dtype, &ggml, &mut quants_again, &mut scales_again).unwrap();
            prop_assert_eq!(&quants_again, &quants);
            prop_assert_eq!(&scales_again, &scales);
            let (mut by_planes, mut by_blocks) = (vec![0.0; n], vec![0.0; n]);
            isa.decode_planar(dtype, &quants, &scales, &mut by_planes).unwrap();
            scalar::decode(dtype, &ggml, &mut by_blocks).unwrap();
            prop_assert_eq!(bits(&by_planes), bits(&by_blocks));
        }
    }

    #[test]
    fn activations_are_q8_0_with_f32_scales(x in naive::row(0..6)) {
        let blocks = x.len() / 32;
        for isa in Isa::available() {
            let (mut q, mut d, mut s) = (vec![0; x.len()], vec![0.0; blocks], vec![0.0; blocks]);
            isa.quantize_row(&x, &mut q, &mut d, &mut s).unwrap();
            for (b, x) in x.chunks(32).enumerate() {
                let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
                prop_assert_eq!(d[b].to_bits(), (largest / 127.0).to_bits());
                let sum: i32 = q[b * 32..][..32].iter().map(|&q| i32::from(q)).sum();
                prop_assert_eq!(s[b].to_bits(), (d[b] * sum as f32).to_bits());
                if let Ok(bytes) = encoded(Isa::SCALAR, DType::Q8_0, x) {
                    prop_assert_eq!(bytemuck::cast_slice::<i8, u8>(&q[b * 32..][..32]), &bytes[2..]);
                }
            }
        }
    }

    #[test]
    fn errors_of_quantizing_keep_their_bounds(x in naive::block()) {
        for (dtype, bound) in [(DType::Q8_0, 0.5625), (DType::Q4_0, 1.004), (DType::Q5_0, 1.008)] {
            let Ok(bytes) = encoded(Isa::best(), dtype, &x) else { continue };
            let d = naive::f16(u16::from_le_bytes([bytes[0], bytes[1]])).abs();
            if d < naive::two_to(-14) {
                continue; // not a normal f16: no bound is promised
            }
            for (x, back) in naive::widen(&x).into_iter().zip(naive::decode(dtype, &bytes)) {
                prop_assert!((x - back).abs() <= bound * d, "{}: {} {} d {}", dtype, x, back, d);
            }
        }
    }

    #[test]
    fn numbers_that_cannot_be_encoded_are_named(
        dtype in naive::any_encoded_dtype(),
        mut x in naive::ordinary(256),
        at in 0usize..256,
        bad in prop::sample::select(vec![f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
    ) {
        x[at] = bad;
        x[255] = if at < 255 { f32::NAN } else { x[255] };
        for isa in Isa::available() {
            prop_assert_eq!(encoded(isa, dtype, &x), Err(Error::NotFinite { index: at }));
            let (mut q, mut d, mut s) = ([7; 256], [7.0; 8], [7.0; 8]);
            let done = isa.quantize_row(&x, &mut q, &mut d, &mut s);
            prop_assert_eq!(done, Err(Error::NotFinite { index: at }));
            prop_assert_eq!((q, d, s), ([7; 256], [7.0; 8], [7.0; 8]));
        }
    }
}

/// Every f16 decodes to its value; every finite f32 near one, or near the middle of two, encodes to the nearest, and in
/// the middle to the even one.
#[test]
fn f16_is_exact_and_rounds_to_nearest_even() {
    let step = if cfg!(miri) { 997 } else { 1 };
    for isa in Isa::available() {
        for bits in (0..0x7c00_u16).step_by(step) {
            let (low, high) = (naive::f16(bits), naive::f16(bits + 1));
            let high = if high.is_finite() { high } else { 65536.0 };
            let middle = ((low + high) / 2.0) as f32; // exact: f32 has 13 bits more
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            let cases = [
                (low as f32, bits),
                (middle.next_down(), bits),
                (middle, even),
                (middle.next_up(), bits + 1),
            ];
            let mut decoded = [0.0; 2];
            isa.decode(DType::F16, bytemuck::cast_slice(&[bits, bits | 0x8000]), &mut decoded).unwrap();
            assert_eq!(decoded.map(f32::to_bits), [low as f32, -low as f32].map(f32::to_bits));
            for (x, expected) in cases {
                let got = encoded(isa, DType::F16, &[x, -x]);
                if expected == 0x7c00 {
                    assert_eq!(got, Err(Error::Overflow { index: 0, dtype: DType::F16 }));
                } else {
                    assert_eq!(got.unwrap(), bytemuck::cast_slice::<u16, u8>(&[expected, expected | 0x8000]));
                }
            }
        }
    }
}

/// As for f16.
#[test]
fn bf16_is_exact_and_rounds_to_nearest_even() {
    let step = if cfg!(miri) { 997 } else { 1 };
    for isa in Isa::available() {
        for bits in (0..0x7f80_u16).step_by(step) {
            let low = f32::from_bits(u32::from(bits) << 16);
            let middle = f32::from_bits(u32::from(bits) << 16 | 0x8000);
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            let cases =
                [(low, bits), (middle.next_down(), bits), (middle, even), (middle.next_up(), bits + 1)];
            let mut decoded = [0.0; 2];
            isa.decode(DType::BF16, bytemuck::cast_slice(&[bits, bits | 0x8000]), &mut decoded).unwrap();
            assert_eq!(decoded.map(f32::to_bits), [low, -low].map(f32::to_bits));
            for (x, expected) in cases {
                let got = encoded(isa, DType::BF16, &[x, -x]);
                if expected == 0x7f80 {
                    assert_eq!(got, Err(Error::Overflow { index: 0, dtype: DType::BF16 }));
                } else {
                    assert_eq!(got.unwrap(), bytemuck::cast_slice::<u16, u8>(&[expected, expected | 0x8000]));
                }
            }
        }
    }
}

#[test]
fn scales_beyond_f16_are_named() {
    // The smallest magnitude whose scale rounds to infinity: 65520 is the middle between the largest f16 and 2^16.
    let limits = [
        (DType::Q8_0, 65520.0 * 127.0),
        (DType::Q4_0, 65520.0 * 8.0),
        (DType::Q4_1, 65520.0),
        (DType::Q5_0, 65520.0 * 16.0),
        (DType::Q5_1, 65520.0),
    ];
    for (dtype, limit) in limits {
        for isa in Isa::available() {
            for beyond in [-limit, limit] {
                let mut x = [0.0f32; 64];
                (x[40], x[50]) = (limit / 2.0, beyond);
                let error = Err(Error::Overflow { index: 50, dtype });
                // A large positive number is no minimum.
                let has_minimum = [DType::Q4_1, DType::Q5_1].contains(&dtype);
                let expected = if has_minimum && beyond > 0.0 { Ok(()) } else { error };
                assert_eq!(encoded(isa, dtype, &x).map(drop), expected, "{isa} {dtype}");
                x[50] = beyond * 0.9999;
                assert_eq!(encoded(isa, dtype, &x).map(drop), Ok(()), "{isa} {dtype}");
            }
        }
    }
    // Q4_1 also has a range: here every element is an f16, and the minimum too, but their distance is not.
    let mut x = [-60000.0; 32];
    x[9] = 1e6;
    let error = Error::Overflow { index: 9, dtype: DType::Q4_1 };
    assert_eq!(encoded(Isa::best(), DType::Q4_1, &x), Err(error));
    let mut x = [-1.0; 32];
    (x[3], x[4]) = (f32::MAX, f32::MIN);
    assert_eq!(encoded(Isa::best(), DType::Q4_1, &x), Err(Error::Overflow { index: 3, dtype: DType::Q4_1 }));
}

#[test]
fn blocks_without_a_scale_are_zeros() {
    for isa in Isa::available() {
        // 1/d is not finite: no quant is set, and d is nothing in f16.
        for tiny in [0.0, f32::from_bits(1), 1e-40] {
            let x = [tiny; 32];
            let q8: BlockQ8_0 = bytemuck::pod_read_unaligned(&encoded(isa, DType::Q8_0, &x).unwrap());
            assert_eq!((q8.d.to_bits(), q8.q), (0, [0; 32]));
            let q4: BlockQ4_0 = bytemuck::pod_read_unaligned(&encoded(isa, DType::Q4_0, &x).unwrap());
            assert_eq!((q4.d.to_bits(), q4.q), (0x8000, [0x88; 16]));
            let q4: BlockQ4_1 = bytemuck::pod_read_unaligned(&encoded(isa, DType::Q4_1, &x).unwrap());
            assert_eq!((q4.d.to_bits(), q4.m.to_bits(), q4.q), (0, 0, [0; 16]));
            let q5: BlockQ5_0 = bytemuck::pod_read_unaligned(&encoded(isa, DType::Q5_0, &x).unwrap());
            assert_eq!((q5.d.to_bits(), q5.h, q5.q), (0x8000, [0xff; 4], [0; 16]));
            let q5: BlockQ5_1 = bytemuck::pod_read_unaligned(&encoded(isa, DType::Q5_1, &x).unwrap());
            assert_eq!((q5.d.to_bits(), q5.m.to_bits(), q5.h, q5.q), (0, 0, [0; 4], [0; 16]));
        }
        let q4: BlockQ4_0 = bytemuck::pod_read_unaligned(&encoded(isa, DType::Q4_0, &[-0.0; 32]).unwrap());
        assert_eq!((q4.d.to_bits(), q4.q), (0, [0x88; 16]));
    }
}

#[test]
fn types_that_are_decoded_only_are_refused() {
    for &dtype in DType::ALL.iter().filter(|dtype| !dtype.is_encoded()) {
        for isa in Isa::available() {
            assert_eq!(encoded(isa, dtype, &[1.0; 512]), Err(Error::NotEncoded { dtype }));
            assert_eq!(planar_bytes(dtype, 512), Err(Error::NotPlanar { dtype }));
        }
    }
}

#[test]
fn lengths_are_checked() {
    let length = |what, expected, got| Err(Error::Length { what, expected, got });
    assert_eq!(encode(DType::Q8_0, &[0.0; 32], &mut [0; 33]), length("dst", 34, 33));
    assert_eq!(decode(DType::F16, &[0; 3], &mut [0.0; 2]), length("src", 4, 3));
    let error = Err(Error::RowLength { dtype: DType::Q4_0, len: 31, block: 32 });
    assert_eq!(encode(DType::Q4_0, &[0.0; 31], &mut [0; 18]), error);
    assert_eq!(planar_from_ggml(DType::Q8_0, &[0; 35], &mut [0; 32], &mut [0; 2]), length("src", 34, 35));
    assert_eq!(ggml_from_planar(DType::Q4_0, &[0; 16], &[0; 1], &mut [0; 18]), length("scales", 2, 1));
    let error = Err(Error::NotPlanar { dtype: DType::Q4_1 });
    assert_eq!(planar_from_ggml(DType::Q4_1, &[0; 20], &mut [0; 16], &mut [0; 2]), error);
}
