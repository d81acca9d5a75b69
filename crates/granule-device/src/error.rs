//! Everything that can go wrong on a device, said to the person who must act.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use crate::Bytes;

/// Why a device did not do what it was asked. A call that returns one has changed nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not on this system.
    #[error("{what} is not available on this system: {why}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// What is missing.
        why: &'static str,
    },
    /// The device is full now; it holds the request once something else is given back.
    #[error("{device} is out of memory: {requested} requested, {free} free of {capacity}")]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// What was asked for.
        requested: Bytes,
        /// What is left.
        free: Bytes,
        /// All that the device may use.
        capacity: Bytes,
    },
    /// The request is larger than the whole device: waiting does not help.
    #[error("{requested} never fits on {device}, which has {capacity} in all")]
    TooLarge {
        /// The device's name.
        device: String,
        /// What was asked for.
        requested: Bytes,
        /// All that the device may use.
        capacity: Bytes,
    },
    /// A size of zero where something has to be held.
    #[error("{what} of zero bytes")]
    ZeroSize {
        /// What was to be made.
        what: &'static str,
    },
    /// A granule size that the system cannot map.
    #[error(
        "a granule of {granule} is not possible: it has to be a power of two and a multiple of the page, {page}"
    )]
    GranuleSize {
        /// What was asked for.
        granule: Bytes,
        /// The system's page.
        page: Bytes,
    },
    /// Places outside a reservation.
    #[error("places {}..{} lie outside a reservation of {places} places", range.start, range.end)]
    NoSuchPlace {
        /// The places that were named.
        range: Range<usize>,
        /// How many places there are.
        places: usize,
    },
    /// A granule was to be mapped where one is.
    #[error("place {place} already has a granule behind it")]
    AlreadyMapped {
        /// The first such place.
        place: usize,
    },
    /// Nothing stands behind the place.
    #[error("place {place} has no granule behind it")]
    NotMapped {
        /// The first such place.
        place: usize,
    },
    /// The place is out of use and waits for device work to be done.
    #[error("place {place} waits for device work that may still use it")]
    Retiring {
        /// The first such place.
        place: usize,
    },
    /// The place is lent: whoever maps it has not given it back yet.
    #[error("place {place} is lent and was not taken back yet")]
    Lent {
        /// The first such place.
        place: usize,
    },
    /// Lent places are mapped all at once.
    #[error("{granules} granules were given for {places} lent places")]
    LentPlaces {
        /// The granules.
        granules: usize,
        /// The places.
        places: usize,
    },
    /// Something of one reservation was given to another.
    #[error("{what} belongs to another reservation")]
    OtherReservation {
        /// What it is.
        what: &'static str,
    },
    /// The memory may only be read.
    #[error("{what} may only be read")]
    ReadOnly {
        /// Which memory.
        what: &'static str,
    },
    /// Writing was asked for where the same granule stands behind another place too. A granule is written through one
    /// place or read through many.
    #[error(
        "the granule for place {place} stands behind another place too, so it cannot be mapped like this"
    )]
    Aliased {
        /// The place where it was to be mapped.
        place: usize,
    },
    /// A range of bytes that is not in the memory it was asked of.
    #[error("bytes {}..{} lie outside a memory of {len} bytes", range.start, range.end)]
    OutOfRange {
        /// The bytes that were named.
        range: Range<usize>,
        /// How many bytes there are.
        len: usize,
    },
    /// Two lengths that have to be the same are not.
    #[error("{source_len} bytes cannot be copied onto {target_len}")]
    LengthMismatch {
        /// Bytes to copy from.
        source_len: usize,
        /// Bytes to copy to.
        target_len: usize,
    },
    /// Things of two devices in one call.
    #[error("{what} belongs to another device")]
    OtherDevice {
        /// What is of another device.
        what: &'static str,
    },
    /// The system's limit on locked memory.
    #[error(
        "{requested} cannot be locked in memory: {source} (RLIMIT_MEMLOCK is {limit}; raise it with `ulimit -l`)"
    )]
    LockLimit {
        /// What was to be locked.
        requested: Bytes,
        /// The process's limit.
        limit: Bytes,
        /// What the system said.
        source: io::Error,
    },
    /// A system or driver call failed.
    #[error("{call} failed: {source}")]
    Os {
        /// The call's name.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be opened or mapped.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file was made shorter while it was mapped; what was past its new end reads as zeros now.
    #[error("{} was cut short while it was in use", path.display())]
    FileCutShort {
        /// Which file.
        path: PathBuf,
    },
    /// The table that guards mapped files is full.
    #[error("more than {limit} files are mapped at once")]
    TooManyMappedFiles {
        /// Its size.
        limit: usize,
    },
    /// Memory that device work or another borrower still uses.
    #[error("the region is in use by {by}")]
    Busy {
        /// Who uses it.
        by: &'static str,
    },
    /// A function given to a stream panicked; the stream went on.
    #[error("a function that ran on a stream panicked: {message}")]
    HostFunction {
        /// What it said.
        message: String,
    },
    /// NVIDIA's driver is not installed, or not visible to this process.
    #[error("no CUDA driver: {reason}")]
    NoCudaDriver {
        /// What was looked for, and what to do.
        reason: String,
    },
    /// What is in the place of NVIDIA's driver is not one.
    #[error("{} is not a CUDA driver that works: {reason}", path.display())]
    BrokenCudaDriver {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The driver is older than the kernels need.
    #[error("the CUDA driver is too old: it has CUDA {found}, {needed} is needed; update NVIDIA's driver")]
    CudaDriverTooOld {
        /// The driver's version of CUDA.
        found: String,
        /// The oldest that will do.
        needed: String,
    },
    /// The driver works and has no device.
    #[error("no CUDA device: {reason}")]
    NoCudaDevice {
        /// What may be the reason.
        reason: &'static str,
    },
    /// A device number beyond those there are.
    #[error("there is no CUDA device {ordinal}: there are {count}, counted from 0")]
    NoSuchDevice {
        /// The number that was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The CUDA driver refused a call. The words are this crate's: the driver is not asked for them.
    #[error("{call} failed: {name} ({code}): {explanation}")]
    Driver {
        /// The driver's function.
        call: &'static str,
        /// Its answer.
        code: u32,
        /// The answer's name in cuda.h.
        name: &'static str,
        /// What it means.
        explanation: &'static str,
    },
    /// cuBLAS is not installed, or not visible to this process, or broken.
    #[error("no cuBLAS: {reason}")]
    NoCublas {
        /// What was looked for, and what to do.
        reason: String,
    },
    /// cuBLAS refused a call. The words are this crate's: the library is not asked for them.
    #[error("{call} failed: {name} ({code}): {explanation}")]
    Cublas {
        /// The library's function.
        call: &'static str,
        /// Its answer.
        code: u32,
        /// The answer's name in cublas_api.h.
        name: &'static str,
        /// What it means.
        explanation: &'static str,
    },
    /// NCCL is not installed, or not visible to this process, or broken.
    #[error("no NCCL: {reason}")]
    NoNccl {
        /// What was looked for, and what to do.
        reason: String,
    },
    /// NCCL refused a call, or something went wrong in a group of ranks. The words are this crate's: the library is not asked for them.
    #[error("{call} failed: {name} ({code}): {explanation}")]
    Nccl {
        /// The library's function.
        call: &'static str,
        /// Its answer.
        code: u32,
        /// The answer's name in nccl.h.
        name: &'static str,
        /// What it means.
        explanation: &'static str,
    },
    /// The driver does not make a file's pages reachable by the device.
    #[error(
        "{} cannot be registered with the device ({source}); copy it through pinned memory instead, with Device::copy",
        path.display()
    )]
    CannotRegister {
        /// Which file.
        path: PathBuf,
        /// What the driver said.
        source: Box<Error>,
    },
    /// Two devices that cannot reach each other's memory.
    #[error("{device} cannot reach the memory of {peer}")]
    NoPeerAccess {
        /// The device that was to reach it.
        device: String,
        /// The device that has it.
        peer: String,
    },
    /// Not possible while a stream's work is being captured.
    #[error("{what} is not possible while a stream is being captured")]
    Capturing {
        /// What was asked for.
        what: &'static str,
    },
    /// The end of a capture that was not begun.
    #[error("the stream is not being captured")]
    NotCapturing,
    /// A function that runs on a stream called the device, which it must not.
    #[error("{call} is not possible in a function that runs on a stream")]
    InHostFunction {
        /// What was asked for: the driver's function, or words.
        call: &'static str,
    },
    /// The driver does not take a module.
    #[error("{device} does not take the module: {source}{log}")]
    Module {
        /// The device's name.
        device: String,
        /// What the driver said.
        source: Box<Error>,
        /// What its compiler said, on a line of its own; may be empty.
        log: String,
    },
    /// No kernel of that name in a module.
    #[error("the module has no kernel named {name:?}")]
    NoSuchKernel {
        /// The name that was asked for.
        name: String,
    },
    /// Arguments that no launch can have.
    #[error("the launch of {kernel} is not possible: {reason}")]
    Launch {
        /// The kernel's name.
        kernel: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A memory checker did not take an announced piece of memory.
    #[error("{checker} did not take the announcement of {len} at {at:#x}: {reason}")]
    Announcement {
        /// Who it was told.
        checker: &'static str,
        /// Where the piece is.
        at: u64,
        /// How large it is.
        len: Bytes,
        /// What it said.
        reason: String,
    },
    /// A text that is no size.
    #[error("{text:?} is no size: write it like 512MiB, 4G or 1048576")]
    ParseBytes {
        /// The text.
        text: String,
    },
    /// A fault that a test asked for, see [`Device::inject_fault`](crate::Device::inject_fault).
    #[error("injected fault at {call}, call {n}")]
    Injected {
        /// The call that did not happen.
        call: &'static str,
        /// Which call it was, counted from the plan's start, from 1.
        n: u64,
    },
}
