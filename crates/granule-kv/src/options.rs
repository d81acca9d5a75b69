//! `KvOptions`: how a cache deals with memory that no token lies in yet, or any more.

use granule_device::Bytes;

/// How a cache is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KvOptions {
    /// So many rows behind the last token have memory before they are needed: a thread of the cache's own maps it. 64 by
    /// default, some seconds of decoding and in most shapes one granule. 0: no thread, memory is mapped when it is asked for.
    pub ahead: usize,
    /// So much memory of sequences that are gone stays mapped, for the next ones; 64 MiB by default. It goes back to the bank
    /// when somebody else needs it.
    pub parked: Bytes,
}

impl Default for KvOptions {
    fn default() -> KvOptions {
        KvOptions { ahead: 64, parked: Bytes::mib(64) }
    }
}

impl KvOptions {
    /// The defaults.
    pub fn new() -> KvOptions {
        KvOptions::default()
    }

    /// With memory for so many rows ahead.
    pub fn ahead(self, rows: usize) -> KvOptions {
        KvOptions { ahead: rows, ..self }
    }

    /// With so much memory parked.
    pub fn parked(self, parked: Bytes) -> KvOptions {
        KvOptions { parked, ..self }
    }
}
