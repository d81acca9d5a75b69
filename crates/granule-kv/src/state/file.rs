//! `StateFile`: a verified state file, and sequences made from it.

use std::ops::Range;
use std::path::Path;

use granule_device::MappedFile;

use super::error::{Part, StateError};
use super::format::{self, Bad, CHUNK, Contents, Parts, Run, Saved};
use super::heads::ByHeads;
use crate::{Identity, KvCache, KvLayout, KvShape, KvType, Sequence};

/// A state file that was verified whole: every byte of it is one that was saved.
#[derive(Debug)]
pub struct StateFile {
    map: MappedFile,
    parts: Parts,
}

impl StateFile {
    /// Maps the file and verifies all of it.
    ///
    /// # Errors
    /// [`StateError::NotAStateFile`], [`StateError::Version`], [`StateError::Cut`], [`StateError::Damaged`];
    /// [`StateError::Kv`] where it cannot be mapped.
    pub fn open(path: impl AsRef<Path>) -> Result<StateFile, StateError> {
        let map = MappedFile::open(path).map_err(of_device)?;
        let parts = Parts::read(map.bytes());
        // Read as zeros from where the file was cut meanwhile: say so, and not that it is damaged.
        still_whole(&map)?;
        let path = || map.path().to_owned();
        let parts = parts.map_err(|bad| match bad {
            Bad::Magic => StateError::NotAStateFile { path: path() },
            Bad::Version(found) => StateError::Version { path: path(), found, known: format::VERSION },
            Bad::Cut(expected) => StateError::Cut { path: path(), found: map.len().get(), expected },
            Bad::Damaged(part) => StateError::Damaged { path: path(), part },
        })?;
        Ok(StateFile { map, parts })
    }

    /// What the rows were made with.
    pub fn identity(&self) -> &Identity {
        &self.contents().identity
    }

    /// What each token has.
    pub fn shape(&self) -> KvShape {
        self.contents().shape
    }

    /// The types of keys and values.
    pub fn types(&self) -> (KvType, KvType) {
        (self.contents().k, self.contents().v)
    }

    /// How many sequences it has, at least one.
    pub fn sequences(&self) -> usize {
        self.contents().sequences.len()
    }

    /// The tokens of a sequence, from 0.
    ///
    /// # Errors
    /// [`StateError::NoSuchSequence`].
    pub fn tokens(&self, which: usize) -> Result<&[u32], StateError> {
        self.saved(which).map(|saved| saved.tokens.as_slice())
    }

    /// What was saved beside a sequence: the engine's own.
    ///
    /// # Errors
    /// [`StateError::NoSuchSequence`].
    pub fn extra(&self, which: usize) -> Result<&[u8], StateError> {
        self.saved(which).map(|saved| saved.extra.as_slice())
    }

    /// Says whether sequences of this layout, with rows made so, can be restored from it. How many layers share a row, the
    /// context's size and how it is evaluated make no difference.
    ///
    /// # Errors
    /// [`StateError::WrongModel`], [`StateError::WrongShape`], [`StateError::WrongRope`], [`StateError::WrongTypes`],
    /// [`StateError::WrongTransform`].
    pub fn check(&self, identity: &Identity, layout: &KvLayout) -> Result<(), StateError> {
        self.check_kind(identity, layout.shape(), layout)
    }

    /// As [`check`](StateFile::check), for caches of this layout that have this shape together.
    fn check_kind(&self, identity: &Identity, all: KvShape, layout: &KvLayout) -> Result<(), StateError> {
        let Contents { shape, k, v, sinks, identity: own, .. } = self.contents();
        if own.model != identity.model {
            return Err(StateError::WrongModel);
        }
        if *shape != all {
            return Err(StateError::WrongShape { found: *shape, cache: all });
        }
        if own.rope != identity.rope {
            return Err(StateError::WrongRope);
        }
        let cache = (layout.k_type(), layout.v_type());
        if (*k, *v) != cache {
            return Err(StateError::WrongTypes { found: (*k, *v), cache });
        }
        if own.transform != identity.transform || *sinks != layout.sinks() {
            return Err(StateError::WrongTransform);
        }
        Ok(())
    }

    /// A sequence of the cache with the tokens of sequence `which`, byte for byte, and room for `n_ctx`. Each chunk is verified
    /// again as it is copied, so that also a file that was changed since is refused.
    ///
    /// # Errors
    /// Those of [`check`](StateFile::check); [`StateError::NoSuchSequence`], [`StateError::TooLong`],
    /// [`StateError::Damaged`]; [`StateError::Kv`], most often out of memory. What the sequence had is given back.
    pub fn restore(
        &self,
        which: usize,
        cache: &KvCache,
        n_ctx: usize,
        identity: &Identity,
    ) -> Result<Sequence, StateError> {
        self.check(identity, cache.layout())?;
        self.restore_layers(which, 0, cache, n_ctx, identity)
    }

    /// As [`restore`](StateFile::restore), of as many layers as the cache has, from layer `first` of the file on: for models whose
    /// layers are in several caches.
    ///
    /// # Errors
    /// As [`restore`](StateFile::restore); [`StateError::WrongShape`] where the file does not have these layers.
    pub fn restore_layers(
        &self,
        which: usize,
        first: usize,
        cache: &KvCache,
        n_ctx: usize,
        identity: &Identity,
    ) -> Result<Sequence, StateError> {
        self.restore_heads(which, first, 0..self.shape().n_kv_heads, cache, n_ctx, identity)
    }

    /// As [`restore_layers`](StateFile::restore_layers), of these key-value heads, as many as the cache has: for models whose layers are split by
    /// heads, whatever they were when they were saved.
    ///
    /// # Errors
    /// As [`restore`](StateFile::restore); [`StateError::WrongShape`] where the file does not have these layers or heads.
    pub fn restore_heads(
        &self,
        which: usize,
        first: usize,
        heads: Range<usize>,
        cache: &KvCache,
        n_ctx: usize,
        identity: &Identity,
    ) -> Result<Sequence, StateError> {
        let (part, shape) = (cache.layout().shape(), self.shape());
        let has_layers = first.checked_add(part.n_layers).is_some_and(|end| end <= shape.n_layers);
        if !has_layers || heads.len() != part.n_kv_heads || heads.end > shape.n_kv_heads {
            return Err(StateError::WrongShape { found: shape, cache: part });
        }
        let all = KvShape { head_dim: part.head_dim, ..shape };
        self.check_kind(identity, all, cache.layout())?;
        let saved = self.saved(which)?;
        let tokens = saved.tokens.len();
        if tokens > n_ctx {
            return Err(StateError::TooLong { tokens, n_ctx });
        }
        // Both were counted when the file was opened.
        let counted = self.contents().data_before(which).zip(self.contents().layer_bytes());
        let counted =
            counted.and_then(|(at, bytes)| Some((at.checked_add(bytes.all(first, tokens)?)?, bytes)));
        let Some((at, bytes)) = counted else { return Err(self.damaged(Part::Contents)) };
        let mut data = Data { file: self, at, chunk: Vec::new(), loaded: None };
        let mut sequence = cache.sequence(n_ctx)?;
        let segments: Vec<_> = saved.segments.iter().map(Run::segment).collect();
        sequence.adopt(&segments)?;
        let at_once = bytes.at_once(tokens);
        let (mut rows, mut sinks) = (vec![0; at_once * bytes.row], vec![0; bytes.sinks]);
        let n_kv_heads = shape.n_kv_heads;
        let of_rows = ByHeads::rows(cache.layout(), n_kv_heads)?;
        let of_sinks = ByHeads::sinks(cache.layout(), n_kv_heads);
        let mut own = Vec::new();
        for layer in 0..part.n_layers {
            for start in (0..tokens).step_by(at_once) {
                let end = tokens.min(start + at_once);
                let some = &mut rows[..(end - start) * bytes.row];
                data.read(some)?;
                sequence.write_layer(layer, start..end, of_rows.take(&heads, some, &mut own))?;
            }
            data.read(&mut sinks)?;
            if !saved.empty_sinks_are_zero(self.contents().sinks, &sinks) {
                return Err(self.damaged(Part::Chunk(data.loaded.unwrap_or_default())));
            }
            sequence.write_sinks(layer, of_sinks.take(&heads, &sinks, &mut own))?;
        }
        Ok(sequence)
    }

    fn contents(&self) -> &Contents {
        &self.parts.contents
    }

    fn saved(&self, which: usize) -> Result<&Saved, StateError> {
        let sequences = self.sequences();
        self.contents().sequences.get(which).ok_or(StateError::NoSuchSequence { which, sequences })
    }

    fn damaged(&self, part: Part) -> StateError {
        StateError::Damaged { path: self.map.path().to_owned(), part }
    }
}

/// Whether all that was read was the file's.
fn still_whole(map: &MappedFile) -> Result<(), StateError> {
    map.check().map_err(|error| match error {
        granule_device::Error::FileCutShort { path } => {
            let found = std::fs::metadata(&path).map_or(0, |about| about.len());
            StateError::Cut { path, found, expected: map.len().get() }
        }
        other => of_device(other),
    })
}

fn of_device(error: granule_device::Error) -> StateError {
    match error {
        granule_device::Error::File { path, source } => StateError::Io { path, source },
        other => StateError::Kv(other.into()),
    }
}

/// The rows of a file, one after the other.
struct Data<'a> {
    file: &'a StateFile,
    at: u64,
    /// A copy, so that what was verified is what is used.
    chunk: Vec<u8>,
    loaded: Option<usize>,
}

impl Data<'_> {
    fn read(&mut self, mut out: &mut [u8]) -> Result<(), StateError> {
        while !out.is_empty() {
            let (number, within) = ((self.at / CHUNK as u64) as usize, (self.at % CHUNK as u64) as usize);
            self.load(number)?;
            let there = self.chunk.get(within..).unwrap_or_default();
            let len = there.len().min(out.len());
            if len == 0 {
                return Err(self.file.damaged(Part::Chunk(number)));
            }
            let (now, later) = out.split_at_mut(len);
            now.copy_from_slice(&there[..len]);
            out = later;
            self.at += len as u64;
        }
        Ok(())
    }

    fn load(&mut self, number: usize) -> Result<(), StateError> {
        if self.loaded == Some(number) {
            return Ok(());
        }
        let Parts { data_at, data_len, table, .. } = &self.file.parts;
        let data = &self.file.map.bytes()[*data_at..*data_at + *data_len];
        let damaged = || self.file.damaged(Part::Chunk(number));
        let bytes = data.chunks(CHUNK).nth(number).ok_or_else(damaged)?;
        self.chunk.clear();
        self.chunk.extend_from_slice(bytes);
        if table.get(number) != Some(&format::sum(&self.chunk)) {
            still_whole(&self.file.map)?;
            return Err(damaged());
        }
        self.loaded = Some(number);
        Ok(())
    }
}
