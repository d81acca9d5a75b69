//! Why nothing can be planned.

/// Why nothing can be planned: what is asked for could not be computed either.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation does not take these shapes.
    #[error(transparent)]
    Ops(#[from] granule_ops::Error),
    /// A cache does not take them.
    #[error(transparent)]
    Kv(#[from] granule_kv::Error),
    /// More bytes than can be counted.
    #[error("{what}: more bytes than can be addressed")]
    TooLarge {
        /// What would take so many.
        what: &'static str,
    },
    /// Something has to be at least one.
    #[error("{what}: at least one is needed")]
    Nothing {
        /// What.
        what: &'static str,
    },
}

impl From<granule_quant::Error> for Error {
    fn from(error: granule_quant::Error) -> Error {
        Error::Ops(error.into())
    }
}
