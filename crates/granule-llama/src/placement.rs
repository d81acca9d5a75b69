//! Where a model's layers are: all on one device, or in stages, each a run of layers in one bank.

use std::ops::Range;

use granule_bank::Bank;
use granule_device::DeviceKind;

use crate::error::{Error, Result};

/// Which of a model's layers are in which bank, and so on which device: from the first layer to the last, a run after the other. Tokens
/// are looked up where the first layer is, and the output layer is where the last one is. Between two runs hidden states go through
/// the host's memory, `n_embd` f32 a token.
///
/// ```
/// # use granule_llama::Placement;
/// # use granule_bank::{Bank, BankOptions};
/// # use granule_device::{Bytes, Device, HostOptions};
/// # let bank = || -> Result<Bank, Box<dyn std::error::Error>> {
/// #     Ok(Bank::new(Device::host_with(HostOptions::new().capacity(Bytes::mib(4)))?, BankOptions::new())?)
/// # };
/// let (host, gpu) = (bank()?, bank()?);
/// // The first four of sixteen layers on the host.
/// let placement = Placement::new().layers(&host, 4).layers(&gpu, 12);
/// assert_eq!(placement.n_layers(), 16);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Placement {
    runs: Vec<(Bank, usize)>,
}

/// A run of a model's layers on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stage<'a> {
    /// The device: "host", "cuda:0", …
    pub device: &'a str,
    /// Its layers, from 0. The first stage also looks up tokens, the last one has the output layer.
    pub layers: Range<usize>,
}

impl Placement {
    /// Of no layers yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next `n` layers are in this bank; 0 changes nothing. All runs that are on the host have to be in one bank.
    #[must_use]
    pub fn layers(mut self, bank: &Bank, n: usize) -> Self {
        match self.runs.last_mut() {
            _ if n == 0 => {}
            Some((last, count)) if last.is(bank) => *count += n,
            _ => self.runs.push((bank.clone(), n)),
        }
        self
    }

    /// How many layers have a place.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        self.runs.iter().map(|(_, n)| n).sum()
    }

    /// The bank on the host, if any of the layers are there.
    pub(crate) fn host(&self) -> Result<Option<&Bank>> {
        let mut found: Option<&Bank> = None;
        for (bank, _) in &self.runs {
            if bank.device().kind() == DeviceKind::Host {
                if found.is_some_and(|found| !found.is(bank)) {
                    return Err(Error::Unsupported { what: "a model in two banks on the host".into() });
                }
                found = Some(bank);
            }
        }
        Ok(found)
    }

    /// The bank of the first layers.
    pub(crate) fn first(&self) -> Option<&Bank> {
        self.runs.first().map(|(bank, _)| bank)
    }

    /// The runs of a model with so many layers.
    pub(crate) fn spans(&self, n_layers: usize) -> Result<Vec<(Bank, Span)>> {
        if self.n_layers() != n_layers {
            return Err(Error::Placement { placed: self.n_layers(), n_layers });
        }
        let mut end = 0;
        let span = |(index, (bank, n)): (usize, &(Bank, usize))| {
            let layers = end..end + n;
            end += n;
            (bank.clone(), Span { index, layers, n_layers })
        };
        Ok(self.runs.iter().enumerate().map(span).collect())
    }
}

/// Which stage of a model something is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Of the model's stages.
    pub(crate) index: usize,
    pub(crate) layers: Range<usize>,
    /// Of the model.
    n_layers: usize,
}

impl Span {
    /// Whether tokens are looked up here.
    pub(crate) fn is_first(&self) -> bool {
        self.layers.start == 0
    }

    /// Whether logits are computed here.
    pub(crate) fn is_last(&self) -> bool {
        self.layers.end == self.n_layers
    }

    pub(crate) fn len(&self) -> usize {
        self.layers.len()
    }
}
