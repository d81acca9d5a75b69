//! The codec against the Python package `gguf`, an implementation that is not ours (`data/make.py` made the files).

mod naive;

use granule_quant::{DType, Isa, decode_planar, planar_bytes, planar_from_ggml};

macro_rules! data {
    ($name:literal) => {
        include_bytes!(concat!("data/", $name)).as_slice()
    };
}

/// Type, what `gguf` made of `values.f32`, blocks, and what `gguf` made of these.
type Files = (DType, &'static [u8], &'static [u8], &'static [u8]);
const FILES: [Files; 5] = [
    (DType::F16, data!("values.f16"), data!("blocks.f16"), data!("blocks.f16.f32")),
    (DType::BF16, data!("values.bf16"), data!("blocks.bf16"), data!("blocks.bf16.f32")),
    (DType::Q8_0, data!("values.q8_0"), data!("blocks.q8_0"), data!("blocks.q8_0.f32")),
    (DType::Q4_0, data!("values.q4_0"), data!("blocks.q4_0"), data!("blocks.q4_0.f32")),
    (DType::Q4_1, data!("values.q4_1"), data!("blocks.q4_1"), data!("blocks.q4_1.f32")),
];

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn encode_makes_the_same_bytes() {
    let values = floats(data!("values.f32"));
    for isa in Isa::available() {
        for (dtype, expected, ..) in FILES {
            let mut bytes = vec![0; dtype.row_bytes(values.len()).unwrap()];
            isa.encode(dtype, &values, &mut bytes).unwrap();
            let size = dtype.block_bytes();
            for (i, (got, expected)) in bytes.chunks(size).zip(expected.chunks(size)).enumerate() {
                let x = &values[i * dtype.block_len()..][..dtype.block_len()];
                assert_eq!(got, expected, "{isa}, {dtype}, block {i}: {x:?}");
            }
            assert_eq!(bytes.len(), expected.len());
        }
    }
}

#[test]
fn decode_makes_the_same_numbers() {
    for isa in Isa::available() {
        for (dtype, _, blocks, expected) in FILES {
            let expected = floats(expected);
            let mut x = vec![0.0; expected.len()];
            isa.decode(dtype, blocks, &mut x).unwrap();
            assert_eq!(bits(&x), bits(&expected), "{isa}, {dtype}");
        }
    }
}

#[test]
fn planes_hold_the_same_numbers() {
    for (dtype, _, blocks, expected) in FILES {
        let expected = floats(expected);
        let Ok(bytes) = planar_bytes(dtype, expected.len()) else {
            assert_eq!(dtype, DType::Q4_1);
            continue;
        };
        let (mut quants, mut scales) = (vec![0; bytes.quants], vec![0; bytes.scales]);
        planar_from_ggml(dtype, blocks, &mut quants, &mut scales).unwrap();
        let mut x = vec![0.0; expected.len()];
        decode_planar(dtype, &quants, &scales, &mut x).unwrap();
        assert_eq!(bits(&x), bits(&expected), "{dtype}");
    }
}

/// The types whose blocks are expanded, and the first two of their random blocks in full.
const DECODED: [(DType, &[u8]); 10] = [
    (DType::Q5_0, data!("random.q5_0.f32")),
    (DType::Q5_1, data!("random.q5_1.f32")),
    (DType::Q2_K, data!("random.q2_k.f32")),
    (DType::Q3_K, data!("random.q3_k.f32")),
    (DType::Q4_K, data!("random.q4_k.f32")),
    (DType::Q5_K, data!("random.q5_k.f32")),
    (DType::Q6_K, data!("random.q6_k.f32")),
    (DType::IQ4_NL, data!("random.iq4_nl.f32")),
    (DType::IQ4_XS, data!("random.iq4_xs.f32")),
    (DType::IQ2_XXS, data!("random.iq2_xxs.f32")),
];

/// The first `blocks` random blocks of a type, as `data/make.py` has them: splitmix64 that starts with the type's id, and
/// scales of every kind in blocks 8 to 71.
fn random_blocks(dtype: DType, blocks: usize) -> Vec<u8> {
    let mut state = u64::from(dtype.ggml_id());
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    let n = blocks * dtype.block_bytes();
    let mut bytes: Vec<u8> = (0..n.div_ceil(8)).flat_map(|_| next()).take(n).collect();
    for (i, block) in bytes.chunks_mut(dtype.block_bytes()).skip(8).take(64).enumerate() {
        for (k, upper) in naive::scales(dtype).iter().enumerate() {
            let special = [0x0000, 0x8000, 0x0001, 0x83ff, 0x7c00, 0xfc00, 0x7e01, 0x7c01_u16];
            block[upper - 1..=*upper].copy_from_slice(&special[i >> (3 * k) & 7].to_le_bytes());
        }
    }
    bytes
}

/// Bits, with every NaN the same: which NaN comes out is not promised.
fn bits_but_for_nan(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

#[test]
fn random_blocks_of_the_other_types_decode_to_the_same_numbers() {
    assert_eq!(DECODED.map(|(dtype, _)| dtype), DType::ALL[6..]);
    for isa in Isa::available() {
        for (dtype, expected) in DECODED {
            let expected = floats(expected);
            assert_eq!(expected.len(), 2 * dtype.block_len());
            let mut x = vec![0.0; expected.len()];
            isa.decode(dtype, &random_blocks(dtype, 2), &mut x).unwrap();
            assert_eq!(bits_but_for_nan(&x), bits_but_for_nan(&expected), "{isa}, {dtype}");
        }
    }
}

/// The same for 10,000 blocks, which a digest stands for: FNV-1a over the floats as words.
#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn ten_thousand_random_blocks_decode_to_the_same_numbers() {
    let lines = include_str!("data/random.digests").lines();
    for (line, (dtype, _)) in lines.zip(DECODED) {
        let blocks = random_blocks(dtype, 10_000);
        for isa in Isa::available() {
            let mut x = vec![0.0; 10_000 * dtype.block_len()];
            isa.decode(dtype, &blocks, &mut x).unwrap();
            let digest = bits_but_for_nan(&x).into_iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, word| {
                (h ^ u64::from(word)).wrapping_mul(0x0100_0000_01b3)
            });
            assert_eq!(format!("{dtype} {digest:016x}"), line, "{isa}");
            let kinds =
                [f32::is_nan, f32::is_infinite, |x: f32| x != 0.0 && x.abs() < f32::from_bits(0x3880_0000)];
            assert!(kinds.iter().all(|kind| x.iter().any(|&x| kind(x))), "{dtype}: scales of every kind");
        }
    }
}
