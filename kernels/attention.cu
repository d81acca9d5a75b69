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
// What a warp does with a tile is in attend.cuh, whose work is whose in attend_parts.cuh. A warp reads K and V once for its 8 queries: all query heads of a group of up to 8, one
// token; more of either are further warps, neighbours in the grid, which find the rows in the cache of their SM or the
// device. Rows come into a ring of shared memory that is the warp's own, in pieces of 16 bytes, two tiles of 16 keys ahead of
// the one that is worked on; no two warps wait for each other. Neighbouring warps of a block have neighbouring heads of the
// same rows, so that what a 32-byte sector holds for two heads (scales, short rows of 4 bits) is read once.
//
// Any order of keys, and so any number of splits, gives the same sum to within rounding; the bound that tests hold it to
// stands in `granule_ops::attention::cuda`.
#include "attend_parts.cuh"

constexpr u32 WARPS = THREADS / WARP;
// Tiles in a warp's ring: one is worked on, the others are under way.
constexpr u32 STAGES = 3;
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
        // No further than this head's: what pads a plane behind the last head's was never written.
        const u32 valid = run.past() + DIM / BLOCK_LEN * u32{sizeof(f16)};
        copy_async(stage + run.scales_at() + lane * sizeof(Wide), from + u64{there} * run.stride + scales, valid);
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
    const KvSequence *sequences;
    const float *sums;
    const float *states;
    float *out;    // rows x head_dim
    KvFold values; // the values' transform
    u32 splits, n_heads, n_kv_heads, head_dim;
};

// A block has a row (query token x head), its warps take splits in turn, four of them under way at once: what one loads does
// not wait for what another has summed up. A row without any weight, because its sequence has no keys for it, is zeros. Grid:
// x over rows of a sequence, any size; y is the sequence.
extern "C" __global__ void __launch_bounds__(THREADS) attention_combine(AttentionCombine to)
{
    constexpr u32 AT_ONCE = 4, PAIRS = HELD / 2; // a lane sums up elements 2l, 2l+1, 2l+64, ...
    __shared__ __align__(8) float part[WARPS][HEAD_MOST];
    __shared__ float weights_of[WARPS];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const KvSequence &sequence = to.sequences[blockIdx.y];
    for (u32 item = blockIdx.x; item < sequence.queries * to.n_heads; item += gridDim.x) {
        const u64 row = u64{sequence.first_query} * to.n_heads + item;
        const float *state = to.states + row * to.splits * 2;
        float largest = minus_infinity();
        for (u32 i = lane; i < to.splits; i += WARP) largest = larger_of(largest, state[2 * i]);
        UNROLLED for (u32 step = 1; step < WARP; step *= 2) {
            largest = larger_of(largest, __shfl_xor_sync(ALL_LANES, largest, step));
        }
        Two sum[PAIRS] = {};
        float weight = 0.0f;
        for (u32 first = warp; first < to.splits; first += AT_ONCE * WARPS) {
            float factor[AT_ONCE];
            Two x[AT_ONCE][PAIRS];
            UNROLLED for (u32 k = 0; k < AT_ONCE; k++) {
                const u32 split = first + k * WARPS;
                const bool there = split < to.splits;
                const float of_split = there ? state[2 * split + 1] : 0.0f;
                // No keys: no largest score to take off, and zeros.
                factor[k] = of_split == 0.0f ? 0.0f : approximate_exp2(state[2 * split] - largest);
                weight = fused(of_split, factor[k], weight);
                const float *from = to.sums + (row * to.splits + split) * to.head_dim;
                UNROLLED for (u32 i = 0; i < PAIRS; i++) {
                    const u32 d = 2 * lane + 2 * WARP * i;
                    x[k][i] = there && d < to.head_dim ? load<Two>(from + d) : Two{};
                }
            }
            UNROLLED for (u32 k = 0; k < AT_ONCE; k++) {
                UNROLLED for (u32 i = 0; i < 2 * PAIRS; i++) {
                    float &all = sum[i / 2].x[i % 2];
                    all = fused(x[k][i / 2].x[i % 2], factor[k], all);
                }
            }
        }
        UNROLLED for (u32 i = 0; i < PAIRS; i++) store(&part[warp][2 * lane + 2 * WARP * i], sum[i]);
        if (lane == 0) weights_of[warp] = weight;
        __syncthreads();
        if (warp == 0) {
            float x[HELD], all = 0.0f;
            UNROLLED for (u32 w = 0; w < WARPS; w++) all += weights_of[w];
            UNROLLED for (u32 i = 0; i < HELD; i++) {
                x[i] = 0.0f;
                UNROLLED for (u32 w = 0; w < WARPS; w++) x[i] += part[w][lane + WARP * i];
                x[i] = all == 0.0f ? 0.0f : x[i] / all;
            }
            const u32 kv_head = item % to.n_heads / (to.n_heads / to.n_kv_heads);
            if (to.values.constants != nullptr) hadamard(x, to.head_dim);
            UNROLLED for (u32 i = 0; i < HELD; i++) {
                const u32 d = lane + WARP * i, at = kv_head * to.head_dim + d;
                if (d >= to.head_dim) continue;
                if (to.values.constants != nullptr) x[i] = fused(x[i], to.values.inverses[at], to.values.constants[at]);
                to.out[row * to.head_dim + d] = x[i];
            }
        }
        __syncthreads(); // the next row overwrites the parts
    }
}
