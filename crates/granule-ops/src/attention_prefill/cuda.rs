//! Attention for prompts on a CUDA device.

use granule_device::{Bytes, DeviceSlice, DeviceSliceMut, KernelArgument, Launch, LaunchShape, Stream};
use granule_kernels::{PREFILL_DIM, PREFILL_KEYS, PREFILL_ROWS, THREADS};
use granule_quant::{DType, planar_bytes};

use crate::attention::CudaAttention;
use crate::kv_table::{FoldPointers, KvCounts, KvTableView, RowsArgument, floats, floats_mut};
use crate::launch::check_stream;
use crate::{Error, Kernels, KvRowLayout};

/// Query rows (a head of a token each) of a thread block, tokens of a tile of keys, and elements of the largest head.
const ROWS: usize = PREFILL_ROWS as usize;
const KEYS: usize = PREFILL_KEYS as usize;
const DIM: usize = PREFILL_DIM as usize;
/// Lanes of a warp.
const WARP: usize = 32;
/// What every head's part of a row must be a multiple of, in elements: 16 bytes of the narrowest float.
const STEP: usize = 8;

/// `AttentionPrefill` of `kernels/attention_prefill.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    sequences: u64,
    segments: u64,
    q: u64,
    turns: u64,
    keys: FoldPointers,
    values: FoldPointers,
    out: u64,
    rows: RowsArgument,
    n_sequences: u32,
    n_heads: u32,
    scale: f32,
    padding: u32,
}

// SAFETY: the struct of the kernel, field by field, without padding between them.
unsafe impl KernelArgument for Arguments {}

/// Whether a step is better given to [`cuda`] here than to [`attention::cuda`](crate::attention::cuda), which takes any.
///
/// The rule: a head dimension that fits, and at least 64 query rows (tokens times query heads of a KV head) of one sequence.
/// Here a thread block has 128 rows and reads each key once for all of them, where a warp there reads it once for 8; but here
/// the context is not split, and what there is less than 128 rows is idle. At 64 half of a block works, and eight warps there
/// would read, and decode, the same keys. The number is reasoned, not measured: no GPU has seen it yet.
#[must_use]
pub fn suits(layout: &KvRowLayout, n_heads: usize, counts: &KvCounts) -> bool {
    let rows = counts.most_tokens.saturating_mul(n_heads / layout.n_kv_heads.max(1));
    fits(layout.head_dim) && rows >= ROWS / 2
}

fn fits(head_dim: usize) -> bool {
    (1..=DIM).contains(&head_dim) && head_dim.is_multiple_of(STEP)
}

/// Dynamic shared memory of a block, as the kernel lays it out: two factors for each row, eight largest numbers, two scales for
/// each thread; then the queries, and in their place later a tile in f16, where K or V is converted to it, and the raw rows of
/// both. At most 84 KiB, for f32.
fn shared_bytes(layout: &KvRowLayout) -> Result<usize, Error> {
    let (threads, tile) = (THREADS as usize, KEYS * DIM * size_of::<u16>());
    let head = (2 * ROWS + threads / WARP) * size_of::<f32>() + 2 * threads * size_of::<u16>();
    let raw = |dtype| match dtype {
        DType::F16 => Ok(tile),
        dtype => planar_bytes(dtype, layout.head_dim).map(|bytes| KEYS * bytes.quants),
    };
    let converts = layout.k_type != DType::F16 || layout.v_type != DType::F16;
    let tiles = if converts { tile } else { 0 } + raw(layout.k_type)? + raw(layout.v_type)?;
    Ok(head + tiles.max(ROWS * DIM * size_of::<u16>()))
}

/// Attention of a step's queries over the caches that `table` names, when the stream's turn comes: what
/// [`attention::cuda`](crate::attention::cuda) does, for many tokens at once, in one launch and without scratch. `q` and `out`
/// are query tokens x heads x head dim, f32, `q` rotated at the tokens' positions. [`suits`] says when it is the better one.
///
/// Any pair of f32, f16, bf16, q8_0 and q4_0; head dimensions up to 128 that are multiples of 8. Queries, keys, values and
/// weights meet as f16, sums are f32. An f16 key or value is taken as it is; any other, and a query, is off by at most
/// `2^-11` of itself or `2^-34` of the largest (of its row, or of the keys or values seen so far): powers of two keep
/// every range inside f16's. With `e = scale * max_j sum_i |q_i k_ji| * 2^-10`, a result is off by at most
///
/// ```text
/// (exp(2 e) - 1 + 2^-9) * sum_j w_j |v_j|
/// ```
///
/// over weights `w` and values `v`, and at random by a fiftieth of that. Nothing changes with what else is in the batch. A NaN
/// in a query, or in a key or value that it sees, is one in its result; a value that is NaN or infinite may also reach queries
/// of the same step that do not see it.
///
/// # Errors
/// [`Error::Dimension`] for head dimensions that it does not take, which [`attention::cuda`](crate::attention::cuda) does;
/// for query heads that are no multiple of the key-value heads, and a scale that is not positive; [`Error::Shape`],
/// [`Error::Type`], [`Error::Alignment`], [`Error::Layouts`], [`Error::NotOnDevice`], [`Error::OtherDevice`],
/// [`Error::NoKernel`], [`Error::Device`]. Nothing is launched.
///
/// # Safety
/// - The table's memory holds what it was made of when the kernel runs, and the rows and sinks that it names are mapped,
///   written, and of a cache with this layout.
/// - All memory stays until the stream has passed this; until then nothing else writes what this reads or touches `out`.
pub unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    shape: &CudaAttention<'_>,
    table: &KvTableView<'_>,
    q: DeviceSlice<'_>,
    mut out: DeviceSliceMut<'_>,
) -> Result<(), Error> {
    check_stream(kernels, stream)?;
    let (layout, n_heads, counts) = (&shape.layout, shape.n_heads, table.counts());
    if !fits(layout.head_dim) {
        return Err(Error::Dimension {
            what: "the head dimension of attention for prompts",
            must: "a multiple of 8, at most 128 (attention::cuda takes others)",
            got: layout.head_dim,
        });
    }
    let rows = RowsArgument::of(layout, table, counts.turn_dims)?;
    if n_heads == 0 || !n_heads.is_multiple_of(layout.n_kv_heads) {
        let must = "a multiple of the number of key-value heads";
        return Err(Error::Dimension { what: "the number of query heads", must, got: n_heads });
    }
    let tall = counts.most_tokens.saturating_mul(n_heads / layout.n_kv_heads);
    if tall > 1 << 30 || layout.n_kv_heads > 65535 {
        let must = "at most 65535, and with the query tokens of a sequence 2^30 rows";
        return Err(Error::Dimension { what: "the heads of attention for prompts", must, got: n_heads });
    }
    if !(shape.scale.is_normal() && shape.scale > 0.0) {
        return Err(Error::Scale { got: shape.scale });
    }
    let elements = counts.tokens * n_heads * layout.head_dim;
    let q = floats("queries", q, elements)?;
    let out = floats_mut("attention output", &mut out, elements)?;
    let (keys, values) =
        (FoldPointers::of(shape.transform.keys, layout)?, FoldPointers::of(shape.transform.values, layout)?);
    let shared = Bytes::from_usize(shared_bytes(layout)?);
    if counts.tokens == 0 {
        return Ok(());
    }
    let function = kernels.function("attention_prefill", "attention_prefill")?;
    let arguments = Arguments {
        sequences: table.sequences(),
        segments: table.segments(),
        q,
        turns: table.turns(),
        keys,
        values,
        out,
        rows,
        n_sequences: counts.sequences as u32,
        n_heads: n_heads as u32,
        scale: shape.scale * std::f32::consts::LOG2_E,
        padding: 0,
    };
    let grid = [tall.div_ceil(ROWS) as u32, layout.n_kv_heads as u32, counts.sequences as u32];
    let launch = LaunchShape { grid, block: [THREADS, 1, 1], shared };
    // SAFETY: these are the kernel's arguments, of checked sizes and alignment; the rest is the caller's promise.
    Ok(unsafe { stream.launch(Launch::new(&function, launch).value(arguments)) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(k_type: DType, v_type: DType, head_dim: usize) -> KvRowLayout {
        KvRowLayout {
            k_type,
            v_type,
            n_kv_heads: 2,
            head_dim,
            row_stride: 1 << 12,
            rows_at: 0,
            k_quants: 0,
            k_scales: 1 << 10,
            v_quants: 2 << 10,
            v_scales: 3 << 10,
            sinks: None,
        }
    }

    #[test]
    fn long_steps_of_heads_that_fit_suit() {
        let tokens = |most_tokens| KvCounts { most_tokens, ..KvCounts::default() };
        let q8_0 = |head_dim| layout(DType::Q8_0, DType::Q8_0, head_dim);
        assert!(suits(&q8_0(64), 8, &tokens(16)) && !suits(&q8_0(64), 8, &tokens(15)));
        assert!(suits(&q8_0(128), 2, &tokens(512)) && !suits(&q8_0(160), 2, &tokens(512)));
    }

    #[test]
    fn shared_memory_is_what_the_types_need() {
        let bytes = |k, v, head_dim| shared_bytes(&layout(k, v, head_dim)).unwrap();
        // The queries are the most at first.
        assert_eq!(bytes(DType::F16, DType::F16, 128), 2080 + 32768);
        assert_eq!(bytes(DType::Q4_0, DType::Q4_0, 128), 2080 + 32768);
        assert_eq!(bytes(DType::Q8_0, DType::Q8_0, 128), 2080 + 16384 + 2 * 8192);
        assert_eq!(bytes(DType::F32, DType::F32, 128), 2080 + 16384 + 2 * 32768);
        assert_eq!(bytes(DType::F16, DType::F32, 64), 2080 + 16384 + 16384 + 16384);
    }
}
