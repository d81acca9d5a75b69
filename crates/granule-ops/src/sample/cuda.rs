//! Launching the kernels that draw tokens.

use granule_device::{DeviceSlice, DeviceSliceMut, KernelArgument, Launch, LaunchShape, Stream};
use granule_kernels::{SAMPLE_BOARD, SAMPLE_SLICE, THREADS};

use crate::error::expect_len;
use crate::launch::{MOST_Y, check_kind, check_multiple, check_stream};
use crate::sample::{Draw, Drawn};
use crate::{Error, Kernels};

/// Tokens that a vocabulary may have: weights of so many have a sum below 2^64, and ids the digits that kernels look at.
const MOST_TOKENS: usize = (1 << 20) - 1;

/// `Sample` of `kernels/include/sample.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    logits: u64,
    draws: u64,
    boards: u64,
    ids: u64,
    values: u64,
    rows: u32,
    n_vocab: u32,
    slices: u32,
    padding: u32,
}

// SAFETY: the struct of the kernel, field by field, without padding between them.
unsafe impl KernelArgument for Arguments {}

/// Bytes of scratch that [`cuda`] needs for so many rows.
#[must_use]
pub const fn scratch_bytes(rows: usize) -> usize {
    rows * SAMPLE_BOARD as usize
}

/// Draws a token for each of `rows` rows of `n_vocab` logits, f32, when the stream's turn comes. `draws` has a [`Draw`] for each row
/// ([`Draw::to_bytes`]); without it the likeliest token is taken. `scratch` is of [`scratch_bytes`]. `to` is rows x
/// [`Drawn::BYTES`]: first the ids of all rows, u32, then their logits, f32 ([`Drawn::of`]). Four launches, two without `draws`.
///
/// # Errors
/// [`Error::Shape`], [`Error::Alignment`]; [`Error::Dimension`] where the vocabulary has no tokens, or 2^20 or more;
/// [`Error::NotOnDevice`], [`Error::OtherDevice`], [`Error::NoKernel`], [`Error::Device`]: no token is drawn.
///
/// # Safety
/// - All memory stays until the stream has passed this; until then nothing else writes `logits` and `draws`, or touches `scratch`
///   and `to`.
#[expect(clippy::too_many_arguments, reason = "one for each memory, and two numbers")]
pub unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    logits: DeviceSlice<'_>,
    rows: usize,
    n_vocab: usize,
    draws: Option<DeviceSlice<'_>>,
    scratch: DeviceSliceMut<'_>,
    to: DeviceSliceMut<'_>,
) -> Result<(), Error> {
    check_stream(kernels, stream)?;
    let slices = check_logits(logits, rows, n_vocab)?;
    if let Some(draws) = draws {
        check_memory("the draws of rows", draws, rows * Draw::BYTES, 8)?;
    }
    check_memory("scratch for drawing", scratch.as_slice(), scratch_bytes(rows), 8)?;
    check_memory("the result of drawing", to.as_slice(), rows * Drawn::BYTES, 4)?;
    if rows == 0 {
        return Ok(());
    }
    let arguments = Arguments {
        logits: logits.ptr().addr(),
        draws: draws.map_or(0, |draws| draws.ptr().addr()),
        boards: scratch.ptr().addr(),
        ids: to.ptr().addr(),
        values: to.ptr().addr() + (rows * size_of::<u32>()) as u64,
        rows: rows as u32,
        n_vocab: n_vocab as u32,
        slices: slices as u32,
        padding: 0,
    };
    let all =
        [("sample_begin", slices), ("sample_weigh", slices), ("sample_gather", slices), ("sample_draw", 1)];
    let greedy = [all[0], all[3]];
    let launches = if draws.is_some() { &all[..] } else { &greedy[..] };
    let functions = launches.iter().map(|(name, blocks)| Ok((kernels.function("sample", name)?, *blocks)));
    let functions: smallvec::SmallVec<[_; 4]> = functions.collect::<Result<_, Error>>()?;
    for (function, blocks) in &functions {
        let launch = Launch::new(function, grid(*blocks, rows)).value(arguments);
        // SAFETY: these are the kernel's arguments, of checked sizes and alignment; the rest is the caller's promise.
        unsafe { stream.launch(launch) }?;
    }
    Ok(())
}

/// Divides the logits of tokens that came before by their row's [`Draw::repeat_penalty`] where they are positive, multiplies them
/// where they are not, in place, when the stream's turn comes. `ids` is rows x `most`, u32: of each row the first
/// [`Draw::penalized`], no two alike; ids outside the vocabulary change nothing. One launch.
///
/// # Errors
/// As [`cuda`]: nothing is launched.
///
/// # Safety
/// - No two of a row's listed ids are alike.
/// - All memory stays until the stream has passed this; until then nothing else touches `logits` or writes the others.
pub unsafe fn penalize(
    kernels: &Kernels,
    stream: &Stream,
    logits: DeviceSliceMut<'_>,
    rows: usize,
    n_vocab: usize,
    draws: DeviceSlice<'_>,
    ids: DeviceSlice<'_>,
) -> Result<(), Error> {
    check_stream(kernels, stream)?;
    check_logits(logits.as_slice(), rows, n_vocab)?;
    check_memory("the draws of rows", draws, rows * Draw::BYTES, 8)?;
    let most = ids.len() / size_of::<u32>() / rows.max(1);
    check_memory("the ids to penalize", ids, rows * most * size_of::<u32>(), 4)?;
    if rows * most == 0 {
        return Ok(());
    }
    let function = kernels.function("sample", "sample_penalize")?;
    let launch = Launch::new(&function, grid(most.div_ceil(THREADS as usize), rows)).write(logits);
    let launch = launch.read(draws).read(ids).value(rows as u64).value(n_vocab as u64).value(most as u64);
    // SAFETY: these are the kernel's arguments, of checked sizes and alignment; the rest is the caller's promise.
    Ok(unsafe { stream.launch(launch) }?)
}

/// Logits are where kernels can read them; answers how many slices a row has.
fn check_logits(logits: DeviceSlice<'_>, rows: usize, n_vocab: usize) -> Result<usize, Error> {
    if n_vocab == 0 || n_vocab > MOST_TOKENS {
        let must = "from 1 to 2^20 - 1";
        return Err(Error::Dimension { what: "the tokens of the vocabulary", must, got: n_vocab });
    }
    if rows >= 1 << 31 {
        return Err(Error::Dimension { what: "the rows of logits", must: "below 2^31", got: rows });
    }
    check_memory("logits", logits, rows * n_vocab * size_of::<f32>(), 16)?;
    Ok(n_vocab.div_ceil(SAMPLE_SLICE as usize))
}

fn check_memory(
    what: &'static str,
    memory: DeviceSlice<'_>,
    bytes: usize,
    align: usize,
) -> Result<(), Error> {
    expect_len(what, memory.len(), bytes)?;
    check_kind(what, memory.kind())?;
    check_multiple(what, memory.ptr().addr(), align)
}

/// `blocks` thread blocks for each row.
fn grid(blocks: usize, rows: usize) -> LaunchShape {
    let mut shape = LaunchShape::row(blocks as u32, THREADS);
    shape.grid[1] = rows.clamp(1, MOST_Y) as u32;
    shape
}
