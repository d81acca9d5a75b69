//! The Llama forward pass (Touvron et al., 2023), composed of `granule-ops` over the weights and the cache.

use granule_kv::Sequence;
use granule_ops::kv_append::{self, AppendShape};
use granule_ops::{
    Activations, AttentionItem, AttentionShape, KvTransforms, Matrix, QuantScratch, Threads, add, attention,
    embed, matmul, rms_norm, rotate, swiglu,
};

use crate::activations::Step;
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::tokenizer::TokenId;

/// Is shown each layer's queries, rotated, and its keys and values, as the projections gave them.
pub(crate) type Observer<'a> = &'a mut dyn FnMut(usize, &[f32], &[f32], &[f32]) -> Result<()>;

/// Runs `tokens` through all layers and stores their keys and values behind the sequence's rows, which have to be
/// prepared; the caller commits them. The hidden states are left in `step.x`.
pub(crate) fn forward(
    model: &Model,
    sequence: &mut Sequence,
    transforms: Option<&KvTransforms>,
    step: &mut Step<'_>,
    tokens: &[TokenId],
    cancel: &CancelToken,
    mut observe: Option<Observer<'_>>,
) -> Result<()> {
    let (config, weights, threads) = (model.config(), model.weights(), model.threads());
    let (n, first) = (tokens.len(), sequence.len());
    let Step { x, h, q, k, v, attended, gate, up, angles, attention: scratch, quant } = step;
    let scale = 1.0 / (config.head_dim as f32).sqrt();
    embed(&weights.matrix(&weights.embedding)?, tokens.iter().map(|t| t.get()), x)?;
    model.rope().angles(sequence.position(), n, angles)?;
    for (index, layer) in weights.layers.iter().enumerate() {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        rms_norm(x, &layer.attn_norm, config.rms_eps, h)?;
        let [wq, wk, wv] =
            [weights.matrix(&layer.attn_q)?, weights.matrix(&layer.attn_k)?, weights.matrix(&layer.attn_v)?];
        project(threads, h, n, quant, &mut [(wq, q), (wk, k), (wv, v)])?;
        rotate(q, config.n_heads, config.head_dim, config.rope_dims, angles)?;
        if let Some(observe) = &mut observe {
            observe(index, q, k, v)?;
        }
        let transform = transforms.and_then(|transforms| transforms.layer(index));
        let append = AppendShape { rope_dims: config.rope_dims, angles, transform };
        kv_append::cpu(threads, &append, &mut sequence.rows_mut(index)?, k, v)?;
        let shape = AttentionShape { n_heads: config.n_heads, scale, transform, rope: Some(model.rope()) };
        let item = AttentionItem { cache: sequence.view(index, first + n)?, n_tokens: n };
        attention::cpu(threads, &shape, q, &[item], attended, scratch)?;
        project(threads, attended, n, quant, &mut [(weights.matrix(&layer.attn_output)?, h)])?;
        add(x, h)?;

        rms_norm(x, &layer.ffn_norm, config.rms_eps, h)?;
        let [wgate, wup] = [weights.matrix(&layer.ffn_gate)?, weights.matrix(&layer.ffn_up)?];
        project(threads, h, n, quant, &mut [(wgate, gate), (wup, up)])?;
        swiglu(threads, gate, up)?;
        project(threads, gate, n, quant, &mut [(weights.matrix(&layer.ffn_down)?, h)])?;
        add(x, h)?;
    }
    Ok(())
}

/// The logits of the tokens whose hidden states are `x`: the last norm and the output layer.
pub(crate) fn output(
    model: &Model,
    x: &[f32],
    h: &mut [f32],
    quant: &mut QuantScratch<'_>,
    logits: &mut [f32],
) -> Result<()> {
    let (config, weights) = (model.config(), model.weights());
    rms_norm(x, &weights.output_norm, config.rms_eps, h)?;
    project(model.threads(), h, x.len() / config.n_embd, quant, &mut [(weights.output_matrix()?, logits)])
}

/// Multiplies `n` rows of `x` with each weight, quantizing `x` first if one of the weights needs it.
fn project(
    threads: &Threads,
    x: &[f32],
    n: usize,
    quant: &mut QuantScratch<'_>,
    products: &mut [(Matrix<'_>, &mut [f32])],
) -> Result<()> {
    let cols = x.len() / n.max(1);
    let activations = if products.iter().any(|(weight, _)| weight.dtype().is_quantized()) {
        let quant = QuantScratch { quants: quant.quants, scales: quant.scales, sums: quant.sums };
        Activations::quantized(threads, x, n, cols, quant)?
    } else {
        Activations::plain(x, n, cols)?
    };
    matmul(threads, &activations, products)?;
    Ok(())
}
