//! Writes small valid GGUF files into `corpus/gguf`, for the fuzzer to start from.

use granule_llama::gguf::{Array, GgufWriter, Value};
use granule_quant::DType;
use std::error::Error;
use std::fs;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/gguf");
    fs::create_dir_all(folder)?;
    for (name, file) in [
        ("empty", GgufWriter::new(2)?),
        ("values", values()?),
        ("tensors", tensors()?),
        ("llama", vocabulary("llama")?),
        ("gpt2", vocabulary("gpt2")?),
        ("shard", shard()?),
    ] {
        fs::write(format!("{folder}/{name}"), file.to_bytes())?;
    }
    Ok(())
}

fn values() -> Result<GgufWriter<'static>, granule_llama::Error> {
    let mut file = GgufWriter::new(3)?;
    let nested = Array::Array(vec![Array::U8(vec![1]), Array::String(["x", ""].iter().collect())]);
    let values = [
        Value::U8(1),
        Value::I8(-1),
        Value::U16(2),
        Value::I16(-2),
        Value::U32(3),
        Value::I32(-3),
        Value::F32(0.5),
        Value::Bool(true),
        Value::String("▁text".into()),
        Value::U64(4),
        Value::I64(-4),
        Value::F64(0.25),
        Value::Array(Array::F32(vec![1.0, 2.0])),
        Value::Array(Array::Bool(vec![true, false])),
        Value::Array(nested),
    ];
    for (i, value) in values.into_iter().enumerate() {
        file.set(&format!("k{i}"), value)?;
    }
    file.set("general.alignment", Value::U32(64))?;
    Ok(file)
}

fn tensors() -> Result<GgufWriter<'static>, granule_llama::Error> {
    let mut file = GgufWriter::new(3)?;
    file.tensor("token_embd.weight", &[2, 3], DType::F32.into(), &[0; 24])?;
    file.tensor("output_norm.weight", &[3], DType::F16.into(), &[0; 6])?;
    file.tensor("blk.0.attn_q.weight", &[32, 2], DType::Q4_0.into(), &[0; 36])?;
    file.tensor("none", &[0, 5], DType::BF16.into(), &[])?;
    Ok(file)
}

fn vocabulary(model: &str) -> Result<GgufWriter<'static>, granule_llama::Error> {
    let mut file = GgufWriter::new(3)?;
    let tokens = ["<unk>", "<s>", "</s>", "▁", "<0x41>", "▁a", "a", "Ġ", "Ġa", "<|x|>"];
    file.set("tokenizer.ggml.model", Value::String(model.into()))?;
    file.set("tokenizer.ggml.pre", Value::String("llama-bpe".into()))?;
    file.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens.iter().collect())))?;
    file.set("tokenizer.ggml.scores", Value::Array(Array::F32((0..10u8).map(|i| -f32::from(i)).collect())))?;
    file.set("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![2, 3, 3, 1, 6, 1, 1, 1, 1, 4])))?;
    file.set("tokenizer.ggml.merges", Value::Array(Array::String(["Ġ a"].iter().collect())))?;
    file.set("tokenizer.ggml.unknown_token_id", Value::U32(0))?;
    file.set("tokenizer.ggml.bos_token_id", Value::U32(1))?;
    file.set("tokenizer.ggml.eos_token_id", Value::U32(2))?;
    Ok(file)
}

fn shard() -> Result<GgufWriter<'static>, granule_llama::Error> {
    let mut file = GgufWriter::new(3)?;
    file.set("split.no", Value::U16(0))?;
    file.set("split.count", Value::U16(2))?;
    file.set("split.tensors.count", Value::I32(1))?;
    file.tensor("a", &[1], DType::F32.into(), &[0; 4])?;
    Ok(file)
}
