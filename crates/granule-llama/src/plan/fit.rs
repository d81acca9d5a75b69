//! What fits: as many of the last layers as GPUs hold, each its share; or an error that says how much is missing, and what would fit.

use std::fmt;

use granule_bank::Bank;
use granule_device::Bytes;
use granule_kv::KvType;
use granule_plan::{StageMemory, most, shares};
use granule_split::Shares;

use super::{Loaded, ModelPlan, Planned, PlannedText};
use crate::context::ContextOptions;
use crate::error::{Error, Result};
use crate::model::LoadOptions;
use crate::placement::Placement;

/// How many of a model's layers are to be on GPUs: the last ones, and with the last one the output layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GpuLayers {
    /// All of them; with the first one the embedding table.
    All,
    /// As many as fit with a full context. What does not fit is on the host.
    Auto,
    /// So many, or all where there are not as many.
    Count(usize),
}

/// What would fit where something else does not, as far as it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fits {
    /// Layers that were to be on GPUs.
    pub wanted: usize,
    /// Tokens of context that they were to be for.
    pub tokens: usize,
    /// The most of them that fit at as many tokens.
    pub layers: usize,
    /// The most tokens at which all that were wanted fit, with these types of keys and values: those that were asked for, and then
    /// such as take less, each only where it makes for more tokens.
    pub contexts: Vec<(usize, KvType, KvType)>,
}

impl fmt::Display for Fits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, tokens, layers, contexts } = self;
        let all = if *wanted == 1 { "that layer" } else { "all of them" };
        write!(
            f,
            "{layers} of {wanted} {} at {tokens} tokens",
            if *wanted == 1 { "layer" } else { "layers" }
        )?;
        for (tokens, k, v) in contexts {
            let types = if k == v { k.to_string() } else { format!("{k} and {v}") };
            write!(f, ", or {all} at {tokens} tokens with keys and values in {types}")?;
        }
        Ok(())
    }
}

/// Devices that have runs of layers: one that has them whole, or several that each layer is split over.
#[derive(Clone, Debug)]
pub struct Team {
    banks: Vec<Bank>,
    /// None where it is one.
    shares: Option<Shares>,
}

impl Team {
    /// One device.
    #[must_use]
    pub fn one(bank: &Bank) -> Self {
        Self { banks: vec![bank.clone()], shares: None }
    }

    /// Devices that each layer is split over in these shares, one a bank.
    #[must_use]
    pub fn split(banks: &[Bank], shares: Shares) -> Self {
        Self { banks: banks.to_vec(), shares: Some(shares) }
    }

    /// Its banks, in the order of their ranks.
    #[must_use]
    pub fn banks(&self) -> &[Bank] {
        &self.banks
    }

    /// Has it have the next `n` layers.
    #[must_use]
    pub fn add_to(&self, placement: Placement, n: usize) -> Placement {
        match (&self.shares, self.banks.first()) {
            (Some(shares), _) => placement.split(&self.banks, shares.clone(), n),
            (None, Some(bank)) => placement.layers(bank, n),
            (None, None) => placement,
        }
    }
}

/// The GPUs that layers may be on.
#[derive(Clone, Copy)]
struct Gpus<'a> {
    teams: &'a [Team],
    /// All of their banks, and what each may still give.
    free: &'a [(&'a Bank, Bytes)],
}

/// A GPU that cannot hold what it would have to.
struct Short<'a> {
    bank: &'a Bank,
    needed: Bytes,
    available: Bytes,
}

/// What a placement is to be good for, of a context with some options.
#[derive(Clone, Copy)]
struct Purpose<'a> {
    load: &'a Loaded,
    options: &'a ContextOptions,
    /// Tokens of context; all of them are computed in batches, and also one by one.
    tokens: usize,
}

impl ModelPlan {
    /// Where the model's layers are to be: the last ones on these GPUs, in shares by `split` or, without it, by the memory that they
    /// have free; the others in `host`. With [`GpuLayers::Auto`] as many as the GPUs have memory for with a context that is full; else
    /// it is refused only where weights and one batch do not fit, as a cache grows when it has to. The same free memory, the same
    /// answer.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`]; [`Error::Placement`] without a GPU, with another number of shares than GPUs, or where all shares are 0;
    /// as [`ModelPlan::memory`].
    pub fn place(
        &self,
        host: &Bank,
        gpus: &[Bank],
        layers: GpuLayers,
        split: Option<&[u64]>,
        load: &LoadOptions<'_>,
        options: &ContextOptions,
    ) -> Result<Placement> {
        let teams: Vec<Team> = gpus.iter().map(Team::one).collect();
        self.place_on(host, &teams, layers, split, load, options)
    }

    /// As [`ModelPlan::place`], where GPUs have runs of layers together: shares of layers are each team's, and a team holds a layer
    /// where every one of its devices holds its part.
    ///
    /// # Errors
    /// As [`ModelPlan::place`]; [`Error::Split`] for layers that cannot be split so.
    pub fn place_on(
        &self,
        host: &Bank,
        gpus: &[Team],
        layers: GpuLayers,
        split: Option<&[u64]>,
        load: &LoadOptions<'_>,
        options: &ContextOptions,
    ) -> Result<Placement> {
        let n_layers = self.config.n_layers;
        let banks = gpus.iter().flat_map(|team| &team.banks);
        let free = banks.map(|bank| Ok((bank, available(bank)?))).collect::<Result<Vec<_>>>()?;
        let gpus = Gpus { teams: gpus, free: &free };
        let n_ctx = self.n_ctx(options);
        let load = Loaded::by(load);
        let full = Purpose { load: &load, options, tokens: n_ctx };
        let first = Purpose { tokens: options.n_batch.min(n_ctx), ..full };
        let (most, purpose) = match layers {
            GpuLayers::All => (n_layers, first),
            GpuLayers::Count(n) => (n.min(n_layers), first),
            GpuLayers::Auto => (n_layers, full),
        };
        // Where nobody said how to share, no team gets more than it holds by itself.
        let caps = match split {
            Some(_) => vec![n_layers; gpus.teams.len()],
            None => (0..gpus.teams.len())
                .map(|index| self.cap(host, gpus, index, &purpose))
                .collect::<Result<_>>()?,
        };
        let by_memory = gpus.by_memory();
        let place = |n: usize, caps: &[usize]| {
            let counts = shares(n, split.unwrap_or(&by_memory), caps)?;
            let placement = Placement::new().layers(host, n_layers - n);
            Some(
                gpus.teams
                    .iter()
                    .zip(counts)
                    .fold(placement, |placement, (team, n)| team.add_to(placement, n)),
            )
        };
        let fits = |n: usize| -> Result<Option<Placement>> {
            let Some(placement) = place(n, &caps) else { return Ok(None) };
            Ok(self.short(&placement, gpus, &purpose)?.is_none().then_some(placement))
        };
        let no_shares = || Error::Placement { placed: 0, n_layers };
        let loosely = place(most, &vec![n_layers; gpus.teams.len()]).ok_or_else(no_shares)?;
        let least = if layers == GpuLayers::Auto { 0 } else { most };
        for n in (least..=most).rev() {
            if let Some(placement) = fits(n)? {
                return Ok(placement);
            }
        }
        // What would have to be somewhere, and is not: on the GPU that lacks most.
        let Some(short) = self.short(&loosely, gpus, &purpose)? else { return Ok(loosely) };
        let mut held = 0;
        for n in (0..most).rev() {
            if fits(n)?.is_some() {
                held = n;
                break;
            }
        }
        let Short { bank, needed, available } = short;
        Err(Error::DoesNotFit {
            device: bank.device().name().to_owned(),
            needed,
            available,
            missing: needed.saturating_sub(available),
            fits: Box::new(Fits {
                wanted: most,
                tokens: purpose.tokens,
                layers: held,
                contexts: self.contexts(&loosely, gpus, &purpose)?,
            }),
        })
    }

    /// The most layers that one team holds by itself, where it stands among the others.
    fn cap(&self, host: &Bank, gpus: Gpus<'_>, index: usize, purpose: &Purpose<'_>) -> Result<usize> {
        let n_layers = self.config.n_layers;
        // The last one has the output layer.
        let is_last = index + 1 == gpus.teams.len();
        let (after, up_to) = if is_last { (0, n_layers) } else { (1, n_layers - 1) };
        let fits = |n: usize| -> Result<bool> {
            let placement = Placement::new().layers(host, n_layers - n - after);
            let placement = gpus.teams[index].add_to(placement, n).layers(host, after);
            Ok(self.short(&placement, gpus, purpose)?.is_none())
        };
        Ok(most(up_to, fits)?.unwrap_or(0))
    }

    /// The GPU that lacks most, if one cannot hold what it would have to.
    fn short<'a>(
        &self,
        placement: &Placement,
        gpus: Gpus<'a>,
        purpose: &Purpose<'_>,
    ) -> Result<Option<Short<'a>>> {
        let planned = self.planned(placement, purpose.load, purpose.options)?;
        let options = ContextOptions { n_ctx: Some(purpose.tokens), ..*purpose.options };
        // A long prompt and a token behind it; and a text that grows token by token.
        let long = PlannedText {
            prompt: purpose.tokens.saturating_sub(1),
            len: purpose.tokens,
            ..Default::default()
        };
        let grows = PlannedText { prompt: options.n_batch, ..long };
        let mut all = vec![self.making(&planned, &options)?];
        for text in [long, grows] {
            all.push(self.evaluate(&planned, &options, &text)?);
        }
        let mut short: Option<Short<'a>> = None;
        for &(bank, available) in gpus.free {
            let needed =
                all.iter().map(|stages| needed_in(bank, &planned, stages)).max().unwrap_or(Bytes::ZERO);
            let lacks = |needed: Bytes, available: Bytes| needed.saturating_sub(available);
            let most = short.as_ref().map_or(Bytes::ZERO, |short| lacks(short.needed, short.available));
            if lacks(needed, available) > most {
                short = Some(Short { bank, needed, available });
            }
        }
        Ok(short)
    }

    /// The contexts for which a placement has room.
    fn contexts(
        &self,
        placement: &Placement,
        gpus: Gpus<'_>,
        purpose: &Purpose<'_>,
    ) -> Result<Vec<(usize, KvType, KvType)>> {
        let asked = (purpose.options.type_k, purpose.options.type_v);
        let mut found: Vec<(usize, KvType, KvType)> = Vec::new();
        for (type_k, type_v) in [asked, (KvType::Q8_0, KvType::Q8_0), (KvType::Q4_0, KvType::Q4_0)] {
            let options = ContextOptions { type_k, type_v, ..*purpose.options };
            // Heads that a type's blocks do not fit.
            if options.layout(self.config.kv_shape(), self.config.n_layers, 0).is_err() {
                continue;
            }
            let fits = |tokens: usize| -> Result<bool> {
                let purpose = Purpose { tokens: tokens + 1, options: &options, load: purpose.load };
                Ok(self.short(placement, gpus, &purpose)?.is_none())
            };
            let tokens = most(purpose.tokens.saturating_sub(1), fits)?.map_or(0, |tokens| tokens + 1);
            if tokens > found.last().map_or(0, |(before, ..)| *before) {
                found.push((tokens, type_k, type_v));
            }
        }
        Ok(found)
    }
}

impl Gpus<'_> {
    /// What each team has free, all of its devices together.
    fn by_memory(&self) -> Vec<u64> {
        let mut free = self.free.iter();
        let sum = |team: &Team| {
            let own = free.by_ref().take(team.banks.len()).map(|(_, free)| *free);
            own.fold(Bytes::ZERO, Bytes::saturating_add).get()
        };
        self.teams.iter().map(sum).collect()
    }
}

/// What a bank may still give, and its device has.
fn available(bank: &Bank) -> Result<Bytes> {
    Ok(bank.free().min(bank.device().memory()?.free))
}

/// What the stages in a bank need of it: what they hold in the end or, where that is more, what one of them takes while it is loaded.
fn needed_in(bank: &Bank, planned: &[Planned], stages: &[StageMemory]) -> Bytes {
    let here =
        || planned.iter().zip(stages).filter(|(planned, _)| planned.bank.is(bank)).map(|(_, stage)| stage);
    let sum = |of: fn(&StageMemory) -> Bytes| here().map(of).fold(Bytes::ZERO, Bytes::saturating_add);
    let loading = here().map(|stage| stage.loading).max().unwrap_or(Bytes::ZERO);
    sum(StageMemory::total).max(sum(|stage| stage.weights).saturating_add(loading))
}
