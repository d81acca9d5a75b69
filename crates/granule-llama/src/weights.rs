//! The weights of a model, in place: in the mapped file, or in memory that it was read into.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use granule_bank::{Bank, Charge, Owner};
use granule_device::{Buffer, Bytes, DeviceSlice, MappedFile, Pinned};
use granule_ops::Matrix;
use granule_quant::DType;

use crate::config::Config;
use crate::error::{Error, Result, excerpt};
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
}

/// One file of the model, whole.
enum Shard {
    Mapped(MappedFile),
    Read(Buffer),
    Locked(Pinned),
}

impl Shard {
    fn bytes(&self) -> Result<&[u8]> {
        let slice = match self {
            Self::Mapped(file) => return Ok(file.bytes()),
            Self::Read(buffer) => buffer.slice(..)?,
            Self::Locked(buffer) => buffer.slice(..)?,
        };
        slice.as_host().ok_or(Error::Unsupported { what: "weights that the host cannot read".into() })
    }
}

/// Where one tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    shard: usize,
    range: Range<usize>,
    dtype: DType,
    rows: usize,
    cols: usize,
}

/// The weights of one layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attn_norm: Vec<f32>,
    pub(crate) attn_q: Tensor,
    pub(crate) attn_k: Tensor,
    pub(crate) attn_v: Tensor,
    pub(crate) attn_output: Tensor,
    pub(crate) ffn_norm: Vec<f32>,
    pub(crate) ffn_gate: Tensor,
    pub(crate) ffn_up: Tensor,
    pub(crate) ffn_down: Tensor,
}

/// All files of a model, opened and paid for.
pub(crate) struct Files {
    shards: Vec<Shard>,
    /// One for each file: what the bank counts for it.
    charges: Vec<Charge>,
    directories: Vec<Gguf>,
}

/// The weights of a model.
pub(crate) struct Weights {
    files: Files,
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Vec<f32>,
    /// `None` where the embedding table is also the output layer.
    output: Option<Tensor>,
    /// Llama 3's factors on the rotation's frequencies.
    pub(crate) rope_factors: Option<Vec<f32>>,
}

impl Files {
    /// Opens the model that `path` names, all its shards, and brings them into memory.
    pub(crate) fn open(
        path: &Path,
        bank: &Bank,
        source: Source,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Self> {
        let paths = ShardName::paths_of(path)?;
        let mut total = 0;
        for path in &paths {
            let about = std::fs::metadata(path).map_err(io("open", path))?;
            // Known before it is opened: opening a pipe waits for whoever writes it.
            if about.is_dir() {
                return Err(io("open", path)(std::io::ErrorKind::IsADirectory.into()));
            }
            if !about.is_file() {
                return Err(io("open", path)(std::io::Error::other("not a plain file")));
            }
            total += about.len();
        }
        let mut files = Self { shards: Vec::new(), charges: Vec::new(), directories: Vec::new() };
        let mut done = 0u64;
        for path in &paths {
            let mut report = |added: usize| {
                done += added as u64;
                match progress(done.min(total), total) {
                    ControlFlow::Continue(()) => Ok(()),
                    ControlFlow::Break(()) => Err(Error::Cancelled),
                }
            };
            // The directory comes first: what is no model is refused before it is paid for or read.
            let file = MappedFile::open(path)?;
            let directory = Gguf::parse(file.bytes());
            // A file that shrinks under the parser shows as zeros: say that, not what the zeros look like.
            file.check()?;
            files.directories.push(directory?);
            let charge = bank.charge(&Owner::new(WEIGHTS), file.len())?;
            files.shards.push(bring_in(file, bank, source, &mut report)?);
            files.charges.push(charge);
        }
        check_shards(&paths, &files.directories)?;
        Ok(files)
    }

    /// The directory of the first file, which holds the model's metadata.
    pub(crate) fn main(&self) -> Result<&Gguf> {
        self.directories.first().ok_or(Error::MissingTensor { name: "token_embd.weight".into() })
    }

    fn find(&self, name: &str) -> Option<(usize, &TensorInfo, Range<usize>)> {
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

    /// Bytes of all files: mapped or read, they are held as a whole.
    pub(crate) fn bytes(&self) -> Bytes {
        self.charges.iter().map(Charge::size).fold(Bytes::ZERO, |a, b| a.saturating_add(b))
    }
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

/// Brings a file's bytes into memory: those of the mapping, or a copy of them.
fn bring_in(
    file: MappedFile,
    bank: &Bank,
    source: Source,
    report: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Shard> {
    if source.use_mmap {
        if source.mlock {
            file.lock()?;
        }
        for part in file.bytes().chunks(STEP) {
            // One byte of each page: what is not in the page cache is read now, not at the first token.
            let touched: u8 = part.iter().step_by(PAGE).fold(0, |sum, &byte| sum.wrapping_add(byte));
            std::hint::black_box(touched);
            report(part.len())?;
        }
        file.check()?;
        return Ok(Shard::Mapped(file));
    }
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

impl Weights {
    /// Finds every tensor of a model of this shape, and refuses files that hold others.
    pub(crate) fn new(files: Files, config: &Config) -> Result<Self> {
        let mut finder = Finder { files: &files, seen: HashSet::new() };
        let (n_embd, n_ff, n_vocab) = (config.n_embd, config.n_ff, config.n_vocab);
        let (q_width, kv_width) = (config.q_width(), config.kv_width());
        let embedding = finder.matrix("token_embd.weight", n_vocab, n_embd)?;
        let output_norm = finder.vector("output_norm.weight", n_embd)?;
        let output = finder.optional("output.weight", |f, name| f.matrix(name, n_vocab, n_embd))?;
        let rope_factors =
            finder.optional("rope_freqs.weight", |f, name| f.vector(name, config.rope_dims / 2))?;
        let mut layers = Vec::new();
        for i in 0..config.n_layers {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            layers.push(Layer {
                attn_norm: finder.vector(&name("attn_norm"), n_embd)?,
                attn_q: finder.matrix(&name("attn_q"), q_width, n_embd)?,
                attn_k: finder.matrix(&name("attn_k"), kv_width, n_embd)?,
                attn_v: finder.matrix(&name("attn_v"), kv_width, n_embd)?,
                attn_output: finder.matrix(&name("attn_output"), n_embd, q_width)?,
                ffn_norm: finder.vector(&name("ffn_norm"), n_embd)?,
                ffn_gate: finder.matrix(&name("ffn_gate"), n_ff, n_embd)?,
                ffn_up: finder.matrix(&name("ffn_up"), n_ff, n_embd)?,
                ffn_down: finder.matrix(&name("ffn_down"), n_embd, n_ff)?,
            });
        }
        if let Some(other) = files.tensors().find(|info| !finder.seen.contains(info.name.as_str())) {
            return Err(Error::Unsupported {
                what: format!(
                    "tensor `{}`, which is no part of the Llama models that run here",
                    excerpt(&other.name)
                ),
            });
        }
        Ok(Self { embedding, layers, output_norm, output, rope_factors, files })
    }

    /// A tensor as a matrix, where it lies.
    pub(crate) fn matrix(&self, tensor: &Tensor) -> Result<Matrix<'_>> {
        let bytes = self.files.shards.get(tensor.shard).map(Shard::bytes).transpose()?;
        let bytes = bytes.and_then(|bytes| bytes.get(tensor.range.clone())).unwrap_or_default();
        Ok(Matrix::new(tensor.dtype, tensor.rows, tensor.cols, DeviceSlice::from(bytes))?)
    }

    /// The output layer.
    pub(crate) fn output_matrix(&self) -> Result<Matrix<'_>> {
        self.matrix(self.output.as_ref().unwrap_or(&self.embedding))
    }

    /// Whether the embedding table is also the output layer.
    pub(crate) fn is_tied(&self) -> bool {
        self.output.is_none()
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// Fails if a mapped file was cut short since it was opened: what was computed since then is wrong.
    pub(crate) fn check(&self) -> Result<()> {
        for shard in &self.files.shards {
            if let Shard::Mapped(file) = shard {
                file.check()?;
            }
        }
        Ok(())
    }
}

/// Looks tensors up, and remembers which.
struct Finder<'a> {
    files: &'a Files,
    seen: HashSet<&'a str>,
}

impl<'a> Finder<'a> {
    fn tensor(&mut self, name: &str, expected: &[usize]) -> Result<Tensor> {
        let (shard, info, range) =
            self.files.find(name).ok_or_else(|| Error::MissingTensor { name: name.to_owned() })?;
        self.seen.insert(&info.name);
        // Dimensions of one at the end say nothing.
        let used = info.dims.iter().rposition(|&n| n != 1).map_or(1, |last| last + 1);
        let mut shape = info.dims.get(..used).unwrap_or_default().to_vec();
        shape.resize(shape.len().max(expected.len()), 1);
        let expected: Vec<u64> = expected.iter().map(|&n| n as u64).collect();
        if shape != expected {
            return Err(Error::TensorShape { name: name.to_owned(), found: info.dims.clone(), expected });
        }
        let dtype = info
            .ty
            .dtype()
            .ok_or_else(|| Error::UnsupportedWeight { name: name.to_owned(), ty: info.ty.name() })?;
        let size = |i: usize| expected.get(i).map_or(1, |&n| n as usize);
        Ok(Tensor { shard, range, dtype, rows: size(1), cols: size(0) })
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        self.tensor(name, &[cols, rows])
    }

    /// A small tensor, decoded.
    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.tensor(name, &[len])?;
        let bytes = self.files.shards.get(tensor.shard).map(Shard::bytes).transpose()?;
        let bytes = bytes.and_then(|bytes| bytes.get(tensor.range.clone())).unwrap_or_default();
        let mut out = vec![0.0; len];
        granule_quant::decode(tensor.dtype, bytes, &mut out).map_err(granule_ops::Error::from)?;
        Ok(out)
    }

    fn optional<T>(
        &mut self,
        name: &str,
        find: impl FnOnce(&mut Self, &str) -> Result<T>,
    ) -> Result<Option<T>> {
        if self.files.find(name).is_none() {
            return Ok(None);
        }
        find(self, name).map(Some)
    }
}
