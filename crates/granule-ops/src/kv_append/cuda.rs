//! Appending on a CUDA device.

use granule_device::{DeviceSlice, KernelArgument, Launch, Stream};

use crate::kv_table::{FoldPointers, KvTableView, KvTransformTables, RowsArgument, floats, warp_grid};
use crate::launch::check_stream;
use crate::{Error, Kernels, KvRowLayout};

/// What the tokens of one append have in common, on a device.
#[derive(Clone, Copy, Debug)]
pub struct CudaAppend<'a> {
    /// Where the layer's planes are.
    pub layout: KvRowLayout,
    /// Elements of each key that are rotated; 0 for keys that are rotated already.
    pub rope_dims: usize,
    /// Cosines and sines of the tokens' positions, query tokens x `rope_dims`, from [`Rope::angles`](crate::Rope::angles).
    pub angles: DeviceSlice<'a>,
    /// The layer's transform.
    pub transform: KvTransformTables<'a>,
}

/// `KvAppend` of `kernels/kv_append.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    sequences: u64,
    segments: u64,
    k: u64,
    v: u64,
    angles: u64,
    keys: FoldPointers,
    values: FoldPointers,
    flag: u64,
    rows: RowsArgument,
    n_sequences: u32,
    padding: u32,
}

// SAFETY: the struct of the kernel, field by field, without padding between them.
unsafe impl KernelArgument for Arguments {}

/// Stores the keys and values of a step's tokens, when the stream's turn comes, in the rows that `table` has for them: the
/// last ones of each sequence's last segment. `k` and `v` are query tokens x kv heads x head dim, f32, the keys not rotated
/// yet; both stay as they are. One launch for all sequences, K and V.
///
/// The twin of [`kv_append::cpu`](crate::kv_append::cpu), with the same roundings in the same order: the same bytes, given the
/// same angles. What that refuses is stored all the same and flagged for [`Kernels::check`].
///
/// # Errors
/// [`Error::Shape`], [`Error::Dimension`], [`Error::Type`], [`Error::Alignment`], [`Error::Layouts`], [`Error::NotOnDevice`],
/// [`Error::OtherDevice`], [`Error::NoKernel`], [`Error::Device`]: nothing is launched.
///
/// # Safety
/// - The table's memory holds what it was made of when the kernel runs, and the rows and sinks that it names are mapped,
///   writable, and of a cache with this layout.
/// - All memory stays until the stream has passed this, and so do `kernels`; until then nothing else writes what this reads or
///   touches the rows and sinks that it writes.
pub unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    shape: &CudaAppend<'_>,
    table: &KvTableView<'_>,
    k: DeviceSlice<'_>,
    v: DeviceSlice<'_>,
) -> Result<(), Error> {
    check_stream(kernels, stream)?;
    let (layout, counts) = (&shape.layout, table.counts());
    let rows = RowsArgument::of(layout, table, shape.rope_dims)?;
    let arguments = Arguments {
        sequences: table.sequences(),
        segments: table.segments(),
        k: floats("new keys", k, counts.tokens * layout.elements())?,
        v: floats("new values", v, counts.tokens * layout.elements())?,
        angles: floats("rope angles", shape.angles, counts.tokens * shape.rope_dims)?,
        keys: FoldPointers::of(shape.transform.keys, layout)?,
        values: FoldPointers::of(shape.transform.values, layout)?,
        flag: kernels.flag_address(),
        rows,
        n_sequences: counts.sequences as u32,
        padding: 0,
    };
    if counts.tokens == 0 {
        return Ok(());
    }
    let function = kernels.function("kv_append", "kv_append")?;
    let grid = warp_grid(counts.most_tokens * 2 * layout.n_kv_heads, counts.sequences);
    // SAFETY: these are the kernel's arguments, of checked sizes and alignment; the rest is the caller's promise.
    Ok(unsafe { stream.launch(Launch::new(&function, grid).value(arguments)) }?)
}
