//! The naive twin of the engine: a float64 Llama forward pass of obvious lines, with a GGUF reader and block decoders
//! of its own for the types that Granule encodes. For these it shares nothing with Granule but the bytes of the file.

use std::collections::HashMap;
use std::path::Path;

/// A metadata value, as far as a forward pass asks for it.
#[derive(Clone, Debug)]
enum Value {
    Number(f64),
    Text(String),
    Array,
}

/// A weight matrix in row order, or a vector as one row.
struct Tensor {
    row_len: usize,
    data: Vec<f64>,
}

impl Tensor {
    fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.row_len..][..self.row_len]
    }

    /// One output per row: its dot product with `x`.
    fn times(&self, x: &[f64]) -> Vec<f64> {
        assert_eq!(x.len(), self.row_len);
        self.data.chunks(self.row_len).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    }
}

/// A model, read whole and dequantized.
pub(crate) struct Naive {
    meta: HashMap<String, Value>,
    tensors: HashMap<String, Tensor>,
    /// What keys and values are rounded to: a type's name.
    cache: &'static str,
}

impl Naive {
    /// Reads a GGUF file of version 2 or 3.
    pub(crate) fn read(path: &Path) -> Naive {
        let file = std::fs::read(path).unwrap();
        let mut at = Reader { file: &file, pos: 0 };
        assert_eq!(at.take(4), b"GGUF");
        assert!((2..=3).contains(&at.u32()));
        let (n_tensors, n_meta) = (at.u64(), at.u64());
        let meta: HashMap<_, _> = (0..n_meta).map(|_| (at.text(), at.tagged_value())).collect();
        let infos: Vec<_> = (0..n_tensors)
            .map(|_| {
                let name = at.text();
                let n_dims = at.u32();
                let dims: Vec<usize> = (0..n_dims).map(|_| at.u64() as usize).collect();
                (name, dims, at.u32(), at.u64() as usize)
            })
            .collect();
        let align = match meta.get("general.alignment") {
            Some(Value::Number(n)) => *n as usize,
            _ => 32,
        };
        let start = at.pos.next_multiple_of(align);
        let tensors = infos.into_iter().map(|(name, dims, kind, offset)| {
            let data = decode(kind, &file[start + offset..], dims.iter().product());
            (name, Tensor { row_len: dims[0], data })
        });
        Naive { tensors: tensors.collect(), meta, cache: "f32" }
    }

    /// The same over a cache whose rows are rounded to this type, by its name.
    pub(crate) fn with_cache(self, cache: &'static str) -> Naive {
        Naive { cache, ..self }
    }

    fn number(&self, key: &str) -> Option<f64> {
        match self.meta.get(&format!("llama.{key}"))? {
            Value::Number(n) => Some(*n),
            other => panic!("{key} is {other:?}"),
        }
    }

    fn count(&self, key: &str) -> usize {
        self.number(key).unwrap_or_else(|| panic!("the file lacks {key}")) as usize
    }

    fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the file lacks {name}"))
    }

    /// The logits behind each token of `tokens`, n_vocab long each.
    pub(crate) fn forward(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let n_heads = self.count("attention.head_count");
        let n_kv_heads = self.number("attention.head_count_kv").map_or(n_heads, |n| n as usize);
        let n_embd = self.count("embedding_length");
        let head_dim = self.number("attention.key_length").map_or(n_embd / n_heads, |n| n as usize);
        let eps = self.number("attention.layer_norm_rms_epsilon").unwrap();

        let embd = self.tensor("token_embd.weight");
        let mut xs: Vec<Vec<f64>> = tokens.iter().map(|&t| embd.row(t as usize).to_vec()).collect();
        for layer in 0..self.count("block_count") {
            let weight = |name: &str| self.tensor(&format!("blk.{layer}.{name}.weight"));
            let mut keys: Vec<Vec<f64>> = Vec::new();
            let mut values: Vec<Vec<f64>> = Vec::new();
            for (pos, x) in xs.iter_mut().enumerate() {
                let h = rms_norm(x, weight("attn_norm"), eps);
                let mut q = weight("attn_q").times(&h);
                let mut k = weight("attn_k").times(&h);
                q.chunks_mut(head_dim).for_each(|head| self.rotate(head, pos));
                k.chunks_mut(head_dim).for_each(|head| self.rotate(head, pos));
                keys.push(stored(self.cache, k));
                values.push(stored(self.cache, weight("attn_v").times(&h)));
                let mut mixed = Vec::new();
                for (head, q) in q.chunks(head_dim).enumerate() {
                    let kv_head = head / (n_heads / n_kv_heads);
                    let part = kv_head * head_dim..(kv_head + 1) * head_dim;
                    let scores = keys.iter().map(|k| dot(q, &k[part.clone()]) / (head_dim as f64).sqrt());
                    let shares = softmax(&scores.collect::<Vec<_>>());
                    mixed
                        .extend(part.map(|i| shares.iter().zip(&values).map(|(s, v)| s * v[i]).sum::<f64>()));
                }
                add(x, &weight("attn_output").times(&mixed));
                let h = rms_norm(x, weight("ffn_norm"), eps);
                let up = weight("ffn_up").times(&h);
                let gate = weight("ffn_gate").times(&h);
                let gated: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                add(x, &weight("ffn_down").times(&gated));
            }
        }
        let output = self.tensors.get("output.weight").unwrap_or(embd);
        xs.iter().map(|x| output.times(&rms_norm(x, self.tensor("output_norm.weight"), eps))).collect()
    }

    /// Turns each adjacent pair of a head's rotated part by its angle: pos * base^(-2i/d), linear scaling and
    /// frequency factors applied.
    fn rotate(&self, head: &mut [f64], pos: usize) {
        let base = self.number("rope.freq_base").unwrap_or(10_000.0);
        let linear = match self.meta.get("llama.rope.scaling.type") {
            Some(Value::Text(kind)) if kind == "linear" => self.number("rope.scaling.factor").unwrap(),
            _ => self.number("rope.scale_linear").unwrap_or(1.0),
        };
        let n = self.number("rope.dimension_count").map_or(head.len(), |n| n as usize);
        for (i, pair) in head[..n].chunks_mut(2).enumerate() {
            let factor = self.tensors.get("rope_freqs.weight").map_or(1.0, |t| t.data[i]);
            let angle = pos as f64 / linear * base.powf(-2.0 * i as f64 / n as f64) / factor;
            let (sin, cos) = angle.sin_cos();
            (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
        }
    }
}

fn rms_norm(x: &[f64], weight: &Tensor, eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(&weight.data).map(|(x, w)| x / (mean + eps).sqrt() * w).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
    let shares: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = shares.iter().sum();
    shares.iter().map(|s| s / sum).collect()
}

/// A row of keys or values after it was stored as this type and read again.
fn stored(kind: &str, row: Vec<f64>) -> Vec<f64> {
    let rounded = |x: f64, bits: i32| {
        let step = 2f64.powi((x.abs().log2().floor() as i32).max(-14) - bits);
        if x == 0.0 { 0.0 } else { (x / step).round_ties_even() * step }
    };
    let half = |x: f64| rounded(x, 10);
    let blocks = |each: fn(f64, f64) -> f64, steps: f64| {
        let block = |b: &[f64]| -> Vec<f64> {
            let d = largest(b) / steps;
            b.iter().map(|&x| if d == 0.0 { 0.0 } else { half(d) * each(x, d) }).collect()
        };
        row.chunks(32).flat_map(block).collect()
    };
    match kind {
        "f32" => row,
        "f16" => row.into_iter().map(half).collect(),
        "bf16" => row.into_iter().map(|x| rounded(x, 7)).collect(),
        // The sign of d does not matter here: rounding is the same on both sides of zero.
        "q8_0" => blocks(|x, d| (x / d).round(), 127.0),
        "q4_0" => blocks(|x, d| (x / d + 8.5).trunc().min(15.0) - 8.0, -8.0),
        other => panic!("the twin does not know a cache of {other}"),
    }
}

/// The value of largest magnitude, the first one on a tie.
fn largest(block: &[f64]) -> f64 {
    block.iter().fold(0.0, |m: f64, &x| if x.abs() > m.abs() { x } else { m })
}

/// The first `n` elements of a tensor of ggml's type number `kind`.
fn decode(kind: u32, bytes: &[u8], n: usize) -> Vec<f64> {
    match kind {
        0 => bytes.chunks(4).take(n).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect(),
        1 => bytes.chunks(2).take(n).map(half).collect(),
        30 => bytes.chunks(2).take(n).map(|b| f64::from(f32::from_le_bytes([0, 0, b[0], b[1]]))).collect(),
        8 => blocks(bytes, n, 34, |b| (0..32).map(|j| half(b) * f64::from(b[2 + j] as i8)).collect()),
        2 => blocks(bytes, n, 18, |b| (0..32).map(|j| half(b) * (nibble(&b[2..], j) - 8.0)).collect()),
        3 => {
            blocks(bytes, n, 20, |b| (0..32).map(|j| half(b) * nibble(&b[4..], j) + half(&b[2..])).collect())
        }
        // The types that are decoded only: the reference decoder, which the package `gguf` vouches for (granule-quant's
        // tests hold it to 10,000 random blocks of each).
        other => {
            let dtype = granule_quant::DType::from_ggml_id(other).unwrap();
            let mut x = vec![0.0; n];
            granule_quant::scalar::decode(dtype, &bytes[..dtype.row_bytes(n).unwrap()], &mut x).unwrap();
            x.into_iter().map(f64::from).collect()
        }
    }
}

fn blocks(bytes: &[u8], n: usize, size: usize, one: impl Fn(&[u8]) -> Vec<f64>) -> Vec<f64> {
    bytes.chunks(size).take(n / 32).flat_map(one).collect()
}

/// Element `j` of 32: the low nibbles come first.
fn nibble(q: &[u8], j: usize) -> f64 {
    f64::from(if j < 16 { q[j] & 15 } else { q[j - 16] >> 4 })
}

/// IEEE binary16, by its definition.
fn half(b: &[u8]) -> f64 {
    let bits = u16::from_le_bytes([b[0], b[1]]);
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
    match exponent {
        0 => sign * fraction * 2f64.powi(-14),
        31 => panic!("a weight is infinite or not a number"),
        e => sign * (1.0 + fraction) * 2f64.powi(e - 15),
    }
}

struct Reader<'a> {
    file: &'a [u8],
    pos: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        self.pos += n;
        &self.file[self.pos - n..self.pos]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let n = self.u64() as usize;
        String::from_utf8_lossy(self.take(n)).into_owned()
    }

    fn tagged_value(&mut self) -> Value {
        let tag = self.u32();
        self.value(tag)
    }

    fn value(&mut self, tag: u32) -> Value {
        Value::Number(match tag {
            0 | 7 => f64::from(self.take(1)[0]),
            1 => f64::from(self.take(1)[0] as i8),
            2 => f64::from(u16::from_le_bytes(self.take(2).try_into().unwrap())),
            3 => f64::from(i16::from_le_bytes(self.take(2).try_into().unwrap())),
            4 => f64::from(self.u32()),
            5 => f64::from(self.u32() as i32),
            6 => f64::from(f32::from_bits(self.u32())),
            8 => return Value::Text(self.text()),
            9 => {
                let (tag, n) = (self.u32(), self.u64());
                (0..n).for_each(|_| drop(self.value(tag)));
                return Value::Array;
            }
            10 => self.u64() as f64,
            11 => self.u64() as i64 as f64,
            12 => f64::from_bits(self.u64()),
            other => panic!("no metadata has type {other}"),
        })
    }
}
