// Whose work is whose in attention.cu: which queries, which keys and which rows of scratch a warp has, and where those keys are.
#pragma once

#include "attend.cuh"

// Rows that are read from the sinks at most.
constexpr u32 SINKS = 4;

// What a launch attends to. Rows of scratch and of `out` are query tokens x heads.
struct Attention {
    const KvSequence *sequences;
    const KvSegment *segments;
    const float *q;         // query tokens x heads x head_dim; or q', see KvSequence::first_turned
    const float *constants; // q.c of each head of q'; null: all are 0
    float *sums;            // rows x splits x head_dim
    float *states;          // rows x splits x 2: largest exponent, sum of weights; no keys: -infinity, 0
    KvRows rows;
    u32 n_sequences, n_heads, splits;
    u32 column_groups; // warps beside each other for the queries of a sequence that share a KV head
    u32 stage_bytes;   // of a tile in the ring, a multiple of 16
    float scale;       // on scores, with log2(e)
};

// A warp's part of the work.
struct Part {
    u32 kv_head, columns, split; // `columns`: the group of queries
};

// One query of a part.
struct Column {
    u32 token, head;
    bool there;
};

__device__ inline Column column_of(const Attention &to, const KvSequence &sequence, const Part &part, u32 i)
{
    const u32 group = to.n_heads / to.rows.n_kv_heads, column = part.columns * COLUMNS + i;
    return Column{column / group, part.kv_head * group + column % group, column < sequence.queries * group};
}

// Keys that a query sees, of its sequence's.
__device__ inline u32 keys_seen(const KvSequence &sequence, const Column &column)
{
    return column.there ? sequence.rows - (sequence.queries - 1 - column.token) : 0;
}

// The query of a column for a segment, and its constant.
__device__ inline const float *query_of(
    const Attention &to, const KvSequence &sequence, const Column &column, u32 segment, float &constant)
{
    constant = 0.0f;
    if (!column.there) return nullptr;
    u64 row = sequence.first_query + column.token;
    if (to.constants != nullptr) row = u64{sequence.first_turned} + segment * sequence.queries + column.token;
    row = row * to.n_heads + column.head;
    if (to.constants != nullptr) constant = to.constants[row];
    return to.q + row * to.rows.head_dim;
}

// Rows that follow one another in memory, of one KV head. Small numbers share a word: registers are what a warp is short of.
struct Run {
    const u8 *rows; // the first one
    u32 stride;
    u32 k, v, k_scales, v_scales; // from a row's start; scales at the multiple of 16 before the head's
    u32 len;                      // rows
    u32 types;  // of keys, of values, bytes from that multiple to the head's scales, mask of a tile's rows: a byte each
    u32 places; // of values, and of scales, in a stage of the ring: two bytes each

    __device__ u32 k_type() const { return types & 0xff; }
    __device__ u32 v_type() const { return types >> 8 & 0xff; }
    __device__ u32 past() const { return types >> 16 & 0xff; }
    __device__ u32 mask() const { return types >> 24; }
    __device__ u32 v_at() const { return places & 0xffff; }
    __device__ u32 scales_at() const { return places >> 16; }
};

// Up to `len` rows of a head from physical row `row` on: as many as are all sinks, or none.
__device__ inline Run run_of(const Attention &to, const KvSequence &sequence, u32 kv_head, u32 row, u32 len)
{
    const KvRows &rows = to.rows;
    const u32 at = kv_head * rows.head_dim;
    Run run{};
    if (row < rows.sink_rows) {
        run.stride = rows.n_kv_heads * rows.head_dim * u32{sizeof(f16)};
        run.rows = sequence.base + u64{row} * run.stride;
        run.k = rows.sink_k + at * u32{sizeof(f16)};
        run.v = rows.sink_v + at * u32{sizeof(f16)};
        run.len = len < rows.sink_rows - row ? len : rows.sink_rows - row;
        run.types = KV_F16 | KV_F16 << 8 | (SINKS - 1) << 24;
        run.places = SINKS * (rows.head_dim * u32{sizeof(f16)} + ROW_PAD);
    } else {
        const u32 scale = at / BLOCK_LEN * u32{sizeof(f16)}, past = scale % u32{sizeof(Wide)};
        const u32 v_at = TILE_KEYS * (plane_bytes(rows.k_type, rows.head_dim) + ROW_PAD);
        const u32 scales_at = v_at + TILE_KEYS * (plane_bytes(rows.v_type, rows.head_dim) + ROW_PAD);
        run.stride = static_cast<u32>(rows.stride);
        run.rows = sequence.base + rows.rows_at + row * rows.stride;
        run.k = rows.k_quants + plane_bytes(rows.k_type, at);
        run.v = rows.v_quants + plane_bytes(rows.v_type, at);
        run.k_scales = rows.k_scales + (scale - past);
        run.v_scales = rows.v_scales + (scale - past);
        run.len = len;
        run.types = rows.k_type | rows.v_type << 8 | past << 16 | (TILE_KEYS - 1) << 24;
        run.places = v_at | scales_at << 16;
    }
    return run;
}

// The tokens of a split: whole tiles, but for the last one's end.
__device__ inline void split_range(const Attention &to, const KvSequence &sequence, u32 split, u32 &first, u32 &end)
{
    const u32 tiles = (sequence.rows + TILE_KEYS - 1) / TILE_KEYS;
    const u32 each = (tiles + to.splits - 1) / to.splits * TILE_KEYS;
    first = split * each < sequence.rows ? split * each : sequence.rows;
    end = sequence.rows - first < each ? sequence.rows : first + each;
}

// The part that is this warp's, and whether there is one. x of the grid covers a sequence's parts, heads innermost; y is the
// sequence. Asked for again wherever it is needed: a few divisions for each run of rows, and no registers in between.
__device__ inline bool part_of(const Attention &to, const KvSequence &sequence, Part &part)
{
    const u32 unit = again(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP, heads = to.rows.n_kv_heads;
    part = Part{unit % heads, unit / heads % to.column_groups, unit / heads / to.column_groups};
    return part.split < to.splits && part.columns * COLUMNS < sequence.queries * (to.n_heads / heads);
}

// The sequence that is this warp's.
__device__ inline const KvSequence &sequence_of(const Attention &to) { return to.sequences[again(blockIdx.y)]; }

// The next run of rows of this warp's part, whose first token is `from` or, at first, whatever the part begins with; and the
// number of its segment. False behind the last.
__device__ inline bool next_run(const Attention &to, u32 &from, Run &run, u32 &number)
{
    const KvSequence &sequence = sequence_of(to);
    Part part;
    if (!part_of(to, sequence, part)) return false;
    u32 first, end;
    split_range(to, sequence, part.split, first, end);
    from = from > first ? from : first;
    if (from >= end) return false;
    number = 0;
    KvSegment segment = to.segments[sequence.first_segment];
    while (from >= segment.start + segment.len) segment = to.segments[sequence.first_segment + ++number];
    const u32 until = end < segment.start + segment.len ? end : segment.start + segment.len;
    run = run_of(to, sequence, part.kv_head, segment.row + (from - segment.start), until - from);
    from += run.len;
    return true;
}

// The row of scratch of a query's split.
__device__ inline u64 scratch_row(const Attention &to, const KvSequence &sequence, const Column &column, u32 split)
{
    const u64 row = u64{sequence.first_query + column.token} * to.n_heads + column.head;
    return row * to.splits + split;
}
