// Attention of a few query tokens over the KV cache, straight from its own types: decode, and short steps of several tokens.
//
// Three kernels, one behind the other in a stream, the first only where queries have to be turned or transformed:
//
//   attention_queries       q' for each segment of each sequence: turned back by what the segment's keys are behind,
//                           transformed as the keys were; and q.c, what the keys' constant takes from a score
//   attention_64, _128,     the work: a warp takes 8 queries that share a KV head over a part ("split") of a sequence
//   _any                    and leaves their largest score, the sum of their weights, and the weighted sum of values
//   attention_combine       puts the splits together and undoes the values' transform
//
// What a warp does is in attend.cuh. It reads K and V once for its 8 queries: all query heads of a group of up to 8, one
// token; more of either are further warps, neighbours in the grid, which find the rows in the cache of their SM or the
// device. Rows come into a ring of shared memory that is the warp's own, in pieces of 16 bytes, two tiles of 16 keys ahead of
// the one that is worked on; no two warps wait for each other. Neighbouring warps of a block have neighbouring heads of the
// same rows, so that what a 32-byte sector holds for two heads (scales, short rows of 4 bits) is read once.
//
// Any order of keys, and so any number of splits, gives the same sum to within rounding; the bound that tests hold it to
// stands in `granule_ops::attention::cuda`.
#include "attend.cuh"

constexpr u32 WARPS = THREADS / WARP;
// Tiles in a warp's ring: one is worked on, the others are under way.
constexpr u32 STAGES = 3;
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

// Starts the copies of one head's part of the rows of a tile, BYTES of each, of which `left` are there; what is behind them is
// the last one again, so that nothing is read that was never written. Rows from `kept` on are left out.
template <u32 BYTES> __device__ inline void fetch_rows(u8 *to, const u8 *from, u32 stride, u32 left, u32 kept)
{
    constexpr u32 PIECES = BYTES / sizeof(Wide), ROWS = WARP / PIECES; // a row's, and rows that the warp copies at once
    static_assert(WARP % PIECES == 0 && TILE_KEYS % ROWS == 0 && (PIECES < 8 || SINKS % ROWS == 0));
    const u32 first = threadIdx.x % WARP / PIECES, at = threadIdx.x % PIECES * u32{sizeof(Wide)};
    UNROLLED for (u32 row = 0; row < TILE_KEYS; row += ROWS) {
        if (row >= kept) break;
        const u32 i = row + first, there = i < left ? i : left - 1;
        copy_async(to + i * (BYTES + ROW_PAD) + at, from + u64{there} * stride + at);
    }
}

// The same for any type.
template <u32 DIM>
__device__ inline void fetch_plane(u8 *to, const u8 *from, u32 stride, u32 left, u32 type, u32 mask)
{
    switch (type) {
    case KV_F32: fetch_rows<ROW_BYTES<DIM, KV_F32>>(to, from, stride, left, TILE_KEYS); break;
    case KV_Q8_0: fetch_rows<ROW_BYTES<DIM, KV_Q8_0>>(to, from, stride, left, TILE_KEYS); break;
    case KV_Q4_0: fetch_rows<ROW_BYTES<DIM, KV_Q4_0>>(to, from, stride, left, TILE_KEYS); break;
    default: fetch_rows<ROW_BYTES<DIM, KV_F16>>(to, from, stride, left, mask + 1); break;
    }
}

// Starts the copies of the tile that begins `skip` rows into a run.
template <u32 DIM> __device__ inline void fetch(const Run &run, u32 skip, u8 *stage)
{
    const u32 left = run.len - skip;
    const u8 *from = run.rows + u64{skip} * run.stride;
    fetch_plane<DIM>(stage, from + run.k, run.stride, left, run.k_type(), run.mask());
    fetch_plane<DIM>(stage + run.v_at(), from + run.v, run.stride, left, run.v_type(), run.mask());
    // Half a warp has the scales of 16 keys, half those of their values.
    const u32 lane = threadIdx.x % WARP, row = lane % TILE_KEYS, there = row < left ? row : left - 1;
    const bool key = lane < TILE_KEYS;
    if (has_scales(key ? run.k_type() : run.v_type())) {
        const u32 scales = key ? run.k_scales : run.v_scales;
        copy_async(stage + run.scales_at() + lane * sizeof(Wide), from + u64{there} * run.stride + scales);
    }
}

// A softmax under way: of query g its largest exponent so far and this lane's part of the weights, and all sums.
template <u32 DIM> struct State {
    float largest, weight;
    Sums<DIM> sums;
};

// Weights from the scores of a tile, whose keys from `seen` on query g does not see.
template <u32 DIM> __device__ inline void weigh(State<DIM> &state, float (&s)[4], const Queries<DIM> &q, u32 seen)
{
    UNROLLED for (u32 k = 0; k < 4; k++) {
        s[k] = key_of(k) < seen ? fused(s[k], q.unit, q.constant) : minus_infinity();
    }
    float largest = larger_of(larger_of(s[0], s[1]), larger_of(s[2], s[3]));
    largest = larger_of(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
    largest = larger_of(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
    largest = larger_of(largest - LIFT, state.largest);
    if (__any_sync(ALL_LANES, largest > state.largest)) {
        const float shrink = largest > state.largest ? approximate_exp2(state.largest - largest) : 1.0f;
        state.largest = largest;
        state.weight *= shrink;
        // Sums have queries 2t and 2t+1, which lanes 8t and 8t+4 know of.
        const u32 lane = threadIdx.x % 4 * 8;
        const float even = __shfl_sync(ALL_LANES, shrink, lane), odd = __shfl_sync(ALL_LANES, shrink, lane + 4);
        UNROLLED for (u32 i = 0; i < DIM / 16; i++) {
            MatrixC &sum = state.sums.part[i / 2][i % 2];
            sum = MatrixC{{sum.value[0] * even, sum.value[1] * odd, sum.value[2] * even, sum.value[3] * odd}};
        }
    }
    // A query that has seen nothing has no largest score to take off: its weights are 2^-infinity.
    const float off = state.largest == minus_infinity() ? 0.0f : state.largest;
    UNROLLED for (u32 k = 0; k < 4; k++) s[k] = approximate_exp2(s[k] - off);
    state.weight += (s[0] + s[1]) + (s[2] + s[3]);
}

// All keys of a run, of which query g sees the first `seen`.
template <u32 DIM>
__device__ inline void attend_run(State<DIM> &state, u32 stage_bytes, Run run, const Queries<DIM> &q, u32 seen, u8 *ring)
{
    constexpr u32 AHEAD = (STAGES - 1) * TILE_KEYS;
    const u32 end = STAGES * stage_bytes;
    __syncwarp(); // the ring may still be read
    // All of the ring but the last stage, which the first round fills; `run` begins with the tile that is worked on.
    for (u32 i = 0; i + 1 < STAGES; i++) {
        if (i * TILE_KEYS < run.len) fetch<DIM>(run, i * TILE_KEYS, ring + i * stage_bytes);
        commit_async();
    }
    for (u32 now = 0;; now = now + stage_bytes == end ? 0 : now + stage_bytes) {
        wait_async<STAGES - 2>();
        __syncwarp(); // of all lanes; and none still reads what is filled next: the stage of the last round
        if (AHEAD < run.len) fetch<DIM>(run, AHEAD, ring + (now == 0 ? end : now) - stage_bytes);
        commit_async();
        u8 *stage = ring + now;
        const u8 *scales = stage + run.scales_at() + run.past();
        const Tile tile{stage, stage + run.v_at(), scales, scales + TILE_KEYS * sizeof(Wide), run.mask()};
        float s[4];
        score<DIM>(s, q, tile, run.k_type());
        weigh<DIM>(state, s, q, seen < run.len ? seen : run.len);
        add_values<DIM>(state.sums, s, tile, run.v_type());
        if (run.len <= TILE_KEYS) break;
        run.len -= TILE_KEYS;
        run.rows += u64{TILE_KEYS} * run.stride;
        seen = seen > TILE_KEYS ? seen - TILE_KEYS : 0;
    }
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

template <u32 DIM> __device__ inline void attention(const Attention &to)
{
    GRANULE_DYNAMIC_SHARED(u8, memory);
    State<DIM> state{minus_infinity(), 0.0f, {}};
    Run run;
    for (u32 from = 0, segment = 0; next_run(to, from, run, segment);) {
        Queries<DIM> q;
        u32 seen;
        {
            const KvSequence &sequence = sequence_of(to);
            Part part;
            part_of(to, sequence, part);
            const Column mine = column_of(to, sequence, part, threadIdx.x % WARP / 4);
            float constant;
            const float *x = query_of(to, sequence, mine, segment, constant);
            load_queries<DIM>(q, x, constant, to.scale, run.k_type());
            seen = keys_seen(sequence, mine);
            seen = seen > from - run.len ? seen - (from - run.len) : 0;
        }
        attend_run<DIM>(state, to.stage_bytes, run, q, seen, memory + threadIdx.x / WARP * STAGES * to.stage_bytes);
    }
    const KvSequence &sequence = sequence_of(to);
    Part part;
    if (!part_of(to, sequence, part)) return;
    const u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const float weight = sum_of_query(state.weight);
    const Column mine = column_of(to, sequence, part, g);
    if (mine.there && t == 0) {
        float *states = to.states + scratch_row(to, sequence, mine, part.split) * 2;
        states[0] = state.largest;
        states[1] = weight;
    }
    UNROLLED for (u32 c = 0; c < 2; c++) {
        const Column column = column_of(to, sequence, part, 2 * t + c);
        if (!column.there) continue;
        float *sums = to.sums + scratch_row(to, sequence, column, part.split) * DIM + 2 * g;
        UNROLLED for (u32 i = 0; i < DIM / 16; i++) {
            const MatrixC &sum = state.sums.part[i / 2][i % 2];
            store(sums + 16 * i, u64{bits_of(sum.value[c])} | u64{bits_of(sum.value[2 + c])} << 32);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_64(Attention to) { attention<64>(to); }

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_128(Attention to) { attention<128>(to); }

// One element of a head in a row.
__device__ inline float element(u32 type, const u8 *quants, const u8 *scales, u32 d)
{
    switch (type) {
    case KV_F32: return load<float>(quants + 4 * d);
    case KV_F16: return to_f32(load<f16>(quants + 2 * d));
    case KV_BF16: return to_f32(load<bf16>(quants + 2 * d));
    default: break;
    }
    const float scale = to_f32(load<f16>(scales + d / BLOCK_LEN * sizeof(f16)));
    if (type == KV_Q8_0) return scale * static_cast<float>(static_cast<i8>(quants[d]));
    const u32 in_block = d % BLOCK_LEN, byte = quants[d / BLOCK_LEN * (BLOCK_LEN / 2) + in_block % 16];
    return scale * static_cast<float>(static_cast<i32>(in_block < 16 ? byte & 15 : byte >> 4) - 8);
}

// Up to HALF queries of a part whose head dimension has no kernel of its own: a key at a time, a lane has dims l, l + 32, ….
constexpr u32 HALF = COLUMNS / 2;

__device__ inline void attend_any(const Attention &to, u32 first)
{
    const u32 lane = threadIdx.x % WARP, head_dim = to.rows.head_dim;
    float largest[HALF], weight[HALF], constant[HALF], sums[HALF][HELD], q[HALF][HELD];
    u32 seen[HALF];
    UNROLLED for (u32 c = 0; c < HALF; c++) {
        largest[c] = minus_infinity();
        weight[c] = 0.0f;
        UNROLLED for (u32 i = 0; i < HELD; i++) sums[c][i] = 0.0f;
    }
    const KvSequence &sequence = sequence_of(to);
    Part part;
    part_of(to, sequence, part);
    Run run;
    for (u32 from = 0, segment = 0; next_run(to, from, run, segment);) {
        UNROLLED for (u32 c = 0; c < HALF; c++) {
            const float *x = query_of(to, sequence, column_of(to, sequence, part, first + c), segment, constant[c]);
            UNROLLED for (u32 i = 0; i < HELD; i++) {
                const u32 d = lane + WARP * i;
                q[c][i] = x != nullptr && d < head_dim ? x[d] * to.scale : 0.0f;
            }
            constant[c] *= to.scale;
            seen[c] = keys_seen(sequence, column_of(to, sequence, part, first + c));
        }
        for (u32 row = 0; row < run.len; row++) {
            const u8 *bytes = run.rows + u64{row} * run.stride;
            float x[HELD], v[HELD];
            UNROLLED for (u32 i = 0; i < HELD; i++) {
                const u32 d = lane + WARP * i;
                x[i] = v[i] = 0.0f;
                if (d >= head_dim) continue;
                x[i] = element(run.k_type(), bytes + run.k, bytes + run.k_scales + run.past(), d);
                v[i] = element(run.v_type(), bytes + run.v, bytes + run.v_scales + run.past(), d);
            }
            UNROLLED for (u32 c = 0; c < HALF; c++) {
                float s = 0.0f;
                UNROLLED for (u32 i = 0; i < HELD; i++) s = fused(q[c][i], x[i], s);
                UNROLLED for (u32 step = 1; step < WARP; step *= 2) s += __shfl_xor_sync(ALL_LANES, s, step);
                // The same for all lanes.
                if (from - run.len + row >= seen[c]) continue;
                s += constant[c];
                const float now = larger_of(largest[c], s), off = now == minus_infinity() ? 0.0f : now;
                const float shrink = approximate_exp2(largest[c] - off), w = approximate_exp2(s - off);
                largest[c] = now;
                weight[c] = fused(weight[c], shrink, w);
                UNROLLED for (u32 i = 0; i < HELD; i++) sums[c][i] = fused(sums[c][i], shrink, w * v[i]);
            }
        }
    }
    UNROLLED for (u32 c = 0; c < HALF; c++) {
        const Column column = column_of(to, sequence, part, first + c);
        if (!column.there) continue;
        const u64 row = scratch_row(to, sequence, column, part.split);
        UNROLLED for (u32 i = 0; i < HELD; i++) {
            const u32 d = lane + WARP * i;
            if (d < head_dim) to.sums[row * head_dim + d] = sums[c][i];
        }
        if (lane == 0) {
            to.states[row * 2] = largest[c];
            to.states[row * 2 + 1] = weight[c];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_any(Attention to)
{
    const KvSequence &sequence = sequence_of(to);
    Part part;
    if (!part_of(to, sequence, part)) return;
    for (u32 first = 0; first < COLUMNS; first += HALF) {
        if (column_of(to, sequence, part, first).there) attend_any(to, first);
    }
}

// What prepares queries.
struct AttentionQueries {
    const KvSequence *sequences;
    const KvSegment *segments;
    const float *q;       // query tokens x heads x head_dim, rotated at their positions
    const float *turns;   // segments x rope_dims: cosine and sine of each segment's turn; null: no segment has one
    KvFold keys;          // the keys' transform
    float *turned;        // for each sequence segments x queries, x heads x head_dim
    float *constants;     // as many heads
    KvRows rows;
    u32 n_sequences, n_heads;
};

extern "C" __global__ void __launch_bounds__(THREADS) attention_queries(AttentionQueries to)
{
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, head_dim = to.rows.head_dim;
    for (u32 s = blockIdx.y; s < to.n_sequences; s += gridDim.y) {
        const KvSequence &sequence = to.sequences[s];
        const u32 items = sequence.segments * sequence.queries * to.n_heads;
        for (u32 item = blockIdx.x * WARPS + warp; item < items; item += gridDim.x * WARPS) {
            const u32 head = item % to.n_heads, kv_head = head / (to.n_heads / to.rows.n_kv_heads);
            const u32 segment = item / to.n_heads / sequence.queries, token = item / to.n_heads % sequence.queries;
            const float *from = to.q + (u64{sequence.first_query + token} * to.n_heads + head) * head_dim;
            const u32 number = sequence.first_segment + segment;
            const bool turns = to.turns != nullptr && to.segments[number].turn != 0;
            float x[HELD], constant = 0.0f;
            UNROLLED for (u32 i = 0; i < HELD; i++) {
                const u32 d = lane + WARP * i;
                x[i] = d < head_dim ? from[d] : 0.0f;
                if (turns && WARP * i < to.rows.rope_dims) {
                    const float other = __shfl_xor_sync(ALL_LANES, x[i], 1);
                    if (d < to.rows.rope_dims) {
                        // Back: by the angle's opposite.
                        const float *turn = to.turns + u64{number} * to.rows.rope_dims + d / 2 * 2;
                        x[i] = d % 2 == 0 ? x[i] * turn[0] + other * turn[1] : x[i] * turn[0] - other * turn[1];
                    }
                }
            }
            if (to.keys.constants != nullptr) {
                UNROLLED for (u32 i = 0; i < HELD; i++) {
                    const u32 d = lane + WARP * i, at = kv_head * head_dim + d;
                    if (d >= head_dim) continue;
                    constant = fused(x[i], to.keys.constants[at], constant);
                    x[i] *= to.keys.inverses[at];
                }
                UNROLLED for (u32 step = 1; step < WARP; step *= 2) {
                    constant += __shfl_xor_sync(ALL_LANES, constant, step);
                }
                hadamard(x, head_dim);
            }
            const u64 row = (u64{sequence.first_turned} + segment * sequence.queries + token) * to.n_heads + head;
            UNROLLED for (u32 i = 0; i < HELD; i++) {
                const u32 d = lane + WARP * i;
                if (d < head_dim) to.turned[row * head_dim + d] = x[i];
            }
            if (lane == 0) to.constants[row] = constant;
        }
    }
}

// What puts splits together.
struct AttentionCombine {
    const float *sums;
    const float *states;
    float *out;    // rows x head_dim
    KvFold values; // the values' transform
    u32 rows, splits, n_heads, n_kv_heads, head_dim, padding;
};

// A block has a row (query token x head), its warps take splits in turn. A row without any weight, because its sequence has no
// keys for it, is zeros. Grid: x over rows, any size.
extern "C" __global__ void __launch_bounds__(THREADS) attention_combine(AttentionCombine to)
{
    __shared__ float part[WARPS][HEAD_MOST];
    __shared__ float weights_of[WARPS];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (u32 row = blockIdx.x; row < to.rows; row += gridDim.x) {
        const float *state = to.states + u64{row} * to.splits * 2;
        float largest = minus_infinity();
        for (u32 i = lane; i < to.splits; i += WARP) largest = larger_of(largest, state[2 * i]);
        UNROLLED for (u32 step = 1; step < WARP; step *= 2) {
            largest = larger_of(largest, __shfl_xor_sync(ALL_LANES, largest, step));
        }
        float x[HELD], weight = 0.0f;
        UNROLLED for (u32 i = 0; i < HELD; i++) x[i] = 0.0f;
        for (u32 split = warp; split < to.splits; split += WARPS) {
            if (state[2 * split + 1] == 0.0f) continue; // no keys; the same for all lanes
            const float factor = approximate_exp2(state[2 * split] - largest);
            weight = fused(state[2 * split + 1], factor, weight);
            const float *from = to.sums + (u64{row} * to.splits + split) * to.head_dim;
            UNROLLED for (u32 i = 0; i < HELD; i++) {
                const u32 d = lane + WARP * i;
                if (d < to.head_dim) x[i] = fused(from[d], factor, x[i]);
            }
        }
        UNROLLED for (u32 i = 0; i < HELD; i++) part[warp][lane + WARP * i] = x[i];
        if (lane == 0) weights_of[warp] = weight;
        __syncthreads();
        if (warp == 0) {
            float all = 0.0f;
            UNROLLED for (u32 w = 0; w < WARPS; w++) all += weights_of[w];
            UNROLLED for (u32 i = 0; i < HELD; i++) {
                x[i] = 0.0f;
                UNROLLED for (u32 w = 0; w < WARPS; w++) x[i] += part[w][lane + WARP * i];
                x[i] = all == 0.0f ? 0.0f : x[i] / all;
            }
            const u32 kv_head = row % to.n_heads / (to.n_heads / to.n_kv_heads);
            if (to.values.constants != nullptr) hadamard(x, to.head_dim);
            UNROLLED for (u32 i = 0; i < HELD; i++) {
                const u32 d = lane + WARP * i, at = kv_head * to.head_dim + d;
                if (d >= to.head_dim) continue;
                if (to.values.constants != nullptr) x[i] = fused(x[i], to.values.inverses[at], to.values.constants[at]);
                to.out[u64{row} * to.head_dim + d] = x[i];
            }
        }
        __syncthreads(); // the next row overwrites the parts
    }
}
