// Causal attention for prompts, on tensor cores: many query tokens at once, straight from the cache's own types.
//
// Any pair of f32, f16, bf16, q8_0, q4_0; head dimensions up to 128, multiples of 8 (of 32 where K or V is quantized).
//
// q and out are query tokens x heads x head_dim, f32, `out` at a multiple of 8; q is rotated at the tokens' positions.
// Grid: x over tiles of 128 rows of queries, as many as the longest sequence has; y: KV heads; z: sequences. Block: 256
// threads, with the dynamic shared memory that `shared_bytes` in the launcher counts.
//
// **Work.** A thread block has 128 rows, a row being one query head of one token: the `group` heads that share a KV head lie
// behind each other, so that each tile of K and V is read once for all of them, whatever the group. Each of its eight warps
// has 16 rows, from scores to output in its registers. The keys come in tiles of 64 tokens:
//
//   step K   raw keys ─ to f16 ─► tile;    s = q k^T;    p = 2^(s - running maximum), rounded to f16
//   step V   raw values ─ to f16 ─► tile;  out += p v;   sum of p += p 1
//
// Raw bytes come by cp.async, a step's while the one before multiplies. f16 rows need no conversion: they come as the tile,
// the sinks too, whose copies have their rows' bits. The sum of the weights is one more product, with ones: of the weights as
// they were rounded, so that they add up to 1.
//
// **Numbers.** Tensor cores take f16, and no value of any type is lost to its range: what is converted is multiplied by a
// power of two first, that brings the largest magnitude of the first tile to 2^10, and a later tile that goes beyond f16 with
// it (or beyond f32: then without it) is measured and converted anew. Weights are 2^LIFT times a softmax's. Q has a power of two for each row. All of them go out exactly, in f32. So an element x is off
// by at most 2^-11 |x| (half a unit of f16's 11 bits) or 2^-35 of the largest magnitude so far; f16's own are exact.
// Scores, maxima, sums and output are f32; what tensor cores promise stands in tensor.cuh.
#include "kv_tile.cuh"

constexpr u32 WARPS = THREADS / WARP;
constexpr u32 WARP_ROWS = 16;
// Rows of queries of a thread block.
constexpr u32 ROWS = 128;
static_assert(ROWS == WARPS * WARP_ROWS);

// What a block knows of K, or of V, from one tile to the next.
struct State {
    float factor; // what elements in the tile are multiplied with; 0: nothing was measured yet
    f16 held;     // the scale that this thread has fetched for the next tile
};

__device__ inline void swap(State &a, State &b)
{
    const State held = a;
    a = b;
    b = held;
}

// What a launch attends to.
struct AttentionPrefill {
    const KvSequence *sequences;
    const KvSegment *segments;
    const float *q;
    const float *turns; // segments x rope_dims: cosine and sine of each segment's turn; null: no segment has one
    KvFold keys, values;
    float *out;
    KvRows rows;
    u32 n_sequences, n_heads;
    float scale; // on scores, above 0, with log2(e)
    u32 padding;
};

// Shared memory. First what each row's scores are multiplied with and what is added to them, the largest magnitude that
// each warp has met, and the scales of K and V; behind them the queries (ROWS x DIM f16) at first, then the tile that is
// converted into, where there is one, and the raw rows of K and of V.
struct Head {
    float factors[ROWS], additions[ROWS];
    float largest[WARPS];
    f16 scales[2][THREADS];
};
static_assert(sizeof(Head) % 16 == 0);

// The largest of all lanes' numbers, for all of them.
__device__ inline float warp_largest(float x)
{
    UNROLLED for (u32 step = 1; step < WARP; step *= 2) x = larger_of(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

__device__ inline float warp_sum(float x)
{
    UNROLLED for (u32 step = 1; step < WARP; step *= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// `hadamard` of kv.cuh for heads of up to DIM, in fewer instructions.
__device__ inline void hadamard(float (&x)[DIM / WARP], u32 head_dim)
{
    const u32 width = head_dim & (0 - head_dim), lane = threadIdx.x % WARP;
    ROLLED for (u32 half = 1; half < WARP && half < width; half *= 2) {
        UNROLLED for (u32 i = 0; i < DIM / WARP; i++) {
            const float other = __shfl_xor_sync(ALL_LANES, x[i], half);
            x[i] = other + ((lane & half) == 0 ? x[i] : -x[i]);
        }
    }
    UNROLLED for (u32 half = 1; half < DIM / WARP; half *= 2) {
        if (half * WARP >= width) break;
        UNROLLED for (u32 i = 0; i < DIM / WARP; i++) {
            if ((i & half) != 0) continue;
            const float low = x[i], high = x[i + half];
            x[i] = low + high;
            x[i + half] = low - high;
        }
    }
}

// The power of two that brings `largest` to between 2^10 and 2^11, at most 2^60; 1 for 0.
__device__ inline float factor_for(float largest)
{
    const i32 exponent = static_cast<i32>(bits_of(largest) >> 23) - 127; // below -126: subnormal
    if (largest == 0.0f) return 1.0f;
    const i32 wanted = 10 - exponent;
    return float_of(static_cast<u32>((wanted > 60 ? 60 : wanted) + 127) << 23);
}

// The warp's 16 rows of queries from row `first` (of `all`) of the sequence's: turned back by the segment's turn, transformed,
// rounded, into its fragments of q. Leaves what products with each row are to be multiplied with and what is to be added, to
// be exponents of two.
__device__ inline void load_queries(MatrixA (&q)[DIM / 16], Head &shared, const AttentionPrefill &to, u32 head,
                                    u32 first_query, u32 first, u32 all, const float *turn)
{
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 head_dim = to.rows.head_dim, group = to.n_heads / to.rows.n_kv_heads;
    u8 *mine = reinterpret_cast<u8 *>(&shared + 1) + warp * WARP_ROWS * DIM * 2;
    ROLLED for (u32 r = 0; r < WARP_ROWS; r++) {
        const u32 row = first + r;
        const float *from = to.q + (u64{first_query + row / group} * to.n_heads + head * group + row % group) * head_dim;
        float x[DIM / WARP] = {}, constant = 0.0f, largest = 0.0f;
        UNROLLED for (u32 i = 0; i < DIM / WARP; i++) {
            const u32 d = i * WARP + lane, at = head * head_dim + d;
            if (row >= all || d >= head_dim) continue;
            x[i] = from[d];
            if (turn != nullptr && d < to.rows.rope_dims) {
                // Back: by the angle's opposite.
                const float across = from[d ^ 1] * turn[d | 1];
                x[i] = x[i] * turn[d & ~1u] + (d % 2 == 0 ? across : -across);
            }
            if (to.keys.constants != nullptr) {
                constant = fused(x[i], to.keys.constants[at], constant);
                x[i] *= to.keys.inverses[at];
            }
        }
        if (to.keys.constants != nullptr) {
            hadamard(x, head_dim);
            constant = warp_sum(constant);
        }
        UNROLLED for (u32 i = 0; i < DIM / WARP; i++) largest = larger_of(largest, magnitude_of(x[i]));
        const float factor = factor_for(warp_largest(largest));
        UNROLLED for (u32 i = 0; i < DIM / WARP; i++) {
            const u32 d = i * WARP + lane;
            store(mine + tile_place(r, d / 8) + d % 8 * 2, to_f16(x[i] * factor));
        }
        if (lane == 0) {
            shared.factors[warp * WARP_ROWS + r] = to.scale / factor;
            shared.additions[warp * WARP_ROWS + r] = to.scale * constant;
        }
    }
    __syncwarp();
    // Matrices 0 and 1 are rows 0 to 7 and 8 to 15 of the first eight columns, 2 and 3 of the next.
    const FragmentPlaces places(mine, lane % 16, lane / 16);
    UNROLLED for (u32 k = 0; k < DIM / 16; k++) load_matrices<4, false>(q[k].word, places.at(0, k));
}

// s = q k^T for the 64 keys of a tile; of heads that are not `whole` the first half.
__device__ inline void multiply_keys(MatrixC (&s)[KEYS / 8], const MatrixA (&q)[DIM / 16], u8 *tile, bool whole)
{
    const u32 lane = threadIdx.x % WARP;
    // Matrices 0 and 1: 16 channels of eight tokens; 2 and 3: of the next eight.
    const FragmentPlaces places(tile, lane / 16 * 8 + lane % 8, lane / 8 % 2);
    UNROLLED for (u32 j = 0; j < KEYS / 8; j++) s[j] = MatrixC{};
    UNROLLED for (u32 k = 0; k < DIM / 16; k++) {
        if (k == DIM / 32 && !whole) break;
        UNROLLED for (u32 j = 0; j < KEYS / 16; j++) {
            u32 word[4];
            load_matrices<4, false>(word, places.at(j, k));
            multiply_add_f16(s[2 * j], q[k], MatrixB{{word[0], word[1]}});
            multiply_add_f16(s[2 * j + 1], q[k], MatrixB{{word[2], word[3]}});
        }
    }
}

// out += p v, and the sums of p; of heads that are not `whole` the first half.
__device__ inline void multiply_values(MatrixC (&out)[DIM / 8], MatrixC &sums, const MatrixA (&p)[KEYS / 16], u8 *tile,
                                       bool whole)
{
    const u32 lane = threadIdx.x % WARP;
    // Matrices 0 and 1: 16 tokens of eight channels; 2 and 3: of the next eight.
    const FragmentPlaces places(tile, lane % 16, lane / 16);
    constexpr u32 ONES = 0x3c003c00;
    UNROLLED for (u32 half = 0; half < 2; half++) {
        if (half == 1 && !whole) break;
        UNROLLED for (u32 k = 0; k < KEYS / 16; k++) {
            UNROLLED for (u32 i = 0; i < DIM / 32; i++) {
                const u32 j = half * (DIM / 32) + i;
                u32 word[4];
                load_matrices<4, true>(word, places.at(k, j));
                multiply_add_f16(out[2 * j], p[k], MatrixB{{word[0], word[1]}});
                multiply_add_f16(out[2 * j + 1], p[k], MatrixB{{word[2], word[3]}});
            }
            if (half == 0) multiply_add_f16(sums, p[k], MatrixB{{ONES, ONES}});
        }
    }
}

// Times one number for each of the thread's two rows.
template <u32 COUNT> __device__ inline void scale_rows(MatrixC (&x)[COUNT], float upper, float lower)
{
    UNROLLED for (u32 j = 0; j < COUNT; j++) {
        x[j].value[0] *= upper;
        x[j].value[1] *= upper;
        x[j].value[2] *= lower;
        x[j].value[3] *= lower;
    }
}

// Two neighbouring elements.
struct alignas(8) Pair {
    float low, high;
};

// The running softmax of a thread's two rows.
struct Softmax {
    float maximum[2];
    float factor[2], addition[2]; // from products to exponents of two
};

// Scores into weights: masks those that row i may not see (columns from limit[i] on), moves the running maxima, rounds the
// weights; gives what sums so far are to be multiplied with.
__device__ inline void weigh(Softmax &softmax, MatrixC (&s)[KEYS / 8], MatrixA (&p)[KEYS / 16], const i32 (&limit)[2],
                             bool masked, float unscale, float (&shrink)[2])
{
    if (masked) {
        UNROLLED for (u32 j = 0; j < KEYS / 8; j++) {
            UNROLLED for (u32 i = 0; i < 4; i++) {
                const i32 column = static_cast<i32>(8 * j + threadIdx.x % 4 * 2 + i % 2);
                if (column >= limit[i / 2]) s[j].value[i] = minus_infinity();
            }
        }
    }
    UNROLLED for (u32 row = 0; row < 2; row++) {
        float most = s[0].value[2 * row];
        UNROLLED for (u32 j = 0; j < KEYS / 8; j++) {
            most = larger_of(most, s[j].value[2 * row]);
            most = larger_of(most, s[j].value[2 * row + 1]);
        }
        UNROLLED for (u32 step = 1; step < 4; step *= 2) {
            most = larger_of(most, __shfl_xor_sync(ALL_LANES, most, step));
        }
        // The factor is above 0, so the largest product gives the largest score.
        const float factor = softmax.factor[row] * unscale;
        const float maximum = larger_of(softmax.maximum[row], fused(most, factor, softmax.addition[row]));
        const float less = softmax.addition[row] - maximum + LIFT;
        shrink[row] = approximate_exp2(softmax.maximum[row] - maximum);
        softmax.maximum[row] = maximum;
        UNROLLED for (u32 j = 0; j < KEYS / 8; j++) {
            // Fragments 2k and 2k+1 of c are words of the one a of 16 columns.
            p[j / 2].word[j % 2 * 2 + row] = to_f16_pair(approximate_exp2(fused(s[j].value[2 * row], factor, less)),
                                                         approximate_exp2(fused(s[j].value[2 * row + 1], factor, less)));
        }
    }
}

// One tile of rows of one sequence for one KV head.
__device__ inline void attend(const AttentionPrefill &to, const KvSequence &sequence, u32 head, u32 tile, u8 *memory)
{
    const KvRows &rows = to.rows;
    const u32 group = to.n_heads / rows.n_kv_heads;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    Head &shared = *reinterpret_cast<Head *>(memory);
    const bool whole = rows.head_dim > DIM / 2;
    u8 *const converted = memory + sizeof(Head);
    // The keys' raw rows lie behind the tile, the values' behind those.
    const bool converts = rows.k_type != KV_F16 || rows.v_type != KV_F16;
    u8 *const raw_keys = converted + (converts ? TILE_BYTES : 0);
    const u32 values_behind = Plane(rows, true, head).raw_bytes();
    const auto raw_of = [&](bool keys) { return raw_keys + (keys ? 0 : values_behind); };

    const u32 all = sequence.queries * group; // rows of queries
    // Tokens that row r sees: those before its own, and that.
    const auto seen_by = [&](u32 r) { return sequence.rows - sequence.queries + r / group + 1; };
    const u32 last = (tile + 1) * ROWS < all ? (tile + 1) * ROWS : all;
    const u32 seen_by_all = seen_by(tile * ROWS), seen = seen_by(last - 1);
    const u32 first = tile * ROWS + warp * WARP_ROWS;
    const bool idle = first >= all; // of the warp
    const u32 seen_by_row[2] = {seen_by(first + lane / 4), seen_by(first + lane / 4 + 8)};
    const u32 seen_by_warp = idle ? 0 : seen_by(first + WARP_ROWS <= all ? first + WARP_ROWS - 1 : all - 1);

    MatrixA q[DIM / 16];
    MatrixC sum[DIM / 8], weights{};
    UNROLLED for (u32 j = 0; j < DIM / 8; j++) sum[j] = MatrixC{};
    Softmax softmax{{minus_infinity(), minus_infinity()}, {0.0f, 0.0f}, {0.0f, 0.0f}};
    State now{0.0f, f16{0}}, next = now; // of this step and the next: the keys', then the values'
    i32 turn = 0;
    bool queried = false;

    ROLLED for (u32 i = 0; i < sequence.segments; i++) {
        const KvSegment &segment = to.segments[sequence.first_segment + i];
        if (segment.start >= seen) break;
        const u32 tokens = segment.len < seen - segment.start ? segment.len : seen - segment.start;
        if (tokens == 0) continue;
        __syncthreads(); // what came before has left the shared memory
        if (!queried || turn != segment.turn) {
            const float *angles = segment.turn != 0 ? to.turns + u64{sequence.first_segment + i} * rows.rope_dims : nullptr;
            load_queries(q, shared, to, head, sequence.first_query, first, all, angles);
            UNROLLED for (u32 k = 0; k < 2; k++) {
                softmax.factor[k] = shared.factors[warp * WARP_ROWS + lane / 4 + k * 8];
                softmax.addition[k] = shared.additions[warp * WARP_ROWS + lane / 4 + k * 8];
            }
            queried = true;
            turn = segment.turn;
            __syncthreads();
        }

        const u8 *start = sequence.base + rows.rows_at + u64{segment.row} * rows.stride;
        const u32 steps = 2 * ((tokens + KEYS - 1) / KEYS); // the keys' and the values' of each tile
        const auto begin = [&](u32 step, const Plane &plane, State &state) {
            if (step >= steps) return;
            const u32 at = step / 2 * KEYS, n = tokens - at < KEYS ? tokens - at : KEYS;
            state.held = fetch(raw_of(step % 2 == 0), plane, start + at * rows.stride, rows.stride, n, rows.head_dim);
        };
        // What a step starts is one group of copies where the tile comes as it is, and another where it is converted: so
        // each step has two, perhaps empty, and waits for all but the latest.
        ROLLED for (u32 step = 0; step < 2; step++, swap(now, next)) {
            const Plane plane(rows, step == 0, head);
            if (step == 0 || !plane.direct()) begin(step, plane, now);
            commit_async();
        }

        MatrixA p[KEYS / 16];
        float shrink[2] = {1.0f, 1.0f};
        ROLLED for (u32 step = 0; step < steps; step++, swap(now, next)) {
            const u32 at = step / 2 * KEYS, n = tokens - at < KEYS ? tokens - at : KEYS, token = segment.start + at;
            const bool keys = step % 2 == 0;
            const Plane plane(rows, keys, head), other(rows, !keys, head);
            float grow = 1.0f; // of what values are multiplied with
            wait_async<1>();
            if (has_scales(plane.type)) shared.scales[step % 2][threadIdx.x] = now.held;
            __syncthreads();
            // Everybody is done with the tile of the step before: where it had come as it is, the next may follow.
            if (other.direct()) begin(step + 1, other, next);
            commit_async();
            if (!plane.direct()) {
                const u32 row = segment.row + at;
                const u64 sink_stride = u64{rows.n_kv_heads} * rows.head_dim * 2;
                const u8 *sinks = sequence.base + (keys ? rows.sink_k : rows.sink_v) + head * rows.head_dim * 2;
                const Source from{plane,
                                  raw_of(keys),
                                  shared.scales[step % 2],
                                  sinks + row * sink_stride,
                                  sink_stride,
                                  rows.head_dim,
                                  n,
                                  row < rows.sink_rows ? rows.sink_rows - row : 0};
                const bool first_tile = now.factor == 0.0f;
                float factor = first_tile ? 1.0f : now.factor;
                bool measured = false;
                ROLLED for (;;) {
                    const float largest = convert(converted, from, factor);
                    if (__syncthreads_or(!measured && !(factor == now.factor && largest < 60000.0f)) == 0) break;
                    // Rare: the first tile, or one that does not fit into f16 as those before did.
                    const float most = warp_largest(largest);
                    if (lane == 0) shared.largest[warp] = most;
                    __syncthreads();
                    float all_of = shared.largest[0];
                    UNROLLED for (u32 k = 1; k < WARPS; k++) all_of = larger_of(all_of, shared.largest[k]);
                    if (all_of == -minus_infinity() && factor != 1.0f) {
                        factor = 1.0f; // beyond f32: measured as it is
                        continue;
                    }
                    factor = factor_for(all_of / factor);
                    if (!first_tile) grow = factor / now.factor;
                    now.factor = factor;
                    measured = true;
                }
                begin(step + 2, plane, now);
            }
            commit_async();

            u8 *ready = plane.direct() ? raw_of(keys) : converted;
            const bool sees = token < seen_by_warp; // the same for all lanes
            if (keys && !sees) {
                shrink[0] = shrink[1] = 1.0f;
            } else if (keys) {
                MatrixC s[KEYS / 8];
                multiply_keys(s, q, ready, whole);
                i32 limit[2];
                UNROLLED for (u32 k = 0; k < 2; k++) {
                    const i32 columns = static_cast<i32>(seen_by_row[k] - token);
                    limit[k] = columns < static_cast<i32>(n) ? columns : static_cast<i32>(n);
                }
                const bool masked = n < KEYS || token + KEYS > seen_by_all;
                weigh(softmax, s, p, limit, masked, plane.direct() ? 1.0f : 1.0f / now.factor, shrink);
                weights.value[0] *= shrink[0]; // the others are the same again
                weights.value[2] *= shrink[1];
            } else {
                shrink[0] *= grow;
                shrink[1] *= grow;
                if (__any_sync(ALL_LANES, shrink[0] != 1.0f || shrink[1] != 1.0f)) scale_rows(sum, shrink[0], shrink[1]);
                if (sees) multiply_values(sum, weights, p, ready, whole);
            }
        }
    }

    if (idle) return;
    // An even number of steps: the values are `next`.
    const float unscale = rows.v_type == KV_F16 ? 1.0f : 1.0f / next.factor;
    scale_rows(sum, unscale / weights.value[0], unscale / weights.value[2]);
    const auto place = [&](u32 r) {
        const u64 token = sequence.first_query + r / group;
        return to.out + (token * to.n_heads + head * group + r % group) * rows.head_dim;
    };
    UNROLLED for (u32 k = 0; k < 2; k++) {
        const u32 row = first + lane / 4 + k * 8;
        if (row >= all) continue;
        float *out = place(row) + lane % 4 * 2;
        UNROLLED for (u32 j = 0; j < DIM / 8; j++) {
            if (8 * j < rows.head_dim) store(out + 8 * j, Pair{sum[j].value[2 * k], sum[j].value[2 * k + 1]});
        }
    }
    if (to.values.constants == nullptr) return;
    // Back from the transform, a row at a time.
    __syncwarp();
    ROLLED for (u32 r = first; r < first + WARP_ROWS && r < all; r++) {
        float *out = place(r), x[DIM / WARP] = {};
        UNROLLED for (u32 i = 0; i < DIM / WARP; i++) {
            if (i * WARP + lane < rows.head_dim) x[i] = out[i * WARP + lane];
        }
        hadamard(x, rows.head_dim);
        UNROLLED for (u32 i = 0; i < DIM / WARP; i++) {
            const u32 d = i * WARP + lane, at = head * rows.head_dim + d;
            if (d < rows.head_dim) out[d] = fused(x[i], to.values.inverses[at], to.values.constants[at]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_prefill(AttentionPrefill to)
{
    GRANULE_DYNAMIC_SHARED(u8, memory);
    const KvSequence &sequence = to.sequences[blockIdx.z];
    const u32 tiles = (sequence.queries * (to.n_heads / to.rows.n_kv_heads) + ROWS - 1) / ROWS;
    // The last tiles see most: they begin first.
    if (blockIdx.x < tiles) attend(to, sequence, blockIdx.y, tiles - 1 - blockIdx.x, memory);
}
