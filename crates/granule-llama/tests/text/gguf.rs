//! GGUF files: against bytes laid out by hand, in every way broken, and at random.

use granule_llama::Error;
use granule_llama::gguf::{Array, GgmlType, Gguf, GgufWriter, Value};
use granule_quant::DType;
use proptest::prelude::*;

/// A file written by hand from ggml's `docs/gguf.md`: two metadata values and two tensors.
fn by_hand(version: u32) -> Vec<u8> {
    let mut b = b"GGUF".to_vec();
    let string = |b: &mut Vec<u8>, s: &str| {
        b.extend((s.len() as u64).to_le_bytes());
        b.extend(s.as_bytes());
    };
    b.extend(version.to_le_bytes());
    b.extend(2u64.to_le_bytes()); // tensors
    b.extend(2u64.to_le_bytes()); // metadata
    string(&mut b, "general.name");
    b.extend(8u32.to_le_bytes()); // a string
    string(&mut b, "hand");
    string(&mut b, "x.list");
    b.extend(9u32.to_le_bytes()); // an array …
    b.extend(5u32.to_le_bytes()); // … of i32 …
    b.extend(2u64.to_le_bytes()); // … with two elements
    b.extend((-1i32).to_le_bytes());
    b.extend(7i32.to_le_bytes());
    string(&mut b, "a");
    b.extend(2u32.to_le_bytes()); // dimensions
    b.extend(3u64.to_le_bytes());
    b.extend(2u64.to_le_bytes());
    b.extend(0u32.to_le_bytes()); // F32
    b.extend(0u64.to_le_bytes()); // offset
    string(&mut b, "b");
    b.extend(1u32.to_le_bytes());
    b.extend(32u64.to_le_bytes());
    b.extend(8u32.to_le_bytes()); // Q8_0
    b.extend(32u64.to_le_bytes());
    b.resize(b.len().next_multiple_of(32), 0);
    for x in 0..6u8 {
        b.extend(f32::from(x).to_le_bytes());
    }
    b.resize(b.len().next_multiple_of(32), 0);
    b.extend([9; 34]);
    b
}

fn written(version: u32) -> Vec<u8> {
    let floats: Vec<u8> = (0..6u8).flat_map(|x| f32::from(x).to_le_bytes()).collect();
    let mut w = GgufWriter::new(version).unwrap();
    w.set("general.name", Value::String("hand".into())).unwrap();
    w.set("x.list", Value::Array(Array::I32(vec![-1, 7]))).unwrap();
    w.tensor("a", &[3, 2], DType::F32.into(), &floats).unwrap();
    w.tensor("b", &[32], DType::Q8_0.into(), &[9; 34]).unwrap();
    w.to_bytes()
}

#[test]
fn reads_and_writes_what_the_format_says() {
    for version in [2, 3] {
        let mut file = by_hand(version);
        let gguf = Gguf::parse(&file).unwrap();
        assert_eq!((gguf.version(), gguf.alignment()), (version, 32));
        assert_eq!(gguf.metadata().get_str("general.name").unwrap(), "hand");
        let list = gguf.metadata().get_array("x.list").unwrap();
        assert_eq!(list.to_integers().unwrap(), [-1, 7]);
        let (a, b) = (gguf.tensor("a").unwrap(), gguf.tensor("b").unwrap());
        assert_eq!((a.dims.as_slice(), a.ty.dtype(), a.bytes), ([3, 2].as_slice(), Some(DType::F32), 24));
        assert_eq!(file[gguf.data_range(a)][20..], 5f32.to_le_bytes());
        assert_eq!(file[gguf.data_range(b)], [9; 34]);
        assert!(gguf.tensor("c").is_none());
        let beginning = gguf.data_offset() as usize;
        assert_eq!(
            Gguf::parse_beginning(&file[..beginning], file.len() as u64).unwrap().tensors(),
            gguf.tensors()
        );

        file.resize(file.len().next_multiple_of(32), 0);
        assert_eq!(written(version), file);
    }
}

#[test]
fn every_value_type_survives() {
    let strings = ["", "x", "▁Ünï", "\0"];
    let arrays = vec![
        Array::U8(vec![0, 255]),
        Array::I8(vec![-128, 127]),
        Array::U16(vec![65535]),
        Array::I16(vec![-32768]),
        Array::U32(vec![u32::MAX]),
        Array::I32(vec![i32::MIN]),
        Array::F32(vec![1.5, -0.0]),
        Array::Bool(vec![true, false]),
        Array::String(strings.iter().collect()),
        Array::Array(vec![Array::U8(vec![1]), Array::String(["a"].iter().collect()), Array::Array(vec![])]),
        Array::U64(vec![u64::MAX]),
        Array::I64(vec![i64::MIN]),
        Array::F64(vec![f64::MAX]),
    ];
    let mut values = vec![
        Value::U8(255),
        Value::I8(-128),
        Value::U16(65535),
        Value::I16(-32768),
        Value::U32(u32::MAX),
        Value::I32(i32::MIN),
        Value::F32(f32::MIN_POSITIVE),
        Value::Bool(true),
        Value::String("▁".into()),
        Value::U64(u64::MAX),
        Value::I64(i64::MIN),
        Value::F64(f64::MIN_POSITIVE),
    ];
    values.extend(arrays.into_iter().map(Value::Array));
    let mut w = GgufWriter::new(3).unwrap();
    for (i, value) in values.iter().enumerate() {
        w.set(&format!("k{i}"), value.clone()).unwrap();
    }
    let gguf = Gguf::parse(&w.to_bytes()).unwrap();
    let keys: Vec<&str> = gguf.metadata().iter().map(|(k, _)| k).collect();
    assert_eq!(keys, (0..values.len()).map(|i| format!("k{i}")).collect::<Vec<_>>());
    assert!(gguf.metadata().iter().map(|(_, v)| v).eq(&values));
}

#[test]
fn typed_access_names_the_key() {
    let mut w = GgufWriter::new(3).unwrap();
    w.set("small", Value::U8(3)).unwrap();
    w.set("negative", Value::I32(-1)).unwrap();
    w.set("double", Value::F64(0.5)).unwrap();
    w.set("words", Value::Array(Array::String(["a", "b"].iter().collect()))).unwrap();
    let gguf = Gguf::parse(&w.to_bytes()).unwrap();
    let m = gguf.metadata();
    assert_eq!(m.get_u32("small").unwrap(), 3);
    assert_eq!(m.get_f32("double").unwrap(), 0.5);
    assert_eq!(m.get_strings("words").unwrap().get(1), Some("b"));
    assert_eq!(m.find_u32("none").unwrap(), None);
    assert_eq!(m.get_u32("none").unwrap_err().to_string(), "metadata key `none` is missing");
    assert_eq!(
        m.get_u32("negative").unwrap_err().to_string(),
        "metadata key `negative` must be an integer from 0 to 4294967295, but it is the i32 -1"
    );
    assert_eq!(
        m.find_str("words").unwrap_err().to_string(),
        "metadata key `words` must be a string, but it is an array of 2 string"
    );
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for file in [by_hand(2), by_hand(3)] {
        for len in 0..file.len() {
            let error = Gguf::parse(&file[..len]).unwrap_err();
            assert!(
                matches!(error, Error::Truncated { .. } | Error::TensorOutOfFile { .. }),
                "cut at {len}: {error}"
            );
        }
    }
}

#[test]
fn a_flipped_byte_never_panics() {
    let file = by_hand(3);
    for at in 0..file.len() {
        for bits in [1, 0x80, 0xff] {
            let mut bad = file.clone();
            bad[at] ^= bits;
            if let Ok(gguf) = Gguf::parse(&bad) {
                gguf.tensors().iter().for_each(|t| assert!(bad.get(gguf.data_range(t)).is_some()));
            }
        }
    }
}

/// What reading `file` with `bytes` put at `at` says.
fn with(file: &[u8], at: usize, bytes: &[u8]) -> Error {
    let mut file = file.to_vec();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    Gguf::parse(&file).unwrap_err()
}

#[test]
fn other_formats_are_refused_by_name() {
    let file = by_hand(3);
    assert!(with(&file, 0, b"GGML").to_string().contains("begins with \"GGML\""));
    let versions = [(1, "version 1 is not"), (4, "version 4 is not"), (0, "version 0 is not")];
    for (version, says) in versions {
        let error = with(&file, 4, &u32::to_le_bytes(version)).to_string();
        assert!(error.contains(says), "{error}");
    }
    let error = with(&file, 4, &3u32.to_be_bytes());
    assert!(matches!(error, Error::BigEndian { version: 3 }), "{error}");
    assert!(matches!(Gguf::parse(b"\x7fELF....").unwrap_err(), Error::NotGguf { .. }));
}

#[test]
fn counts_and_lengths_beyond_the_file_are_refused() {
    let file = by_hand(3);
    // Tensors, metadata, a key's length, a string's, an array's, a tensor name's, its dimensions.
    let find = |needle: &[u8]| file.windows(needle.len()).position(|w| w == needle).unwrap();
    let places = [8, 16, 24, find(b"hand") - 8, find(b"x.list") + 6 + 8, find(b"a\x02") - 8];
    for at in places {
        for claim in [1 << 33, u64::MAX / 8, u64::MAX / 4, i64::MAX as u64, u64::MAX - 7, u64::MAX] {
            let error = with(&file, at, &claim.to_le_bytes());
            assert!(matches!(error, Error::Truncated { .. }), "{claim} at {at}: {error}");
        }
    }
    let dims = find(b"a\x02") + 1 + 4;
    for claim in [1 << 62, u64::MAX] {
        let error = with(&file, dims, &claim.to_le_bytes());
        assert!(matches!(&error, Error::TensorTooLarge { name, .. } if name == "a"), "{error}");
    }
    let error = with(&file, dims, &(1u64 << 40).to_le_bytes());
    assert!(matches!(&error, Error::TensorOutOfFile { name, .. } if name == "a"), "{error}");
    // Zero rows of a length that no number holds: nothing to read, so nothing to refuse.
    let error = with(&file, dims, &[[0xff; 8], [0; 8]].concat());
    assert!(matches!(error, Error::TensorTooLarge { .. }), "{error}");
}

#[test]
fn tensors_that_contradict_themselves_are_refused() {
    let file = by_hand(3);
    let find = |needle: &[u8]| file.windows(needle.len()).position(|w| w == needle).unwrap();
    let (a, b) = (find(b"a\x02"), find(b"b\x01"));
    let says = |error: Error, words: &str| assert!(error.to_string().contains(words), "{error}");
    says(with(&file, a + 1, &5u32.to_le_bytes()), "tensor `a` has 5 dimensions; at most 4");
    says(with(&file, a + 21, &4u32.to_le_bytes()), "tensor `a` has the unknown type id 4");
    says(with(&file, a + 21, &8u32.to_le_bytes()), "tensor `a` of type q8_0 has rows of 3 elements");
    says(with(&file, a, b"b"), "tensor `b` occurs twice");
    says(with(&file, b + 17, &8u64.to_le_bytes()), "tensor `b` begins at offset 8, which is no multiple");
    says(with(&file, b + 17, &0u64.to_le_bytes()), "tensors `a` and `b` overlap");
    says(with(&file, b + 17, &64u64.to_le_bytes()), "tensor `b` needs 34 bytes at byte");
    says(with(&file, b + 17, &(u64::MAX - 31).to_le_bytes()), "tensor `b` needs 34 bytes at byte");
    says(with(&file, a, b"\xff"), "the description of tensor 0 is not valid UTF-8");
}

#[test]
fn metadata_that_contradict_themselves_are_refused() {
    let file = by_hand(3);
    let find = |needle: &[u8]| file.windows(needle.len()).position(|w| w == needle).unwrap();
    let name = find(b"general.name");
    let error = with(&file, name + 12, &13u32.to_le_bytes());
    assert!(matches!(&error, Error::UnknownValueType { key, id: 13 } if key == "general.name"), "{error}");
    let error = with(&file, find(b"x.list") + 6 + 4, &99u32.to_le_bytes());
    assert!(matches!(&error, Error::UnknownValueType { key, id: 99 } if key == "x.list"), "{error}");
    let error = with(&file, find(b"hand"), b"h\xc3\x28d");
    assert_eq!(error.to_string(), "metadata key `general.name` is not valid UTF-8");

    let mut twice = GgufWriter::new(3).unwrap();
    twice.set("key.1", Value::Bool(true)).unwrap();
    twice.set("key.2", Value::Bool(true)).unwrap();
    let bytes = twice.to_bytes();
    let at = bytes.windows(5).position(|w| w == b"key.2").unwrap();
    assert_eq!(with(&bytes, at, b"key.1").to_string(), "metadata key `key.1` occurs twice");
    let error = with(&bytes, at + 5 + 4, &[2]);
    assert!(matches!(&error, Error::InvalidBool { key, value: 2 } if key == "key.2"), "{error}");

    for alignment in [Value::U32(0), Value::U32(24), Value::U64(1 << 40), Value::Bool(true)] {
        assert!(GgufWriter::new(3).unwrap().set("general.alignment", alignment).is_err());
    }
    let mut aligned = GgufWriter::new(3).unwrap();
    aligned.set("general.alignment", Value::U32(64)).unwrap();
    let bytes = aligned.to_bytes();
    assert_eq!(Gguf::parse(&bytes).unwrap().alignment(), 64);
    let at = bytes.windows(4).position(|w| w == 64u32.to_le_bytes()).unwrap();
    let error = with(&bytes, at, &24u32.to_le_bytes());
    assert!(matches!(error, Error::InvalidAlignment { alignment: 24 }), "{error}");

    let nested = (0..40).fold(Array::U8(vec![1]), |inner, _| Array::Array(vec![inner]));
    let mut deep = GgufWriter::new(3).unwrap();
    deep.set("deep", Value::Array(nested)).unwrap();
    let error = Gguf::parse(&deep.to_bytes()).unwrap_err();
    assert!(matches!(&error, Error::NestedTooDeep { key, .. } if key == "deep"), "{error}");
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut w = GgufWriter::new(3).unwrap();
    w.tensor("x", &[2], DType::F32.into(), &[0; 8]).unwrap();
    assert!(matches!(w.tensor("x", &[2], DType::F32.into(), &[0; 8]), Err(Error::DuplicateTensor { .. })));
    assert!(matches!(w.tensor("y", &[2], DType::F32.into(), &[0; 7]), Err(Error::TensorDataLength { .. })));
    assert!(matches!(w.tensor("y", &[1; 5], DType::F32.into(), &[0; 4]), Err(Error::TooManyDims { .. })));
    assert!(matches!(w.tensor("y", &[33], DType::Q4_0.into(), &[]), Err(Error::TensorRow { .. })));
    assert!(matches!(GgufWriter::new(1), Err(Error::UnsupportedGgufVersion { version: 1 })));
}

#[test]
fn types_are_known_by_name_and_size() {
    for &dtype in DType::ALL {
        let ty = GgmlType::from_id(dtype.ggml_id()).unwrap();
        assert_eq!((ty.name(), ty.dtype()), (dtype.name(), Some(dtype)));
        assert_eq!(ty.block_bytes(), dtype.block_bytes() as u64);
    }
    // Bits per weight as published, of types that the engine does not run.
    for (id, name, bits) in [(17, "iq2_xs", 2.3125), (18, "iq3_xxs", 3.0625), (34, "tq1_0", 1.6875)] {
        let ty = GgmlType::from_id(id).unwrap();
        assert_eq!((ty.id(), ty.name(), ty.dtype()), (id, name, None));
        assert_eq!(ty.block_bytes() as f64 * 8.0 / ty.block_len() as f64, bits);
    }
    for removed in [4, 5, 31, 32, 33, 36, 37, 38, 1000] {
        assert!(GgmlType::from_id(removed).is_none());
    }
}

proptest! {
    #[test]
    fn noise_never_panics(
        noise in prop::collection::vec((0usize..400, any::<u8>()), 1..12),
        cut in 0usize..400,
    ) {
        let mut file = by_hand(3);
        for (at, byte) in noise {
            let len = file.len();
            file[at % len] = byte;
        }
        file.truncate(file.len().min(64 + cut));
        if let Ok(gguf) = Gguf::parse(&file) {
            let mut ranges: Vec<_> = gguf.tensors().iter().map(|t| gguf.data_range(t)).collect();
            prop_assert!(ranges.iter().all(|r| r.is_empty() || file.get(r.clone()).is_some()));
            ranges.retain(|r| !r.is_empty());
            ranges.sort_by_key(|r| r.start);
            prop_assert!(ranges.windows(2).all(|w| w[0].end <= w[1].start));
        }
    }
}
