//! Launching sums over ranks, and putting together what they have.

use granule_device::{DevicePtr, KernelArgument, Launch, LaunchShape, Stream};
use granule_kernels::THREADS;

use super::MAX_RANKS;
use crate::launch::{check_multiple, check_stream, thread_grid};
use crate::{Error, Kernels};

/// `RankSum` of `kernels/ranks.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SumArguments {
    parts: [u64; MAX_RANKS],
    out: u64,
    elements: u64,
    ranks: u64,
}

/// `RankGather` of the same.
#[repr(C)]
#[derive(Clone, Copy)]
struct GatherArguments {
    parts: [u64; MAX_RANKS],
    begins: [u64; MAX_RANKS + 1],
    out: u64,
    ranks: u64,
}

// SAFETY: the structs of the kernels, field by field; all fields have 8 bytes.
unsafe impl KernelArgument for SumArguments {}
// SAFETY: as above.
unsafe impl KernelArgument for GatherArguments {}

/// Writes element by element the sum of the parts' first `elements` f32 to `out`, in the order of the parts,
/// `((p0 + p1) + p2) + …`, each sum rounded by itself, when the stream's turn comes. There are 1 to [`MAX_RANKS`] parts; they are read 16 bytes at a
/// time where all addresses are multiples of 16, else by element. `out` may be one of the parts.
///
/// # Errors
/// [`Error::Dimension`] for no parts or too many; [`Error::Alignment`] where an address is no multiple of 4; [`Error::OtherDevice`],
/// [`Error::NoKernel`], [`Error::Device`]: nothing is launched.
///
/// # Safety
/// - `elements` f32 at each part and at `out` are memory that the stream's device reaches, and stay until the stream has passed this.
/// - Until then nothing else writes these elements of the parts, or touches those of `out`.
pub unsafe fn sum(
    kernels: &Kernels,
    stream: &Stream,
    parts: &[DevicePtr],
    out: DevicePtr,
    elements: usize,
) -> Result<(), Error> {
    let addresses = check(kernels, stream, parts, out)?;
    if elements == 0 {
        return Ok(());
    }
    let arguments = SumArguments {
        parts: addresses,
        out: out.addr(),
        elements: elements as u64,
        ranks: parts.len() as u64,
    };
    // SAFETY: this is the kernel's argument; the rest is the caller's promise.
    unsafe { launch(kernels, stream, "ranks_sum", thread_grid(1, (elements as u64).div_ceil(4)), arguments) }
}

/// Copies `parts[r]` to elements `begins[r]..begins[r + 1]` of `out`, when the stream's turn comes; a part that lies there already stays.
/// There are 1 to [`MAX_RANKS`] parts of f32; one is copied 16 bytes at a time where both its addresses are multiples of 16, else by
/// element.
///
/// # Errors
/// [`Error::Dimension`] for no parts or too many, or begins that are not one more or that fall; else as [`sum`]: nothing is launched.
///
/// # Safety
/// - Each part, and `out` up to the last of `begins`, are memory that the stream's device reaches, and stay until the stream has passed
///   this.
/// - Until then nothing else writes the parts, or touches those elements of `out`; a part lies where it goes, or nowhere in them.
pub unsafe fn gather(
    kernels: &Kernels,
    stream: &Stream,
    parts: &[DevicePtr],
    begins: &[usize],
    out: DevicePtr,
) -> Result<(), Error> {
    let addresses = check(kernels, stream, parts, out)?;
    if begins.len() != parts.len() + 1 || !begins.is_sorted() {
        let must = "one more than the parts, and not fall";
        return Err(Error::Dimension { what: "where parts begin", must, got: begins.len() });
    }
    let longest = begins.windows(2).map(|part| part[1] - part[0]).max().unwrap_or(0);
    if longest == 0 {
        return Ok(());
    }
    let mut arguments = GatherArguments {
        parts: addresses,
        begins: [0; MAX_RANKS + 1],
        out: out.addr(),
        ranks: parts.len() as u64,
    };
    for (to, begin) in arguments.begins.iter_mut().zip(begins) {
        *to = *begin as u64;
    }
    let shape = thread_grid(parts.len() as u64, (longest as u64).div_ceil(4));
    // SAFETY: this is the kernel's argument; the rest is the caller's promise.
    unsafe { launch(kernels, stream, "ranks_gather", shape, arguments) }
}

/// The parts' addresses, with zeros behind them.
fn check(
    kernels: &Kernels,
    stream: &Stream,
    parts: &[DevicePtr],
    out: DevicePtr,
) -> Result<[u64; MAX_RANKS], Error> {
    check_stream(kernels, stream)?;
    if !(1..=MAX_RANKS).contains(&parts.len()) {
        return Err(Error::Dimension { what: "the parts of ranks", must: "1 to 16", got: parts.len() });
    }
    let mut addresses = [0; MAX_RANKS];
    for (address, part) in addresses.iter_mut().zip(parts) {
        *address = part.addr();
    }
    for address in addresses.into_iter().chain([out.addr()]) {
        check_multiple("the address of a rank's f32", address, size_of::<f32>())?;
    }
    Ok(addresses)
}

/// # Safety
/// - The argument is the kernel's, and what it says of memory is so until the stream has passed this.
unsafe fn launch<T: KernelArgument>(
    kernels: &Kernels,
    stream: &Stream,
    name: &str,
    shape: LaunchShape,
    argument: T,
) -> Result<(), Error> {
    /// Four times the thread blocks of the largest GPUs: more wait for their turn, and these loop.
    const BLOCKS: u32 = 1024;
    let grid = [shape.grid[0].min(BLOCKS), shape.grid[1], 1];
    let function = kernels.function("ranks", name)?;
    let shape = LaunchShape { grid, block: [THREADS, 1, 1], ..shape };
    // SAFETY: the caller's promise.
    Ok(unsafe { stream.launch(Launch::new(&function, shape).value(argument)) }?)
}
