//! The files of a model: mapped or read, and what of them stays in memory.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use granule_bank::{Bank, Charge, Owner};
use granule_device::{Buffer, Bytes, MappedFile, Pinned};

use super::Tensor;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, ShardName, TensorInfo, check_shards};

/// The account that weights are held on.
pub(crate) const WEIGHTS: &str = "weights";
/// Bytes between two reports of progress.
const STEP: usize = 8 << 20;
/// Bytes of a page, the unit in which a mapped file is brought into memory.
const PAGE: usize = 4096;

/// How a model's file is brought into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) use_mmap: bool,
    pub(crate) mlock: bool,
    /// Whether weights are packed for the CPU at hand, where it has products for that.
    pub(crate) repack: bool,
}

impl Source {
    /// Whether files are read into memory of their own, all of them.
    pub(super) fn reads_all(self) -> bool {
        !self.use_mmap && !self.repack
    }
}

/// Called with how much was done; an error ends loading.
pub(crate) type Report<'a> = &'a mut dyn FnMut(usize) -> Result<()>;

/// One file of the model, whole.
pub(super) enum Shard {
    Mapped(MappedFile),
    Read(Buffer),
    Locked(Pinned),
}

impl Shard {
    pub(super) fn bytes(&self) -> Result<&[u8]> {
        let slice = match self {
            Self::Mapped(file) => return Ok(file.bytes()),
            Self::Read(buffer) => buffer.slice(..)?,
            Self::Locked(buffer) => buffer.slice(..)?,
        };
        slice.as_host().ok_or_else(|| Error::Unsupported { what: "weights that the host cannot read".into() })
    }
}

/// All files of a model, opened.
pub(crate) struct Files {
    pub(super) shards: Vec<Shard>,
    /// Who paid for those that were read, and what.
    read: Option<(Bank, Vec<Charge>)>,
    directories: Vec<Gguf>,
    pub(super) source: Source,
}

/// Where in which file something lies.
pub(super) type Part = (usize, Range<usize>);

/// What somebody uses in place of mapped files, and pays for.
#[derive(Default)]
pub(super) struct Claim {
    charge: Option<Charge>,
    parts: Vec<Part>,
}

impl Claim {
    pub(super) fn bytes(&self) -> Bytes {
        self.charge.as_ref().map_or(Bytes::ZERO, Charge::size)
    }
}

impl Files {
    /// Opens the model that `path` names, all its shards, and reads them into memory, which `bank` pays for, where they are neither
    /// mapped nor packed; without a bank nothing is.
    pub(crate) fn open(
        path: &Path,
        bank: Option<&Bank>,
        source: Source,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<(Self, Loading)> {
        let paths = ShardName::paths_of(path)?;
        let mut loading = Loading { done: 0, total: 0 };
        for path in &paths {
            let about = std::fs::metadata(path).map_err(io("open", path))?;
            // Known before it is opened: opening a pipe waits for whoever writes it.
            if about.is_dir() {
                return Err(io("open", path)(std::io::ErrorKind::IsADirectory.into()));
            }
            if !about.is_file() {
                return Err(io("open", path)(std::io::Error::other("not a plain file")));
            }
            loading.total += about.len();
        }
        let mut files = Self {
            shards: Vec::new(),
            read: bank.filter(|_| source.reads_all()).map(|bank| (bank.clone(), Vec::new())),
            directories: Vec::new(),
            source,
        };
        for path in &paths {
            // The directory comes first: what is no model is refused before it is paid for or read.
            let file = MappedFile::open(path)?;
            let directory = Gguf::parse(file.bytes());
            // A file that shrinks under the parser shows as zeros: say that, not what the zeros look like.
            file.check()?;
            files.directories.push(directory?);
            files.shards.push(match &mut files.read {
                None => Shard::Mapped(file),
                Some((bank, charges)) => {
                    charges.push(bank.charge(&Owner::new(WEIGHTS), file.len())?);
                    read(&file, bank, source, &mut |added| loading.add(added, progress))?
                }
            });
        }
        check_shards(&paths, &files.directories)?;
        Ok((files, loading))
    }

    /// All of the mapped files but the ranges of these tensors.
    pub(super) fn all_but(&self, elsewhere: &[&Tensor]) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        for (index, shard) in self.shards.iter().enumerate() {
            let stays = stays(shard.bytes()?.len(), elsewhere.iter().filter(|tensor| tensor.shard == index));
            parts.extend(stays.into_iter().map(|range| (index, range)));
        }
        Ok(parts)
    }

    /// Pays for what is used in place of mapped files, and brings it into memory. What was read is there, and paid for.
    pub(super) fn claim(&self, bank: &Bank, parts: Vec<Part>, report: Report<'_>) -> Result<Claim> {
        let is_mapped = |&(shard, _): &Part| matches!(self.shards.get(shard), Some(Shard::Mapped(_)));
        let parts: Vec<Part> = parts.into_iter().filter(is_mapped).collect();
        let charge = bank.charge(&Owner::new(WEIGHTS), size_of_all(parts.iter().map(|(_, range)| range)))?;
        for (shard, range) in &parts {
            let Some(Shard::Mapped(file)) = self.shards.get(*shard) else { continue };
            if self.source.mlock && self.source.use_mmap && !range.is_empty() {
                file.lock(range.clone())?;
            }
            for part in file.bytes().get(range.clone()).unwrap_or_default().chunks(STEP) {
                // One byte of each page: what is not in the page cache is read now, not at the first token.
                let touched: u8 = part.iter().step_by(PAGE).fold(0, |sum, &byte| sum.wrapping_add(byte));
                std::hint::black_box(touched);
                report(part.len())?;
            }
        }
        for shard in &self.shards {
            if let Shard::Mapped(file) = shard {
                file.check()?;
            }
        }
        Ok(Claim { charge: Some(charge), parts })
    }

    /// The directory of the first file, which holds the model's metadata.
    pub(crate) fn main(&self) -> Result<&Gguf> {
        self.directories.first().ok_or(Error::MissingTensor { name: "token_embd.weight".into() })
    }

    pub(super) fn find(&self, name: &str) -> Option<(usize, &TensorInfo, Range<usize>)> {
        self.directories.iter().enumerate().find_map(|(shard, gguf)| {
            let info = gguf.tensor(name)?;
            Some((shard, info, gguf.data_range(info)))
        })
    }

    /// Every tensor of every file.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.directories.iter().flat_map(|gguf| gguf.tensors())
    }

    /// Every tensor with its bytes, in the files' order.
    pub(crate) fn tensors_with_bytes(&self) -> Result<Vec<(&TensorInfo, &[u8])>> {
        let mut all = Vec::new();
        for (shard, gguf) in self.shards.iter().zip(&self.directories) {
            let bytes = shard.bytes()?;
            all.extend(gguf.tensors().iter().map(|t| (t, bytes.get(gguf.data_range(t)).unwrap_or_default())));
        }
        Ok(all)
    }

    /// The bytes of a tensor, where they lie in its file; of one that is cut by its columns, those of all columns.
    pub(crate) fn tensor(&self, tensor: &Tensor) -> Result<&[u8]> {
        let bytes = self.shards.get(tensor.shard).map(Shard::bytes).transpose()?;
        Ok(bytes.and_then(|bytes| bytes.get(tensor.range.clone())).unwrap_or_default())
    }

    /// The bytes of a tensor: in place, or its own columns put together.
    pub(crate) fn bytes_of(&self, tensor: &Tensor) -> Result<Cow<'_, [u8]>> {
        let bytes = self.tensor(tensor)?;
        let Some(cut) = &tensor.cut else { return Ok(Cow::Borrowed(bytes)) };
        let own = tensor.dtype.row_bytes(tensor.cols).map_err(granule_ops::Error::from)?;
        let mut out = vec![0; own * tensor.rows];
        cut.copy_shard(tensor.rank, 0..tensor.rows, bytes, &mut out)?;
        Ok(Cow::Owned(out))
    }

    /// Gives back the memory behind a tensor's bytes, if they are mapped and are no part of the claim; they can be read again.
    pub(super) fn let_go(&self, tensor: &Tensor, claim: &Claim) {
        let is_in = |kept: &Range<usize>| kept.start < tensor.range.end && tensor.range.start < kept.end;
        if claim.parts.iter().any(|(shard, kept)| *shard == tensor.shard && is_in(kept)) {
            return;
        }
        if let Some(Shard::Mapped(file)) = self.shards.get(tensor.shard) {
            file.let_go(tensor.range.clone());
        }
    }

    /// Bytes of files that were read into memory, all of them.
    pub(crate) fn read_bytes(&self) -> Bytes {
        let charges = self.read.iter().flat_map(|(_, charges)| charges);
        charges.map(Charge::size).fold(Bytes::ZERO, |a, b| a.saturating_add(b))
    }

    /// Who paid for them.
    pub(crate) fn read_bank(&self) -> Option<&Bank> {
        self.read.as_ref().map(|(bank, _)| bank)
    }
}

/// What stays of a file of this length without the ranges of these tensors.
pub(super) fn stays<'t>(len: usize, elsewhere: impl Iterator<Item = &'t &'t Tensor>) -> Vec<Range<usize>> {
    let mut gone: Vec<_> = elsewhere.map(|tensor| tensor.range.clone()).collect();
    gone.sort_by_key(|range| range.start);
    gone.push(len..len);
    let mut at = 0;
    gone.iter().map(|gone| std::mem::replace(&mut at, gone.end)..gone.start).collect()
}

pub(super) fn size_of_all<'r>(ranges: impl Iterator<Item = &'r Range<usize>>) -> Bytes {
    ranges.map(|range| Bytes::from_usize(range.len())).fold(Bytes::ZERO, Bytes::saturating_add)
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

/// How far loading is.
pub(crate) struct Loading {
    done: u64,
    total: u64,
}

impl Loading {
    /// Tells how far it is with this much more.
    pub(crate) fn add(
        &mut self,
        added: usize,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<()> {
        self.done += added as u64;
        match progress(self.done.min(self.total), self.total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }
}

/// Reads a file's bytes into memory.
fn read(file: &MappedFile, bank: &Bank, source: Source, report: Report<'_>) -> Result<Shard> {
    let path = file.path();
    let mut plain = File::open(path).map_err(io("open", path))?;
    let mut shard = if source.mlock {
        Shard::Locked(bank.device().alloc_pinned(file.len())?)
    } else {
        Shard::Read(bank.device().alloc(file.len())?)
    };
    let memory = match &mut shard {
        Shard::Read(buffer) => buffer.slice_mut(..)?,
        Shard::Locked(buffer) => buffer.slice_mut(..)?,
        Shard::Mapped(_) => return Err(Error::Unsupported { what: "writing to a mapped file".into() }),
    };
    let memory = memory
        .into_host_mut()
        .ok_or(Error::Unsupported { what: "weights that the host cannot write".into() })?;
    for part in memory.chunks_mut(STEP) {
        plain.read_exact(part).map_err(io("read", path))?;
        report(part.len())?;
    }
    Ok(shard)
}
