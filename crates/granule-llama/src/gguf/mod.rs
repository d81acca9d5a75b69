//! The GGUF file format: metadata and a directory of tensors, versions 2 and 3, little-endian.
//!
//! ```text
//!  byte 0     4         8            16           24
//!       | "GGUF" | version | n_tensors  | n_entries  | entries … | tensors … | pad | data …
//!       | 4 B    | u32     | u64        | u64        |           |           |     | at `data_offset`
//!  entry:  key (u64 length, bytes), u32 value type, value
//!  tensor: name (u64 length, bytes), u32 n_dims, n_dims x u64, u32 type, u64 offset from `data_offset`
//! ```
//!
//! Source: ggml's `docs/gguf.md`. Reading works on bytes alone, knows no files and trusts nothing; a file's data
//! stays where it is and is found by [`Gguf::data_range`].

mod ggml_type;
mod read;
mod shards;
mod value;
mod write;

use crate::error::Result;
use std::collections::HashMap;
use std::ops::Range;

pub use ggml_type::GgmlType;
pub(crate) use read::tensor_bytes;
pub use shards::{ShardName, check_shards};
pub use value::{Array, Metadata, Strings, Value};
pub use write::GgufWriter;
pub(crate) use write::{header, pad};

/// One tensor of a file: what it is and where its data lies.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Elements in each dimension, the row's length first; at most four, none for a single number.
    pub dims: Vec<u64>,
    /// The type of its elements.
    pub ty: GgmlType,
    /// Where its data begins, in bytes from [`Gguf::data_offset`].
    pub offset: u64,
    /// How many bytes its data has.
    pub bytes: u64,
}

/// The directory of a GGUF file: all of it but the tensors' data.
///
/// ```
/// use granule_llama::gguf::{Gguf, GgufWriter, Value};
///
/// let mut writer = GgufWriter::new(3)?;
/// writer.set("general.name", Value::String("tiny".into()))?;
/// writer.tensor("x", &[2], granule_quant::DType::F32.into(), bytemuck::bytes_of(&[1.0f32, 2.0]))?;
/// let file = writer.to_bytes();
///
/// let gguf = Gguf::parse(&file)?;
/// assert_eq!(gguf.metadata().get_str("general.name")?, "tiny");
/// let x = gguf.tensor("x").unwrap();
/// assert_eq!(file[gguf.data_range(x)], *bytemuck::bytes_of(&[1.0f32, 2.0]));
/// # Ok::<(), granule_llama::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Gguf {
    version: u32,
    metadata: Metadata,
    alignment: u64,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    data_offset: u64,
}

impl Gguf {
    /// Read a whole file's directory. Every tensor of the result lies inside `file`, aligned, on bytes of its own.
    ///
    /// # Errors
    /// A typed error that names the offender for everything that the format does not allow.
    pub fn parse(file: &[u8]) -> Result<Self> {
        read::parse(file, file.len() as u64)
    }

    /// The same from a file's beginning: `file_len` is the length of the whole file in bytes.
    ///
    /// # Errors
    /// As [`Gguf::parse`]; [`crate::Error::Truncated`] also where the directory does not end within `beginning`.
    pub fn parse_beginning(beginning: &[u8], file_len: u64) -> Result<Self> {
        read::parse(beginning, file_len)
    }

    /// The format's version, 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The metadata.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The alignment of the tensors' data, in bytes: a power of two.
    #[must_use]
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// All tensors, in the file's order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(*self.by_name.get(name)?)
    }

    /// Where the data section begins, in bytes from the file's start.
    #[must_use]
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// Where a tensor's data lies in the file, in bytes from its start.
    #[must_use]
    pub fn data_range(&self, tensor: &TensorInfo) -> Range<usize> {
        // Parsing checked that this lies inside the file; an address space that cannot hold the file
        // gets a range that no slice has.
        let start = usize::try_from(self.data_offset.saturating_add(tensor.offset)).unwrap_or(usize::MAX);
        let bytes = usize::try_from(tensor.bytes).unwrap_or(usize::MAX);
        start..start.saturating_add(bytes)
    }
}
