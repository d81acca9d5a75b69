//! Attention for prompts on a CUDA device.

use granule_device::{Bytes, DeviceSlice, DeviceSliceMut, KernelArgument, Launch, LaunchShape, Stream};
use granule_kernels::{PREFILL_DIM, PREFILL_KEYS, PREFILL_ROWS, THREADS};
use granule_quant::{DType, planar_bytes};

use crate::attention::{CudaAttention, check_heads};
use crate::kv_table::{FoldPointers, KvTableView, RowsArgument, floats, floats_mut};
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

/// Rows of queries, half a block's, from which a sequence may come here; rows of context up to which it does however few blocks
/// there are; and the share of multiprocessors that all such sequences of a step are to keep busy otherwise.
/// [`CudaStep`](crate::attention::CudaStep) says why.
const LEAST_ROWS: usize = ROWS / 2;
const SHORT: usize = 1024;
const BUSY: usize = 4;

/// Which sequences of a step are better given to [`cuda`] here than to [`attention::cuda`](crate::attention::cuda), which takes
/// any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    /// Query heads of a KV head; 0 for heads that do not fit.
    group: usize,
    /// Whether the blocks of all that might come keep the device busy.
    busy: bool,
}

impl Choice {
    /// For a step's `sequences`: query tokens, and rows with those.
    pub(crate) fn of(
        layout: &KvRowLayout,
        n_heads: usize,
        multiprocessors: usize,
        sequences: impl Iterator<Item = (usize, usize)>,
    ) -> Choice {
        let group = if fits(layout.head_dim) { n_heads / layout.n_kv_heads.max(1) } else { 0 };
        let rows =
            sequences.map(|(tokens, _)| tokens.saturating_mul(group)).filter(|&rows| rows >= LEAST_ROWS);
        let blocks = rows.fold(0usize, |sum, rows| sum.saturating_add(rows.div_ceil(ROWS)));
        Choice { group, busy: blocks.saturating_mul(layout.n_kv_heads) >= multiprocessors / BUSY }
    }

    /// Whether a sequence of so many query tokens and rows is one of them.
    pub(crate) fn takes(&self, tokens: usize, rows: usize) -> bool {
        tokens.saturating_mul(self.group) >= LEAST_ROWS && (self.busy || rows <= SHORT)
    }
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
/// are query tokens x heads x head dim, f32, `q` rotated at the tokens' positions. [`attention::step`](crate::attention::step)
/// says when it is the better one, and calls it then.
///
/// Any pair of f32, f16, bf16, q8_0 and q4_0; head dimensions up to 128 that are multiples of 8. Queries, keys, values and
/// weights meet as f16, sums are f32. An f16 key or value is taken as it is; any other, and a query, is off by at most
/// `2^-11` of itself or `2^-34` of the largest (of its row, or of the keys or values seen so far): powers of two keep
/// every range inside f16's. With `e = scale * max_j sum_i |q_i k_ji| * 2^-10`, a result is off by at most
///
/// ```text
/// (exp(2 e) - 1 + 2^-9) * sum_j w_j |v_j| + 2^-35 * sum_j |v_j|
/// ```
///
/// over weights `w` and values `v` (the last term: weights below f16's normal numbers), and at random by a fiftieth of that. Nothing changes with what else is in the batch. A NaN
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
    check_heads(n_heads, layout)?;
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

    /// Of sequences of query tokens and rows, those that come here, on an H100.
    fn taken(head_dim: usize, n_heads: usize, sequences: &[(usize, usize)]) -> Vec<bool> {
        let layout = KvRowLayout { n_kv_heads: 8, ..layout(DType::Q8_0, DType::Q8_0, head_dim) };
        let choice = Choice::of(&layout, n_heads, 132, sequences.iter().copied());
        sequences.iter().map(|&(tokens, rows)| choice.takes(tokens, rows)).collect()
    }

    #[test]
    fn sequences_come_here_that_keep_the_device_busy() {
        // 16 tokens of group 4 are 64 rows; with 8 KV heads that is 8 blocks, for 132 multiprocessors.
        assert_eq!(taken(128, 32, &[(16, 16)]), [true]);
        assert_eq!(taken(128, 32, &[(15, 15)]), [false]);
        assert_eq!(taken(128, 32, &[(16, 32_768)]), [false]);
        assert_eq!(taken(128, 32, &[(32, 32_768)]), [false]);
        // Five blocks for each of 8 heads are more than a quarter.
        assert_eq!(taken(128, 32, &[(128, 32_768)]), [false]);
        assert_eq!(taken(128, 32, &[(129, 32_768)]), [true]);
        assert_eq!(taken(128, 32, &[(512, 512)]), [true]);
        // Five short steps together, and a sequence that decodes stays where it is.
        assert_eq!(taken(128, 32, &[(16, 9000), (1, 9000), (16, 9000), (16, 9000)]), [false; 4]);
        let five = [(16, 9000), (1, 9000), (16, 9000), (16, 9000), (16, 9000), (16, 9000)];
        assert_eq!(taken(128, 32, &five), [true, false, true, true, true, true]);
        // Heads that this kernel does not have.
        assert_eq!(taken(160, 32, &[(512, 512)]), [false]);
        assert_eq!(taken(68, 32, &[(512, 512)]), [false]);
    }

    #[test]
    fn shared_memory_is_what_the_types_need() {
        let bytes = |k, v, head_dim| shared_bytes(&layout(k, v, head_dim)).unwrap();
        // The queries are the most at first.
        assert_eq!(bytes(DType::F16, DType::F16, 128), 2080 + 32768);
        assert_eq!(bytes(DType::Q4_0, DType::Q4_0, 128), 2080 + 32768);
        assert_eq!(bytes(DType::Q8_0, DType::Q8_0, 128), 2080 + 16384 + 2 * 8192);
        assert_eq!(bytes(DType::F32, DType::F32, 128), 2080 + 16384 + 2 * 32768);
        // The most, which the table of kernels has too.
        let table = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/ptx/TABLE.md");
        let table = std::fs::read_to_string(table).unwrap();
        let row = table.lines().find(|line| line.contains("`attention_prefill`")).unwrap();
        assert_eq!(row.split('|').nth(5).unwrap().trim(), bytes(DType::F32, DType::F32, 128).to_string());
        assert_eq!(bytes(DType::F16, DType::F32, 64), 2080 + 16384 + 16384 + 16384);
    }
}
