//! A model: weights, shape and tokenizer, loaded once and shared by any number of contexts.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, DeviceKind};
use granule_kv::{Identity, KvLayout, KvOptions, KvType, PrefixCache};
use granule_ops::{Precision, Rope, Threads};
use granule_plan::ModelShape;
use granule_split::RankShape;

use crate::cancel::CancelToken;
use crate::chat::ChatTemplate;
use crate::config::Config;
#[cfg(feature = "cuda")]
use crate::engine::cuda::CudaModel;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, TensorInfo};
use crate::identity::identity;
use crate::kv_tables::Tables;
use crate::kv_transform::Kept;
use crate::placement::{Group, Placement, Span, Stage};
use crate::ranks::{self, RankSplit};
use crate::shared::{Caches, Shared};
use crate::tokenizer::Tokenizer;
use crate::weights::{Files, Source, Weights};

/// Called as loading goes on with bytes done and bytes in all; `Break` ends it with [`Error::Cancelled`].
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// How to load a model.
#[derive(Default)]
pub struct LoadOptions<'a> {
    /// The bank that pays for the model and its contexts; on its device they are, and compute. None: a new one over a new host
    /// device.
    pub bank: Option<Bank>,
    /// In place of `bank` and `memory_limit`: which layers are in which bank, where they are not all in one.
    pub placement: Option<Placement>,
    /// The budget of the new bank where none is given: what weights, caches and activations may take together. None:
    /// what the device has.
    pub memory_limit: Option<Bytes>,
    /// Keep nothing of the model in mapped memory: what is not packed is read. On a GPU nothing of it stays there in any case; where
    /// some layers are on the host and none are packed (`no_repack`), all of the file is read and stays.
    pub no_mmap: bool,
    /// Lock the weights in the host's memory, so that they are never paged out. On a GPU nothing of it stays there.
    pub mlock: bool,
    /// On the host: use weights as they lie in the file, however much faster they were packed for the CPU at hand, or, floats, copied into huge
    /// pages: loading has nothing to do, and processes that map the same file share its memory.
    pub no_repack: bool,
    /// How exactly activations meet weights on the host; on a GPU it makes no difference, as few tokens have 16 bits there and many meet
    /// weights in f16. Lone tokens and up to 64 of one prompt do so with 16 bits either way; longer prompts,
    /// and tokens of many sequences at once, are about two thirds as fast where they are precise.
    pub precision: Precision,
    /// Threads that compute steps of one token, and of more where `threads_batch` says nothing else. None: one for each physical
    /// core that the process may use. Where a number is given the model has a pool of its own, else the process's.
    pub threads: Option<NonZeroUsize>,
    /// Threads that compute steps of more than one token: prompts, and many sequences at once. None: as many as `threads`.
    pub threads_batch: Option<NonZeroUsize>,
    /// Told how far loading is.
    pub progress: Option<Progress<'a>>,
}

/// A loaded model. Share it: `Arc<Model>` is what contexts are made from.
pub struct Model {
    config: Config,
    tokenizer: Tokenizer,
    rope: Rope,
    /// All that is on the host, by who pays for it and what it is of: never empty, and what all is found in comes first.
    weights: Vec<Arc<Weights>>,
    threads: Threads,
    threads_batch: Threads,
    caches: Caches,
    placement: Placement,
    /// Never empty.
    places: Vec<Place>,
    tables: Kept,
    precision: Precision,
}

/// A stage of a model, a run of its layers, or one rank's part of one: whose memory it is in, and what it is.
pub(crate) struct Place {
    pub(crate) bank: Bank,
    pub(crate) span: Span,
    /// The shape of what is here: the model's, or that of a rank's part.
    pub(crate) config: Config,
    /// Where it is a rank's part: which, among those of all ranks.
    part: Option<RankSplit>,
    /// What computes here reads these, where it is the host.
    weights: Arc<Weights>,
    threads: Threads,
    threads_batch: Threads,
    /// Its weights on a CUDA device, where that computes.
    #[cfg(feature = "cuda")]
    pub(crate) cuda: Option<Arc<CudaModel>>,
}

impl Place {
    pub(crate) fn is_host(&self) -> bool {
        self.bank.device().kind() == DeviceKind::Host
    }

    /// What its weights take there, of those that are not the host's.
    fn bytes_elsewhere(&self) -> Bytes {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &self.cuda {
            return cuda.bytes();
        }
        Bytes::ZERO
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Which part of its layers is here, where they are split.
    pub(crate) fn part(&self) -> Option<&RankShape> {
        self.part.as_ref().map(RankSplit::own)
    }

    /// What all ranks have, where its layers are split.
    pub(crate) fn all_ranks(&self) -> Option<&[RankShape]> {
        self.part.as_ref().map(|part| &*part.all)
    }

    pub(crate) fn threads_for(&self, n_tokens: usize) -> &Threads {
        if n_tokens > 1 { &self.threads_batch } else { &self.threads }
    }

    /// What the sizes of its steps follow from.
    pub(crate) fn sizes(&self) -> ModelShape {
        self.config.sizes(self.weights.output().dtype())
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Model {
    /// Loads the GGUF file at `path`, or the model whose first shard it is.
    ///
    /// # Errors
    /// A clear error for every file that is no Llama model which runs here; [`Error::Bank`] if the weights do not fit
    /// the budget; [`Error::Io`]; [`Error::Cancelled`]. Nothing stays behind.
    pub fn load(path: impl AsRef<Path>, options: LoadOptions<'_>) -> Result<Arc<Self>> {
        let LoadOptions { bank, placement, memory_limit, no_mmap, mlock, no_repack, precision, .. } = options;
        let LoadOptions { threads, threads_batch, progress, .. } = options;
        let bank = match (&placement, bank) {
            (Some(placement), _) => placement.first().cloned(),
            (None, Some(bank)) => Some(bank),
            (None, None) => {
                let options = BankOptions::new();
                let options = if let Some(limit) = memory_limit { options.budget(limit) } else { options };
                Some(Bank::new(Device::host()?, options)?)
            }
        };
        let bank = bank.ok_or(Error::Placement { placed: 0, n_layers: 1 })?;
        let (threads, threads_batch) = pools(threads, threads_batch)?;
        let mut silent = |_, _| ControlFlow::Continue(());
        let progress = progress.unwrap_or(&mut silent);
        let is_host = |bank: &Bank| bank.device().kind() == DeviceKind::Host;
        let host = match &placement {
            Some(placement) => placement.banks().find(|bank| is_host(bank)).cloned(),
            None => Some(bank.clone()).filter(is_host),
        };
        // A device's weights only pass through the file's mapping.
        let source = if host.is_some() {
            Source { use_mmap: !no_mmap, mlock, repack: !no_repack }
        } else {
            Source { use_mmap: true, mlock: false, repack: false }
        };
        let (files, mut loading) = Files::open(path.as_ref(), host.as_ref(), source, progress)?;
        let gguf = files.main()?;
        let config = Config::from_gguf(gguf)?;
        let tokenizer = Tokenizer::from_metadata(gguf.metadata())?;
        if tokenizer.n_vocab() > config.n_vocab {
            return Err(Error::InvalidConfig {
                key: "tokenizer.ggml.tokens",
                problem: format!(
                    "{} tokens, but the embedding table has {} rows",
                    tokenizer.n_vocab(),
                    config.n_vocab
                ),
            });
        }
        let placement = placement.unwrap_or_else(|| Placement::new().layers(&bank, config.n_layers));
        let spans = placement.spans(config.n_layers)?;
        let mut base = Weights::new(files, &config)?;
        let splits = ranks::splits(&placement, &spans, &config, &base)?;
        let mut report = |added| loading.add(added, progress);
        // Ranks are given what tokens stand for.
        let looks_up = spans.first().is_some_and(|(_, first)| !first.looks_up());
        let whole = whole_on_host(&spans);
        let first = whole.first().map(|(bank, here)| (bank, &here[..]));
        if let Some((bank, here)) = first.or(host.as_ref().filter(|_| looks_up).map(|host| (host, &[][..]))) {
            base.bring_in(bank, here, looks_up, &threads_batch, &mut report)?;
        }
        let mut weights = vec![Arc::new(base)];
        for (bank, here) in whole.iter().skip(1) {
            let mut again = weights[0].again();
            again.bring_in(bank, here, false, &threads_batch, &mut report)?;
            weights.push(Arc::new(again));
        }
        let mut places = Vec::with_capacity(spans.len());
        for ((bank, span), split) in spans.into_iter().zip(splits) {
            let on_host = is_host(&bank);
            #[cfg(not(feature = "cuda"))]
            if !on_host {
                return Err(Error::Unsupported {
                    what: "a GPU in a build without the feature `cuda`".into(),
                });
            }
            let (own, config, part, threads) = if let Some(split) = split {
                let mut part = weights[0].part(&config, &split, span.layers.clone())?;
                let threads = split.threads([&threads, &threads_batch])?;
                if on_host {
                    let here = std::slice::from_ref(&span);
                    part.bring_in(&bank, here, false, &threads_batch, &mut report)?;
                }
                weights.push(Arc::new(part));
                let own = Arc::clone(&weights[weights.len() - 1]);
                let config = config.part(split.own());
                (own, config, Some(split), threads)
            } else {
                let at = whole.iter().position(|(known, _)| known.is(&bank)).unwrap_or(0);
                let threads = [threads.clone(), threads_batch.clone()];
                (Arc::clone(&weights[at]), config.clone(), None, threads)
            };
            let [threads, threads_batch] = threads;
            #[cfg(feature = "cuda")]
            let cuda = (!on_host).then(|| CudaModel::load(&bank, &span, &own, &threads_batch, &mut report));
            places.push(Place {
                #[cfg(feature = "cuda")]
                cuda: cuda.transpose()?,
                bank,
                span,
                config,
                part,
                weights: own,
                threads,
                threads_batch,
            });
        }
        let rope = Rope::new(
            config.rope_dims,
            config.rope_base,
            config.rope_linear,
            weights[0].rope_factors.as_deref(),
        )?;
        weights[0].check()?;
        let (caches, tables) = (Caches::default(), Kept::default());
        Ok(Arc::new(Self {
            config,
            tokenizer,
            rope,
            weights,
            threads,
            threads_batch,
            caches,
            placement,
            places,
            tables,
            precision,
        }))
    }

    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The file's chat template, made ready for use.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`] where the file brings none, [`Error::ChatTemplate`] where it cannot be read.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        ChatTemplate::from_metadata(self.gguf()?.metadata(), &self.tokenizer)
    }

    /// The directory of the model's (first) file: all its metadata.
    ///
    /// # Errors
    /// None in practice: a loaded model has a file.
    pub fn gguf(&self) -> Result<&Gguf> {
        self.weights().files().main()
    }

    /// Every tensor of the model, in the files' order.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.weights().files().tensors()
    }

    /// Bytes that the weights take: what is used of the files in place, mapped or read, and what is packed; on a GPU, the granules
    /// that they lie in.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.places.iter().map(Place::bytes_elsewhere).fold(self.host_bytes(), Bytes::saturating_add)
    }

    /// Of [`bytes`](Self::bytes): what is on the host.
    fn host_bytes(&self) -> Bytes {
        let own = self.weights.iter().map(|weights| weights.bytes());
        own.fold(self.weights().files().read_bytes(), Bytes::saturating_add)
    }

    /// What the weights take in this bank.
    pub(crate) fn bytes_in(&self, bank: &Bank) -> Bytes {
        let files = self.weights().files();
        let read = files.read_bank().filter(|by| by.is(bank)).map_or(Bytes::ZERO, |_| files.read_bytes());
        let is_here = |weights: &&Arc<Weights>| weights.bank().is_some_and(|by| by.is(bank));
        let host = self.weights.iter().filter(is_here).map(|weights| weights.bytes());
        let places = self.places.iter().filter(|place| place.bank.is(bank));
        host.chain(places.map(Place::bytes_elsewhere)).fold(read, Bytes::saturating_add)
    }

    /// Where its layers are, from the first to the last; layers that are split come once for each rank that is here.
    pub fn stages(&self) -> impl ExactSizeIterator<Item = Stage<'_>> {
        self.places.iter().map(|place| Stage {
            device: place.bank.device().name(),
            layers: place.span.layers.clone(),
            rank: place.part.as_ref().map(RankSplit::told),
        })
    }

    /// Of [`bytes`](Self::bytes): the weights that are packed for the CPU at hand.
    #[must_use]
    pub fn packed_bytes(&self) -> Bytes {
        let packed = self.weights.iter().map(|weights| weights.packed_bytes());
        packed.fold(Bytes::ZERO, Bytes::saturating_add)
    }

    /// Whether the embedding table is also the output layer.
    #[must_use]
    pub fn is_tied(&self) -> bool {
        self.weights().is_tied()
    }

    /// Who pays for the model's memory and its contexts'; where layers are in several banks, for that of the first ones, and for what
    /// belongs to none of them.
    #[must_use]
    pub fn bank(&self) -> &Bank {
        &self.places[0].bank
    }

    /// All banks that have layers of the model, each once, in the order of the layers.
    pub fn banks(&self) -> impl Iterator<Item = &Bank> {
        let first = |&(at, place): &(usize, &Place)| {
            !self.places[..at].iter().any(|before| before.bank.is(&place.bank))
        };
        self.places.iter().enumerate().filter(first).map(|(_, place)| &place.bank)
    }

    /// Who pays for a transform's tables, which are in the host's memory: the host's bank where it has layers.
    pub(crate) fn tables_bank(&self) -> &Bank {
        self.places.iter().find(|place| place.is_host()).map_or_else(|| self.bank(), |place| &place.bank)
    }

    /// Caches of these layouts, one for each place, and what each has of the tables.
    pub(crate) fn shared(
        &self,
        layouts: &[KvLayout],
        options: KvOptions,
        tables: Option<Arc<Tables>>,
    ) -> Result<Arc<Shared>> {
        let (bank, shape) = (self.tables_bank(), self.config.kv_shape());
        self.caches.get(self.place_banks(), layouts, options, tables, |tables| {
            let part = |place: &Place| match place.part() {
                Some(part) => Ok(Arc::new(tables.part(bank, shape, part.kv_heads.clone())?)),
                None => Ok(Arc::clone(tables)),
            };
            self.places.iter().map(part).collect()
        })
    }

    /// The bank of each place.
    pub(crate) fn place_banks(&self) -> impl Iterator<Item = &Bank> {
        self.places.iter().map(|place| &place.bank)
    }

    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }

    /// The threads that compute for all contexts of this model, where a step has one token.
    #[must_use]
    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// Those that compute where a step has more than one.
    #[must_use]
    pub fn threads_batch(&self) -> &Threads {
        &self.threads_batch
    }

    /// What the model's keys and values can be told apart by from another model's: shapes, weights and rotation. The digest of
    /// the weights is made when it is first asked for, from a sample of each tensor: other trainings, fine-tunes and
    /// quantizations are told apart; a flipped bit, or an edit of a few numbers, may not be. Texts of the vocabulary, the chat
    /// template and how many files the model comes in make no difference.
    ///
    /// # Errors
    /// None in practice: a loaded model has its weights.
    pub fn identity(&self) -> Result<&Identity> {
        self.caches.identity(|| identity(&self.config, self.weights()))
    }

    /// The prompts that contexts with [`ContextOptions::prefix_cache`](crate::ContextOptions) have left: how many there are, what
    /// they hold, and how to forget them. Where layers are in several stages, each has a part of every prompt, and this is the first
    /// one's; [`Model::forget_prefixes`] is for all.
    #[must_use]
    pub fn prefixes(&self) -> &PrefixCache {
        &self.all_prefixes()[0]
    }

    /// Forgets all remembered prompts, in all stages, but for what is pinned; answers how much that gave back.
    pub fn forget_prefixes(&self) -> Bytes {
        self.caches.known_prefixes().iter().map(PrefixCache::clear).fold(Bytes::ZERO, Bytes::saturating_add)
    }

    /// Those of each stage.
    pub(crate) fn all_prefixes(&self) -> &[PrefixCache] {
        self.caches.prefixes(|| self.place_banks())
    }

    pub(crate) fn caches(&self) -> &Caches {
        &self.caches
    }

    /// What keys and values of these types are transformed by; made now if it was not needed before.
    pub(crate) fn kv_tables(
        &self,
        k: KvType,
        v: KvType,
        cancel: &CancelToken,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<Arc<Tables>>> {
        self.tables.tables(self, k, v, cancel, progress)
    }

    /// How exactly activations meet the model's weights.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What all tensors are found in; on the host it has the table that tokens are looked up in.
    pub(crate) fn weights(&self) -> &Weights {
        &self.weights[0]
    }

    /// Who shares a stage's layers, where they are split.
    pub(crate) fn group(&self, stage: usize) -> Option<&Group> {
        self.placement.group(stage)
    }

    pub(crate) fn rope(&self) -> &Rope {
        &self.rope
    }
}

/// Of the parts that are not split and on the host: which are in each bank.
fn whole_on_host(spans: &[(Bank, Span)]) -> Vec<(Bank, Vec<Span>)> {
    let mut all: Vec<(Bank, Vec<Span>)> = Vec::new();
    for (bank, span) in spans {
        if bank.device().kind() != DeviceKind::Host || span.rank.is_some() {
            continue;
        }
        match all.iter_mut().find(|(known, _)| known.is(bank)) {
            Some((_, here)) => here.push(span.clone()),
            None => all.push((bank.clone(), vec![span.clone()])),
        }
    }
    all
}

/// Handles for steps of one token and of more, of one pool: the process's where it has enough threads and nobody asked for
/// another number of them.
fn pools(one: Option<NonZeroUsize>, many: Option<NonZeroUsize>) -> Result<(Threads, Threads)> {
    let usual = Threads::default_count();
    let most = one.unwrap_or(usual).max(many.unwrap_or(NonZeroUsize::MIN));
    let pool = if one.is_none() && most == usual { Threads::shared()? } else { Threads::new(most)? };
    let one = one.unwrap_or(usual);
    Ok((pool.limited(one), pool.limited(many.unwrap_or(one))))
}
