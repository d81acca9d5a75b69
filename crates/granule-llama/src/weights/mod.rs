//! The weights of a model: in place, in the mapped file or in memory that it was read into; or packed beside it.

mod files;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use granule_bank::Bank;
use granule_device::{Bytes, DeviceSlice};
use granule_ops::{Matrix, Threads};
#[cfg(feature = "cuda")]
use granule_plan::MatrixShape;
use granule_quant::{DType, Isa, Packing};
use granule_split::{Split, TensorSplit};

use crate::config::Config;
use crate::error::{Error, Result, excerpt};
use crate::packed::{self, Packed, Place};
use crate::placement::Span;
use crate::ranks::RankSplit;

#[cfg(feature = "cuda")]
pub(crate) use self::files::WEIGHTS;
use self::files::{Claim, Part, Shard, size_of_all};
pub(crate) use self::files::{Files, Report, Source};

/// Where one tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    shard: usize,
    range: Range<usize>,
    dtype: DType,
    rows: usize,
    cols: usize,
    /// Whether its rows are looked up, so that it is never packed.
    in_rows: bool,
    /// Where some of its columns are one rank's: how all of them are cut, and which are these. A rank's rows are a range by themselves.
    cut: Option<Arc<TensorSplit>>,
    rank: usize,
    /// Where it lies packed, or copied, if it does.
    packed: Option<Place>,
}

impl Tensor {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn shape(&self) -> MatrixShape {
        MatrixShape { dtype: self.dtype, rows: self.rows, cols: self.cols }
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// How it is to be packed, where that pays.
    pub(crate) fn packing(&self) -> Option<Packing> {
        Isa::best().packing(self.dtype).filter(|_| !self.in_rows)
    }

    /// Whether its products are faster from memory of our own: packed, or as floats are in a file, but in huge pages.
    fn is_better_packed(&self) -> bool {
        self.packing().is_some() || !self.dtype.is_quantized()
    }

    /// These rows of it, as a tensor.
    fn of_rows(&self, rows: Range<usize>) -> Result<Self> {
        let row = self.dtype.row_bytes(self.cols).map_err(granule_ops::Error::from)?;
        let start = self.range.start;
        let range = start + rows.start * row..start + rows.end * row;
        Ok(Self { range, rows: rows.len(), ..self.clone() })
    }

    /// A rank's columns of it, as a tensor.
    fn of_cols(&self, cut: TensorSplit, rank: usize) -> Result<Self> {
        let cols = cut.shard(rank)?.cols.len();
        Ok(Self { cols, cut: Some(Arc::new(cut)), rank, ..self.clone() })
    }

    /// What it takes there: the bytes of `rows` of its rows.
    pub(crate) fn packed_bytes(&self, rows: usize) -> Result<usize> {
        let bytes = match self.packing() {
            Some(packing) => packing.bytes(rows, self.cols),
            None => self.dtype.row_bytes(self.cols).map(|row| row.saturating_mul(rows)),
        };
        Ok(bytes.map_err(granule_ops::Error::from)?)
    }

    pub(crate) fn set_packed(&mut self, place: Place) {
        self.packed = Some(place);
    }
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

/// The weights of a model, or one rank's part of them.
pub(crate) struct Weights {
    files: Arc<Files>,
    /// Who pays for what is on the host.
    bank: Option<Bank>,
    /// What is used in place of mapped files.
    claim: Claim,
    /// Whether it is one rank's part.
    is_part: bool,
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Vec<f32>,
    /// Where the embedding table is also the output layer, that one, which may be packed here.
    output: Tensor,
    is_tied: bool,
    packed: Option<Packed>,
    /// Llama 3's factors on the rotation's frequencies.
    pub(crate) rope_factors: Option<Vec<f32>>,
}

/// What becomes of the matrices of [`Weights::all`] when they are brought in.
struct Moves {
    /// Which are packed, or copied.
    packed: Vec<bool>,
    /// Which are not needed where they lie in the files.
    leaves: Vec<bool>,
    /// Whether the packed output layer is the embedding table too.
    is_shared: bool,
}

fn scaled(range: &Range<usize>, by: usize) -> Range<usize> {
    range.start * by..range.end * by
}

impl Layer {
    /// The same, of which nothing is packed.
    fn again(&self) -> Self {
        let tensor = |tensor: &Tensor| Tensor { packed: None, ..tensor.clone() };
        Self {
            attn_norm: self.attn_norm.clone(),
            attn_q: tensor(&self.attn_q),
            attn_k: tensor(&self.attn_k),
            attn_v: tensor(&self.attn_v),
            attn_output: tensor(&self.attn_output),
            ffn_norm: self.ffn_norm.clone(),
            ffn_gate: tensor(&self.ffn_gate),
            ffn_up: tensor(&self.ffn_up),
            ffn_down: tensor(&self.ffn_down),
        }
    }

    pub(crate) fn matrices(&self) -> [&Tensor; 7] {
        let Layer { attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down, .. } = self;
        [attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down]
    }

    fn matrices_mut(&mut self) -> [&mut Tensor; 7] {
        let Layer { attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down, .. } = self;
        [attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down]
    }
}

impl Weights {
    /// Finds every tensor of a model of this shape, and refuses files that hold others.
    pub(crate) fn new(files: Files, config: &Config) -> Result<Self> {
        let files = Arc::new(files);
        let mut finder = Finder { files: &files, seen: HashSet::new() };
        let (n_embd, n_ff, n_vocab) = (config.n_embd, config.n_ff, config.n_vocab);
        let (q_width, kv_width) = (config.q_width(), config.kv_width());
        let embedding = Tensor { in_rows: true, ..finder.matrix("token_embd.weight", n_vocab, n_embd)? };
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
        let is_tied = output.is_none();
        let output = output.unwrap_or_else(|| Tensor { in_rows: false, ..embedding.clone() });
        let (packed, bank, claim, is_part) = (None, None, Claim::default(), false);
        Ok(Self {
            embedding,
            layers,
            output_norm,
            output,
            is_tied,
            packed,
            rope_factors,
            files,
            bank,
            claim,
            is_part,
        })
    }

    /// The same, of which nothing is in memory yet: for another bank.
    pub(crate) fn again(&self) -> Self {
        Self {
            files: Arc::clone(&self.files),
            bank: None,
            claim: Claim::default(),
            is_part: true,
            embedding: Tensor { packed: None, ..self.embedding.clone() },
            layers: self.layers.iter().map(|layer| layer.again()).collect(),
            output_norm: self.output_norm.clone(),
            output: Tensor { packed: None, ..self.output.clone() },
            is_tied: self.is_tied,
            packed: None,
            rope_factors: None,
        }
    }

    /// What one rank has of these layers and of the output layer. What rows are looked up in is nobody's part.
    pub(crate) fn part(&self, config: &Config, split: &RankSplit, layers: Range<usize>) -> Result<Self> {
        let (dim, own) = (config.head_dim, split.own());
        let (q, kv) = (scaled(&own.heads, dim), scaled(&own.kv_heads, dim));
        let mut part = self.again();
        for layer in part.layers.get_mut(layers).unwrap_or_default() {
            layer.attn_q = layer.attn_q.of_rows(q.clone())?;
            layer.attn_k = layer.attn_k.of_rows(kv.clone())?;
            layer.attn_v = layer.attn_v.of_rows(kv.clone())?;
            layer.ffn_gate = layer.ffn_gate.of_rows(own.ff.clone())?;
            layer.ffn_up = layer.ffn_up.of_rows(own.ff.clone())?;
            let of_cols = |tensor: &Tensor, cols: Vec<Range<usize>>| -> Result<Tensor> {
                let cut = TensorSplit::new(tensor.dtype, tensor.rows, tensor.cols, Split::Row, cols)?;
                tensor.of_cols(cut, split.rank)
            };
            let heads = split.all.iter().map(|rank| scaled(&rank.heads, dim)).collect();
            layer.attn_output = of_cols(&layer.attn_output, heads)?;
            let ff = split.all.iter().map(|rank| rank.ff.clone()).collect();
            layer.ffn_down = of_cols(&layer.ffn_down, ff)?;
        }
        part.output = part.output.of_rows(own.vocab.clone())?;
        part.is_tied = false;
        Ok(part)
    }

    /// Brings what these stages need into memory: packs the weights of all products, where that pays and is wanted, and reads what stays
    /// in place. `looks_up` where tokens are looked up here though the first layer is elsewhere.
    pub(crate) fn bring_in(
        &mut self,
        bank: &Bank,
        here: &[Span],
        looks_up: bool,
        threads: &Threads,
        report: Report<'_>,
    ) -> Result<()> {
        let source = self.files.source;
        let moves = self.moves(source, here, looks_up);
        let elsewhere: Vec<Tensor> = self.those(&moves.leaves).cloned().collect();
        let stays = self.stays(&moves, &elsewhere)?;
        self.claim = self.files.claim(bank, stays, report)?;
        self.bank = Some(bank.clone());
        let Self { files, claim, embedding, layers, output, .. } = self;
        let layers = layers.iter_mut().flat_map(Layer::matrices_mut);
        let all = layers.chain([&mut *output, &mut *embedding]).zip(&moves.packed);
        let mut tensors: Vec<_> = all.filter(|(_, packed)| **packed).map(|(tensor, _)| tensor).collect();
        let leaves = |tensor: &Tensor| {
            elsewhere.iter().any(|gone| (gone.shard, &gone.range) == (tensor.shard, &tensor.range))
        };
        self.packed = Packed::new(files, bank, threads, &mut tensors, source.mlock, &mut |tensor, bytes| {
            if leaves(tensor) {
                files.let_go(tensor, claim);
            }
            report(bytes)
        })?;
        if moves.is_shared {
            embedding.packed.clone_from(&output.packed);
        }
        Ok(())
    }

    /// What is used in place: of all of a model everything in its files that is not elsewhere, of a part of it its own tensors.
    fn stays(&self, moves: &Moves, elsewhere: &[Tensor]) -> Result<Vec<Part>> {
        if !self.is_part {
            return self.files.all_but(&elsewhere.iter().collect::<Vec<_>>());
        }
        let stays: Vec<bool> = moves.leaves.iter().map(|leaves| !leaves).collect();
        let mut parts: Vec<Part> =
            self.those(&stays).map(|tensor| (tensor.shard, tensor.range.clone())).collect();
        parts.sort_by_key(|(shard, range)| (*shard, range.start));
        // A tied table is the output layer, too.
        parts.dedup();
        Ok(parts)
    }

    /// What the weights of these stages take on the host, in place and packed: what [`Weights::bring_in`] would have the bank pay
    /// for, beside files that are [read](Weights::read_bytes).
    pub(crate) fn host_bytes(&self, source: Source, here: &[Span], looks_up: bool) -> Result<Bytes> {
        let moves = self.moves(source, here, looks_up);
        let (_, packed) = packed::places(self.those(&moves.packed))?;
        if source.reads_all() {
            return Ok(packed);
        }
        let elsewhere: Vec<_> = self.those(&moves.leaves).cloned().collect();
        let stays = self.stays(&moves, &elsewhere)?;
        Ok(packed.saturating_add(size_of_all(stays.iter().map(|(_, range)| range))))
    }

    /// What files take that are read into memory whole, where they are.
    pub(crate) fn read_bytes(&self, source: Source) -> Result<Bytes> {
        let shards = self.files.shards.iter().filter(|_| source.reads_all());
        Ok(Bytes::from_usize(shards.map(|shard| Ok(shard.bytes()?.len())).sum::<Result<usize>>()?))
    }

    /// All matrices: those of the layers, the output layer, the embedding table.
    fn all(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flat_map(Layer::matrices).chain([&self.output, &self.embedding])
    }

    /// Those of them for which it is so.
    fn those<'a>(&'a self, which: &'a [bool]) -> impl Iterator<Item = &'a Tensor> {
        self.all().zip(which).filter(|(_, is_so)| **is_so).map(|(tensor, _)| tensor)
    }

    /// What becomes of each of them where these stages are on the host.
    fn moves(&self, source: Source, here: &[Span], looks_up: bool) -> Moves {
        let Self { layers, embedding, output, is_tied, .. } = self;
        // Whether nothing that is used later may lie in the mapped files.
        let whole = source.repack && !source.use_mmap;
        let packs =
            |tensor: &Tensor| whole || tensor.cut.is_some() || source.repack && tensor.is_better_packed();
        let looks_up = looks_up || here.iter().any(Span::looks_up);
        let has_output = here.iter().any(Span::is_last);
        let (mut packed, mut others) = (Vec::new(), Vec::new());
        for (index, layer) in layers.iter().enumerate() {
            let is_here = here.iter().any(|span| span.layers.contains(&index));
            packed.extend(layer.matrices().map(|tensor| is_here && packs(tensor)));
            others.extend(layer.matrices().map(|_| !is_here));
        }
        // Floats that are output and table alike are copied once.
        let is_shared = *is_tied && looks_up && has_output && !embedding.dtype.is_quantized();
        packed.extend([has_output && packs(output), looks_up && whole && !is_shared]);
        others.extend([!(has_output || *is_tied && looks_up), !(looks_up || *is_tied)]);
        // What is packed is not needed where it lay, unless rows are looked up there.
        let is_table = looks_up && !whole && !is_shared;
        let stays = |tensor: &Tensor| {
            is_table && (tensor.shard, &tensor.range) == (embedding.shard, &embedding.range)
        };
        let each = self.all().zip(&packed).zip(&others);
        let leaves = each.map(|((tensor, packed), other)| *other || *packed && !stays(tensor)).collect();
        Moves { packed, leaves, is_shared }
    }

    /// A tensor as a matrix, packed or where it lies.
    pub(crate) fn matrix(&self, tensor: &Tensor) -> Result<Matrix<'_>> {
        let Tensor { dtype, rows, cols, .. } = *tensor;
        let Some((packed, place)) = self.packed.as_ref().zip(tensor.packed.as_ref()) else {
            return Ok(Matrix::new(dtype, rows, cols, DeviceSlice::from(self.files.tensor(tensor)?))?);
        };
        let bytes = DeviceSlice::from(packed.bytes(place)?);
        Ok(match tensor.packing() {
            Some(packing) => Matrix::packed(packing, rows, cols, bytes)?,
            None => Matrix::new(dtype, rows, cols, bytes)?,
        })
    }

    /// Where the output layer lies in the files.
    pub(crate) fn output(&self) -> &Tensor {
        &self.output
    }

    /// The output layer.
    pub(crate) fn output_matrix(&self) -> Result<Matrix<'_>> {
        self.matrix(&self.output)
    }

    /// Whether the embedding table is also the output layer.
    pub(crate) fn is_tied(&self) -> bool {
        self.is_tied
    }

    /// What is on the host, in place of mapped files and packed.
    pub(crate) fn bytes(&self) -> Bytes {
        self.claim.bytes().saturating_add(self.packed_bytes())
    }

    /// Who pays for it, if anything is.
    pub(crate) fn bank(&self) -> Option<&Bank> {
        self.bank.as_ref()
    }

    /// Gives back the memory behind a tensor that nobody here uses in place.
    #[cfg(feature = "cuda")]
    pub(crate) fn let_go(&self, tensor: &Tensor) {
        self.files.let_go(tensor, &self.claim);
    }

    /// Bytes of the packed weights.
    pub(crate) fn packed_bytes(&self) -> Bytes {
        self.packed.as_ref().map_or(Bytes::ZERO, Packed::size)
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
        Ok(Tensor {
            shard,
            range,
            dtype,
            rows: size(1),
            cols: size(0),
            in_rows: false,
            cut: None,
            rank: 0,
            packed: None,
        })
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        self.tensor(name, &[cols, rows])
    }

    /// A small tensor, decoded.
    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.tensor(name, &[len])?;
        let bytes = self.files.tensor(&tensor)?;
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
