//! Why a state was not saved or not restored, said to the person who must act.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::{KvShape, KvType};

/// Why a state file was not written, or not taken. But for [`StateError::NotSynced`] nothing has changed: no file, no sequence, no
/// memory held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The file, or its folder, could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The new file has taken the old one's place, and the system could not put the name onto the disk: after a power loss it may be
    /// the old one again.
    #[error("{} is saved, but may be the old one again after a power loss: {source}", path.display())]
    NotSynced {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another program is writing the same file at this moment.
    #[error("{} is being saved by somebody else", path.display())]
    Busy {
        /// Which file.
        path: PathBuf,
    },
    /// The file does not begin as a state file does: another kind of file, or one of a name that was meant for another. It is not
    /// replaced either.
    #[error("{} is no state file of Granule", path.display())]
    NotAStateFile {
        /// Which file.
        path: PathBuf,
    },
    /// It was written by another version of Granule.
    #[error(
        "{} has format version {found}, and this program reads version {known}: save it again with this one",
        path.display()
    )]
    Version {
        /// Which file.
        path: PathBuf,
        /// The file's.
        found: u32,
        /// This program's.
        known: u32,
    },
    /// It is shorter than it was written: it was cut, or its disk lost a part.
    #[error("{} was cut: it has {found} of {expected} bytes", path.display())]
    Cut {
        /// Which file.
        path: PathBuf,
        /// Bytes that are there.
        found: u64,
        /// Bytes that were written.
        expected: u64,
    },
    /// Bytes of it are not those that were written.
    #[error("{} is damaged: {part} is not what was saved", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        part: Part,
    },
    /// It was saved from another model.
    #[error("the state is another model's")]
    WrongModel,
    /// It was saved from a model of another shape.
    #[error(
        "the state is of {} layers, {} KV heads and {} elements a head, and the cache of {}, {} and {}",
        found.n_layers, found.n_kv_heads, found.head_dim, cache.n_layers, cache.n_kv_heads, cache.head_dim
    )]
    WrongShape {
        /// The file's.
        found: KvShape,
        /// The cache's.
        cache: KvShape,
    },
    /// Its keys were rotated in another way.
    #[error("the state was made with other RoPE settings")]
    WrongRope,
    /// It was saved from a cache of other types.
    #[error("the state has keys of {} and values of {}, and the cache of {} and {}", found.0, found.1, cache.0, cache.1)]
    WrongTypes {
        /// The file's keys and values.
        found: (KvType, KvType),
        /// The cache's.
        cache: (KvType, KvType),
    },
    /// What is done to keys and values before they are stored was not the same, or not to the same first tokens.
    #[error("the state was made with another transform of keys and values (--kv-transform)")]
    WrongTransform,
    /// It does not fit.
    #[error("the state has {tokens} tokens, and the context holds {n_ctx}")]
    TooLong {
        /// Tokens of the saved sequence.
        tokens: usize,
        /// Tokens of the context.
        n_ctx: usize,
    },
    /// A sequence that the file does not have.
    #[error("sequence {which}, and the file has {sequences}")]
    NoSuchSequence {
        /// What was asked for, from 0.
        which: usize,
        /// How many there are.
        sequences: usize,
    },
    /// Nothing to save, or too much to count.
    #[error("a state file holds 1 to 2^32 - 1 sequences, of as many tokens each")]
    Count,
    /// Not as many tokens as the sequence has.
    #[error("{tokens} tokens are named, and the sequence has {len}")]
    Tokens {
        /// Tokens that were handed in.
        tokens: usize,
        /// Tokens of the sequence.
        len: usize,
    },
    /// Sequences of caches of different shapes or types do not go into one file.
    #[error("sequences of different shapes or types do not go into one state file")]
    Mixed,
    /// Sequences whose key-value heads are not those that they are said to have, or that leave some out.
    #[error("the sequences of a split state do not have all key-value heads, in their order")]
    Heads,
    /// The cache said no: most often, out of memory.
    #[error(transparent)]
    Kv(#[from] crate::Error),
}

/// A part of a state file that has a checksum of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The header.
    Header,
    /// What says what is in it.
    Contents,
    /// A chunk of the rows, from 0.
    Chunk(usize),
    /// The chunks' checksums.
    Table,
    /// What follows the end.
    Tail,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Header => f.write_str("the header"),
            Part::Contents => f.write_str("the table of contents"),
            Part::Chunk(chunk) => write!(f, "chunk {chunk} of the rows"),
            Part::Table => f.write_str("the table of checksums"),
            Part::Tail => f.write_str("something behind the end"),
        }
    }
}
