//! The vocabularies with their `.inp` and `.out`: text to ids, and ids to text.

use anyhow::{Context as _, Result};
use granule_llama::gguf::Gguf;
use granule_llama::{EncodeOptions, Tokenizer};

use crate::Oracles;
use crate::engine::numbers;
use crate::report::Report;

const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

pub(crate) fn compare(oracles: &Oracles, report: &mut Report) -> Result<()> {
    for name in ["ggml-vocab-llama-spm", "ggml-vocab-llama-bpe"] {
        report.group(&format!("{name}, both ways"), |group| {
            let path = oracles.models().join(format!("{name}.gguf"));
            let read = |end: &str| {
                let path = oracles.models().join(format!("{name}.gguf{end}"));
                std::fs::read_to_string(&path).with_context(|| path.display().to_string())
            };
            let gguf = Gguf::parse(&std::fs::read(&path).with_context(|| path.display().to_string())?)?;
            let tokenizer = Tokenizer::from_metadata(gguf.metadata())?;
            let (texts, lines) = (read(".inp")?, read(".out")?);
            let texts: Vec<&str> = texts.split_terminator(SEPARATOR).collect();
            let lines: Vec<&str> = lines.lines().collect();
            group.check(texts.len() == lines.len(), || {
                format!("{} texts, {} lines", texts.len(), lines.len())
            });
            let options = EncodeOptions { add_bos: Some(false), ..EncodeOptions::default() };
            for (text, line) in texts.into_iter().zip(lines) {
                let want: Vec<u32> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
                let tokens = tokenizer.encode(text, options)?;
                let got = numbers(&tokens);
                group.check(got == want, || format!("{text:?}: {got:?}, not {want:?}"));
                let back = tokenizer.decode(&tokens)?;
                group.check(back == text, || format!("{text:?} comes back as {back:?}"));
            }
            Ok(())
        })?;
    }
    Ok(())
}
