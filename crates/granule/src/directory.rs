//! A model's files as directories: metadata and tensors' names, no weights. What `info` and `tokenize` need, and it works
//! for files that hold only a vocabulary, or types that do not run here.

use std::path::Path;

use anyhow::{Context, Result};
use granule_device::{Bytes, MappedFile};
use granule_llama::Tokenizer;
use granule_llama::gguf::{Gguf, ShardName, TensorInfo, check_shards};

/// The directories of all files of a model; the first one has the metadata.
pub(crate) struct Directory {
    first: Gguf,
    others: Vec<Gguf>,
    bytes: Bytes,
}

impl Directory {
    /// Reads the directory of the model that `path` names, all shards of it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let paths = ShardName::paths_of(path)?;
        let mut bytes = Bytes::ZERO;
        let mut all = Vec::new();
        for path in &paths {
            let file = MappedFile::open(path)?;
            let parsed = Gguf::parse(file.bytes());
            file.check()?;
            bytes = bytes.saturating_add(Bytes::from_usize(file.bytes().len()));
            all.push(parsed?);
        }
        check_shards(&paths, &all)?;
        let others = all.split_off(1.min(all.len()));
        let first = all.pop().context("a model without files")?;
        Ok(Directory { first, others, bytes })
    }

    /// The first file's directory.
    pub(crate) fn gguf(&self) -> &Gguf {
        &self.first
    }

    /// How many files there are.
    pub(crate) fn files(&self) -> usize {
        1 + self.others.len()
    }

    /// The length of all files together.
    pub(crate) fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// Every tensor of every file.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.first.tensors().iter().chain(self.others.iter().flat_map(|gguf| gguf.tensors()))
    }

    /// The tokenizer that the metadata describe.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(Tokenizer::from_metadata(self.first.metadata())?)
    }
}
