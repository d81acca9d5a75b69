//! What kernels are told about the sequences of a step, and about one layer of them: `kernels/include/kv.cuh` in Rust.
//!
//! ```text
//! device memory of a table, each part at a multiple of 16:
//! | sequences, 32 bytes each | segments, 16 bytes each | turns: cosines and sines, f32 x rope dims, one row a segment |
//! ```
//!
//! A table is made once a step and serves all layers of a group, because what differs between them (planes, sinks) comes with
//! each launch.
//!
//! What a captured graph has of a table are its address, its places and its counts: grids, scratch and the number of splits
//! come from them. So a table that is written anew between replays is one [with a capacity](KvTable::with_capacity): its
//! places and counts are the capacity's, whatever is in it, and what is not there takes part as sequences without tokens.

use granule_device::{DeviceSlice, DeviceSliceMut, KernelArgument, LaunchShape};
use granule_kernels::THREADS;
use granule_quant::DType;

use crate::error::expect_len;
use crate::launch::{MOST_Y, check_kind, check_multiple};
use crate::{Error, KvFold, KvRowLayout, KvView, Rope};

/// Largest head dimension, and most rows in the sinks, that the kernels take.
const MOST_HEAD_DIM: usize = 256;
const MOST_SINKS: usize = 4;
/// What every address, stride and offset in the cache must be a multiple of.
pub(crate) const WIDE: usize = 16;

/// `KvSequence` of `kv.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct SequenceEntry {
    base: u64,
    first_segment: u32,
    segments: u32,
    first_query: u32,
    queries: u32,
    rows: u32,
    first_turned: u32,
}

/// `KvSegment` of `kv.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct SegmentEntry {
    row: u32,
    len: u32,
    start: u32,
    turn: i32,
}

/// How much is in a table, or may be: what grids and scratch are measured by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KvCounts {
    /// Sequences.
    pub sequences: usize,
    /// Segments of all of them.
    pub segments: usize,
    /// Query tokens of all of them.
    pub tokens: usize,
    /// Query tokens of the one that has most.
    pub most_tokens: usize,
    /// Rows, the queries' own included, of the one that has most.
    pub most_rows: usize,
    /// Segments times query tokens, summed up: queries that are turned.
    pub turned: usize,
    /// Elements of a head that a turn rotates; 0 where no segment has a turn.
    pub turn_dims: usize,
}

/// The sequences of one step, on the host.
#[derive(Clone, Debug, Default)]
pub struct KvTable {
    sequences: Vec<SequenceEntry>,
    segments: Vec<SegmentEntry>,
    turns: Vec<f32>,
    counts: KvCounts,
    /// What there is room for, where that was said: then places and launches go by it.
    capacity: Option<KvCounts>,
    /// Row stride and byte of row 0 of the views' layout.
    layout: Option<(usize, usize)>,
}

impl KvTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty table for captured graphs: with room for so much, and always as if all of it were there. Launches that were
    /// captured with it stay right when it is [cleared](KvTable::clear), filled again with anything that fits, and
    /// [written](KvTable::write) to the same memory before a replay; every count may be smaller then, and later larger again.
    ///
    /// Queries, results, new keys and values have the capacity's length in every launch; those behind the tokens that are
    /// there are not read, and attention's results for them mean nothing. `turn_dims` is the model's, or 0 where no segment
    /// ever has a turn. A decode graph has as many `tokens` as `sequences`, `most_tokens` 1, and `most_rows` of the longest
    /// context: its splits are cut for that, so a short sequence leaves most of them without keys.
    #[must_use]
    pub fn with_capacity(capacity: KvCounts) -> Self {
        Self { capacity: Some(capacity), ..Self::default() }
    }

    /// Forgets all sequences and keeps the memory, and the capacity.
    pub fn clear(&mut self) {
        let Self { mut sequences, mut segments, mut turns, capacity, .. } = std::mem::take(self);
        sequences.clear();
        segments.clear();
        turns.clear();
        *self = Self { sequences, segments, turns, capacity, ..Self::default() };
    }

    /// Adds a sequence: the tokens of `view`, of any layer of the group, with those of the step already in it. Its queries are
    /// the next `n_tokens` of the step's. `rope` is the model's rotation: needed where a segment has a turn.
    ///
    /// # Errors
    /// [`Error::Dimension`] for a sequence without query tokens, for one beyond what 32 bits count or the capacity has room
    /// for, and where the tokens of the step are not the end of its last segment; [`Error::Shape`] where the view is shorter than they are;
    /// [`Error::NotOnDevice`]; [`Error::Layouts`] where its rows are not as far apart as those of the others;
    /// [`Error::Alignment`]; [`Error::NoRope`]. The table is then as it was.
    pub fn push(&mut self, view: &KvView<'_>, n_tokens: usize, rope: Option<&Rope>) -> Result<(), Error> {
        let layout = view.layout();
        if n_tokens == 0 {
            return Err(Error::Dimension { what: "a sequence's query tokens", must: "at least one", got: 0 });
        }
        if view.len() < n_tokens {
            return Err(Error::Shape { what: "rows of the cache", got: view.len(), want: n_tokens });
        }
        if self.layout.is_some_and(|known| known != (layout.row_stride, layout.rows_at)) {
            return Err(Error::Layouts);
        }
        let segments = view.segments();
        let last = segments.last().map_or(0, |segment| segment.len);
        if last < n_tokens {
            let must = "in the cache's last segment";
            return Err(Error::Dimension { what: "a sequence's query tokens", must, got: n_tokens });
        }
        let mut base = None;
        for segment in segments {
            check_kind("a KV cache", segment.rows.kind())?;
            let before = (layout.rows_at + segment.row * layout.row_stride) as u64;
            let at = segment.rows.ptr().addr().wrapping_sub(before);
            if *base.get_or_insert(at) != at {
                let must = "of one range of addresses";
                return Err(Error::Dimension {
                    what: "the segments of a sequence",
                    must,
                    got: segments.len(),
                });
            }
        }
        let base = base.unwrap_or_default();
        if let Some(sinks) = view.sinks() {
            check_kind("a KV cache's sinks", sinks.kind())?;
            if sinks.ptr().addr() != base {
                let must = "where the range of its rows begins";
                return Err(Error::Dimension { what: "a sequence's sinks", must, got: 0 });
            }
        }
        check_multiple("the base of a KV cache", base, WIDE)?;
        let turns = segments.iter().any(|segment| segment.turn != 0);
        let dims = if turns { rope.ok_or(Error::NoRope)?.dims() } else { self.counts.turn_dims };
        if dims > layout.head_dim || (self.counts.turn_dims != 0 && dims != self.counts.turn_dims) {
            let must = "one for all sequences, at most the head dimension";
            return Err(Error::Dimension { what: "the rotated dimension", must, got: dims });
        }
        let counts = KvCounts { turn_dims: dims, ..self.counts.and(n_tokens, view.len(), segments.len()) };
        let ends = segments.iter().map(|segment| segment.row.saturating_add(segment.len));
        // Twice as many fit, so that what kernels round up to whole tiles does too.
        let largest = ends.chain([counts.segments, counts.tokens, counts.most_rows, counts.turned]).max();
        if largest.is_some_and(|n| u32::try_from(n.saturating_mul(2)).is_err()) || counts.sequences > MOST_Y {
            let must = "fewer than 65536, of fewer than 2^31 tokens in all";
            return Err(Error::Dimension { what: "the sequences of a step", must, got: counts.sequences });
        }
        if self.capacity.is_some_and(|capacity| !counts.fit(&capacity)) {
            let must = "within the capacity of their table";
            return Err(Error::Dimension { what: "the sequences of a step", must, got: counts.sequences });
        }
        self.sequences.push(SequenceEntry {
            base,
            first_segment: self.counts.segments as u32,
            segments: segments.len() as u32,
            first_query: self.counts.tokens as u32,
            queries: n_tokens as u32,
            rows: view.len() as u32,
            first_turned: self.counts.turned as u32,
        });
        let mut start = 0;
        for segment in segments {
            let (row, len) = (segment.row as u32, segment.len as u32);
            self.segments.push(SegmentEntry { row, len, start, turn: segment.turn });
            start += len;
        }
        if dims > 0 {
            // Sequences before this one had no turns, and no rows.
            self.turns.resize(counts.segments * dims, 0.0);
            if let Some(rope) = rope {
                let rows = self.turns.chunks_exact_mut(dims).skip(self.counts.segments);
                for (row, segment) in rows.zip(segments) {
                    rope.turn(segment.turn, row)?;
                }
            }
        }
        (self.counts, self.layout) = (counts, Some((layout.row_stride, layout.rows_at)));
        Ok(())
    }

    /// How much is in it or, with a capacity, that: what launches and their scratch are measured by.
    #[must_use]
    pub fn counts(&self) -> &KvCounts {
        self.capacity.as_ref().unwrap_or(&self.counts)
    }

    /// Bytes of device memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.counts().bytes()
    }

    /// Writes what device memory is to hold.
    ///
    /// # Errors
    /// [`Error::Shape`] where `to` is not [`KvTable::bytes`] long.
    pub fn write(&self, to: &mut [u8]) -> Result<(), Error> {
        expect_len("bytes of a KV table", to.len(), self.bytes())?;
        let [sequences, segments, turns, end] = self.counts().parts();
        let mut put = |from: usize, to_end: usize, bytes: &[u8]| {
            let (there, rest) = to[from..to_end].split_at_mut(bytes.len());
            there.copy_from_slice(bytes);
            // Sequences without tokens, where there is room for more.
            rest.fill(0);
        };
        put(sequences, segments, bytemuck::cast_slice(&self.sequences));
        put(segments, turns, bytemuck::cast_slice(&self.segments));
        put(turns, end, bytemuck::cast_slice(&self.turns));
        Ok(())
    }

    /// The table in device memory that holds, or will hold when its kernels run, what [`KvTable::write`] gives.
    ///
    /// # Errors
    /// [`Error::Shape`] where it is shorter than [`KvTable::bytes`], [`Error::Alignment`], [`Error::NotOnDevice`].
    pub fn on<'a>(&self, memory: DeviceSlice<'a>) -> Result<KvTableView<'a>, Error> {
        check_kind("a KV table", memory.kind())?;
        check_multiple("the address of a KV table", memory.ptr().addr(), WIDE)?;
        if memory.len() < self.bytes() {
            return Err(Error::Shape { what: "bytes of a KV table", got: memory.len(), want: self.bytes() });
        }
        Ok(KvTableView { memory, counts: *self.counts(), layout: self.layout })
    }
}

impl KvCounts {
    /// With one more sequence: of so many query tokens, rows with those, and segments.
    pub(crate) fn and(&self, tokens: usize, rows: usize, segments: usize) -> KvCounts {
        KvCounts {
            sequences: self.sequences + 1,
            segments: self.segments + segments,
            tokens: self.tokens + tokens,
            most_tokens: self.most_tokens.max(tokens),
            most_rows: self.most_rows.max(rows),
            turned: self.turned + segments * tokens,
            turn_dims: self.turn_dims,
        }
    }

    /// Bytes of device memory that a [`KvTable`] with so much in it takes, or one with this capacity.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.parts()[3]
    }

    /// Where sequences, segments and turns begin in a table's memory, and its end.
    fn parts(&self) -> [usize; 4] {
        let segments = self.sequences * size_of::<SequenceEntry>();
        let turns = segments + self.segments * size_of::<SegmentEntry>();
        [0, segments, turns, turns + self.segments * self.turn_dims * size_of::<f32>()]
    }

    /// Whether a table with that capacity has room for all of it.
    fn fit(&self, capacity: &KvCounts) -> bool {
        let sizes =
            |of: &KvCounts| [of.sequences, of.segments, of.tokens, of.most_tokens, of.most_rows, of.turned];
        let turns = self.turn_dims == 0 || self.turn_dims == capacity.turn_dims;
        turns && sizes(self).iter().zip(sizes(capacity)).all(|(&size, room)| size <= room)
    }
}

/// A [`KvTable`] in device memory.
#[derive(Clone, Copy, Debug)]
pub struct KvTableView<'a> {
    memory: DeviceSlice<'a>,
    counts: KvCounts,
    layout: Option<(usize, usize)>,
}

impl KvTableView<'_> {
    /// As [`KvTable::counts`].
    #[must_use]
    pub fn counts(&self) -> &KvCounts {
        &self.counts
    }

    pub(crate) fn sequences(&self) -> u64 {
        self.memory.ptr().addr()
    }

    pub(crate) fn segments(&self) -> u64 {
        self.memory.ptr().addr() + self.counts.parts()[1] as u64
    }

    /// 0 where no segment has a turn.
    pub(crate) fn turns(&self) -> u64 {
        let at = self.memory.ptr().addr() + self.counts.parts()[2] as u64;
        if self.counts.turn_dims == 0 { 0 } else { at }
    }
}

/// Tables of one layer's [`KvTransform`](crate::KvTransform) in device memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct KvTransformTables<'a> {
    /// What [`KvFold::tables`] gives for the keys, where they are transformed.
    pub keys: Option<DeviceSlice<'a>>,
    /// The same for the values.
    pub values: Option<DeviceSlice<'a>>,
}

impl KvFold {
    /// What kernels read of it: constants, scales and inverses, each kv heads x head dim.
    #[must_use]
    pub fn tables(&self) -> Vec<f32> {
        [self.constants(), self.scales(), self.inverses()].concat()
    }
}

/// `KvFold` of `kv.cuh`: addresses, or zeros.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FoldPointers([u64; 3]);

impl FoldPointers {
    pub(crate) fn of(memory: Option<DeviceSlice<'_>>, layout: &KvRowLayout) -> Result<FoldPointers, Error> {
        let Some(memory) = memory else { return Ok(FoldPointers([0; 3])) };
        let one = layout.elements() * size_of::<f32>();
        expect_len("bytes of a transform's tables", memory.len(), 3 * one)?;
        check_kind("a transform's tables", memory.kind())?;
        check_multiple("the address of a transform's tables", memory.ptr().addr(), size_of::<f32>())?;
        Ok(FoldPointers([0, 1, 2].map(|i| memory.ptr().addr() + i * one as u64)))
    }
}

/// `KvRows` of `kv.cuh`: where one layer's planes are.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RowsArgument {
    stride: u64,
    rows_at: u64,
    sink_k: u32,
    sink_v: u32,
    k_type: u32,
    v_type: u32,
    k_quants: u32,
    k_scales: u32,
    v_quants: u32,
    v_scales: u32,
    n_kv_heads: u32,
    head_dim: u32,
    sink_rows: u32,
    rope_dims: u32,
}

impl RowsArgument {
    /// A layer's places, checked for what kernels can do.
    pub(crate) fn of(layout: &KvRowLayout, table: &KvTableView<'_>, rope_dims: usize) -> Result<Self, Error> {
        if table.layout.is_some_and(|of_rows| of_rows != (layout.row_stride, layout.rows_at)) {
            return Err(Error::Layouts);
        }
        if layout.n_kv_heads == 0
            || layout.head_dim == 0
            || layout.head_dim > MOST_HEAD_DIM
            || !layout.head_dim.is_multiple_of(2)
        {
            let must = "even, from 2 to 256, on a CUDA device";
            return Err(Error::Dimension { what: "the head dimension", must, got: layout.head_dim });
        }
        if rope_dims > layout.head_dim || !rope_dims.is_multiple_of(2) {
            let must = "even, and at most the head dimension";
            return Err(Error::Dimension { what: "the rotated dimension", must, got: rope_dims });
        }
        let (k_type, v_type) = (type_number("keys", layout.k_type)?, type_number("values", layout.v_type)?);
        let sinks = layout.sinks;
        if let Some(sinks) = sinks.filter(|sinks| sinks.rows > MOST_SINKS) {
            let must = "at most 4, on a CUDA device";
            return Err(Error::Dimension { what: "the rows of the sinks", must, got: sinks.rows });
        }
        let (sink_rows, sink_k, sink_v) = sinks.map_or((0, 0, 0), |sinks| (sinks.rows, sinks.k, sinks.v));
        let word = |what, at: usize, must| -> Result<u32, Error> {
            check_multiple(what, at as u64, must)?;
            u32::try_from(at).map_err(|_| Error::Dimension { what, must: "below 2^32", got: at })
        };
        word("the stride of KV rows", layout.row_stride, WIDE)?;
        check_multiple("the start of KV rows", layout.rows_at as u64, WIDE)?;
        Ok(Self {
            stride: layout.row_stride as u64,
            rows_at: layout.rows_at as u64,
            sink_k: word("the start of K's sinks", sink_k, WIDE)?,
            sink_v: word("the start of V's sinks", sink_v, WIDE)?,
            k_type,
            v_type,
            k_quants: word("the start of K's quants", layout.k_quants, WIDE)?,
            k_scales: word("the start of K's scales", layout.k_scales, WIDE)?,
            v_quants: word("the start of V's quants", layout.v_quants, WIDE)?,
            v_scales: word("the start of V's scales", layout.v_scales, WIDE)?,
            n_kv_heads: word("the number of KV heads", layout.n_kv_heads, 1)?,
            head_dim: layout.head_dim as u32,
            sink_rows: sink_rows as u32,
            rope_dims: rope_dims as u32,
        })
    }
}

/// What `kv.cuh` calls a type.
fn type_number(what: &'static str, dtype: DType) -> Result<u32, Error> {
    match dtype {
        DType::F32 => Ok(0),
        DType::F16 => Ok(1),
        DType::BF16 => Ok(2),
        DType::Q8_0 => Ok(3),
        DType::Q4_0 => Ok(4),
        got => Err(Error::Type { what, must: "f32, f16, bf16, q8_0 or q4_0", got }),
    }
}

/// A grid with a warp for each of `items` of the sequence that has most of them, in x, and a row of it for each sequence.
pub(crate) fn warp_grid(items: usize, sequences: usize) -> LaunchShape {
    let warps = THREADS as usize / 32;
    let mut shape = LaunchShape::row(items.div_ceil(warps).clamp(1, 1 << 20) as u32, THREADS);
    shape.grid[1] = sequences.clamp(1, MOST_Y) as u32;
    shape
}

/// Checks that device memory holds so many floats, at an address that is a multiple of 16, and answers it.
pub(crate) fn floats(what: &'static str, memory: DeviceSlice<'_>, want: usize) -> Result<u64, Error> {
    expect_len(what, memory.len() / size_of::<f32>(), want)?;
    check_kind(what, memory.kind())?;
    check_multiple(what, memory.ptr().addr(), WIDE)?;
    Ok(memory.ptr().addr())
}

/// [`floats`] for memory that is written.
pub(crate) fn floats_mut(
    what: &'static str,
    memory: &mut DeviceSliceMut<'_>,
    want: usize,
) -> Result<u64, Error> {
    expect_len(what, memory.len() / size_of::<f32>(), want)?;
    check_kind(what, memory.kind())?;
    check_multiple(what, memory.ptr().addr(), WIDE)?;
    Ok(memory.ptr().addr())
}

// SAFETY: three addresses, as in `kv.cuh`.
unsafe impl KernelArgument for FoldPointers {}
// SAFETY: numbers without padding between them, as in `kv.cuh`.
unsafe impl KernelArgument for RowsArgument {}
