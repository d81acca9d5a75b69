//! What a model will need where, before it is loaded: from its files' directories, by the sizes that loading and computing go by.

mod fit;
mod places;

use std::ops::ControlFlow;
use std::path::Path;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device};
use granule_kv::KvType;
use granule_ops::Threads;
use granule_plan::{ContextShape, DryContext, Stage, StageMemory};

use crate::config::Config;
use crate::context::ContextOptions;
#[cfg(feature = "cuda")]
use crate::engine::cuda::context_of;
use crate::error::Result;
use crate::kv_transform::{self, KvTransformMode};
use crate::memory::DeviceMemory;
use crate::model::LoadOptions;
use crate::placement::{self, Placement};
use crate::ranks;
use crate::weights::{Files, Source, Weights};

pub use fit::{Fits, GpuLayers, Team};

/// A model's shape and tensors, read from its files' directories: what plans are made of. Nothing is loaded.
///
/// ```no_run
/// # use granule_llama::{ContextOptions, LoadOptions, ModelPlan, PlannedText};
/// let plan = ModelPlan::open("model.gguf")?;
/// let text = PlannedText { prompt: 1000, len: 4096, ..PlannedText::default() };
/// for device in plan.memory(&LoadOptions::default(), &ContextOptions::default(), &text)? {
///     println!("{}: {}, of which {} weights", device.device, device.total, device.model);
/// }
/// # Ok::<(), granule_llama::Error>(())
/// ```
pub struct ModelPlan {
    config: Config,
    weights: Weights,
}

/// What is to be evaluated; by default nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedText {
    /// Sequences, at least one.
    pub sequences: usize,
    /// Tokens of each one's prompt, which is evaluated by itself.
    pub prompt: usize,
    /// Tokens up to which all go on together, a token of each at a time; no more than the prompt has: they do not.
    pub len: usize,
    /// Whether one sequence goes on as [`Context::generate`](crate::Context::generate) has it, which draws tokens where the logits are,
    /// if that is on a GPU.
    pub draws: bool,
}

impl Default for PlannedText {
    fn default() -> Self {
        Self { sequences: 1, prompt: 0, len: 0, draws: false }
    }
}

/// What of loading a plan depends on.
#[derive(Clone, Copy, Debug)]
struct Loaded {
    source: Source,
    /// Threads for steps of one token, and of more.
    threads: [usize; 2],
}

impl Loaded {
    fn by(load: &LoadOptions<'_>) -> Self {
        let LoadOptions { no_mmap, mlock, no_repack, threads, threads_batch, .. } = load;
        let one = threads.unwrap_or_else(Threads::default_count);
        Self {
            source: Source { use_mmap: !no_mmap, mlock: *mlock, repack: !no_repack },
            threads: [one.get(), threads_batch.unwrap_or(one).get()],
        }
    }
}

/// A stage to be planned for.
struct Planned {
    bank: Bank,
    stage: Stage,
}

impl std::fmt::Debug for ModelPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelPlan").field("config", &self.config).finish_non_exhaustive()
    }
}

impl ModelPlan {
    /// Reads the directory of the GGUF file at `path`, or of the model whose first shard it is.
    ///
    /// # Errors
    /// As [`Model::load`](crate::Model::load) for files that are no model which runs here.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let source = Source { use_mmap: true, mlock: false, repack: false };
        let mut silent = |_, _| ControlFlow::Continue(());
        let (files, _) = Files::open(path.as_ref(), None, source, &mut silent)?;
        let config = Config::from_gguf(files.main()?)?;
        let weights = Weights::new(files, &config)?;
        Ok(Self { config, weights })
    }

    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Over how many ranks all of its layers can be split, ascending: 1 is among them.
    ///
    /// # Errors
    /// [`Error::Split`](crate::Error::Split) for a shape that no model has.
    pub fn legal_ranks(&self) -> Result<Vec<usize>> {
        Ok(ranks::shape(&self.config, &self.weights.layers).legal_ranks()?)
    }

    /// Where its layers would be, as [`Model::stages`](crate::Model::stages) says it of a loaded model.
    ///
    /// # Errors
    /// [`Error::Placement`](crate::Error::Placement) for other layers than the model's, [`Error::Split`](crate::Error::Split) for
    /// layers that cannot be split so.
    pub fn stages<'p>(&self, placement: &'p Placement) -> Result<Vec<placement::Stage<'p>>> {
        let spans = placement.spans(self.config.n_layers)?;
        let splits = ranks::splits(placement, &spans, &self.config, &self.weights)?;
        let places = placement.banks().zip(spans).zip(splits);
        let stage = places.map(|((bank, (_, span)), split)| placement::Stage {
            device: bank.device().name(),
            layers: span.layers,
            rank: split.map(|split| split.told()),
        });
        Ok(stage.collect())
    }

    /// What [`Context::memory_info`](crate::Context::memory_info) will say of each device when a model that was loaded so has evaluated
    /// this in a new context, to the byte: where the banks have what is asked for, no other context of the model is there, and what is
    /// mapped ahead by another thread has come.
    ///
    /// # Errors
    /// [`Error::Placement`](crate::Error::Placement) for other layers than the model's; what a model or context with these options is refused for;
    /// [`Error::Device`](crate::Error::Device) where a device does not say what it is.
    pub fn memory(
        &self,
        load: &LoadOptions<'_>,
        options: &ContextOptions,
        text: &PlannedText,
    ) -> Result<Vec<DeviceMemory>> {
        let placement = match (&load.placement, &load.bank) {
            (Some(placement), _) => placement.clone(),
            (None, Some(bank)) => Placement::new().layers(bank, self.config.n_layers),
            (None, None) => {
                let bank = Bank::new(Device::host()?, BankOptions::new())?;
                Placement::new().layers(&bank, self.config.n_layers)
            }
        };
        let planned = self.planned(&placement, &Loaded::by(load), options)?;
        let dry = self.evaluate(&planned, options, text)?;
        let mut devices: Vec<(&Bank, DeviceMemory)> = Vec::new();
        for (Planned { bank, stage }, dry) in planned.iter().zip(dry) {
            if !devices.iter().any(|(known, _)| known.is(bank)) {
                #[cfg(feature = "cuda")]
                let context = context_of(bank)?;
                #[cfg(not(feature = "cuda"))]
                let context = None;
                let memory = DeviceMemory { context, ..DeviceMemory::new(bank.device().name(), Bytes::ZERO) };
                devices.push((bank, memory));
            }
            let Some((_, memory)) = devices.iter_mut().find(|(known, _)| known.is(bank)) else { continue };
            let n_ctx = self.n_ctx(options);
            let too_large = || granule_plan::Error::TooLarge { what: "addresses of keys and values" };
            let reserved = stage.kv.reserved_bytes(n_ctx, stage.granule).ok_or_else(too_large)?;
            let (sequences, len) = (text.sequences.max(1) as u64, text.prompt.max(text.len).min(n_ctx));
            let used = stage.kv.token_bytes().saturating_mul(len as u64);
            let add = |to: &mut Bytes, more: Bytes| *to = to.saturating_add(more);
            memory.layers += dry.layers;
            add(&mut memory.model, dry.weights);
            add(&mut memory.kv, dry.kv);
            add(&mut memory.kv_used, used.saturating_mul(sequences));
            add(&mut memory.kv_reserved, reserved.saturating_mul(sequences));
            add(&mut memory.kv_transform, dry.kv_transform);
            add(&mut memory.activations, dry.activations);
            add(&mut memory.scratch, dry.scratch);
            add(&mut memory.pinned, dry.pinned);
        }
        let whole = |(_, memory): (&Bank, DeviceMemory)| DeviceMemory { total: memory.sum(), ..memory };
        Ok(devices.into_iter().map(whole).collect())
    }

    fn n_ctx(&self, options: &ContextOptions) -> usize {
        options.n_ctx.unwrap_or(self.config.n_ctx_train)
    }

    /// What each stage holds once this was evaluated.
    fn evaluate(
        &self,
        planned: &[Planned],
        options: &ContextOptions,
        text: &PlannedText,
    ) -> Result<Vec<StageMemory>> {
        let stages: Vec<Stage> = planned.iter().map(|planned| planned.stage.clone()).collect();
        let shape = ContextShape {
            n_ctx: self.n_ctx(options),
            n_batch: options.n_batch,
            ahead: options.kv.ahead,
            draws_of: if text.draws { self.config.n_vocab } else { 0 },
        };
        let mut context = DryContext::new(&self.sizes(), &stages, shape)?;
        let more = (1..text.sequences).map(|_| context.add_sequence()).collect::<Vec<_>>();
        for sequence in std::iter::once(0).chain(more) {
            context.eval_batch(&[(sequence, text.prompt)])?;
        }
        context.go_on(text.len)?;
        Ok(context.memory()?)
    }

    /// The most that each stage holds while a transform's tables are made, where there are some: keys and values in full precision
    /// then, of the short text that the tables are made from.
    fn making(&self, planned: &[Planned], options: &ContextOptions) -> Result<Vec<StageMemory>> {
        if self.gains(options) == (false, false) {
            return Ok(Vec::new());
        }
        let tokens = kv_transform::TOKENS.min(self.config.n_ctx_train);
        let full = ContextOptions {
            n_ctx: Some(tokens),
            n_batch: kv_transform::BATCH,
            type_k: KvType::F32,
            type_v: KvType::F32,
            layers_per_row: None,
            kv: options.kv.ahead(0),
            ..*options
        };
        let stages = planned.iter().map(|Planned { bank, stage }| {
            let own = stage.kv.shape();
            let kv = full.layout(own, own.n_layers, 0)?;
            let (kv_transform, engine_scratch) = Default::default();
            let stage = Stage { kv, kv_transform, engine_scratch, ..stage.clone() };
            Ok(Planned { bank: bank.clone(), stage })
        });
        let text = PlannedText { prompt: tokens, ..PlannedText::default() };
        self.evaluate(&stages.collect::<Result<Vec<_>>>()?, &full, &text)
    }

    /// Whether keys, and values, are transformed.
    fn gains(&self, options: &ContextOptions) -> (bool, bool) {
        let ContextOptions { type_k, type_v, kv_transform, .. } = *options;
        let is_on = kv_transform == KvTransformMode::Auto;
        (is_on && kv_transform::gains(type_k), is_on && kv_transform::gains(type_v))
    }

    fn sizes(&self) -> granule_plan::ModelShape {
        self.config.sizes(self.weights.output().dtype())
    }
}
