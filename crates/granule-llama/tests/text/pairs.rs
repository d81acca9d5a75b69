//! The token pairs of the llama.cpp project, both ways. See `data/README.md`.

use granule_llama::gguf::Gguf;
use granule_llama::{EncodeOptions, TokenId, Tokenizer};

const TEXTS: &str = include_str!("../data/llama.inp");

/// Texts and their ids; in the file each text is followed by the separator.
fn pairs(answers: &str) -> Vec<(&'static str, Vec<TokenId>)> {
    let ids = |line: &str| line.split_whitespace().map(|n| TokenId::new(n.parse().unwrap())).collect();
    let texts = TEXTS.split_terminator("\n__ggml_vocab_test__\n");
    let pairs: Vec<_> = texts.zip(answers.lines().map(ids)).collect();
    assert_eq!(pairs.len(), 46);
    pairs
}

fn gguf(name: &str) -> Gguf {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    Gguf::parse(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn llama_spm() {
    let t = Tokenizer::from_metadata(gguf("llama-spm.gguf").metadata()).unwrap();
    for (text, ids) in pairs(include_str!("../data/llama-spm.out")) {
        let options = EncodeOptions { add_bos: Some(false), parse_special: false };
        assert_eq!(t.encode(text, options).unwrap(), ids, "{text:?}");
        assert_eq!(t.decode(&ids).unwrap(), text);
        let with_start = t.encode(text, EncodeOptions::default()).unwrap();
        assert_eq!((with_start[0], &with_start[1..]), (TokenId::new(1), ids.as_slice()));
    }
}

#[test]
fn llama_bpe() {
    let gguf = gguf("llama-bpe-reduced.gguf");
    let t = Tokenizer::from_metadata(gguf.metadata()).unwrap();
    // The file holds the part of the vocabulary that these texts can reach, and the ids it has in the whole.
    let whole: Vec<TokenId> =
        gguf.metadata().get_u32s("granule.whole_ids").unwrap().into_iter().map(TokenId::new).collect();
    for (text, ids) in pairs(include_str!("../data/llama-bpe.out")) {
        let options = EncodeOptions { add_bos: Some(false), parse_special: false };
        let reduced = t.encode(text, options).unwrap();
        assert_eq!(reduced.iter().map(|id| whole[id.index()]).collect::<Vec<_>>(), ids, "{text:?}");
        assert_eq!(t.decode(&reduced).unwrap(), text);
    }
}
