//! What can go wrong when arithmetic is asked for: shapes that do not fit, and memory that is not where it should be.

use granule_quant::DType;

/// Why an operation was refused. Nothing was computed, nothing was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice or matrix has another number of elements (or bytes) than the operation's shape asks for.
    #[error("{what}: {got} given, the shape asks for {want}")]
    Shape {
        /// Which argument.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length that fits.
        want: usize,
    },
    /// A token id outside the embedding table.
    #[error("token id {id} is outside the vocabulary of {rows} tokens")]
    TokenId {
        /// The id.
        id: u32,
        /// Rows of the table.
        rows: usize,
    },
    /// The operation runs on the host and the bytes lie elsewhere.
    #[error("{what} lies in memory that the host cannot read; this operation runs on the host")]
    NotOnHost {
        /// Which argument.
        what: &'static str,
    },
    /// A quantized weight needs quantized activations, and none were handed in.
    #[error("a {dtype} matrix needs its activations quantized first")]
    NotQuantized {
        /// The weight's type.
        dtype: DType,
    },
    /// A head dimension or a rotation length that the operation cannot take.
    #[error("{what} must be {must}, not {got}")]
    Dimension {
        /// Which number.
        what: &'static str,
        /// What it must be.
        must: &'static str,
        /// What it is.
        got: usize,
    },
    /// Encoding or decoding failed (NaN or infinity, a row length that is no whole number of blocks).
    #[error(transparent)]
    Quant(#[from] granule_quant::Error),
    /// The system refused to start a thread.
    #[error("only {started} of {wanted} threads could be started")]
    Threads {
        /// How many were asked for.
        wanted: usize,
        /// How many run (the caller's own included).
        started: usize,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// `Ok` if a length is what the shape asks for.
pub(crate) fn expect_len(what: &'static str, got: usize, want: usize) -> Result<(), Error> {
    if got == want { Ok(()) } else { Err(Error::Shape { what, got, want }) }
}
