//! Makes GGUF models of random weights, in any shape that a test needs, valid or with one thing wrong.

use std::path::{Path, PathBuf};

use granule_llama::gguf::{Array, GgmlType, GgufWriter, Value};
use granule_quant::DType;

/// Which vocabulary a model gets. Both know every byte.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Vocab {
    /// SentencePiece pieces with scores, as `llama` files have them.
    Spm,
    /// Byte-level BPE with the `llama-bpe` pre-tokenizer.
    Bpe,
}

/// The shape of a model.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) n_embd: usize,
    pub(crate) n_layers: usize,
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    /// Written as `key_length` and `value_length` where it is given.
    pub(crate) head_dim: Option<usize>,
    /// Rotated elements of each head, where not all of them are.
    pub(crate) rope_dims: Option<usize>,
    pub(crate) n_ff: usize,
    pub(crate) n_ctx: u32,
    pub(crate) rope_base: Option<f32>,
    /// Linear scaling of positions.
    pub(crate) linear: Option<f32>,
    /// A `rope_freqs.weight`, as Llama 3.1 has it.
    pub(crate) rope_freqs: bool,
    pub(crate) separate_output: bool,
    /// Types of the weight matrices, dealt out in turn.
    pub(crate) weights: Vec<DType>,
    pub(crate) vocab: Vocab,
    pub(crate) seed: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            n_embd: 64,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: None,
            rope_dims: None,
            n_ff: 96,
            n_ctx: 256,
            rope_base: None,
            linear: None,
            rope_freqs: false,
            separate_output: false,
            weights: vec![DType::F32],
            vocab: Vocab::Spm,
            seed: 1,
        }
    }
}

/// A weight before it is in a file.
#[derive(Clone, Debug)]
pub(crate) struct Weight {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) ty: GgmlType,
    pub(crate) data: Vec<u8>,
}

/// A model in parts: change one, and the file has that fault.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) meta: Vec<(String, Value)>,
    pub(crate) weights: Vec<Weight>,
}

impl Made {
    /// A whole and valid model of this shape.
    pub(crate) fn new(shape: &Shape) -> Made {
        Made::of(shape, 0, |name, dims, dtype, spread, dice| {
            let values: Vec<f32> = (0..dims.iter().product()).map(|_| spread * dice.signed()).collect();
            Weight::new(name, &dims, dtype, &values)
        })
    }

    /// The same for so many tokens of a byte-level vocabulary, in shapes so large that no values are made: blocks of random bits.
    pub(crate) fn large(shape: &Shape, n_vocab: usize) -> Made {
        Made::of(shape, n_vocab, Weight::blocks)
    }

    /// A model of matrices that `make` makes, from a name, a row's length and their number, a type, and how far values go from zero.
    fn of(
        shape: &Shape,
        n_vocab: usize,
        mut make: impl FnMut(&str, [usize; 2], DType, f32, &mut Dice) -> Weight,
    ) -> Made {
        let (tokens, vocab_meta) = match shape.vocab {
            Vocab::Spm => spm(),
            Vocab::Bpe => bpe(n_vocab),
        };
        let mut made = Made { meta: metadata(shape), weights: Vec::new() };
        made.meta.extend(vocab_meta);
        let mut dice = Dice(shape.seed);
        let mut types = shape.weights.iter().copied().cycle();
        let head_dim = shape.head_dim.unwrap_or(shape.n_embd / shape.n_heads);
        let mut matrix = |name: &str, rows: usize, cols: usize, spread: f32| {
            made.weights.push(make(name, [cols, rows], types.next().unwrap(), spread, &mut dice));
        };
        let even = |cols: usize| (3.0 / cols as f32).sqrt();
        matrix("token_embd.weight", tokens, shape.n_embd, 1.0);
        for layer in 0..shape.n_layers {
            let mut blk = |name: &str, rows: usize, cols: usize| {
                matrix(&format!("blk.{layer}.{name}.weight"), rows, cols, 1.5 * even(cols));
            };
            blk("attn_q", shape.n_heads * head_dim, shape.n_embd);
            blk("attn_k", shape.n_kv_heads * head_dim, shape.n_embd);
            blk("attn_v", shape.n_kv_heads * head_dim, shape.n_embd);
            blk("attn_output", shape.n_embd, shape.n_heads * head_dim);
            blk("ffn_gate", shape.n_ff, shape.n_embd);
            blk("ffn_up", shape.n_ff, shape.n_embd);
            blk("ffn_down", shape.n_embd, shape.n_ff);
        }
        if shape.separate_output {
            matrix("output.weight", tokens, shape.n_embd, 2.0 * even(shape.n_embd));
        }
        let mut vector = |name: &str, values: Vec<f32>| {
            made.weights.push(Weight::new(name, &[values.len()], DType::F32, &values));
        };
        let mut norm = || (0..shape.n_embd).map(|_| 1.0 + 0.3 * dice.signed()).collect::<Vec<f32>>();
        for layer in 0..shape.n_layers {
            vector(&format!("blk.{layer}.attn_norm.weight"), norm());
            vector(&format!("blk.{layer}.ffn_norm.weight"), norm());
        }
        vector("output_norm.weight", norm());
        if shape.rope_freqs {
            let pairs = shape.rope_dims.unwrap_or(head_dim) / 2;
            // High frequencies as they are, low ones slower by 8, a slope between them.
            let factor = |i: usize| 1.0 + 7.0 * (2.0 * i as f32 / pairs as f32 - 0.5).clamp(0.0, 1.0);
            vector("rope_freqs.weight", (0..pairs).map(factor).collect());
        }
        made
    }

    /// Sets a metadata value, in place of another of that key if there is one.
    pub(crate) fn set(&mut self, key: &str, value: Value) -> &mut Made {
        self.meta.retain(|(k, _)| k != key);
        self.meta.push((key.to_owned(), value));
        self
    }

    /// The weight of this name.
    pub(crate) fn weight(&mut self, name: &str) -> &mut Weight {
        self.weights.iter_mut().find(|w| w.name == name).unwrap()
    }

    /// The model as the bytes of a file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut writer = GgufWriter::new(3).unwrap();
        for (key, value) in &self.meta {
            writer.set(key, value.clone()).unwrap();
        }
        for w in &self.weights {
            writer.tensor(&w.name, &w.dims, w.ty, &w.data).unwrap();
        }
        writer.to_bytes()
    }

    /// Writes the model into `dir` and says where.
    pub(crate) fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}

impl Weight {
    /// A matrix of random blocks whose elements are as large as if they went evenly from `-spread` to `spread`.
    fn blocks(name: &str, dims: [usize; 2], dtype: DType, spread: f32, dice: &mut Dice) -> Weight {
        let n: usize = dims.iter().product();
        let mut data = vec![0; dtype.row_bytes(n).unwrap()];
        data.chunks_mut(8).for_each(|bytes| bytes.copy_from_slice(&dice.next().to_le_bytes()[..bytes.len()]));
        scale(dtype, spread / 3f32.sqrt(), n.min(1 << 16), &mut data);
        Weight { name: name.to_owned(), dims: dims.map(|n| n as u64).to_vec(), ty: dtype.into(), data }
    }

    /// `dims` with the row's length first.
    pub(crate) fn new(name: &str, dims: &[usize], dtype: DType, values: &[f32]) -> Weight {
        let mut data = vec![0; dtype.row_bytes(values.len()).unwrap()];
        if dtype.is_encoded() {
            granule_quant::encode(dtype, values, &mut data).unwrap();
        } else {
            noise(dtype, values, &mut data);
        }
        Weight {
            name: name.to_owned(),
            dims: dims.iter().map(|&n| n as u64).collect(),
            ty: dtype.into(),
            data,
        }
    }
}

/// Blocks of a type that nothing here encodes: random bits out of those of `values`, and scales that make them as large.
fn noise(dtype: DType, values: &[f32], data: &mut [u8]) {
    data.iter_mut().zip(values).for_each(|(byte, value)| *byte = (value.to_bits() >> 8) as u8);
    let rms = (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
    scale(dtype, rms, values.len(), data);
}

/// Gives blocks of random bits scales such that the first `n` elements, which stand for all of them, have this root mean square.
fn scale(dtype: DType, rms: f32, n: usize, data: &mut [u8]) {
    // Where a block's f16 scale and minimum are, and minimums that are the middle of what there are quants for.
    let scales: &[(usize, f32)] = match dtype {
        DType::Q5_1 => &[(0, 1.0), (2, -15.5)],
        DType::Q2_K => &[(80, 1.0), (82, 1.5)],
        DType::Q4_K => &[(0, 1.0), (2, 7.5)],
        DType::Q5_K => &[(0, 1.0), (2, 15.5)],
        DType::Q3_K => &[(108, 1.0)],
        DType::Q6_K => &[(208, 1.0)],
        _ => &[(0, 1.0)],
    };
    let set = |data: &mut [u8], d: f32| {
        for block in data.chunks_mut(dtype.block_bytes()) {
            for &(at, factor) in scales {
                block[at..at + 2].copy_from_slice(&half::f16::from_f32(d * factor).to_le_bytes());
            }
        }
    };
    set(data, 1.0);
    let mut plain = vec![0.0; n];
    granule_quant::decode(dtype, &data[..dtype.row_bytes(n).unwrap()], &mut plain).unwrap();
    set(data, rms / (plain.iter().map(|x| x * x).sum::<f32>() / n as f32).sqrt());
}

fn metadata(shape: &Shape) -> Vec<(String, Value)> {
    let mut meta: Vec<(String, Value)> = vec![
        ("general.architecture".into(), Value::String("llama".into())),
        ("general.name".into(), Value::String("random".into())),
    ];
    let mut set = |key: &str, value: Value| meta.push((format!("llama.{key}"), value));
    let count = |n: usize| Value::U32(n as u32);
    set("context_length", Value::U32(shape.n_ctx));
    set("embedding_length", count(shape.n_embd));
    set("block_count", count(shape.n_layers));
    set("feed_forward_length", count(shape.n_ff));
    set("attention.head_count", count(shape.n_heads));
    set("attention.head_count_kv", count(shape.n_kv_heads));
    set("attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    if let Some(n) = shape.head_dim {
        set("attention.key_length", count(n));
        set("attention.value_length", count(n));
    }
    if let Some(n) = shape.rope_dims {
        set("rope.dimension_count", count(n));
    }
    if let Some(base) = shape.rope_base {
        set("rope.freq_base", Value::F32(base));
    }
    if let Some(factor) = shape.linear {
        set("rope.scaling.type", Value::String("linear".into()));
        set("rope.scaling.factor", Value::F32(factor));
    }
    meta
}

/// Pieces that real text is made of, so that a test's prompts become tokens of several kinds.
const PIECES: &[&str] =
    &["th", "he", "the", "an", "and", "on", "once", "up", "er", "in", "ing", "a", "t", "h", "e"];

/// Number of tokens and the metadata of a small SentencePiece vocabulary with byte fallback.
fn spm() -> (usize, Vec<(String, Value)>) {
    let mut tokens: Vec<(String, i32)> = vec![("<unk>".into(), 2), ("<s>".into(), 3), ("</s>".into(), 3)];
    tokens.extend((0..=255).map(|b| (format!("<0x{b:02X}>"), 6)));
    tokens.extend(('a'..='z').map(|c| (c.to_string(), 1)));
    let words = PIECES.iter().filter(|p| p.len() > 1).flat_map(|p| [format!("▁{p}"), (*p).to_owned()]);
    tokens.extend(words.chain(["▁".to_owned(), "▁t".to_owned(), "▁a".to_owned()]).map(|p| (p, 1)));
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    let n = tokens.len();
    let meta = vec![
        ("tokenizer.ggml.model".into(), Value::String("llama".into())),
        ("tokenizer.ggml.scores".into(), Value::Array(Array::F32(scores))),
        ("tokenizer.ggml.bos_token_id".into(), Value::U32(1)),
        ("tokenizer.ggml.eos_token_id".into(), Value::U32(2)),
        ("tokenizer.ggml.unknown_token_id".into(), Value::U32(0)),
    ];
    (n, with_tokens(meta, tokens))
}

/// Number of tokens and the metadata of a small byte-level BPE vocabulary.
/// It has as many tokens as are asked for, those that no text has among them.
fn bpe(n_vocab: usize) -> (usize, Vec<(String, Value)>) {
    // The 256 letters of byte-level BPE: printable bytes stand for themselves, the others for U+0100 and up.
    let mut spare = 256u32..;
    let letters = (0..=255u8).map(|b| match b {
        33..=126 | 161..=172 | 174..=255 => char::from(b),
        _ => char::from_u32(spare.next().unwrap()).unwrap(),
    });
    let mut tokens: Vec<(String, i32)> = letters.map(|c| (c.to_string(), 1)).collect();
    let merges = ["t h", "h e", "th e", "a n", "an d", "Ġ t", "Ġt he", "Ġ a", "i n", "in g", "Ġ w"];
    tokens.extend(merges.iter().map(|m| (m.replace(' ', ""), 1)));
    let bos = tokens.len() as u32;
    tokens.extend(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"].map(|t| (t.to_owned(), 3)));
    tokens.extend((tokens.len()..n_vocab).map(|i| (format!("<|unused {i}|>"), 5)));
    let n = tokens.len();
    let meta = vec![
        ("tokenizer.ggml.model".into(), Value::String("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::String("llama-bpe".into())),
        ("tokenizer.ggml.merges".into(), Value::Array(Array::String(merges.iter().collect()))),
        ("tokenizer.ggml.bos_token_id".into(), Value::U32(bos)),
        ("tokenizer.ggml.eos_token_id".into(), Value::U32(bos + 1)),
    ];
    (n, with_tokens(meta, tokens))
}

fn with_tokens(mut meta: Vec<(String, Value)>, tokens: Vec<(String, i32)>) -> Vec<(String, Value)> {
    let texts = tokens.iter().map(|(text, _)| text).collect();
    let types = tokens.iter().map(|(_, kind)| *kind).collect();
    meta.push(("tokenizer.ggml.tokens".into(), Value::Array(Array::String(texts))));
    meta.push(("tokenizer.ggml.token_type".into(), Value::Array(Array::I32(types))));
    meta
}

/// Marsaglia's xorshift64*: the same weights for the same seed, on every machine.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// Evenly from -1 to 1.
    pub(crate) fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Evenly from 0 to `n`, without `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
