//! The codec against the Python package `gguf`, an implementation that is not ours (`data/make.py` made the files).

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
