// Products of weights with the activations of a few tokens: out[t][r] = sum_c w[r][c] * x[t][c], or that added to what is there.
//
// Reading the weights is what takes the time, so all is arranged around it. Weights lie in planes (weights.cuh), activations in
// a form (`granule_ops::activate`): quantized weights meet fixed-point numbers of 16 bits in two signed bytes, 32 of them with a
// scale, float weights meet f32. Up to four matrices of one type and one length of rows go into one launch.
//
//   matvec_<type>_1    one token. A warp takes 4 rows, a lane a run of 32 elements (16 bytes of floats) of each: its loads are
//                      16 bytes wide (8 where codes have 2 low bits) and all under way before the first one is needed, and
//                      activations are read once for 4 rows. Bytes meet by dp4a
//   matvec_<type>_8    up to 8 tokens, more in passes, with quantized weights. 16 rows a block, whose warps take 4 runs in turn;
//                      bytes meet on tensor cores, 16 rows with 8 tokens, and lanes find the words that they need there as
//                      they lie in the planes
//   matvec_<type>_4    up to 4 tokens, more in passes, with floats: as for one, each weight with 4 numbers
//
// How rows are split over warps follows from the matrix's shape alone, and sums are added in one order: a result depends neither
// on the grid nor on what else is in the launch. Its error is that of sums in f32; `granule_ops::product` states the bound.
//
// What limits it, by count (ptxas 13.0 for sm_90; nothing has been measured): an H200 reads about 18 bytes a cycle and
// multiprocessor, for which 23 KiB have to be under way at a latency of 700 ns; the 24 warps that registers leave room for ask for
// 2 KiB each. It issues 128 lane-instructions in that cycle. The loops need, for each 32 elements:
//
//                  Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS IQ2_XXS    F32 F16 BF16
//   bytes          34   18   20   22   24   10.5 14   18.5 22.5 26   18     17     13         128 64  64
//   one token      35   46   47   64   67   75   82   58   76   79   90     97     78         88  100 100
//   up to 8        96   104  118  124  135  182  180  124  135  174  140    140    129        (4: 206, 234, 234)
//
// One token waits for memory with every type, with Q2_K only just. 8 tokens do down to 4.5 bits; types of 2 and
// 3 bits take 1.4 to 2.4 times as long with them, the uneven ones 1.1 times. (The last line was counted before numbers beyond the
// last run were those of the last run again; by the size of the code that is up to a tenth more.)
//
// Grid: x over the tiles of a job (its rows, see `MatvecJob`), any number does all of them; y over jobs. Block: 256 threads.
#include "tensor_s8.cuh"
#include "weights.cuh"
#include "rows.cuh"

constexpr u32 WARPS = THREADS / WARP;
// Rows of a warp where lanes take runs, and of a block where tensor cores do.
constexpr u32 WARP_ROWS = 4, TILE_ROWS = 16;
// Tokens that meet a weight at once, and a float.
constexpr u32 PASS = 8, FLOAT_PASS = 4;
// Matrices of a launch.
constexpr u32 JOBS = 4;
// Runs that a warp takes at a time for tensor cores: one for each lane of four.
constexpr u32 CHUNK = 4;

// One matrix, and where its product goes.
struct MatvecJob {
    Planes planes; // of floats: `low`, the rows
    float *out;    // tokens x rows
    u32 rows;
    u32 tiles; // rows by WARP_ROWS * (WARPS >> split), or by TILE_ROWS
    u32 split; // the warps that share a row are 1 << split, at most WARPS
    u32 adds;  // not 0: out += instead of out =
};

// The parameter of all kernels.
struct Matvec {
    MatvecJob jobs[JOBS];
    // Parts of the activations. Fixed: high and low bytes (tokens x cols), scales (f32, tokens x runs), sums (tokens x runs x 2
    // i32: of 32 numbers, of the first 16). F32: the numbers, tokens x stride.
    const u8 *x[4];
    u32 tokens;
    u32 pieces; // of a row: runs of 32 elements, or 16 bytes of floats
    u32 stride; // of float activations, elements, a multiple of 4
    u32 zero;   // 0, which no compiler knows: see `entries_of`
};
static_assert(sizeof(Matvec) == JOBS * 56 + 4 * 8 + 4 * 4);

// Adds up the lanes' `sum`s, each apart. A lane answers the one whose number is its upper bits, in N parts of the warp.
template <u32 N, u32 DISTANCE = WARP / 2> __device__ inline float over_lanes(const float (&sum)[N])
{
    if constexpr (N > 1) {
        // Of a pair of lanes one goes on with the lower half of the sums and one with the upper.
        const bool upper = (threadIdx.x & DISTANCE) != 0;
        float half[N / 2];
        UNROLLED for (u32 i = 0; i < N / 2; i++) {
            const float give = upper ? sum[i] : sum[i + N / 2], keep = upper ? sum[i + N / 2] : sum[i];
            half[i] = keep + __shfl_xor_sync(ALL_LANES, give, static_cast<int>(DISTANCE));
        }
        return over_lanes<N / 2, DISTANCE / 2>(half);
    } else {
        float all = sum[0];
        UNROLLED for (u32 distance = DISTANCE; distance > 0; distance /= 2) {
            all = all + __shfl_xor_sync(ALL_LANES, all, static_cast<int>(distance));
        }
        return all;
    }
}

// Puts a result where it goes.
__device__ inline void put(const MatvecJob &job, u32 token, u32 row, float sum)
{
    float *out = job.out + (u64{token} * job.rows + row);
    *out = job.adds != 0 ? *out + sum : sum;
}

// Rows by lanes: what float and quantized weights have in common. `take(planes, rows, token, first, step, sum)` adds up this
// lane's part of WARP_ROWS rows with TOKENS tokens, pieces `first`, `first + step` and so on; rows and tokens beyond the last
// are the last one, and not written.
template <u32 TOKENS, typename Take> __device__ inline void by_lanes(const Matvec &to, Take take)
{
    constexpr u32 SUMS = WARP_ROWS * TOKENS, SHARE = WARP / SUMS; // lanes that end up with the same sum
    __shared__ float parts[WARPS * SUMS];
    const MatvecJob &job = to.jobs[blockIdx.y];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, split = job.split, last = job.rows - 1;
    const u32 tile_rows = WARP_ROWS * WARPS >> split;
    // Where a result is put together: neighbouring threads have neighbouring rows.
    constexpr u32 MOST_ROWS = WARP_ROWS * WARPS, MOST_SHIFT = 5; // rows of a tile where none is split, as a power of two
    static_assert(1u << MOST_SHIFT == MOST_ROWS);
    const u32 of_tile = threadIdx.x & (tile_rows - 1);
    const u32 t = (threadIdx.x / MOST_ROWS << split) + (threadIdx.x % MOST_ROWS >> (MOST_SHIFT - split));
    for (u32 tile = blockIdx.x; tile < job.tiles; tile += gridDim.x) {
        const u32 first = tile * tile_rows, row = first + (warp >> split) * WARP_ROWS;
        u32 rows[WARP_ROWS];
        UNROLLED for (u32 r = 0; r < WARP_ROWS; r++) rows[r] = row + r < last ? row + r : last;
        for (u32 token = 0; token < to.tokens; token += TOKENS) {
            float sum[SUMS];
            UNROLLED for (u32 i = 0; i < SUMS; i++) sum[i] = 0.0f;
            const u32 part = warp & ((1u << split) - 1);
            take(job.planes, rows, token, part * WARP + lane, WARP << split, sum);

            const float all = over_lanes<SUMS>(sum);
            if (lane % SHARE == 0) parts[warp * SUMS + lane / SHARE] = all;
            __syncthreads();
            if (t < TOKENS && token + t < to.tokens && first + of_tile <= last) {
                const float *from = parts + (of_tile / WARP_ROWS << split) * SUMS + of_tile % WARP_ROWS * TOKENS + t;
                float total = from[0];
                ROLLED for (u32 w = 1; w < 1u << split; w++) total = total + from[w * SUMS];
                put(job, token + t, first + of_tile, total);
            }
            __syncthreads(); // what comes next overwrites the parts
            if (TOKENS == 1) break;
        }
    }
}

// The sums of run `run` of the activations: of all of it, or of both halves.
template <u32 PARTS> __device__ inline void load_sums(const u8 *sums, u64 run, i32 (&to)[PARTS])
{
    const HalfWide both = load<HalfWide>(sums + run * sizeof(HalfWide));
    to[0] = static_cast<i32>(both.word[0]);
    if constexpr (PARTS == 2) {
        to[1] = to[0] - static_cast<i32>(both.word[1]);
        to[0] = static_cast<i32>(both.word[1]);
    }
}

// One token with quantized weights.
template <typename T> __device__ inline void matvec_one(const Matvec &to)
{
    constexpr bool SIGNED = T::ENTRIES != 0;
    constexpr u32 PARTS = T::SCALES == HALVES ? 2 : 1, WORDS = 8 / PARTS; // of a run, with a scale each
    const u32 zero = to.zero & threadIdx.x; // of each thread its own, so that it is in no uniform register
    by_lanes<1>(to, [&](const Planes &planes, const u32 (&rows)[WARP_ROWS], u32, u32 first, u32 step, float (&sum)[WARP_ROWS]) {
        for (u32 run = first; run < to.pieces; run += step) {
            RunBits<T> bits[WARP_ROWS];
            UNROLLED for (u32 r = 0; r < WARP_ROWS; r++) bits[r] = load_bits<T, true>(planes, rows[r] * to.pieces + run);

            u32 high[8], low[8];
            load_words<false>(to.x[0] + u64{run} * BLOCK_LEN, high);
            load_words<false>(to.x[1] + u64{run} * BLOCK_LEN, low);
            const float d = load<float>(to.x[2] + u64{run} * sizeof(float));
            i32 sums[PARTS];
            if constexpr (T::OFFSET != 0 || T::MINIMUM) load_sums(to.x[3], run, sums);
            UNROLLED for (u32 r = 0; r < WARP_ROWS; r++) {
                u32 code[8];
                codes_of<T>(bits[r], code, zero);
                UNROLLED for (u32 p = 0; p < PARTS; p++) {
                    i32 of_high = 0, of_low = 0;
                    UNROLLED for (u32 n = p * WORDS; n < (p + 1) * WORDS; n++) {
                        of_high = dot_bytes<SIGNED>(code[n], high[n], of_high);
                        of_low = dot_bytes<SIGNED>(code[n], low[n], of_low);
                    }
                    i32 dot = of_high * 256 + of_low;
                    if constexpr (T::OFFSET != 0) dot -= static_cast<i32>(T::OFFSET) * sums[p];
                    sum[r] = fused(static_cast<float>(dot), scale_of<T>(bits[r], p) * d, sum[r]);
                    if constexpr (T::MINIMUM) {
                        sum[r] = fused(static_cast<float>(sums[p]) * d, minimum_of<T>(bits[r], p), sum[r]);
                    }
                }
            }
        }
    });
}

// Tokens with float weights.
template <typename Float, u32 TOKENS> __device__ inline void matvec_floats(const Matvec &to)
{
    constexpr u32 COUNT = Floats<Float>::COUNT; // elements of 16 bytes
    using Sums = float[WARP_ROWS * TOKENS];
    by_lanes<TOKENS>(to, [&](const Planes &planes, const u32 (&rows)[WARP_ROWS], u32 token, u32 first, u32 step, Sums &sum) {
        for (u32 piece = first; piece < to.pieces; piece += step) {
            Wide wide[WARP_ROWS];
            UNROLLED for (u32 r = 0; r < WARP_ROWS; r++) {
                wide[r] = load_once<Wide>(planes.low + (u64{rows[r]} * to.pieces + piece) * sizeof(Wide));
            }
            UNROLLED for (u32 t = 0; t < TOKENS; t++) {
                const u32 of_token = token + t < to.tokens ? token + t : to.tokens - 1;
                const u8 *x = to.x[0] + u64{of_token} * to.stride * sizeof(float);
                UNROLLED for (u32 i = 0; i < COUNT; i += 4) {
                    // Weights of the last piece end with zeros, numbers with the row.
                    const u32 at = piece * COUNT + i;
                    const Wide four = i == 0 || at < to.stride ? load<Wide>(x + u64{at} * sizeof(float)) : Wide{};
                    UNROLLED for (u32 r = 0; r < WARP_ROWS; r++) {
                        UNROLLED for (u32 k = 0; k < 4; k++) {
                            const float w = Floats<Float>::get(wide[r], i + k);
                            sum[r * TOKENS + t] = fused(w, float_of(four.word[k]), sum[r * TOKENS + t]);
                        }
                    }
                }
            }
        }
    });
}

// What a lane of a chunk of runs has beside codes and numbers: of run q, which it gives to the lanes that need it. With scales for
// halves a run has two parts.
template <typename T> struct LaneScales {
    static constexpr u32 PARTS = T::SCALES == HALVES ? 2 : 1;
    float scale[2][PARTS], minimum[2][PARTS]; // of both rows
    float d;                                  // of token g, and what its numbers' sums make of
    i32 less[PARTS];                          // the offset: what it takes off products
    float added[PARTS];                       // minimums: what these are multiplied by
};

// Reads them of runs of two rows and a run of activations. A run that is not there has scales of zero.
template <typename T>
__device__ inline LaneScales<T> load_lane_scales(const Matvec &to, const Planes &planes, const u32 (&runs)[2], u64 x, bool there)
{
    LaneScales<T> of;
    UNROLLED for (u32 i = 0; i < 2; i++) {
        RunBits<T> bits;
        load_scales<T>(planes, runs[i], bits);
        if (!there) bits.d = 0;
        UNROLLED for (u32 p = 0; p < of.PARTS; p++) {
            of.scale[i][p] = scale_of<T>(bits, p);
            of.minimum[i][p] = minimum_of<T>(bits, p);
        }
    }
    of.d = load<float>(to.x[2] + x * sizeof(float));
    if constexpr (T::OFFSET != 0 || T::MINIMUM) {
        i32 sums[of.PARTS];
        load_sums(to.x[3], x, sums);
        UNROLLED for (u32 p = 0; p < of.PARTS; p++) {
            of.less[p] = -static_cast<i32>(T::OFFSET) * sums[p];
            of.added[p] = static_cast<float>(sums[p]) * of.d;
        }
    }
    return of;
}

// Adds what run `j` of a chunk gives: `code` are code words q and q + 4 of both rows, `high` and `low` the bytes of token g.
template <typename T>
__device__ inline void multiply_run(const LaneScales<T> &of, u32 j, const u32 (&code)[2][2], const MatrixB &high,
                                    const MatrixB &low, float (&sum)[4])
{
    // Lanes that have the run's scales: of rows g and g + 8, of tokens 2q and 2q + 1.
    const u32 lane = threadIdx.x % WARP;
    const int of_row = static_cast<int>(lane / 4 * 4 + j);
    const int of_token[2] = {static_cast<int>(lane % 4 * 8 + j), static_cast<int>(lane % 4 * 8 + 4 + j)};
    float d[2];
    UNROLLED for (u32 k = 0; k < 2; k++) d[k] = __shfl_sync(ALL_LANES, of.d, of_token[k]);
    UNROLLED for (u32 p = 0; p < of.PARTS; p++) {
        // Of a part the elements of the other one are zero.
        const bool first = of.PARTS == 1 || p == 0, second = of.PARTS == 1 || p == 1;
        const MatrixA a{{first ? code[0][0] : 0, first ? code[1][0] : 0, second ? code[0][1] : 0, second ? code[1][1] : 0}};
        MatrixC32 dot{{0, 0, 0, 0}};
        multiply_add_bytes<T::ENTRIES != 0>(dot, a, high);
        UNROLLED for (u32 k = 0; k < 2; k++) {
            i32 begin = 0;
            if constexpr (T::OFFSET != 0) begin = __shfl_sync(ALL_LANES, of.less[p], of_token[k]);
            UNROLLED for (u32 i = 0; i < 2; i++) dot.value[2 * i + k] = dot.value[2 * i + k] * 256 + begin;
        }
        multiply_add_bytes<T::ENTRIES != 0>(dot, a, low);
        float added[2] = {0.0f, 0.0f};
        if constexpr (T::MINIMUM) {
            UNROLLED for (u32 k = 0; k < 2; k++) added[k] = __shfl_sync(ALL_LANES, of.added[p], of_token[k]);
        }
        UNROLLED for (u32 i = 0; i < 2; i++) {
            const float scale = __shfl_sync(ALL_LANES, of.scale[i][p], of_row);
            float minimum = 0.0f;
            if constexpr (T::MINIMUM) minimum = __shfl_sync(ALL_LANES, of.minimum[i][p], of_row);
            UNROLLED for (u32 k = 0; k < 2; k++) {
                float &to = sum[2 * i + k];
                to = fused(static_cast<float>(dot.value[2 * i + k]), scale * d[k], to);
                if constexpr (T::MINIMUM) to = fused(added[k], minimum, to);
            }
        }
    }
}

// Up to 8 tokens with quantized weights.
template <typename T> __device__ inline void matvec_tile(const Matvec &to)
{
    __shared__ float parts[WARPS][PASS][TILE_ROWS];
    // Of matrices on tensor cores this lane has rows g and g + 8 with tokens 2q and 2q + 1; it reads of token g.
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, q = lane % 4, runs = to.pieces;
    const MatvecJob &job = to.jobs[blockIdx.y];
    for (u32 tile = blockIdx.x; tile < job.tiles; tile += gridDim.x) {
        const u32 first = tile * TILE_ROWS;
        u32 start[2]; // of both rows, their runs
        UNROLLED for (u32 i = 0; i < 2; i++) {
            const u32 row = first + g + 8 * i;
            start[i] = (row < job.rows ? row : job.rows - 1) * runs;
        }
        for (u32 token = 0; token < to.tokens; token += PASS) {
            const u64 x_start = u64{token + g < to.tokens ? token + g : to.tokens - 1} * runs;
            float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            for (u32 chunk = warp * CHUNK; chunk < runs; chunk += WARPS * CHUNK) {
                // Codes beyond the last run are those of what comes next, inside the tensor because other planes follow; numbers are
                // those of the last run again. Their scales are zero.
                LaneBits<T> bits[2][CHUNK];
                UNROLLED for (u32 i = 0; i < 2; i++) load_lane_bits<T>(job.planes, start[i] + chunk, q, bits[i]);
                const bool there = chunk + q < runs;
                const u32 mine = there ? chunk + q : runs - 1;
                const LaneScales<T> of = load_lane_scales<T>(to, job.planes, {start[0] + mine, start[1] + mine}, x_start + mine, there);
                const u32 last = runs - 1 - chunk;
                UNROLLED for (u32 j = 0; j < CHUNK; j++) {
                    const u64 at = (x_start + chunk + (j < last ? j : last)) * BLOCK_LEN + 4 * q;
                    const u8 *at_high = to.x[0] + at, *at_low = to.x[1] + at;
                    const MatrixB high{{load<u32>(at_high), load<u32>(at_high + BLOCK_LEN / 2)}};
                    const MatrixB low{{load<u32>(at_low), load<u32>(at_low + BLOCK_LEN / 2)}};
                    u32 code[2][2];
                    UNROLLED for (u32 i = 0; i < 2; i++) lane_codes<T>(bits[i][j], q, code[i]);
                    multiply_run<T>(of, j, code, high, low, sum);
                }
            }
            UNROLLED for (u32 v = 0; v < 4; v++) parts[warp][2 * q + v % 2][g + v / 2 * 8] = sum[v];
            __syncthreads();
            const u32 row = threadIdx.x % TILE_ROWS, t = threadIdx.x / TILE_ROWS;
            if (t < PASS && token + t < to.tokens && first + row < job.rows) {
                float total = 0.0f;
                UNROLLED for (u32 w = 0; w < WARPS; w++) total = total + parts[w][t][row];
                put(job, token + t, first + row, total);
            }
            __syncthreads(); // what comes next overwrites the parts
        }
    }
}

#define MATVEC(name, blocks) extern "C" __global__ void __launch_bounds__(THREADS, blocks) name(const __grid_constant__ Matvec to)

#define QUANTIZED(name, T)                                                                                                     \
    MATVEC(matvec_##name##_1, 3) { matvec_one<T>(to); }                                                                        \
    MATVEC(matvec_##name##_8, T::SCALES == HALVES ? 2 : 3) { matvec_tile<T>(to); }

#define FLOATS(name, Float)                                                                                                    \
    MATVEC(matvec_##name##_1, 3) { matvec_floats<Float, 1>(to); }                                                              \
    MATVEC(matvec_##name##_4, 3) { matvec_floats<Float, FLOAT_PASS>(to); }

QUANTIZED(q8_0, Q8_0)
QUANTIZED(q4_0, Q4_0)
QUANTIZED(q4_1, Q4_1)
QUANTIZED(q5_0, Q5_0)
QUANTIZED(q5_1, Q5_1)
QUANTIZED(q2_k, Q2_K)
QUANTIZED(q3_k, Q3_K)
QUANTIZED(q4_k, Q4_K)
QUANTIZED(q5_k, Q5_K)
QUANTIZED(q6_k, Q6_K)
QUANTIZED(iq4_nl, IQ4_NL)
QUANTIZED(iq4_xs, IQ4_XS)
QUANTIZED(iq2_xxs, IQ2_XXS)
FLOATS(f32, float)
FLOATS(f16, f16)
FLOATS(bf16, bf16)
