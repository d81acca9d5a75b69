//! What a file can be quantized to, and the types that each of its tensors gets.
//!
//! The mixtures are those of llama.cpp's quantizer without an importance matrix, for models of the Llama family; other
//! architectures get the same.

use std::fmt;
use std::str::FromStr;

use granule_quant::DType;

use crate::error::{Error, Result};
use crate::gguf::{Metadata, TensorInfo};

/// What the weights of a file become.
///
/// ```
/// use granule_llama::QuantizeTarget;
/// assert_eq!("Q4_K_M".parse::<QuantizeTarget>()?, QuantizeTarget::Q4_K_M);
/// assert_eq!(QuantizeTarget::Q4_K_M.to_string(), "q4_k_m");
/// # Ok::<(), granule_llama::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(non_camel_case_types, reason = "ggml's names")]
pub enum QuantizeTarget {
    /// Every weight matrix in F32.
    F32,
    /// Every weight matrix in F16.
    F16,
    /// Every weight matrix in BF16.
    BF16,
    /// Every weight matrix in Q8_0.
    Q8_0,
    /// Q4_0, and Q6_K for the output layer.
    Q4_0,
    /// Q4_K, and Q6_K for the output layer and for half of what is most sensitive: the values' projections and the second
    /// feed-forward matrices.
    Q4_K_M,
}

impl QuantizeTarget {
    /// Every target.
    pub const ALL: &[QuantizeTarget] =
        &[Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0, Self::Q4_K_M];

    /// The name in lower case: `q4_k_m`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_K_M => "q4_k_m",
            other => other.dtype().name(),
        }
    }

    /// The type of most weights.
    #[must_use]
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            Self::Q8_0 => DType::Q8_0,
            Self::Q4_0 => DType::Q4_0,
            Self::Q4_K_M => DType::Q4_K,
        }
    }

    /// What the file says of itself in `general.file_type`. Source: `enum llama_ftype` of llama.cpp.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4_K_M => 15,
            Self::BF16 => 32,
        }
    }
}

impl fmt::Display for QuantizeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for QuantizeTarget {
    type Err = Error;

    /// Reads a name in either case.
    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|target| target.name().eq_ignore_ascii_case(name));
        found.copied().ok_or_else(|| Error::UnknownTarget { name: name.to_owned() })
    }
}

/// What a tensor becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The type that it gets.
    pub(super) dtype: DType,
    /// The type that it would have got, had its rows been whole blocks of it.
    pub(super) instead_of: Option<DType>,
}

/// What tensors are for, as far as their types depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Output,
    Embedding,
    Values,
    Keys,
    AttentionOutput,
    Down,
    Other,
}

impl Role {
    fn of(name: &str) -> Self {
        let has = |part: &str| name.contains(part);
        match name {
            "output.weight" => Self::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Self::Embedding,
            _ if ["attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"].into_iter().any(has) => {
                Self::Values
            }
            _ if has("attn_k.weight") => Self::Keys,
            _ if has("attn_output.weight") => Self::AttentionOutput,
            _ if has("ffn_down") => Self::Down,
            _ => Self::Other,
        }
    }
}

/// Parts of the names of weights that stay as they are: norms, routers, positions, convolutions, and other small ones.
const KEPT: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// Names of weights that stay as they are.
const KEPT_NAMES: &[&str] = &["position_embd.weight", "token_types.weight"];

/// Whether a tensor is a weight matrix that the target is about; the others are copied.
fn is_converted(tensor: &TensorInfo) -> bool {
    let name = tensor.name.as_str();
    let is_matrix = tensor.dims.iter().skip(1).any(|&d| d > 1);
    is_matrix
        && name.ends_with("weight")
        && !KEPT_NAMES.contains(&name)
        && !KEPT.iter().any(|part| name.contains(part))
}

/// The model as far as types depend on it.
struct Model {
    is_tied: bool,
    n_layers: usize,
    n_values: usize,
    n_experts: u64,
    /// The model of 80 layers that shares values between heads, whose values are few and so get more bits.
    has_few_values: bool,
}

impl Model {
    fn new(metadata: &Metadata, tensors: &[&TensorInfo]) -> Result<Self> {
        let architecture = metadata.find_str("general.architecture")?.unwrap_or_default();
        let number = |key: &str| metadata.find_u64(&format!("{architecture}.{key}"));
        let is = |role: Role| move |t: &&&TensorInfo| Role::of(&t.name) == role;
        let n_layers = number("block_count")?.unwrap_or(0);
        // In some architectures a list for each layer: then it is no model that this is about.
        let heads = number("attention.head_count").ok().flatten();
        let kv_heads = number("attention.head_count_kv").ok().flatten().or(heads);
        Ok(Self {
            is_tied: !tensors.iter().any(|t| t.name == "output.weight"),
            n_layers: usize::try_from(n_layers).unwrap_or(usize::MAX),
            n_values: tensors.iter().filter(is(Role::Values)).count(),
            n_experts: number("expert_count")?.unwrap_or(0),
            has_few_values: architecture == "llama" && n_layers == 80 && heads != kv_heads,
        })
    }

    /// The type that a tensor of a mixture should have; `nth` of its role among those that are converted.
    fn mixed(&self, target: QuantizeTarget, tensor: &TensorInfo, role: Role, nth: usize) -> DType {
        let usual = target.dtype();
        let is_mixed = target == QuantizeTarget::Q4_K_M;
        match role {
            Role::Output if usual != DType::Q8_0 => DType::Q6_K,
            Role::Embedding if usual != DType::Q8_0 && self.is_tied => DType::Q6_K,
            Role::Values if self.n_experts == 8 => DType::Q8_0,
            Role::Keys if self.n_experts == 8 => DType::Q8_0,
            Role::Values if is_mixed && gets_more_bits(nth, self.n_values) => DType::Q6_K,
            Role::Values if is_mixed && self.has_few_values => DType::Q5_K,
            Role::AttentionOutput if is_mixed && self.n_experts == 8 => DType::Q5_K,
            Role::Down if is_mixed => {
                // The parts of a layer with experts may be anywhere in the file.
                let layer = if self.n_experts > 1 { layer_of(&tensor.name).unwrap_or(nth) } else { nth };
                if gets_more_bits(layer, self.n_layers) { DType::Q6_K } else { usual }
            }
            _ => usual,
        }
    }
}

/// Whether the `i`-th of `n` layers is one that matters more: the first and last eighth, and every third between.
fn gets_more_bits(i: usize, n: usize) -> bool {
    let eighth = n / 8;
    i < eighth || i >= n.saturating_mul(7) / 8 || (i - eighth) % 3 == 2
}

/// The layer that a tensor's name says it is in.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

fn fits(dtype: DType, tensor: &TensorInfo) -> bool {
    tensor.dims.first().is_none_or(|row| row.is_multiple_of(dtype.block_len() as u64))
}

/// What takes the place of a type whose blocks are longer than a row's end allows.
fn fallback(dtype: DType, tensor: &TensorInfo) -> Wanted {
    if fits(dtype, tensor) {
        return Wanted { dtype, instead_of: None };
    }
    let shorter = match dtype {
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        _ => DType::F16,
    };
    let dtype_that_fits = if fits(shorter, tensor) { shorter } else { DType::F16 };
    Wanted { dtype: dtype_that_fits, instead_of: Some(dtype) }
}

/// What each tensor becomes; `None` for those that are copied.
pub(super) fn types(
    target: QuantizeTarget,
    metadata: &Metadata,
    tensors: &[&TensorInfo],
) -> Result<Vec<Option<Wanted>>> {
    let model = Model::new(metadata, tensors)?;
    let mut wanted = vec![None; tensors.len()];
    // Counted layer by layer, wherever the file has them.
    let mut order: Vec<usize> = (0..tensors.len()).filter(|&i| is_converted(tensors[i])).collect();
    order.sort_by_key(|&i| (layer_of(&tensors[i].name), &tensors[i].name));
    let (mut n_values, mut n_downs) = (0, 0);
    for i in order {
        let tensor = tensors[i];
        let role = Role::of(&tensor.name);
        let count = if role == Role::Values { &mut n_values } else { &mut n_downs };
        let nth = *count;
        *count += usize::from(matches!(role, Role::Values | Role::Down));
        let dtype = if target.dtype().is_quantized() {
            model.mixed(target, tensor, role, nth)
        } else {
            target.dtype()
        };
        wanted[i] = Some(fallback(dtype, tensor));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgmlType, Value};

    fn tensor(name: &str, dims: &[u64]) -> TensorInfo {
        TensorInfo { name: name.to_owned(), dims: dims.to_vec(), ty: DType::F16.into(), offset: 0, bytes: 0 }
    }

    /// The types of these tensors in a Q4_K_M file of a model with these numbers.
    fn mixture(numbers: &[(&str, u32)], tensors: &[TensorInfo]) -> Vec<Option<&'static str>> {
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", Value::String("llama".into()));
        numbers.iter().for_each(|(key, n)| metadata.set(&format!("llama.{key}"), Value::U32(*n)));
        let tensors: Vec<_> = tensors.iter().collect();
        let types = types(QuantizeTarget::Q4_K_M, &metadata, &tensors).unwrap();
        types.into_iter().map(|wanted| wanted.map(|wanted| GgmlType::from(wanted.dtype).name())).collect()
    }

    #[test]
    fn names_read_back() {
        for &target in QuantizeTarget::ALL {
            assert_eq!(target.name().to_uppercase().parse::<QuantizeTarget>().unwrap(), target);
        }
        let error = "q3_k_s".parse::<QuantizeTarget>().unwrap_err().to_string();
        let names: Vec<_> = QuantizeTarget::ALL.iter().map(|target| target.name()).collect();
        assert!(names.iter().all(|name| error.contains(name)) && error.contains("q3_k_s"), "{error}");
    }

    #[test]
    fn every_third_layer_and_both_ends_get_more_bits() {
        let more = |n: usize| (0..n).filter(|&i| gets_more_bits(i, n)).collect::<Vec<_>>();
        assert_eq!(more(6), [2, 5]);
        assert_eq!(more(8), [0, 3, 6, 7]);
        assert_eq!(more(16), [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(more(1), [0]);
    }

    #[test]
    fn layers_count_wherever_they_lie() {
        let names = ["blk.10", "blk.2", "blk.0", "blk.9", "blk.11", "blk.1"];
        let values = names.map(|name| tensor(&format!("{name}.attn_v.weight"), &[256, 256]));
        // In order 0, 1, 2, 9, 10, 11: the third and the last of six.
        let expected = ["q4_k", "q6_k", "q4_k", "q4_k", "q6_k", "q4_k"].map(Some);
        assert_eq!(mixture(&[("block_count", 6)], &values), expected);
    }

    #[test]
    fn experts() {
        let tensors = [
            tensor("blk.3.ffn_down_exps.weight", &[256, 256, 8]),
            tensor("blk.2.ffn_down_exps.weight", &[256, 256, 8]),
            tensor("blk.2.ffn_gate_exps.weight", &[256, 256, 8]),
            tensor("blk.2.ffn_gate_inp.weight", &[256, 8]),
            tensor("blk.2.attn_v.weight", &[256, 256]),
            tensor("blk.2.attn_k.weight", &[256, 256]),
            tensor("blk.2.attn_q.weight", &[256, 256]),
            tensor("blk.2.attn_output.weight", &[256, 256]),
        ];
        let got = mixture(&[("block_count", 6), ("expert_count", 8)], &tensors);
        let expected = ["q4_k", "q6_k", "q4_k", "", "q8_0", "q8_0", "q4_k", "q5_k"];
        assert_eq!(got, expected.map(|name| (!name.is_empty()).then_some(name)));
        let got = mixture(&[("block_count", 6), ("expert_count", 4)], &tensors);
        assert_eq!(got[4..], ["q6_k", "q4_k", "q4_k", "q4_k"].map(Some));
    }

    #[test]
    fn few_values_get_more_bits() {
        let values: Vec<_> =
            (0..80).map(|i| tensor(&format!("blk.{i}.attn_v.weight"), &[256, 256])).collect();
        let numbers = [("block_count", 80), ("attention.head_count", 64), ("attention.head_count_kv", 8)];
        let types = mixture(&numbers, &values);
        assert_eq!((types[0], types[10], types[12]), (Some("q6_k"), Some("q5_k"), Some("q6_k")));
        assert_eq!(mixture(&numbers[..2], &values)[10], Some("q4_k"));
    }

    #[test]
    fn what_is_no_weight_matrix_stays() {
        let tensors = [
            tensor("blk.0.attn_norm.weight", &[256]),
            tensor("blk.0.attn_q.bias", &[256, 2]),
            tensor("blk.0.attn_q_norm.weight", &[256, 2]),
            tensor("position_embd.weight", &[256, 512]),
            tensor("blk.0.ssm_conv1d.weight", &[4, 512]),
            tensor("blk.0.column.weight", &[256, 1]),
            tensor("blk.0.x.weight", &[]),
            tensor("blk.0.y.weight", &[256, 1, 2]),
        ];
        let types = mixture(&[], &tensors);
        assert_eq!(types, [None, None, None, None, None, None, None, Some("q4_k")]);
    }
}
