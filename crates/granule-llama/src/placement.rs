//! Where a model's layers are: all on one device, or in stages, each a run of layers in one bank, or split over several.

use std::ops::Range;
use std::sync::Arc;

use granule_bank::Bank;
use granule_split::{Communicator, Shares};

use crate::error::{Error, Result};

/// Which of a model's layers are in which bank, and so on which device: from the first layer to the last, a run after the other. Tokens
/// are looked up where the first layer is, and the output layer is where the last one is. Between two runs hidden states go through
/// the host's memory, `n_embd` f32 a token.
///
/// A run may be split over several banks: each then is a rank, has some of every layer's heads, of its feed-forward part and, of the last run, of
/// the vocabulary, and all of them compute at the same time, with two sums over all ranks a layer. Tokens of a first run that is
/// split are looked up on the host.
///
/// ```
/// # use granule_llama::Placement;
/// # use granule_bank::{Bank, BankOptions};
/// # use granule_device::{Bytes, Device, HostOptions};
/// # let bank = || -> Result<Bank, Box<dyn std::error::Error>> {
/// #     Ok(Bank::new(Device::host_with(HostOptions::new().capacity(Bytes::mib(4)))?, BankOptions::new())?)
/// # };
/// use granule_split::Shares;
///
/// let (host, gpu, other) = (bank()?, bank()?, bank()?);
/// // The first four of sixteen layers on the host.
/// let placement = Placement::new().layers(&host, 4).layers(&gpu, 12);
/// assert_eq!(placement.n_layers(), 16);
/// // All of them split over two devices, three parts and one.
/// let split = Placement::new().split(&[gpu, other], Shares::ratio(&[3, 1])?, 16);
/// assert_eq!(split.n_layers(), 16);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Placement {
    runs: Vec<(Run, usize)>,
}

/// Where a run of layers is.
#[derive(Clone, Debug)]
enum Run {
    Whole(Bank),
    Split(Group),
}

/// Those that share a run of layers: all ranks, or the one of this process.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) banks: Vec<Bank>,
    /// The rank of the first bank.
    pub(crate) first_rank: usize,
    pub(crate) shares: Shares,
    /// Where other ranks are in other processes: what reaches them.
    pub(crate) remote: Option<Arc<dyn Communicator>>,
}

/// Where a run of a model's layers is: all of it, or one rank's part.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stage<'a> {
    /// The device: "host", "cuda:0", …
    pub device: &'a str,
    /// Its layers, from 0. The first stage also looks up tokens, the last one has the output layer.
    pub layers: Range<usize>,
    /// Where the layers are split: which part of them this is.
    pub rank: Option<StageRank>,
}

/// One rank's part of layers that are split.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageRank {
    /// Which of the ranks, from 0.
    pub rank: usize,
    /// How many there are, of all processes.
    pub ranks: usize,
    /// Its query heads.
    pub heads: Range<usize>,
    /// Its key-value heads; where there are fewer than ranks, others have them too.
    pub kv_heads: Range<usize>,
    /// Its hidden elements of the feed-forward part.
    pub ff: Range<usize>,
    /// Its tokens of the vocabulary.
    pub vocab: Range<usize>,
}

impl Placement {
    /// Of no layers yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next `n` layers are in this bank; 0 changes nothing.
    #[must_use]
    pub fn layers(mut self, bank: &Bank, n: usize) -> Self {
        match self.runs.last_mut() {
            _ if n == 0 => {}
            Some((Run::Whole(last), count)) if last.is(bank) => *count += n,
            _ => self.runs.push((Run::Whole(bank.clone()), n)),
        }
        self
    }

    /// The next `n` layers are split over these banks in these shares, one a bank; 0 layers change nothing. Of one bank it is
    /// [`Placement::layers`]. Banks on the host are virtual devices: each has some of the model's threads.
    #[must_use]
    pub fn split(mut self, banks: &[Bank], shares: Shares, n: usize) -> Self {
        match banks {
            [bank] if shares.ranks() == 1 => self.layers(bank, n),
            _ if n == 0 => self,
            _ => {
                let group = Group { banks: banks.to_vec(), first_rank: 0, shares, remote: None };
                self.runs.push((Run::Split(group), n));
                self
            }
        }
    }

    /// The next `n` layers are split over several processes in these shares, one a rank; this one is `communicator`'s rank, and has its part
    /// in `bank`. All processes make the same calls to their model and contexts, in the same order; their options are the same.
    #[must_use]
    pub fn rank(
        mut self,
        bank: &Bank,
        communicator: Arc<dyn Communicator>,
        shares: Shares,
        n: usize,
    ) -> Self {
        if n > 0 {
            let first_rank = communicator.rank();
            let group = Group { banks: vec![bank.clone()], first_rank, shares, remote: Some(communicator) };
            self.runs.push((Run::Split(group), n));
        }
        self
    }

    /// How many layers have a place.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        self.runs.iter().map(|(_, n)| n).sum()
    }

    /// All banks, in the order of the layers; some may come twice.
    pub(crate) fn banks(&self) -> impl Iterator<Item = &Bank> {
        self.runs.iter().flat_map(|(run, _)| match run {
            Run::Whole(bank) => std::slice::from_ref(bank),
            Run::Split(group) => &group.banks,
        })
    }

    /// The bank of the first layers, or of their first rank here.
    pub(crate) fn first(&self) -> Option<&Bank> {
        match self.runs.first()? {
            (Run::Whole(bank), _) => Some(bank),
            (Run::Split(group), _) => group.banks.first(),
        }
    }

    /// The stages of a model with so many layers, in their order, and of those that are split each part that is here.
    pub(crate) fn spans(&self, n_layers: usize) -> Result<Vec<(Bank, Span)>> {
        if self.n_layers() != n_layers {
            return Err(Error::Placement { placed: self.n_layers(), n_layers });
        }
        let mut spans = Vec::new();
        let mut end = 0;
        for (stage, (run, n)) in self.runs.iter().enumerate() {
            let layers = end..end + n;
            end += n;
            let mut add = |bank: &Bank, rank| {
                let span = Span { index: spans.len(), stage, layers: layers.clone(), rank, n_layers };
                spans.push((bank.clone(), span));
            };
            match run {
                Run::Whole(bank) => add(bank, None),
                Run::Split(group) => {
                    group.check()?;
                    let ranks = group.shares.ranks();
                    for (at, bank) in group.banks.iter().enumerate() {
                        add(bank, Some((group.first_rank + at, ranks)));
                    }
                }
            }
        }
        Ok(spans)
    }

    /// Who shares a stage's layers, where they are split.
    pub(crate) fn group(&self, stage: usize) -> Option<&Group> {
        match self.runs.get(stage)? {
            (Run::Split(group), _) => Some(group),
            (Run::Whole(_), _) => None,
        }
    }
}

impl Group {
    /// Whether there is a bank, or a process, for each share.
    fn check(&self) -> Result<()> {
        let (shares, found) = match &self.remote {
            Some(remote) => (self.shares.ranks(), remote.ranks()),
            None => (self.shares.ranks(), self.banks.len()),
        };
        if shares != found || found == 0 {
            return Err(Error::SplitShares { shares, ranks: found });
        }
        Ok(())
    }
}

/// Which part of a model something is of: a stage, or one rank's part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Of all parts of the model's stages that are here.
    pub(crate) index: usize,
    /// Of the model's stages.
    pub(crate) stage: usize,
    pub(crate) layers: Range<usize>,
    /// Which of how many ranks, where the layers are split.
    pub(crate) rank: Option<(usize, usize)>,
    /// Of the model.
    n_layers: usize,
}

impl Span {
    /// Whether the first layer is here.
    pub(crate) fn is_first(&self) -> bool {
        self.layers.start == 0
    }

    /// Whether tokens are looked up here: ranks are given what they stand for.
    pub(crate) fn looks_up(&self) -> bool {
        self.is_first() && self.rank.is_none()
    }

    /// Whether logits are computed here.
    pub(crate) fn is_last(&self) -> bool {
        self.layers.end == self.n_layers
    }

    pub(crate) fn len(&self) -> usize {
        self.layers.len()
    }
}
