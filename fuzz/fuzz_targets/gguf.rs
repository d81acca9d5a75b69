//! Arbitrary bytes as a GGUF file: never a panic, and what is read can be relied on.

#![no_main]

use granule_llama::gguf::{Gguf, GgufWriter, Metadata, check_shards};
use granule_llama::{EncodeOptions, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::parse(data) else { return };
    tensors_lie_in_the_file(&gguf, data);
    every_access_answers(gguf.metadata());
    the_beginning_is_enough(&gguf, data);
    written_again_it_is_the_same(&gguf, data);
    let _ = check_shards(&["a-00001-of-00001.gguf".into()], std::slice::from_ref(&gguf));
    if let Ok(tokenizer) = Tokenizer::from_metadata(gguf.metadata()) {
        let options = EncodeOptions { add_bos: None, parse_special: true };
        if let Ok(tokens) = tokenizer.encode("Once upon a time, <s> 12 é\n", options) {
            tokenizer.decode(&tokens).unwrap();
        }
    }
});

fn tensors_lie_in_the_file(gguf: &Gguf, data: &[u8]) {
    let mut ranges = Vec::new();
    for tensor in gguf.tensors() {
        assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
        let range = gguf.data_range(tensor);
        assert_eq!(range.len() as u64, tensor.bytes);
        if !range.is_empty() {
            assert!(range.end <= data.len() && (range.start as u64).is_multiple_of(gguf.alignment()));
            ranges.push(range);
        }
    }
    ranges.sort_by_key(|r| r.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
}

fn every_access_answers(metadata: &Metadata) {
    for (key, _) in metadata.iter() {
        assert!(metadata.get(key).is_ok());
        let answers = [
            metadata.get_u32(key).is_ok(),
            metadata.get_f32(key).is_ok(),
            metadata.get_bool(key).is_ok(),
            metadata.get_str(key).is_ok(),
            metadata.get_array(key).is_ok(),
        ];
        assert!(answers.iter().filter(|&&ok| ok).count() <= 1);
        let _ = (metadata.get_u64(key), metadata.get_f32s(key), metadata.get_u32s(key));
        if let Ok(strings) = metadata.get_strings(key) {
            assert_eq!(strings.iter().count(), strings.len());
        }
    }
}

fn the_beginning_is_enough(gguf: &Gguf, data: &[u8]) {
    let beginning = &data[..data.len().min(gguf.data_offset() as usize)];
    let again = Gguf::parse_beginning(beginning, data.len() as u64).unwrap();
    assert_eq!(again.tensors(), gguf.tensors());
}

fn written_again_it_is_the_same(gguf: &Gguf, data: &[u8]) {
    let mut writer = GgufWriter::new(gguf.version()).unwrap();
    for (key, value) in gguf.metadata().iter() {
        writer.set(key, value.clone()).unwrap();
    }
    for tensor in gguf.tensors() {
        let bytes = data.get(gguf.data_range(tensor)).unwrap_or_default();
        writer.tensor(&tensor.name, &tensor.dims, tensor.ty, bytes).unwrap();
    }
    // Alignment is a number of the file's choosing, and padding to it need not be written here.
    if gguf.alignment() > 1 << 12 {
        return;
    }
    let file = writer.to_bytes();
    let again = Gguf::parse(&file).unwrap();
    assert!(again.metadata().iter().map(|(k, _)| k).eq(gguf.metadata().iter().map(|(k, _)| k)));
    assert_eq!(again.tensors().len(), gguf.tensors().len());
    for (a, b) in again.tensors().iter().zip(gguf.tensors()) {
        assert_eq!((&a.name, &a.dims, a.ty), (&b.name, &b.dims, b.ty));
        assert_eq!(file.get(again.data_range(a)), Some(data.get(gguf.data_range(b)).unwrap_or_default()));
    }
}
