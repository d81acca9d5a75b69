//! State files: sequences on a disk, and back, byte for byte.
//!
//! A file has the tokens of one or more sequences, their keys and values, what they were made with, and what an engine wants to
//! keep beside each. It does not depend on how many layers share a row, in how many caches layers and heads are, on the context's size, or on the
//! size of a granule.
//!
//! ```text
//! 0        48              48 + contents            + data                  + 4 x chunks = the file's length
//! | header | contents      | rows                   | table                 |
//!
//! header (48 bytes; all numbers little endian)
//! 0                      8         12        16             24             32           40        44      48
//! | 89 'GRANKV' 0A       | version | sum of  | length of    | length of    | length of  | sum of  | sum of |
//! |                      | u32     | contents| the file u64 | contents u64 | rows u64   | table   | 0..44  |
//!
//! contents
//! | layers | KV heads | head dim | type of K | type of V | sinks |      each u32; types by their number in ggml
//! | model's identity | RoPE's | the transform's |                       each u32 length, bytes
//! | sequences u32 | and of each: | length u32, extra | tokens u32, that many u32 |
//!                                | runs u32, that many: | sink u32 | tokens u32 | position u32 | turn i32 |
//!
//! rows: sequence by sequence, and of each, layer by layer
//! | token 0: K quants, K scales, V quants, V scales | token 1 … | sinks: K of each, V of each, in f16; 0 where no token is |
//!
//! table: for each 64 KiB of the rows, the last ones fewer, their sum u32
//! ```
//!
//! A row has no padding; its planes are those of [`KvLayout`]. A run is as many tokens, stored at
//! positions that follow one another, the first of which is named, with one turn ([`Segment`](crate::Segment)); *sink* is which of the
//! sinks its first token is, and the number of sinks where it is none. Sequences that hold the same have the same bytes.
//!
//! **Sums** are CRC-32 (ISO-HDLC, the one of zip and PNG). In 64 KiB it finds every one or two flipped bits and every burst of
//! up to 32, for certain; of any other damage it misses one in 2^32, in each chunk. The table, the contents and the header have
//! one each, so that chunks that changed places, or come from another file, are found as well as flipped bits, and lengths are
//! compared exactly, so that every cut is found. It does not find what somebody changes on purpose, who can make the
//! sums fit: such a file can put words into a model's mouth, but is held against the same limits as any other, and no more. A
//! hash of 64 bits and more would miss less of what is likely to go wrong only beyond this, and finds single bits with
//! probability where a CRC does with certainty; a cryptographic one costs tens of times more.
//!
//! **Saving** writes `FILE.part`, under a lock, has the system put it onto the disk, and then gives it the name: whatever happens,
//! `FILE` is the old one or the new one. A file that is no state file is not replaced, nor is a `FILE.part` that is none.
//!
//! ```
//! # use granule_bank::*; use granule_device::*; use granule_kv::*;
//! use granule_kv::state::{SaveSequence, StateFile, save};
//! # let device = Device::host_with(HostOptions::new().granule(Bytes::kib(16)).capacity(Bytes::mib(1)))?;
//! # let bank = Bank::new(device, BankOptions::new())?;
//! # let shape = KvShape { n_layers: 2, n_kv_heads: 2, head_dim: 64 };
//! # let layout = |layers_per_row| KvLayout::new(shape, KvType::Q8_0, KvType::F16, layers_per_row, 0);
//! # let cache = KvCache::new(&bank, layout(None)?, KvOptions::new())?;
//! # let identity = Identity::default();
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("state");
//! # let mut sequence = cache.sequence(4096)?;
//! # sequence.prepare(3)?;
//! # sequence.commit(3)?;
//! let saved = SaveSequence { sequence: &sequence, further: &[], heads: &[], tokens: &[1, 15043, 29892], extra: b"" };
//! save(&path, &identity, &[saved])?;
//!
//! let file = StateFile::open(&path)?; // the whole file is verified
//! let other = KvCache::new(&bank, layout(Some(1))?, KvOptions::new())?;
//! let restored = file.restore(0, &other, 8192, &identity)?;
//! assert_eq!((restored.len(), file.tokens(0)?), (3, &[1, 15043, 29892][..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod file;
mod format;
mod heads;
mod write;

use std::ops::Range;
use std::path::Path;

use granule_device::Bytes;

use crate::{Identity, KvLayout, KvShape, Sequence};
use format::{Contents, Run, canonical};
use heads::ByHeads;
use write::{PartFile, Writer};

pub use error::{Part, StateError};
pub use file::StateFile;

/// A sequence to be saved.
#[derive(Clone, Copy, Debug)]
pub struct SaveSequence<'a> {
    /// The sequence, which nobody appends to meanwhile.
    pub sequence: &'a Sequence,
    /// Where a model's layers are in several caches: the sequences of the same tokens that have the layers after that one's, in
    /// their order. Otherwise none.
    pub further: &'a [&'a Sequence],
    /// Where layers' key-value heads are in several caches: for each run of layers the heads that each of its sequences has, the sequences being
    /// `sequence` and `further` in that order. Heads may be in several. Otherwise, where every sequence has all, none.
    pub heads: &'a [Vec<Range<usize>>],
    /// The tokens whose rows it has.
    pub tokens: &'a [u32],
    /// What the engine wants to find beside it: the sampler's state, for example.
    pub extra: &'a [u8],
}

/// A run of layers of a sequence: who has which of its key-value heads.
struct Stage<'a> {
    parts: Vec<(&'a Sequence, Range<usize>)>,
}

impl Stage<'_> {
    fn layers(&self) -> usize {
        self.parts.first().map_or(0, |(part, _)| part.cache().layout().shape().n_layers)
    }

    /// How many heads its parts make up, if they do and have as many layers each.
    fn heads(&self) -> Option<usize> {
        let own = |part: &Sequence| part.cache().layout().shape();
        let fits = self
            .parts
            .iter()
            .all(|(part, heads)| own(part).n_kv_heads == heads.len() && own(part).n_layers == self.layers());
        let heads: Vec<_> = self.parts.iter().map(|(_, heads)| heads.clone()).collect();
        heads::covered(&heads).filter(|_| fits)
    }

    /// Puts records of this kind together from what `read` says of each part. Heads that several have are the same in all: who adds none is not
    /// asked.
    fn read(
        &self,
        kind: &ByHeads,
        whole: &mut [u8],
        buffer: &mut Vec<u8>,
        read: impl Fn(&Sequence, &mut [u8]) -> Result<(), crate::Error>,
    ) -> Result<(), crate::Error> {
        if let [(part, _)] = &self.parts[..] {
            return read(part, whole);
        }
        let mut end = 0;
        for (part, heads) in self.parts.iter().filter(|(_, heads)| {
            let is_first = heads.end > end;
            end = heads.end;
            is_first
        }) {
            buffer.resize(kind.part_len(heads, whole.len()), 0);
            read(part, buffer)?;
            kind.put(heads, buffer, whole);
        }
        Ok(())
    }
}

impl<'a> SaveSequence<'a> {
    /// All that have a part of it, in order.
    fn parts(&self) -> impl Iterator<Item = &'a Sequence> + Clone + use<'a> {
        std::iter::once(self.sequence).chain(self.further.iter().copied())
    }

    /// Its runs of layers, and how many key-value heads all of them have.
    fn stages(&self) -> Result<(Vec<Stage<'a>>, usize), StateError> {
        let mut parts = self.parts();
        let whole = |part: &'a Sequence| {
            let heads = 0..part.cache().layout().shape().n_kv_heads;
            Stage { parts: vec![(part, heads)] }
        };
        let split = |heads: &'a Vec<Range<usize>>| Stage {
            parts: parts.by_ref().zip(heads.iter().cloned()).collect(),
        };
        let stages: Vec<_> = match self.heads {
            [] => self.parts().map(whole).collect(),
            heads => heads.iter().map(split).collect(),
        };
        let named: usize = self.heads.iter().map(Vec::len).sum();
        if !self.heads.is_empty() && named != 1 + self.further.len() {
            return Err(StateError::Heads);
        }
        let heads = stages.iter().map(Stage::heads).collect::<Option<Vec<_>>>().ok_or(StateError::Heads)?;
        match heads[..] {
            [first, ..] if heads.iter().all(|&heads| heads == first) => Ok((stages, first)),
            _ => Err(StateError::Mixed),
        }
    }
}

/// Says, before anything was computed, whether a state could be [saved](save) at `path` as things stand. Nothing stays behind.
///
/// # Errors
/// [`StateError::NotAStateFile`] where something else has the name, [`StateError::Busy`], [`StateError::Io`].
pub fn check_path(path: impl AsRef<Path>) -> Result<(), StateError> {
    PartFile::create(path.as_ref()).map(drop)
}

/// Saves sequences to the file at `path`, in place of a state file that is there; answers how long it is. They may be of several
/// caches of one shape, with the same types; a state file does not tell how many caches a model's layers, or their heads, were in. Device work that they are [busy](Sequence::busy_until) with is waited for. A new file
/// can be read by its owner alone; one that is replaced leaves its permissions.
///
/// # Errors
/// [`StateError::NotAStateFile`] where something else has the name, [`StateError::Busy`], [`StateError::Io`], also for a full
/// disk; [`StateError::Count`], [`StateError::Tokens`], [`StateError::Mixed`], [`StateError::Heads`], [`StateError::Kv`]: what was there is there still.
/// [`StateError::NotSynced`]: the new file is there.
pub fn save(
    path: impl AsRef<Path>,
    identity: &Identity,
    sequences: &[SaveSequence<'_>],
) -> Result<Bytes, StateError> {
    let first = sequences.first().ok_or(StateError::Count)?;
    let layout = *first.sequence.cache().layout();
    let kind =
        |layout: &KvLayout| (layout.shape().head_dim, layout.k_type(), layout.v_type(), layout.sinks());
    let shape_of = |stages: &[Stage<'_>], n_kv_heads| {
        let n_layers = stages.iter().map(Stage::layers).sum();
        KvShape { n_layers, n_kv_heads, ..layout.shape() }
    };
    let mut shape = None;
    let mut saved = Vec::with_capacity(sequences.len());
    let mut all = Vec::with_capacity(sequences.len());
    for one in sequences {
        let (stages, heads) = one.stages()?;
        let own = shape_of(&stages, heads);
        if *shape.get_or_insert(own) != own
            || one.parts().any(|part| kind(part.cache().layout()) != kind(&layout))
        {
            return Err(StateError::Mixed);
        }
        if let Some(other) = one.parts().find(|part| part.len() != one.tokens.len()) {
            return Err(StateError::Tokens { tokens: one.tokens.len(), len: other.len() });
        }
        let runs =
            |part: &Sequence| canonical(part.segments().iter().map(Run::of), part.cache().layout().sinks());
        let segments = runs(one.sequence);
        if one.parts().any(|part| runs(part) != segments) {
            return Err(StateError::Mixed);
        }
        saved.push(format::Saved { extra: one.extra.to_vec(), tokens: one.tokens.to_vec(), segments });
        all.push(stages);
    }
    let shape = shape.ok_or(StateError::Count)?;
    let contents = Contents {
        shape,
        k: layout.k_type(),
        v: layout.v_type(),
        sinks: layout.sinks(),
        identity: identity.clone(),
        sequences: saved,
    };
    let counted = contents.write().zip(contents.data_len()).zip(contents.layer_bytes());
    let ((head, data_len), bytes) = counted.ok_or(StateError::Count)?;
    let (rows, sinks) =
        (ByHeads::rows(&layout, shape.n_kv_heads)?, ByHeads::sinks(&layout, shape.n_kv_heads));
    let mut writer = Writer::begin(path.as_ref(), &head, data_len)?;
    let (mut buffer, mut part_buffer) = (Vec::new(), Vec::new());
    for (one, stages) in sequences.iter().zip(&all) {
        let (tokens, at_once) = (one.tokens.len(), bytes.at_once(one.tokens.len()));
        one.parts().for_each(Sequence::await_work);
        for (stage, layer) in
            stages.iter().flat_map(|stage| (0..stage.layers()).map(move |layer| (stage, layer)))
        {
            for start in (0..tokens).step_by(at_once) {
                let these = start..tokens.min(start + at_once);
                buffer.resize(these.len() * bytes.row, 0);
                stage.read(&rows, &mut buffer, &mut part_buffer, |part, out| {
                    part.read_layer(layer, these.clone(), out)
                })?;
                writer.rows(&buffer)?;
            }
            buffer.resize(bytes.sinks, 0);
            stage.read(&sinks, &mut buffer, &mut part_buffer, |part, out| part.read_sinks(layer, out))?;
            writer.rows(&buffer)?;
        }
    }
    writer.finish().map(Bytes::new)
}
