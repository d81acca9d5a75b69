//! Attention of a few query tokens on a CUDA device: decode, and short steps.

use granule_device::{Bytes, DeviceSlice, DeviceSliceMut, KernelArgument, Launch, LaunchShape, Stream};
use granule_kernels::THREADS;
use granule_quant::{DType, planar_bytes};

use super::check_heads;
use crate::kv_table::{
    FoldPointers, KvCounts, KvTableView, KvTransformTables, RowsArgument, floats, floats_mut, warp_grid,
};
use crate::launch::{check_kind, check_multiple, check_stream};
use crate::{DeviceFacts, Error, Kernels, KvRowLayout};

/// Keys of a tile, queries of a warp, tiles of a warp's ring, bytes between rows in it.
const TILE_KEYS: usize = granule_kernels::TILE_KEYS as usize;
const COLUMNS: usize = granule_kernels::COLUMNS as usize;
const STAGES: usize = granule_kernels::STAGES as usize;
const ROW_PAD: usize = granule_kernels::ROW_PAD as usize;
/// Lanes of a warp, and warps of the largest block.
const WARP: u32 = 32;
const WARPS: usize = (THREADS / WARP) as usize;
/// Shared memory of a block at most: what every device of compute capability 8.0 and later gives to one that asks.
const SHARED: usize = 96 << 10;
/// Shared memory that the driver keeps for itself in each block.
const RESERVED: usize = 1 << 10;
/// Registers of one of the four parts of a multiprocessor, which has a warp's whole; a warp gets them by the 256.
const REGISTERS_A_PART: usize = 16 << 10;
const PARTS: usize = 4;
const REGISTERS_AT_ONCE: usize = 256;
/// Keys that make a split worth its scratch; and how many tensor cores may sum up: they cut what hangs over at each addition
/// (`kernels/include/tensor.cuh`), which after 256 tiles is 2^-14 of the sum at most.
const LEAST_KEYS: usize = 64;
const MOST_KEYS: usize = 4096;
/// Splits that a caller may ask for.
const MOST_SPLITS: usize = 1 << 16;

/// What the sequences of one call have in common, on a device.
#[derive(Clone, Copy, Debug)]
pub struct CudaAttention<'a> {
    /// Where the layer's planes are.
    pub layout: KvRowLayout,
    /// Query heads; a multiple of the layout's KV heads.
    pub n_heads: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// How keys and values were transformed before they were stored.
    pub transform: KvTransformTables<'a>,
    /// Parts that [`cuda`] cuts each sequence's keys into, at least one for each 4096 keys of the longest; `None`: as many as
    /// fill the device. What a benchmark varies. `attention_prefill` does not cut.
    pub splits: Option<usize>,
}

/// Registers of a thread of the kernel for heads of so many elements, at least (`kernels/ptx/TABLE.md`).
fn registers(head_dim: usize) -> usize {
    match head_dim {
        64 => 128,
        128 => 200,
        _ => 160,
    }
}

/// How a call's work is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    /// Groups of 8 queries (token x query head) that share a KV head, of the sequence with most tokens.
    column_groups: usize,
    /// Parts that each sequence's keys are cut into.
    splits: usize,
    /// Bytes of a tile in shared memory, and warps of a block; 0 and 8 for head dimensions without a kernel of their own.
    stage_bytes: usize,
    warps: usize,
}

impl Plan {
    /// The rule: as many splits as fill every multiprocessor with the warps that it can hold at once, rounded down so that
    /// they are all there at once; none of fewer than 64 keys of the longest sequence, and none of more than 4096. A block has
    /// as many warps (8, 4, 2 or 1) as 96 KiB of shared memory have room for the rings of; of 128 dims at most 2, since with
    /// that kernel's registers a multiprocessor takes 8. It depends on shapes and on the device alone, never on what runs
    /// beside it. Reasoned from what the kernels take, not measured: no GPU has seen it yet.
    fn of(
        layout: &KvRowLayout,
        n_heads: usize,
        splits: Option<usize>,
        counts: &KvCounts,
        facts: &DeviceFacts,
    ) -> Result<Plan, Error> {
        check_heads(n_heads, layout)?;
        let group = n_heads / layout.n_kv_heads;
        let column_groups = (counts.most_tokens * group).div_ceil(COLUMNS).max(1);
        let mut plan = Plan { column_groups, splits: 1, stage_bytes: 0, warps: WARPS };
        if matches!(layout.head_dim, 64 | 128) {
            let row = |dtype: DType| planar_bytes(dtype, layout.head_dim).map(|bytes| bytes.quants + ROW_PAD);
            let scales =
                if layout.k_type.is_quantized() || layout.v_type.is_quantized() { 2 * 16 } else { 0 };
            plan.stage_bytes = TILE_KEYS * (row(layout.k_type)? + row(layout.v_type)? + scales);
            plan.warps = if layout.head_dim == 128 { 2 } else { WARPS };
            while plan.warps > 1 && plan.shared() > SHARED {
                plan.warps /= 2;
            }
        }
        let parts = counts.sequences.max(1) * layout.n_kv_heads * column_groups;
        let (least, most) =
            (counts.most_rows.div_ceil(MOST_KEYS).max(1), counts.most_rows.div_ceil(LEAST_KEYS).max(1));
        let resident = plan.resident_warps(layout.head_dim, facts.shared);
        plan.splits = splits.unwrap_or((facts.multiprocessors * resident / parts).clamp(least, most));
        if plan.splits < least || plan.splits > MOST_SPLITS {
            let must = "at least one for each 4096 keys, at most 2^16";
            return Err(Error::Dimension { what: "the splits of attention", must, got: plan.splits });
        }
        Ok(plan)
    }

    /// Warps that a multiprocessor holds at once: whole blocks, as registers and shared memory have room for them.
    fn resident_warps(&self, head_dim: usize, shared: usize) -> usize {
        let of_warp = (registers(head_dim) * WARP as usize).next_multiple_of(REGISTERS_AT_ONCE);
        let by_registers = REGISTERS_A_PART / of_warp * PARTS / self.warps;
        let by_shared = shared / (self.shared() + RESERVED);
        by_registers.min(by_shared).max(1) * self.warps
    }

    /// Dynamic shared memory of a block.
    fn shared(&self) -> usize {
        self.warps * STAGES * self.stage_bytes
    }

    /// A warp for each part, heads innermost.
    fn grid(&self, n_kv_heads: usize, sequences: usize) -> LaunchShape {
        let units = n_kv_heads * self.column_groups * self.splits;
        LaunchShape {
            grid: [units.div_ceil(self.warps) as u32, sequences as u32, 1],
            block: [self.warps as u32 * WARP, 1, 1],
            shared: Bytes::from_usize(self.shared()),
        }
    }
}

/// Where the parts of scratch begin, in floats, each at a multiple of 4: turned queries, their constants, the splits' states
/// and their sums; and the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    constants: usize,
    states: usize,
    sums: usize,
    end: usize,
}

impl Parts {
    fn of(plan: &Plan, head_dim: usize, n_heads: usize, counts: &KvCounts, prepares: bool) -> Parts {
        let turned = if prepares { counts.turned * n_heads } else { 0 };
        let constants = (turned * head_dim).next_multiple_of(4);
        let states = constants + turned.next_multiple_of(4);
        let rows = counts.tokens * n_heads * plan.splits;
        let sums = states + (rows * 2).next_multiple_of(4);
        Parts { constants, states, sums, end: sums + rows * head_dim }
    }
}

/// Bytes of scratch that [`cuda`] needs for a call of this shape with these counts; a transform or none makes no difference.
///
/// # Errors
/// [`Error::Dimension`] if the query heads are no multiple of the key-value heads, or the splits are too few or too many;
/// [`Error::Quant`] for a head that is no whole number of blocks.
pub fn cuda_scratch_len(
    kernels: &Kernels,
    shape: &CudaAttention<'_>,
    counts: &KvCounts,
) -> Result<usize, Error> {
    scratch_bytes(&kernels.facts(), &shape.layout, shape.n_heads, shape.splits, counts)
}

/// [`cuda_scratch_len`] with as many splits as fill the device, for who plans: of a device's facts and of shapes alone.
///
/// # Errors
/// As [`cuda_scratch_len`].
pub fn cuda_scratch_bytes(
    facts: &DeviceFacts,
    layout: &KvRowLayout,
    n_heads: usize,
    counts: &KvCounts,
) -> Result<usize, Error> {
    scratch_bytes(facts, layout, n_heads, None, counts)
}

fn scratch_bytes(
    facts: &DeviceFacts,
    layout: &KvRowLayout,
    n_heads: usize,
    splits: Option<usize>,
    counts: &KvCounts,
) -> Result<usize, Error> {
    let plan = Plan::of(layout, n_heads, splits, counts, facts)?;
    Ok(Parts::of(&plan, layout.head_dim, n_heads, counts, true).end * size_of::<f32>())
}

/// `Attention` of `kernels/attention.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    sequences: u64,
    segments: u64,
    q: u64,
    constants: u64,
    sums: u64,
    states: u64,
    rows: RowsArgument,
    n_sequences: u32,
    n_heads: u32,
    splits: u32,
    column_groups: u32,
    stage_bytes: u32,
    scale: f32,
}

/// `AttentionQueries` of `kernels/attention.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct QueryArguments {
    sequences: u64,
    segments: u64,
    q: u64,
    turns: u64,
    keys: FoldPointers,
    turned: u64,
    constants: u64,
    rows: RowsArgument,
    n_sequences: u32,
    n_heads: u32,
}

/// `AttentionCombine` of `kernels/attention.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CombineArguments {
    sequences: u64,
    sums: u64,
    states: u64,
    out: u64,
    values: FoldPointers,
    splits: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,
}

// SAFETY: the struct of the kernel, field by field, without padding between them.
unsafe impl KernelArgument for Arguments {}
// SAFETY: as above.
unsafe impl KernelArgument for QueryArguments {}
// SAFETY: as above.
unsafe impl KernelArgument for CombineArguments {}

/// Attention of a step's queries over the caches that `table` names, when the stream's turn comes. `q` and `out` are query
/// tokens x heads x head dim, f32, `q` rotated at the tokens' positions; `scratch` has at least [`cuda_scratch_len`] bytes.
/// Two launches, or three where queries have to be turned or transformed; the host is not asked in between.
///
/// The twin of [`attention::cpu`](crate::attention::cpu). Within
///
/// ```text
/// |out - exact| <= 2^-12 * (1 + max |q| |k| * scale) * max |v|
/// ```
///
/// of the exact result on the cache as it is stored (Euclidean lengths of the query and of the longest key that it sees; the
/// largest value), by head dimensions 64 and 128 on tensor cores: queries and weights enter products as two 16-bit terms, or two 8-bit terms
/// where keys are in blocks. Any other even head dimension up to 256 takes a slower kernel that works in f32
/// throughout. Splits change nothing but the order of sums. A NaN in a query, or in a key or value that it
/// sees, is one in its result; a value that is NaN or infinite may also reach queries of the same step that do not see it.
///
/// # Errors
/// [`Error::Shape`], [`Error::Dimension`], [`Error::Type`], [`Error::Alignment`], [`Error::Layouts`], [`Error::NotOnDevice`],
/// [`Error::OtherDevice`], [`Error::NoKernel`], [`Error::Device`]: nothing is launched, or (where the driver refuses a later
/// launch) `out` means nothing.
///
/// # Safety
/// - The table's memory holds what it was made of when the kernels run, and the rows and sinks that it names are mapped,
///   written, and of a cache with this layout.
/// - All memory stays until the stream has passed this; until then nothing else writes what this reads or touches `out` and
///   `scratch`.
pub unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    shape: &CudaAttention<'_>,
    table: &KvTableView<'_>,
    q: DeviceSlice<'_>,
    mut out: DeviceSliceMut<'_>,
    mut scratch: DeviceSliceMut<'_>,
) -> Result<(), Error> {
    check_stream(kernels, stream)?;
    let (layout, n_heads, counts) = (&shape.layout, shape.n_heads, table.counts());
    let rows = RowsArgument::of(layout, table, counts.turn_dims)?;
    let plan = Plan::of(layout, n_heads, shape.splits, counts, &kernels.facts())?;
    let elements = counts.tokens * n_heads * layout.head_dim;
    let q = floats("queries", q, elements)?;
    let (keys, values) =
        (FoldPointers::of(shape.transform.keys, layout)?, FoldPointers::of(shape.transform.values, layout)?);
    let out = floats_mut("attention output", &mut out, elements)?;
    let prepares = shape.transform.keys.is_some() || table.turns() != 0;
    let parts = Parts::of(&plan, layout.head_dim, n_heads, counts, prepares);
    let at = scratch.ptr().addr();
    check_kind("attention scratch", scratch.kind())?;
    check_multiple("the address of attention scratch", at, 16)?;
    if scratch.reborrow().len() < parts.end * size_of::<f32>() {
        let want = parts.end * size_of::<f32>();
        return Err(Error::Shape { what: "bytes of attention scratch", got: scratch.len(), want });
    }
    if counts.tokens == 0 {
        return Ok(());
    }
    let float = |index: usize| at + (index * size_of::<f32>()) as u64;
    let name = match layout.head_dim {
        64 => "attention_64",
        128 => "attention_128",
        _ => "attention_any",
    };
    let work = kernels.function("attention", name)?;
    let combine = kernels.function("attention", "attention_combine")?;
    let (n_sequences, heads) = (counts.sequences as u32, n_heads as u32);
    if prepares {
        let prepare = kernels.function("attention", "attention_queries")?;
        let arguments = QueryArguments {
            sequences: table.sequences(),
            segments: table.segments(),
            q,
            turns: table.turns(),
            keys,
            turned: at,
            constants: float(parts.constants),
            rows,
            n_sequences,
            n_heads: heads,
        };
        // Grids go on where they end: as if every segment were of the sequence with most tokens, in moderation.
        let grid = warp_grid((counts.most_tokens * n_heads).min(1 << 14), counts.sequences);
        // SAFETY: these are the kernel's arguments, of checked sizes and alignment; the rest is the caller's promise.
        unsafe { stream.launch(Launch::new(&prepare, grid).value(arguments)) }?;
    }
    let arguments = Arguments {
        sequences: table.sequences(),
        segments: table.segments(),
        q: if prepares { at } else { q },
        constants: if prepares { float(parts.constants) } else { 0 },
        sums: float(parts.sums),
        states: float(parts.states),
        rows,
        n_sequences,
        n_heads: heads,
        splits: plan.splits as u32,
        column_groups: plan.column_groups as u32,
        stage_bytes: plan.stage_bytes as u32,
        scale: shape.scale * std::f32::consts::LOG2_E,
    };
    let grid = plan.grid(layout.n_kv_heads, counts.sequences);
    // SAFETY: as above.
    unsafe { stream.launch(Launch::new(&work, grid).value(arguments)) }?;
    let arguments = CombineArguments {
        sequences: table.sequences(),
        sums: float(parts.sums),
        states: float(parts.states),
        out,
        values,
        splits: plan.splits as u32,
        n_heads: heads,
        n_kv_heads: layout.n_kv_heads as u32,
        head_dim: layout.head_dim as u32,
    };
    let mut grid = LaunchShape::row((counts.most_tokens * n_heads).min(1 << 20) as u32, THREADS);
    grid.grid[1] = n_sequences;
    // SAFETY: as above.
    Ok(unsafe { stream.launch(Launch::new(&combine, grid).value(arguments)) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(k_type: DType, v_type: DType, head_dim: usize) -> KvRowLayout {
        let places = [0; 5];
        let [row_stride, k_quants, k_scales, v_quants, v_scales] = places;
        KvRowLayout {
            k_type,
            v_type,
            n_kv_heads: 8,
            head_dim,
            row_stride,
            rows_at: 0,
            k_quants,
            k_scales,
            v_quants,
            v_scales,
            sinks: None,
        }
    }

    fn counts(sequences: usize, most_tokens: usize, most_rows: usize) -> KvCounts {
        KvCounts { sequences, most_tokens, most_rows, ..KvCounts::default() }
    }

    /// An H100, or an H200.
    const HOPPER: DeviceFacts = DeviceFacts { multiprocessors: 132, shared: 228 << 10 };

    fn plan(layout: &KvRowLayout, splits: Option<usize>, counts: KvCounts) -> Result<Plan, Error> {
        Plan::of(layout, 32, splits, &counts, &HOPPER)
    }

    #[test]
    fn splits_fill_the_device_and_stay_between_their_bounds() {
        let of = |counts| plan(&layout(DType::F16, DType::F16, 128), None, counts).unwrap();
        // 132 x 8 warps, 8 heads: 132 splits of 249 keys, all of them there at once.
        let first = of(counts(1, 1, 32768));
        assert_eq!((first.splits, first.column_groups), (132, 1));
        assert_eq!(of(counts(16, 1, 32768)).splits, 8);
        assert_eq!(of(counts(1, 1, 100)).splits, 2);
        assert_eq!(of(counts(1000, 1, 32768)).splits, 8);
        // Four heads of a group, five tokens: 20 queries.
        assert_eq!(of(counts(1, 5, 32768)).column_groups, 3);
        assert_eq!(of(counts(1, 1, 0)).splits, 1);
        // Registers of 64 dims leave room for twice as many warps.
        assert_eq!(plan(&layout(DType::F16, DType::F16, 64), None, counts(1, 1, 32768)).unwrap().splits, 264);
    }

    #[test]
    fn splits_that_are_asked_for_are_taken_or_refused() {
        let of = |splits| plan(&layout(DType::Q4_0, DType::Q4_0, 64), Some(splits), counts(1, 1, 10_000));
        assert_eq!([3, 33, 1 << 16].map(|splits| of(splits).unwrap().splits), [3, 33, 1 << 16]);
        for refused in [0, 2, (1 << 16) + 1] {
            assert!(matches!(of(refused), Err(Error::Dimension { got, .. }) if got == refused));
        }
    }

    #[test]
    fn a_multiprocessor_holds_what_registers_and_shared_memory_have_room_for() {
        let warps = |k, v, head_dim, shared| {
            let plan = plan(&layout(k, v, head_dim), None, counts(1, 1, 512)).unwrap();
            plan.resident_warps(head_dim, shared)
        };
        let (f16, f32, q4_0) = (DType::F16, DType::F32, DType::Q4_0);
        // 228 KiB (H100): registers are what limits; 164 (A100) and 100 (RTX 30 and 40): the rings of f16.
        assert_eq!([228, 164, 100].map(|kib| warps(f16, f16, 128, kib << 10)), [8, 6, 2]);
        assert_eq!([228, 164, 100].map(|kib| warps(f16, f16, 64, kib << 10)), [16, 8, 4]);
        assert_eq!([228, 164, 100].map(|kib| warps(q4_0, q4_0, 128, kib << 10)), [8, 8, 8]);
        assert_eq!([228, 164, 100].map(|kib| warps(q4_0, q4_0, 64, kib << 10)), [16, 16, 16]);
        assert_eq!(warps(f32, f32, 128, 228 << 10), 4);
        assert_eq!(warps(f16, f16, 80, 228 << 10), 8);
    }

    #[test]
    fn the_table_knows_the_shared_memory() {
        let table = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/ptx/TABLE.md");
        let table = std::fs::read_to_string(table).unwrap();
        let types = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0];
        for (kernel, head_dim) in [("attention_64", 64), ("attention_128", 128)] {
            let pairs = types.iter().flat_map(|&k| types.map(|v| (k, v)));
            let each =
                pairs.map(|(k, v)| plan(&layout(k, v, head_dim), None, counts(1, 1, 9)).unwrap().shared());
            let row = table.lines().find(|line| line.contains(&format!("`{kernel}`"))).unwrap();
            let most = row.split('|').nth(5).unwrap().trim().parse::<usize>().unwrap();
            assert_eq!(each.max(), Some(most), "{kernel}");
        }
    }

    #[test]
    fn the_rule_knows_the_registers_of_the_kernels() {
        let table = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/ptx/TABLE.md");
        let table = std::fs::read_to_string(table).unwrap();
        for (kernel, head_dim) in [("attention_64", 64), ("attention_128", 128), ("attention_any", 80)] {
            let rows = table.lines().filter(|line| line.contains(&format!("`{kernel}`")));
            let each = rows.map(|line| line.split('|').nth(3).unwrap().trim().parse::<usize>().unwrap());
            let most = each.max().unwrap();
            assert!(most <= registers(head_dim) && registers(head_dim) - most < 8, "{kernel}: {most}");
        }
    }

    #[test]
    fn blocks_have_as_many_warps_as_there_is_room_for() {
        let warps = |k, v, head_dim| {
            let plan = plan(&layout(k, v, head_dim), None, counts(1, 1, 512)).unwrap();
            assert!(plan.shared() <= SHARED && plan.stage_bytes.is_multiple_of(16));
            // Four rows of sinks, in f16, take no more.
            assert!(4 * 2 * (2 * head_dim + ROW_PAD) <= plan.stage_bytes);
            (plan.stage_bytes, plan.warps)
        };
        assert_eq!(warps(DType::Q4_0, DType::Q4_0, 64), (2048, 8));
        assert_eq!(warps(DType::Q4_0, DType::Q4_0, 128), (3072, 2));
        assert_eq!(warps(DType::Q8_0, DType::Q8_0, 64), (3072, 8));
        assert_eq!(warps(DType::F16, DType::F16, 64), (4608, 4));
        assert_eq!(warps(DType::F16, DType::F16, 128), (8704, 2));
        assert_eq!(warps(DType::F32, DType::F32, 128), (16896, 1));
    }

    #[test]
    fn scratch_has_room_for_all_its_parts() {
        let plan = Plan { column_groups: 1, splits: 3, stage_bytes: 0, warps: 8 };
        let counts = KvCounts { tokens: 2, turned: 5, ..KvCounts::default() };
        let parts = Parts::of(&plan, 10, 3, &counts, true);
        assert_eq!(parts, Parts { constants: 152, states: 168, sums: 204, end: 204 + 180 });
        assert_eq!(Parts::of(&plan, 10, 3, &counts, false).states, 0);
    }
}
