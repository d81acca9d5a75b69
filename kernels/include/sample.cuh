// What the kernels of sample.cu share: a row's draw and its scratch, the keys by which tokens are ordered, their weights, and what
// every block finds out about a row before it looks at its logits.
#pragma once

#include "floats.cuh"

// Tokens of a slice, at most so many slices, classes of distances, tokens that are listed at most.
constexpr u32 SLICE = 4096;
constexpr u32 MOST_SLICES = 256;
constexpr u32 BINS = 2048;
constexpr u32 LIST = 4096;
constexpr u32 BOARD = 62480; // bytes of a row's scratch
static_assert(SLICE == CHUNK && MOST_SLICES == THREADS);

// How a row is drawn.
struct Draw {
    double random; // from 0 up to but not including 1
    double reach;  // how far from the largest logit a token may be: -ln(min_p)
    float temp;    // 0: the likeliest
    float top_p;   // 1: all
    u32 top_k;     // 0: all
    float penalty;
    u32 penalized; // how many ids are listed for the penalty
    u32 padding;
};
static_assert(sizeof(Draw) == 40);

// A row's scratch.
struct Board {
    u64 best[MOST_SLICES];       // the largest key of each slice
    u64 slice_sums[MOST_SLICES]; // weights of each slice's tokens
    u64 weights[BINS];           // weights at temperature 1 of the tokens of each class
    u64 list[LIST];              // keys, in no order
    u64 total;                   // all weights at temperature 1
    u32 candidates[MOST_SLICES]; // tokens of each slice that are not ruled out
    u32 counts[BINS];            // tokens of each class
    u32 listed;
    u32 overflows; // too many to be listed: all logits are looked at instead
};
static_assert(sizeof(Board) == BOARD);

struct Sample {
    const float *logits;
    const Draw *draws;
    Board *boards;
    u32 *ids;
    float *values;
    u32 rows, n_vocab, slices, padding;
};

// Weights: 1 is 2^44, so that those of less than 2^20 tokens have a sum below 2^64. Below e^-32 a weight is 0.
constexpr double ONE = 17592186044416.0;
constexpr float MOST_DISTANCE = 32.0f;

// A token as a number by which tokens are ordered: a NaN is above all, then infinity.
constexpr u32 INFINITE = 0xff800000, RULED_OUT = 0x007fffff;

__device__ inline u64 key_of(float logit, u32 token)
{
    u32 bits = bits_of(logit);
    if (logit == 0.0f) bits = 0; // both zeros are one number
    if (logit != logit) bits = 0x7fffffff;
    const u32 ordered = bits ^ ((bits >> 31) != 0 ? 0xffffffff : 0x80000000);
    return u64{ordered} << 32 | static_cast<u32>(~token);
}

__device__ inline u32 token_of(u64 key) { return ~static_cast<u32>(key); }

__device__ inline float logit_of(u64 key)
{
    const u32 ordered = static_cast<u32>(key >> 32);
    return float_of(ordered ^ ((ordered >> 31) != 0 ? 0x80000000 : 0xffffffff));
}

// exp(x) for x from -32 to 0, within 2^-50. ln 2 in two parts, the first so short that its product with n is exact; then the
// series, whose first term left out is below 2^-57.
__device__ inline double exp_of(double x)
{
    constexpr double ROUND = 6755399441055744.0; // 1.5 * 2^52: adding it rounds to a whole number
    const double t = x * 1.4426950408889634 + ROUND, n = t - ROUND;
    const double f = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    double p = 1.0 / 6227020800.0;
    p = p * f + 1.0 / 479001600.0;
    p = p * f + 1.0 / 39916800.0;
    p = p * f + 1.0 / 3628800.0;
    p = p * f + 1.0 / 362880.0;
    p = p * f + 1.0 / 40320.0;
    p = p * f + 1.0 / 5040.0;
    p = p * f + 1.0 / 720.0;
    p = p * f + 1.0 / 120.0;
    p = p * f + 1.0 / 24.0;
    p = p * f + 1.0 / 6.0;
    p = p * f + 0.5;
    p = p * f + 1.0;
    p = p * f + 1.0;
    return p * double_of((bits_of(t) + 1023) << 52);
}

// What a row's blocks know before they look at its logits.
struct Plan {
    float largest;
    u32 top;        // the likeliest token
    bool draws;     // else it is the result, or there is none
    bool cuts;      // top-k leaves tokens out
    bool shares;    // top-p does
    float bins;     // classes for a distance of 1
    double temp;
    double reach;   // of Draw, not below 0
    u64 key;

    // How far a token is from the largest logit, rounded as the host rounds it.
    __device__ float distance(float logit) const { return largest - logit; }

    // The class of a distance, not below BINS where weights are 0 at this temperature and at 1.
    __device__ u32 bin(float distance) const
    {
        const float y = distance * bins;
        return y < static_cast<float>(BINS) ? static_cast<u32>(y) : BINS;
    }
};

// The weight of a token so far from the largest logit.
__device__ inline u64 weight_of(float distance, double temp)
{
    const double x = -static_cast<double>(distance) / temp;
    return x >= -static_cast<double>(MOST_DISTANCE) ? static_cast<u64>(exp_of(x) * ONE + 0.5) : 0;
}

// What the threads of a block share.
struct Room {
    u64 wide[WARPS];
    u32 narrow[WARPS];
    u64 bins[THREADS];
    u64 before;
    u32 found;
};

__device__ inline u64 larger_key(u64 a, u64 b) { return a > b ? a : b; }

template <typename T> __device__ inline T sum_of_block(T x, T *room)
{
    return of_block(x, room, [](T a, T b) { return a + b; });
}

// The sum of `x` of this thread and of all before it.
__device__ inline u64 sum_up_to(u64 x, u64 *room)
{
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    UNROLLED for (u32 step = 1; step < WARP; step *= 2) {
        const u64 below = __shfl_up_sync(ALL_LANES, x, step);
        if (lane >= step) x += below;
    }
    if (lane == WARP - 1) room[warp] = x;
    __syncthreads();
    UNROLLED for (u32 i = 0; i < WARPS; i++) x += i < warp ? room[i] : 0;
    __syncthreads();
    return x;
}

// What sample_begin has found out about a row.
__device__ inline Plan plan_of(const Sample &to, u64 row, Room &room)
{
    const Board &board = to.boards[row];
    const bool mine = threadIdx.x < to.slices;
    const u64 key = of_block(mine ? board.best[threadIdx.x] : 0, room.wide, larger_key);
    const u32 candidates = sum_of_block(mine ? board.candidates[threadIdx.x] : 0u, room.narrow);
    const u32 ordered = static_cast<u32>(key >> 32);
    Plan plan{logit_of(key), token_of(key), false, false, false, 0.0f, 1.0, 0.0, key};
    if (to.draws == nullptr || ordered <= RULED_OUT || ordered >= INFINITE) return plan;
    const Draw &draw = to.draws[row];
    plan.draws = draw.temp > 0.0f;
    plan.cuts = draw.top_k > 0 && draw.top_k < candidates;
    plan.shares = draw.top_p < 1.0f;
    plan.bins = static_cast<float>(BINS) / MOST_DISTANCE / larger_of(draw.temp, 1.0f);
    plan.temp = draw.temp;
    plan.reach = draw.reach > 0.0 ? draw.reach : 0.0;
    return plan;
}

// Of so many parts of a whole those that a random number from 0 to below 1 names: a number below `total`.
__device__ inline u64 place_of(double random, u64 total)
{
    const double clamped = random > 0.0 ? random : 0.0;
    const u64 parts = clamped < 1.0 ? static_cast<u64>(clamped * 9007199254740992.0) : 9007199254740991; // of 2^53
    return high_product(parts, total) << 11 | parts * total >> 53;
}

// How much of `total` the share `top_p`, below 1, is, rounded up; 1 at least.
__device__ inline u64 share_of(float top_p, u64 total)
{
    const u64 parts = top_p > 0.0f ? static_cast<u64>(static_cast<double>(top_p) * 18446744073709551616.0) : 0;
    const u64 share = high_product(parts, total) + (parts * total != 0 ? 1 : 0);
    return share > 0 ? share : 1;
}

// Calls `visit(i, token, logit)` for this thread's tokens of a slice, `i` counting them; those past the vocabulary's end are ruled
// out. What is visited is there as often as a thread has tokens.
constexpr u32 EACH = SLICE / THREADS;
template <typename Visit> __device__ inline void for_slice(const Sample &to, u64 row, u32 slice, Visit visit)
{
    const float ruled_out = float_of(0xff800000);
    const Chunk chunk = load_chunk(to.logits + row * to.n_vocab, slice * SLICE, to.n_vocab, ruled_out);
    UNROLLED for (u32 i = 0; i < PIECES; i++) {
        UNROLLED for (u32 k = 0; k < PIECE_LEN; k++) {
            visit(i * PIECE_LEN + k, piece_at(slice * SLICE, i) + k, chunk.v[i][k]);
        }
    }
}

// The same for what is long: it is there once, and logits, which were asked for at once, go through shared memory; each thread
// reads there what it has written itself.
template <typename Visit>
__device__ inline void for_slice_one_by_one(const Sample &to, u64 row, u32 slice, float *window, Visit visit)
{
    for_slice(to, row, slice, [&](u32 i, u32, float logit) { window[i * THREADS + threadIdx.x] = logit; });
    ROLLED for (u32 i = 0; i < EACH; i++) {
        visit(piece_at(slice * SLICE, i / PIECE_LEN) + i % PIECE_LEN, window[i * THREADS + threadIdx.x]);
    }
}
