//! Quantizing a file: weights in F32, F16 or BF16 become blocks, tensor by tensor, in memory that does not grow with the model.
//!
//! Metadata are carried over as they are, but for those that say what the file's types are and that it was one of several.
//! The same file comes out whatever the number of threads, and whether the weights lay in one file or in several.

mod output;
mod target;

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use granule_device::MappedFile;
use granule_ops::Threads;
use granule_quant::{DType, decode, encode};

use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::gguf::{
    GgmlType, Gguf, Metadata, ShardName, TensorInfo, Value, check_shards, header, pad, tensor_bytes,
};
use crate::model::Progress;

use output::Output;
use target::{Wanted, types};

pub use output::unfinished_path;
pub use target::QuantizeTarget;

/// Elements that one thread converts in one go.
const PART: usize = 1 << 16;
/// Parts that are converted, written and reported together.
const PARTS: usize = 64;
/// ggml's `GGML_QNT_VERSION`: what its blocks have meant since 2023.
const QUANTIZATION_VERSION: u32 = 2;
/// The version of the format that is written.
const GGUF_VERSION: u32 = 3;
/// What says of a file that it is one of several.
const SPLIT: &[&str] = &["split.no", "split.count", "split.tensors.count"];

/// How to quantize.
#[derive(Default)]
pub struct QuantizeOptions<'a> {
    /// Replace the file that is there.
    pub force: bool,
    /// Threads that compute, a pool of their own. None: the process's pool, with one for each physical core that it may use.
    pub threads: Option<NonZeroUsize>,
    /// Told how far it is, from the moment that there is a file: bytes of tensors read, and in all.
    pub progress: Option<Progress<'a>>,
    /// Stops it. Nothing is left behind then.
    pub cancel: CancelToken,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Every tensor, in the file's order.
    pub tensors: Vec<QuantizedTensor>,
    /// Bytes of the files read.
    pub bytes_in: u64,
    /// Bytes of the file written.
    pub bytes_out: u64,
}

/// What became of a tensor.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct QuantizedTensor {
    /// Its name.
    pub name: String,
    /// Elements in each dimension, the row's length first.
    pub dims: Vec<u64>,
    /// The type that it had.
    pub from: GgmlType,
    /// The type that it has.
    pub to: GgmlType,
    /// The type that it would have, were its rows a multiple of that type's blocks.
    pub instead_of: Option<DType>,
    /// Bytes of its data as written.
    pub bytes: u64,
}

/// Quantizes the GGUF file at `input`, or the model whose first shard it is, into one file at `output`.
///
/// Of any architecture; which tensor gets which type is what llama.cpp's quantizer does for Llama models. Tensors of one
/// dimension and other small ones are copied. Rows that are no multiple of a type's blocks get a type of shorter blocks
/// ([`QuantizedTensor::instead_of`]): Q5_0 for Q4_K, Q5_1 for Q5_K, Q8_0 for Q6_K, and F16 where there is none.
///
/// ```no_run
/// use granule_llama::{QuantizeOptions, QuantizeTarget, quantize};
///
/// let done = quantize("f16.gguf", "q4.gguf", QuantizeTarget::Q4_K_M, QuantizeOptions::default())?;
/// for tensor in done.tensors.iter().filter(|tensor| tensor.instead_of.is_some()) {
///     println!("{} is {}", tensor.name, tensor.to);
/// }
/// # Ok::<(), granule_llama::Error>(())
/// ```
///
/// # Errors
/// Those of reading a GGUF file. [`Error::OutputExists`], [`Error::OutputIsInput`] and [`Error::OutputBusy`];
/// [`Error::AlreadyQuantized`], [`Error::NotQuantizable`] and [`Error::NotEncodable`] for weights; [`Error::NoRoom`] and
/// [`Error::Io`]; [`Error::Cancelled`]. What was at `output` is then as it was, and nothing else is left.
pub fn quantize(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    target: QuantizeTarget,
    options: QuantizeOptions<'_>,
) -> Result<Quantized> {
    let (input, output) = (input.as_ref(), output.as_ref());
    let QuantizeOptions { force, threads, progress, cancel } = options;
    let paths = ShardName::paths_of(input)?;
    Output::check(output, &paths, force)?;
    let source = Source::open(&paths)?;
    let job = Job { force, ..Job::new(&source, target)? };
    let threads = threads.map_or_else(Threads::shared, Threads::new)?;
    let mut silent = |_, _| ControlFlow::Continue(());
    let mut steps =
        Steps { progress: progress.unwrap_or(&mut silent), done: 0, total: job.bytes_to_read(), cancel };
    let out = Output::create(output, job.bytes_out())?;
    steps.step(0)?;
    job.write(&source, out, &threads, &mut steps)?;
    Ok(job.result(&source))
}

/// The files read.
struct Source {
    files: Vec<MappedFile>,
    directories: Vec<Gguf>,
}

impl Source {
    fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut source = Self { files: Vec::new(), directories: Vec::new() };
        for path in paths {
            let file = MappedFile::open(path)?;
            let directory = Gguf::parse(file.bytes());
            // A file that shrinks under the parser shows as zeros: say that, not what the zeros look like.
            file.check()?;
            source.directories.push(directory?);
            source.files.push(file);
        }
        check_shards(paths, &source.directories)?;
        Ok(source)
    }

    /// Every tensor with the number of its file.
    fn tensors(&self) -> impl Iterator<Item = (usize, &TensorInfo)> {
        self.directories
            .iter()
            .enumerate()
            .flat_map(|(file, gguf)| gguf.tensors().iter().map(move |t| (file, t)))
    }

    fn bytes(&self, file: usize, tensor: &TensorInfo) -> &[u8] {
        self.files[file].bytes().get(self.directories[file].data_range(tensor)).unwrap_or_default()
    }
}

/// How far it is.
struct Steps<'a> {
    progress: Progress<'a>,
    done: u64,
    total: u64,
    cancel: CancelToken,
}

impl Steps<'_> {
    /// Counts bytes that were read; an error where it is to stop.
    fn step(&mut self, bytes: usize) -> Result<()> {
        self.done += bytes as u64;
        let goes_on = (self.progress)(self.done, self.total).is_continue() && !self.cancel.is_cancelled();
        if goes_on { Ok(()) } else { Err(Error::Cancelled) }
    }
}

/// One tensor and what it becomes; its place among the tensors of [`Source`].
struct Task<'a> {
    file: usize,
    tensor: &'a TensorInfo,
    wanted: Option<Wanted>,
    /// What is written of it in the directory.
    info: TensorInfo,
}

/// All that is written, known before it is.
struct Job<'a> {
    tasks: Vec<Task<'a>>,
    header: Vec<u8>,
    alignment: u64,
    /// Whether a file at its place is replaced.
    force: bool,
}

impl<'a> Job<'a> {
    fn new(source: &'a Source, target: QuantizeTarget) -> Result<Self> {
        let first = source.directories.first().ok_or(Error::NotGguf { found: "no file".to_owned() })?;
        let tensors: Vec<&TensorInfo> = source.tensors().map(|(_, tensor)| tensor).collect();
        let wanted = types(target, first.metadata(), &tensors)?;
        let tasks =
            source.tensors().zip(wanted).map(|((file, tensor), wanted)| Task::new(file, tensor, wanted));
        let tasks = tasks.collect::<Result<Vec<_>>>()?;
        let alignment = first.alignment();
        let metadata = metadata(first.metadata(), target);
        let header = header(GGUF_VERSION, &metadata, tasks.iter().map(|task| &task.info), alignment);
        Ok(Self { tasks, header, alignment, force: false })
    }

    fn bytes_to_read(&self) -> u64 {
        self.tasks.iter().map(|task| task.tensor.bytes).sum()
    }

    fn bytes_out(&self) -> u64 {
        let data = self.tasks.iter().map(|task| task.info.bytes.next_multiple_of(self.alignment));
        self.header.len() as u64 + data.sum::<u64>()
    }

    fn write(
        &self,
        source: &Source,
        mut out: Output,
        threads: &Threads,
        steps: &mut Steps<'_>,
    ) -> Result<()> {
        out.write(|out| std::io::Write::write_all(out, &self.header))?;
        for task in &self.tasks {
            task.write(source.bytes(task.file, task.tensor), &mut out, threads, steps)?;
            out.write(|out| pad(out, task.info.bytes, self.alignment))?;
            source.files[task.file].check()?;
        }
        out.place(self.force)
    }

    fn result(&self, source: &Source) -> Quantized {
        let tensors = self.tasks.iter().map(|task| QuantizedTensor {
            name: task.info.name.clone(),
            dims: task.info.dims.clone(),
            from: task.tensor.ty,
            to: task.info.ty,
            instead_of: task.wanted.and_then(|wanted| wanted.instead_of),
            bytes: task.info.bytes,
        });
        let bytes_in = source.files.iter().map(|file| file.len().get()).sum();
        Quantized { tensors: tensors.collect(), bytes_in, bytes_out: self.bytes_out() }
    }
}

/// What the file says of itself.
fn metadata(of: &Metadata, target: QuantizeTarget) -> Metadata {
    let mut metadata = of.without(SPLIT);
    metadata.set("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    metadata.set("general.file_type", Value::U32(target.file_type()));
    metadata
}

impl<'a> Task<'a> {
    fn new(file: usize, tensor: &'a TensorInfo, wanted: Option<Wanted>) -> Result<Self> {
        if tensor.ty.block_len() > 1 {
            return Err(Error::AlreadyQuantized { name: tensor.name.clone(), ty: tensor.ty.name() });
        }
        let mut info = tensor.clone();
        if let Some(Wanted { dtype, .. }) = wanted {
            if tensor.ty.dtype().is_none() {
                return Err(Error::NotQuantizable {
                    name: tensor.name.clone(),
                    ty: tensor.ty.name(),
                    to: dtype,
                });
            }
            info.ty = dtype.into();
            info.bytes = tensor_bytes(&tensor.name, info.ty, &tensor.dims)?;
        }
        Ok(Self { file, tensor, wanted, info })
    }

    fn write(&self, bytes: &[u8], out: &mut Output, threads: &Threads, steps: &mut Steps<'_>) -> Result<()> {
        match (self.tensor.ty.dtype(), self.wanted) {
            (Some(from), Some(Wanted { dtype: to, .. })) if from != to => {
                self.convert(from, to, bytes, out, threads, steps)
            }
            _ => bytes.chunks(PARTS * PART).try_for_each(|bytes| {
                out.write(|out| std::io::Write::write_all(out, bytes))?;
                steps.step(bytes.len())
            }),
        }
    }

    /// Converts part after part. Rows are whole blocks, so parts of whole blocks may end anywhere in them.
    fn convert(
        &self,
        from: DType,
        to: DType,
        bytes: &[u8],
        out: &mut Output,
        threads: &Threads,
        steps: &mut Steps<'_>,
    ) -> Result<()> {
        let cancel = steps.cancel.clone();
        let mut converted = Vec::new();
        let part_in = PART * from.block_bytes();
        let mut done = 0;
        for bytes in bytes.chunks(PARTS * part_in) {
            let elements = bytes.len() / from.block_bytes();
            converted.resize(elements / to.block_len() * to.block_bytes(), 0);
            let part_out = PART / to.block_len() * to.block_bytes();
            let parts =
                bytes.chunks(part_in).zip(converted.chunks_mut(part_out).map(Mutex::new)).collect::<Vec<_>>();
            threads.try_for_each_chunk(parts.len(), 1, &|_, range| {
                for i in range {
                    if cancel.is_cancelled() {
                        return Err(Error::Cancelled);
                    }
                    let (bytes, converted) = &parts[i];
                    let mut converted = converted.lock().unwrap_or_else(PoisonError::into_inner);
                    self.convert_part(from, to, bytes, &mut converted, done + i * PART)?;
                }
                Ok(())
            })?;
            done += elements;
            out.write(|out| std::io::Write::write_all(out, &converted))?;
            steps.step(bytes.len())?;
        }
        Ok(())
    }

    /// Converts the elements from `first` on.
    fn convert_part(
        &self,
        from: DType,
        to: DType,
        bytes: &[u8],
        converted: &mut [u8],
        first: usize,
    ) -> Result<()> {
        let mut numbers = vec![0.0; bytes.len() / from.block_bytes()];
        let done = decode(from, bytes, &mut numbers).and_then(|()| encode(to, &numbers, converted));
        done.map_err(|source| self.explain(source, first))
    }

    /// An error with the number's place in its row.
    fn explain(&self, mut source: granule_quant::Error, first: usize) -> Error {
        let row_len = self.tensor.dims.first().copied().unwrap_or(1).max(1);
        let mut row = first as u64 / row_len;
        if let granule_quant::Error::NotFinite { index } | granule_quant::Error::Overflow { index, .. } =
            &mut source
        {
            let at = (first + *index) as u64;
            row = at / row_len;
            *index = (at % row_len) as usize;
        }
        Error::NotEncodable { name: self.tensor.name.clone(), row, source }
    }
}
