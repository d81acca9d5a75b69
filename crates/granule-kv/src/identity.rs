//! `Identity`: what besides the tokens and the types decides the bytes of a row, as the engine says it.

/// What the numbers in a cache were made with. Two caches' rows can stand for each other only where all of it is equal, so it is
/// compared byte by byte and never by a hash of it. What the bytes are is the engine's choice; the same bytes have to mean the
/// same everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The model: for example a digest of its weights and hyperparameters. The name of its file says too little.
    pub model: Vec<u8>,
    /// How keys are rotated: base, dimensions, scaling.
    pub rope: Vec<u8>,
    /// What is done to keys and values before they are stored; empty for nothing.
    pub transform: Vec<u8>,
}

impl Identity {
    pub(crate) fn parts(&self) -> [&[u8]; 3] {
        [&self.model, &self.rope, &self.transform]
    }
}
