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
    /// A packed weight where rows are wanted, or activations that were quantized for the other of the two.
    #[error("a {dtype} matrix is {}", if *packed { "packed, and this is for rows one after the other" } else { "not packed, and this is for packed weights" })]
    Packed {
        /// The weight's type.
        dtype: DType,
        /// Whether it is packed.
        packed: bool,
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
    /// A factor on attention's scores with which the largest product is not the largest score.
    #[error("the factor on scores must be a normal number above 0, not {got}")]
    Scale {
        /// The factor.
        got: f32,
    },
    /// Rows of a type that the layout or the operation is not for.
    #[error("{what} must be {must}, not {got}")]
    Type {
        /// Which argument.
        what: &'static str,
        /// What it must be.
        must: &'static str,
        /// What it is.
        got: DType,
    },
    /// Caches of one call whose rows are laid out in different ways.
    #[error("the caches of one call must have one layout, and these differ")]
    Layouts,
    /// A cache with shifted positions, and no rotation to turn queries by.
    #[error("a part of the cache has shifted positions: attention needs the model's rotation for it")]
    NoRope,
    /// An operation that does not convert between these types.
    #[error("{op} does not go from {from} to {to}")]
    Types {
        /// The operation.
        op: &'static str,
        /// The type of the rows to read.
        from: DType,
        /// The type of the rows to write.
        to: DType,
    },
    /// Activations in a form that is for weights of other types.
    #[error("{dtype} weights do not meet activations in the form {form:?}")]
    Form {
        /// The weights' type.
        dtype: DType,
        /// The activations' form.
        form: crate::activate::Form,
    },
    /// A change of layout between rows that have the same one; a copy is what is wanted.
    #[error("both sides have the same layout: copy the rows instead")]
    SameLayout,
    /// Memory that a kernel cannot read or write at its address, stride or offset.
    #[error("{what} must be a multiple of {must} bytes, not {got:#x}")]
    Alignment {
        /// Which address, stride or offset.
        what: &'static str,
        /// What it must be a multiple of.
        must: usize,
        /// What it is.
        got: u64,
    },
    /// The operation runs on a CUDA device and the bytes lie elsewhere.
    #[error("{what} lies in memory that kernels cannot reach; this operation runs on a CUDA device")]
    NotOnDevice {
        /// Which argument.
        what: &'static str,
    },
    /// Kernels of one device and a stream or memory of another.
    #[error("{what} belongs to another device than the kernels")]
    OtherDevice {
        /// What is of another device.
        what: &'static str,
    },
    /// What [`quantize::cuda`](crate::quantize) met since the last check: it cannot refuse numbers while it runs.
    #[error(
        "numbers that were quantized on {device} since the last check: {}",
        match (not_finite, overflow) {
            (true, true) => "some are NaN or infinite, some too large for the type",
            (true, false) => "some are NaN or infinite",
            _ => "some are too large for the type",
        }
    )]
    Flagged {
        /// The device.
        device: String,
        /// Whether an element was NaN or infinite; its block decodes to NaN.
        not_finite: bool,
        /// Whether a block's scale went beyond f16; it is infinite now.
        overflow: bool,
    },
    /// There is no kernel for this device or driver.
    #[cfg(feature = "cuda")]
    #[error("{device}: {source}")]
    NoKernel {
        /// The device.
        device: String,
        /// What is missing.
        source: granule_kernels::NotFound,
    },
    /// The device did not do what it was asked.
    #[error(transparent)]
    Device(#[from] granule_device::Error),
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
