//! What a model would be in each of its places: weights, layouts, sizes; each as loading and computing have it.

use granule_bank::Bank;
use granule_device::{Bytes, DeviceKind};
use granule_kv::{KvLayout, KvShape};
use granule_plan::{Compute, Part, Stage};
#[cfg(feature = "cuda")]
use granule_plan::{LOADING_PIECES, Places, loading_piece};
#[cfg(feature = "cuda")]
use granule_quant::DType;

use super::{Loaded, ModelPlan, Planned};
use crate::context::ContextOptions;
#[cfg(feature = "cublas")]
use crate::engine::cuda::blas;
#[cfg(not(feature = "cuda"))]
use crate::error::Error;
use crate::error::Result;
use crate::kv_tables::{fold_bytes, held_bytes};
use crate::kv_transform::SINKS;
use crate::placement::{Placement, Span};
use crate::ranks::{self, RankSplit};
#[cfg(feature = "cublas")]
use crate::weights::Tensor;
use crate::weights::Weights;

fn on_host(bank: &Bank) -> bool {
    bank.device().kind() == DeviceKind::Host
}

/// Whether the first layers are split: their ranks are given what tokens stand for.
fn ranks_first(spans: &[(Bank, Span)]) -> bool {
    spans.first().is_some_and(|(_, first)| !first.looks_up())
}

impl ModelPlan {
    /// The places of a placement: its stages, and of those that are split each part that is here.
    pub(super) fn planned(
        &self,
        placement: &Placement,
        load: &Loaded,
        options: &ContextOptions,
    ) -> Result<Vec<Planned>> {
        let spans = placement.spans(self.config.n_layers)?;
        let splits = ranks::splits(placement, &spans, &self.config, &self.weights)?;
        let (keys, values) = self.gains(options);
        let sinks = if keys || values { SINKS } else { 0 };
        let mut planned = Vec::with_capacity(spans.len());
        for ((bank, span), split) in spans.iter().zip(&splits) {
            let part =
                split.as_ref().map(|split| self.weights.part(&self.config, split, span.layers.clone()));
            let part = part.transpose()?;
            let weights = part.as_ref().unwrap_or(&self.weights);
            let config = split.as_ref().map(|split| self.config.part(split.own()));
            let config = config.as_ref().unwrap_or(&self.config);
            let shape = KvShape { n_layers: span.len(), ..config.kv_shape() };
            let kv = options.layout(shape, span.len(), sinks)?;
            let mut stage = if on_host(bank) {
                let bytes = match split {
                    Some(_) => weights.host_bytes(load.source, std::slice::from_ref(span), false)?,
                    None => self.whole_bytes(&spans, span, load)?,
                };
                let threads = split.as_ref().map_or(load.threads, |split| split.thread_counts(load.threads));
                self.on_host(bank, kv, threads, bytes)
            } else {
                let mut stage = self.on_device(bank, span, weights, kv)?;
                stage.engine_scratch = self.blas_scratch(bank, span, weights, options)?;
                let folds = if sinks == 0 { 0 } else { fold_bytes(shape, keys, values).max(1) };
                stage.kv_transform.1 = Bytes::from_usize(folds);
                stage
            };
            stage.part = split.as_ref().map(|split| Part {
                run: span.stage,
                rank: split.rank,
                shape: config.sizes(weights.output().dtype()),
                // Those of one process go by way of the host.
                sums: placement.group(span.stage).and_then(|group| group.remote.clone()),
            });
            planned.push(Planned { bank: bank.clone(), stage });
        }
        self.add_what_is_shared(&spans, &splits, load, sinks > 0, (keys, values), &mut planned)?;
        Ok(planned)
    }

    /// What is there once for all places: files that were read whole, the table that ranks are given tokens' numbers from, and the
    /// tables of a transform, each with the first place of the bank that pays for it.
    fn add_what_is_shared(
        &self,
        spans: &[(Bank, Span)],
        splits: &[Option<RankSplit>],
        load: &Loaded,
        transforms: bool,
        (keys, values): (bool, bool),
        planned: &mut [Planned],
    ) -> Result<()> {
        let first_on_host = spans.iter().position(|(bank, _)| on_host(bank));
        if let Some(first) = first_on_host {
            let mut more = self.weights.read_bytes(load.source)?;
            let is_whole = |(bank, span): &(Bank, Span)| on_host(bank) && span.rank.is_none();
            if ranks_first(spans) && !spans.iter().any(is_whole) {
                more = more.saturating_add(self.weights.host_bytes(load.source, &[], true)?);
            }
            let weights = &mut planned[first].stage.weights;
            *weights = weights.saturating_add(more);
        }
        if transforms {
            let whole = self.config.kv_shape();
            let part = |split: &RankSplit| {
                held_bytes(KvShape { n_kv_heads: split.own().kv_heads.len(), ..whole }, keys, values)
            };
            let parts: usize = splits.iter().flatten().map(part).sum();
            let held = Bytes::from_usize(held_bytes(whole, keys, values) + parts);
            planned[first_on_host.unwrap_or(0)].stage.kv_transform.0 = held;
        }
        Ok(())
    }

    /// What whole layers on the host take: all of a bank's together, with the first of them.
    fn whole_bytes(&self, spans: &[(Bank, Span)], own: &Span, load: &Loaded) -> Result<Bytes> {
        let whole = || spans.iter().filter(|(bank, span)| on_host(bank) && span.rank.is_none());
        let Some((bank, _)) = spans.get(own.index) else { return Ok(Bytes::ZERO) };
        let here: Vec<Span> = whole().filter(|(of, _)| of.is(bank)).map(|(_, span)| span.clone()).collect();
        if here.first() != Some(own) {
            return Ok(Bytes::ZERO);
        }
        // The first of all has the table that ranks before it are given tokens' numbers from.
        let is_first = whole().next().is_some_and(|(first, _)| first.is(bank));
        let looks_up = is_first && ranks_first(spans);
        if is_first {
            return self.weights.host_bytes(load.source, &here, looks_up);
        }
        self.weights.again().host_bytes(load.source, &here, looks_up)
    }

    fn on_host(&self, bank: &Bank, kv: KvLayout, threads: [usize; 2], weights: Bytes) -> Stage {
        let [threads, threads_batch] = threads;
        Stage {
            device: bank.device().name().to_owned(),
            granule: bank.granule(),
            compute: Compute::Host { threads, threads_batch },
            part: None,
            kv,
            products: Vec::new(),
            weights,
            loading: Bytes::ZERO,
            kv_transform: Default::default(),
            engine_scratch: Bytes::ZERO,
            context: None,
        }
    }

    #[cfg(feature = "cuda")]
    fn on_device(&self, bank: &Bank, span: &Span, weights: &Weights, kv: KvLayout) -> Result<Stage> {
        let (layers, n_embd) = (&weights.layers[span.layers.clone()], self.config.n_embd);
        let (mut places, mut matrices) = (Places::default(), Vec::new());
        if span.looks_up() {
            matrices.push(weights.embedding.shape());
        }
        for layer in layers {
            places.vector(n_embd)?;
            places.vector(n_embd)?;
            matrices.extend(layer.matrices().map(|tensor| tensor.shape()));
        }
        if span.is_last() {
            places.vector(n_embd)?;
            if !(span.looks_up() && weights.is_tied()) {
                matrices.push(weights.output().shape());
            }
        }
        for matrix in &matrices {
            places.matrix(matrix)?;
        }
        let mut products: Vec<(DType, usize)> = Vec::new();
        for product in layers.iter().flat_map(|layer| layer.matrices()).map(|of| (of.dtype(), of.cols())) {
            if !products.contains(&product) {
                products.push(product);
            }
        }
        let (granule, bytes) = (bank.granule(), places.bytes());
        let too_large = || granule_plan::Error::TooLarge { what: "the weights" };
        let rounded = if granule.is_zero() { Some(bytes) } else { bytes.checked_next_multiple_of(granule) };
        let piece = loading_piece(matrices.into_iter())?;
        Ok(Stage {
            device: bank.device().name().to_owned(),
            granule,
            compute: Compute::Cuda(granule_ops::DeviceFacts::of(&bank.device().cuda_info()?)),
            part: None,
            kv,
            products,
            weights: rounded.ok_or_else(too_large)?,
            loading: piece.saturating_mul(LOADING_PIECES as u64),
            kv_transform: Default::default(),
            engine_scratch: Bytes::ZERO,
            context: None,
        })
    }

    /// What cuBLAS works in, where it is asked for.
    #[cfg(feature = "cublas")]
    fn blas_scratch(
        &self,
        bank: &Bank,
        span: &Span,
        weights: &Weights,
        options: &ContextOptions,
    ) -> Result<Bytes> {
        if !options.cublas {
            return Ok(Bytes::ZERO);
        }
        let of = |tensor: &Tensor, adds| (tensor.dtype(), tensor.rows(), tensor.cols(), adds);
        let layers = weights.layers[span.layers.clone()].iter().flat_map(|layer| {
            let [q, k, v, output, gate, up, down] = layer.matrices();
            let plain = [q, k, v, gate, up].map(|tensor| of(tensor, false));
            plain.into_iter().chain([output, down].map(|tensor| of(tensor, true)))
        });
        let output = span.is_last().then(|| of(weights.output(), false));
        let device = bank.device();
        Ok(Bytes::from_usize(blas::scratch_bytes(device, options.n_batch, layers.chain(output))?))
    }

    #[cfg(not(feature = "cublas"))]
    fn blas_scratch(&self, _: &Bank, _: &Span, _: &Weights, _: &ContextOptions) -> Result<Bytes> {
        Ok(Bytes::ZERO)
    }

    #[cfg(not(feature = "cuda"))]
    fn on_device(&self, _: &Bank, _: &Span, _: &Weights, _: KvLayout) -> Result<Stage> {
        Err(Error::Unsupported { what: "a GPU in a build without the feature `cuda`".into() })
    }
}
