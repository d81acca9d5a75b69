//! The shape of a Llama model, read from a file's metadata; what the engine cannot run is refused here, by name.

use granule_kv::KvShape;
use granule_plan::ModelShape;
use granule_quant::DType;
use granule_split::RankShape;

use crate::error::{Error, Result, excerpt};
use crate::gguf::Gguf;

/// The numbers of one Llama model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The model's own name, if the file gives one.
    pub name: Option<String>,
    /// Elements of one token's hidden state.
    pub n_embd: usize,
    /// Transformer layers.
    pub n_layers: usize,
    /// Query heads of a layer.
    pub n_heads: usize,
    /// Key-value heads of a layer; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Elements of one head, of keys and values alike.
    pub head_dim: usize,
    /// Hidden elements of the feed-forward part.
    pub n_ff: usize,
    /// Tokens of the vocabulary: rows of the embedding table.
    pub n_vocab: usize,
    /// The context that the model was trained for, in tokens.
    pub n_ctx_train: usize,
    /// The epsilon of the norms.
    pub rms_eps: f32,
    /// Elements of each head that are rotated.
    pub rope_dims: usize,
    /// The base of the rotation's frequencies.
    pub rope_base: f32,
    /// What positions are divided by; 1 for none.
    pub rope_linear: f32,
}

/// The largest value that a dimension may have: far above any model, far below what overflows.
const MOST: u64 = 1 << 24;

impl Config {
    /// Reads the configuration of a `llama` file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming what cannot be run (another architecture, experts, another rope scaling),
    /// [`Error::MissingKey`], [`Error::WrongType`], [`Error::InvalidConfig`] for numbers that make no model.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let meta = gguf.metadata();
        let architecture = meta.get_str("general.architecture")?;
        if architecture != "llama" {
            return Err(Error::Unsupported {
                what: format!("architecture `{architecture}` (only `llama` runs)"),
            });
        }
        let dimension = |key: &'static str| -> Result<usize> { check(key, meta.get_u64(key)?) };
        let optional = |key: &'static str| -> Result<Option<usize>> {
            meta.find_u64(key)?.map(|value| check(key, value)).transpose()
        };
        if let Some(experts) = meta.find_u64("llama.expert_count")?.filter(|&n| n > 0) {
            return Err(Error::Unsupported { what: format!("a mixture of {experts} experts") });
        }
        let n_embd = dimension("llama.embedding_length")?;
        let n_heads = dimension("llama.attention.head_count")?;
        let n_kv_heads = optional("llama.attention.head_count_kv")?.unwrap_or(n_heads);
        if !n_heads.is_multiple_of(n_kv_heads) {
            return Err(Error::InvalidConfig {
                key: "llama.attention.head_count",
                problem: format!("{n_heads} query heads are no multiple of {n_kv_heads} key-value heads"),
            });
        }
        let head_dim = match optional("llama.attention.key_length")? {
            Some(head_dim) => head_dim,
            None if n_embd.is_multiple_of(n_heads) => n_embd / n_heads,
            None => {
                return Err(Error::InvalidConfig {
                    key: "llama.attention.head_count",
                    problem: format!("{n_heads} heads do not divide {n_embd} embedding elements"),
                });
            }
        };
        if let Some(value_dim) = optional("llama.attention.value_length")?.filter(|&n| n != head_dim) {
            return Err(Error::Unsupported {
                what: format!("keys of {head_dim} elements with values of {value_dim}"),
            });
        }
        if head_dim < 8 || !head_dim.is_multiple_of(2) {
            return Err(Error::Unsupported {
                what: format!("a head dimension of {head_dim} (even, 8 or more)"),
            });
        }
        let rope_dims = optional("llama.rope.dimension_count")?.unwrap_or(head_dim);
        if rope_dims > head_dim || !rope_dims.is_multiple_of(2) {
            return Err(Error::InvalidConfig {
                key: "llama.rope.dimension_count",
                problem: format!("{rope_dims} of {head_dim} elements cannot be rotated in pairs"),
            });
        }
        let table = gguf
            .tensor("token_embd.weight")
            .ok_or(Error::MissingTensor { name: "token_embd.weight".into() })?;
        let n_vocab = check("token_embd.weight", table.dims.get(1).copied().unwrap_or(1))?;
        Ok(Self {
            name: meta.find_str("general.name")?.map(str::to_owned),
            n_embd,
            n_layers: dimension("llama.block_count")?,
            n_heads,
            n_kv_heads,
            head_dim,
            n_ff: dimension("llama.feed_forward_length")?,
            n_vocab,
            n_ctx_train: check("llama.context_length", meta.get_u64("llama.context_length")?)?,
            rms_eps: positive(
                "llama.attention.layer_norm_rms_epsilon",
                meta.get_f32("llama.attention.layer_norm_rms_epsilon")?,
            )?,
            rope_dims,
            rope_base: positive(
                "llama.rope.freq_base",
                meta.find_f32("llama.rope.freq_base")?.unwrap_or(10_000.0),
            )?,
            rope_linear: linear_scaling(gguf)?,
        })
    }

    /// What a KV cache of this model must hold.
    #[must_use]
    pub fn kv_shape(&self) -> KvShape {
        KvShape { n_layers: self.n_layers, n_kv_heads: self.n_kv_heads, head_dim: self.head_dim }
    }

    /// What the sizes of a step follow from; the output layer is of this type.
    pub(crate) fn sizes(&self, output: DType) -> ModelShape {
        ModelShape {
            n_embd: self.n_embd,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            n_ff: self.n_ff,
            n_vocab: self.n_vocab,
            rope_dims: self.rope_dims,
            output,
        }
    }

    /// The shape of one rank's part.
    pub(crate) fn part(&self, part: &RankShape) -> Self {
        let (n_heads, n_kv_heads) = (part.heads.len(), part.kv_heads.len());
        Self { n_heads, n_kv_heads, n_ff: part.ff.len(), n_vocab: part.vocab.len(), ..self.clone() }
    }

    /// Elements of all query heads of one token.
    #[must_use]
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Elements of all keys (and of all values) of one token in one layer.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}

fn check(key: &'static str, value: u64) -> Result<usize> {
    if value == 0 || value > MOST {
        return Err(Error::InvalidConfig { key, problem: format!("{value} is not between 1 and {MOST}") });
    }
    Ok(value as usize)
}

fn positive(key: &'static str, value: f32) -> Result<f32> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(Error::InvalidConfig { key, problem: format!("{value} is not a positive number") })
    }
}

/// What positions are divided by. Llama 3's own scaling arrives as the tensor `rope_freqs.weight` instead.
fn linear_scaling(gguf: &Gguf) -> Result<f32> {
    let meta = gguf.metadata();
    let old = meta.find_f32("llama.rope.scale_linear")?;
    match meta.find_str("llama.rope.scaling.type")? {
        None if old.is_some() => positive("llama.rope.scale_linear", old.unwrap_or(1.0)),
        // Converters write the factor of Llama 3 beside the tensor and no type: the tensor holds all of it.
        None | Some("none") => Ok(1.0),
        Some("linear") => positive("llama.rope.scaling.factor", meta.get_f32("llama.rope.scaling.factor")?),
        Some("llama3") if gguf.tensor("rope_freqs.weight").is_some() => Ok(1.0),
        Some(other) => Err(Error::Unsupported { what: format!("rope scaling `{}`", excerpt(other)) }),
    }
}
