//! The tensor types that a GGUF file may name: ids, names and block sizes; never the bytes inside a block.

use granule_quant::DType;
use std::fmt;

/// A tensor type of ggml, known by name and size whether or not the engine computes with it.
///
/// ```
/// use granule_llama::gguf::GgmlType;
/// let q4_k = GgmlType::from_id(12).unwrap();
/// assert_eq!((q4_k.name(), q4_k.block_len(), q4_k.block_bytes()), ("q4_k", 256, 144));
/// assert!(q4_k.dtype().is_some());
/// assert!(GgmlType::from_id(18).unwrap().dtype().is_none()); // iq3_xxs: known by name, and refused by it
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GgmlType {
    id: u32,
    name: &'static str,
    block_len: u32,
    block_bytes: u32,
}

/// Id, name, elements per block, bytes per block of the types that `granule-quant` does not know.
/// Source: `enum ggml_type` and the block structs of ggml. Ids that are missing were removed from ggml.
const OTHERS: &[(u32, &str, u32, u32)] = &[
    (9, "q8_1", 32, 36),
    (15, "q8_k", 256, 292),
    (17, "iq2_xs", 256, 74),
    (18, "iq3_xxs", 256, 98),
    (19, "iq1_s", 256, 50),
    (21, "iq3_s", 256, 110),
    (22, "iq2_s", 256, 82),
    (24, "i8", 1, 1),
    (25, "i16", 1, 2),
    (26, "i32", 1, 4),
    (27, "i64", 1, 8),
    (28, "f64", 1, 8),
    (29, "iq1_m", 256, 56),
    (34, "tq1_0", 256, 54),
    (35, "tq2_0", 256, 66),
    (39, "mxfp4", 32, 17),
];

impl GgmlType {
    /// The type with this id in a file, or `None` where ggml has none.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        if let Some(dtype) = DType::from_ggml_id(id) {
            return Some(dtype.into());
        }
        let &(id, name, block_len, block_bytes) = OTHERS.iter().find(|row| row.0 == id)?;
        Some(Self { id, name, block_len, block_bytes })
    }

    /// Its id in a file.
    #[must_use]
    pub fn id(self) -> u32 {
        self.id
    }

    /// ggml's name of it, in lower case: `q4_k`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Elements in a block.
    #[must_use]
    pub fn block_len(self) -> u64 {
        u64::from(self.block_len)
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(self) -> u64 {
        u64::from(self.block_bytes)
    }

    /// The type as `granule-quant` knows it, or `None` where the engine cannot compute with it.
    #[must_use]
    pub fn dtype(self) -> Option<DType> {
        DType::from_ggml_id(self.id)
    }
}

impl From<DType> for GgmlType {
    fn from(dtype: DType) -> Self {
        // Block sizes are at most a few hundred: they fit.
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            id: dtype.ggml_id(),
            name: dtype.name(),
            block_len: small(dtype.block_len()),
            block_bytes: small(dtype.block_bytes()),
        }
    }
}

impl fmt::Debug for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
