//! What can go wrong with a recording.

use std::io;

/// Why a recording could not be made, or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It could not be read or written.
    #[error("byte {offset} of the trace: {source}")]
    Io {
        /// Bytes before the place.
        offset: u64,
        /// What the system says.
        source: io::Error,
    },
    /// It is no trace.
    #[error("this is not a Granule trace: it does not begin as one")]
    NotATrace,
    /// It was written by another version of Granule.
    #[error(
        "the trace has format version {found}, this program reads version {known}: use the program that wrote it"
    )]
    Version {
        /// The file's.
        found: u16,
        /// This program's.
        known: u16,
    },
    /// It ends too early: the program that wrote it was ended, or the file was cut. What was read before is good.
    #[error(
        "the trace ends too early, at byte {offset}: its program was stopped while recording, or the file was cut"
    )]
    Truncated {
        /// Where the first thing that is not whole begins.
        offset: u64,
    },
    /// It is damaged. What was read before is good.
    #[error("the trace is damaged at byte {offset}: {what}")]
    Corrupt {
        /// Where, or the start of the block it is in.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// The tracer is being recorded already.
    #[error("this tracer is being recorded already: finish that recording first")]
    AlreadyRecording,
    /// The recorder's thread could not be started.
    #[error("no thread to write the trace with: {0}")]
    Thread(io::Error),
}
