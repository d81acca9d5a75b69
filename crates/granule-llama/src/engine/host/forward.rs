//! The Llama forward pass (Touvron et al., 2023), composed of `granule-ops` over the weights and the cache.

use granule_ops::kv_append::{self, AppendShape};
use granule_ops::{
    Activations, AttentionItem, AttentionShape, Matrix, Precision, QuantScratch, Threads, add, attention,
    matmul, rms_norm, rotate, swiglu,
};
use granule_split::Communicator;
use granule_split::comm::STAGED_ELEMENTS;

use super::activations::Step;
use crate::cancel::CancelToken;
use crate::engine::{Batch, Hidden, Observer, Staged, look_up, spans};
use crate::error::{Error, Result};
use crate::model::{Model, Place};

/// Tokens of one sequence that a step computes precisely in any case: the prompt of a short question takes some hundredths of a
/// second longer for it, and its answer does not turn on rounding.
const SHORT: usize = 64;

/// What a batch begins with: what its tokens stand for, or what the stage before has made of them.
pub(super) fn begin<S>(
    model: &Model,
    batch: &Batch<'_, S>,
    hidden: Option<Hidden<'_>>,
    x: &mut [f32],
) -> Result<()> {
    let n_embd = model.config().n_embd;
    let Some(hidden) = hidden else {
        return look_up(model, batch.tokens.iter().copied(), x);
    };
    for (token, x) in x.chunks_exact_mut(n_embd).enumerate() {
        x.copy_from_slice(hidden.of(token, n_embd)?);
    }
    Ok(())
}

/// Runs a batch, whose hidden states are in `step.x`, through a stage's layers, and stores its keys and values. The new hidden states
/// are left there. `items` is room for a list, empty before and after.
pub(super) fn forward<S: Staged>(
    (model, place): (&Model, &Place),
    link: Option<&dyn Communicator>,
    batch: &mut Batch<'_, S>,
    step: &mut Step<'_>,
    items: &mut Vec<AttentionItem<'static>>,
    cancel: &CancelToken,
    mut observe: Option<Observer<'_>>,
) -> Result<()> {
    let (span, stage) = (&place.span, place.span.index);
    let transforms = batch.tables_of(stage).map(|tables| tables.transforms());
    let Batch { sequences, parts, tokens, .. } = batch;
    let (config, weights, threads) = (&place.config, place.weights(), place.threads_for(tokens.len()));
    let (n, kv_width, dims) = (tokens.len(), config.kv_width(), config.rope_dims);
    let Step { x, h, q, k, v, attended, gate, up, angles, attention: scratch, quant } = step;
    let is_short = parts.len() == 1 && n <= SHORT;
    let precision = if is_short { Precision::Precise } else { model.precision() };
    let scale = 1.0 / (config.head_dim as f32).sqrt();
    let mut rest = &mut **angles;
    for part in *parts {
        let (own, behind) = rest.split_at_mut(part.n * dims);
        model.rope().angles(sequences[part.sequence].stage(stage).position(), part.n, own)?;
        rest = behind;
    }
    for (own, layer) in weights.layers[span.layers.clone()].iter().enumerate() {
        // Of the model; its rows are those of the stage's own number.
        let index = span.layers.start + own;
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let _layer = spans::layer(index, place.bank.device().name());
        rms_norm(threads, x, &layer.attn_norm, config.rms_eps, h)?;
        let [wq, wk, wv] =
            [weights.matrix(&layer.attn_q)?, weights.matrix(&layer.attn_k)?, weights.matrix(&layer.attn_v)?];
        project(threads, precision, h, n, quant, &mut [(wq, q), (wk, k), (wv, v)])?;
        rotate(q, config.n_heads, config.head_dim, config.rope_dims, angles)?;
        if let Some(observe) = &mut observe {
            observe(index, q, k, v)?;
        }
        let transform = transforms.and_then(|transforms| transforms.layer(index));
        let mut first = 0;
        for part in *parts {
            let end = first + part.n;
            let (k, v) = (&mut k[first * kv_width..end * kv_width], &mut v[first * kv_width..end * kv_width]);
            let append =
                AppendShape { rope_dims: dims, angles: &angles[first * dims..end * dims], transform };
            let sequence = sequences[part.sequence].stage_mut(stage);
            kv_append::cpu(threads, &append, &mut sequence.rows_mut(own)?, k, v)?;
            first = end;
        }
        let shape = AttentionShape { n_heads: config.n_heads, scale, transform, rope: Some(model.rope()) };
        let mut attend = recycled(std::mem::take(items));
        for part in *parts {
            let sequence = sequences[part.sequence].stage(stage);
            let cache = sequence.view(own, sequence.len() + part.n)?;
            attend.push(AttentionItem { cache, n_tokens: part.n });
        }
        attention::cpu(threads, &shape, q, &attend, attended, scratch)?;
        *items = recycled(attend);
        project(threads, precision, attended, n, quant, &mut [(weights.matrix(&layer.attn_output)?, h)])?;
        add_all(threads, link, x, h)?;

        rms_norm(threads, x, &layer.ffn_norm, config.rms_eps, h)?;
        let [wgate, wup] = [weights.matrix(&layer.ffn_gate)?, weights.matrix(&layer.ffn_up)?];
        project(threads, precision, h, n, quant, &mut [(wgate, gate), (wup, up)])?;
        swiglu(threads, gate, up)?;
        project(threads, precision, gate, n, quant, &mut [(weights.matrix(&layer.ffn_down)?, h)])?;
        add_all(threads, link, x, h)?;
    }
    Ok(())
}

/// The logits of some of a step's tokens, whose hidden states it left: the last norm and the output layer. `logits` has room for
/// them, and maybe for more.
pub(super) fn output(
    model: &Model,
    place: &Place,
    step: &mut Step<'_>,
    rows: impl Iterator<Item = usize>,
    logits: &mut [f32],
) -> Result<()> {
    let (config, weights) = (&place.config, place.weights());
    let n_embd = config.n_embd;
    let threads = place.threads_for(step.x.len() / n_embd);
    let mut n = 0;
    for (row, h) in rows.zip(step.h.chunks_exact_mut(n_embd)) {
        let x = &step.x[row * n_embd..(row + 1) * n_embd];
        rms_norm(threads, x, &weights.output_norm, config.rms_eps, h)?;
        n += 1;
    }
    if n == 0 {
        return Ok(());
    }
    let products = &mut [(weights.output_matrix()?, &mut logits[..n * config.n_vocab])];
    project(threads, model.precision(), &step.h[..n * n_embd], n, &mut step.quant, products)
}

/// Adds to the hidden states what a layer's part makes of them: on all ranks, where it is split, of which only the first has them in
/// its summand.
fn add_all(threads: &Threads, link: Option<&dyn Communicator>, x: &mut [f32], h: &[f32]) -> Result<()> {
    match link {
        Some(link) if link.rank() > 0 => x.copy_from_slice(h),
        _ => add(threads, x, h)?,
    }
    let Some(link) = link else { return Ok(()) };
    // In the pieces in which a rank on a GPU brings its own here.
    x.chunks_mut(STAGED_ELEMENTS).try_for_each(|piece| Ok(link.all_reduce(piece)?))
}

/// An empty list for items of another lifetime, in the memory of this one: collecting into the same layout takes none.
fn recycled<'b>(mut items: Vec<AttentionItem<'_>>) -> Vec<AttentionItem<'b>> {
    items.clear();
    items.into_iter().map_while(|_| None).collect()
}

/// Multiplies `n` rows of `x` with each weight, quantizing `x` first as the weights need it: all are packed, or none is.
fn project(
    threads: &Threads,
    precision: Precision,
    x: &[f32],
    n: usize,
    quant: &mut QuantScratch<'_>,
    products: &mut [(Matrix<'_>, &mut [f32])],
) -> Result<()> {
    let cols = x.len() / n.max(1);
    let quant = QuantScratch { quants: quant.quants, scales: quant.scales, sums: quant.sums };
    let quantized = products.iter().find(|(weight, _)| weight.dtype().is_quantized());
    let activations = match quantized.map(|(weight, _)| weight.packing()) {
        Some(Some(_)) => Activations::fixed(threads, x, n, cols, precision, quant)?,
        Some(None) => Activations::quantized(threads, x, n, cols, precision, quant)?,
        None if precision == Precision::Precise => Activations::plain(x, n, cols)?,
        None if products.iter().any(|(weight, _)| Activations::bf16_pays(weight.dtype(), n, cols)) => {
            Activations::bf16(threads, x, n, cols, quant)?
        }
        None => Activations::plain(x, n, cols)?,
    };
    matmul(threads, &activations, products)?;
    Ok(())
}
