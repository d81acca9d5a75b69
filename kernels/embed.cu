// Rows of an embedding table in planes (`weights.cuh`) as f32: the numbers of `granule_quant::decode`, bit for bit.
//
// A number of a row that the table does not have gives a row of NaNs: a kernel cannot refuse it.
#include "weights.cuh"

// The NaN that stands in rows that there are not.
constexpr u32 NOT_A_NUMBER = 0x7fffffff;

// Calls `work(token, id, i)` for every `i` below `of_row` of every token that is this thread's.
template <typename Work> __device__ inline void for_each_piece(const u32 *ids, u64 tokens, u64 of_row, Work work)
{
    for (u64 token = blockIdx.y; token < tokens; token += gridDim.y) {
        const u32 id = load<u32>(ids + token);
        for (u64 i = u64{blockIdx.x} * THREADS + threadIdx.x; i < of_row; i += u64{gridDim.x} * THREADS) {
            work(token, id, i);
        }
    }
}

template <typename T>
__device__ inline void embed(const Planes &planes, u64 rows, const u32 *ids, float *out, u64 tokens, u64 runs)
{
    constexpr u32 QUADS = BLOCK_LEN / 4;
    for_each_piece(ids, tokens, runs * QUADS, [&](u64 token, u32 id, u64 quad) {
        Wide wide{{NOT_A_NUMBER, NOT_A_NUMBER, NOT_A_NUMBER, NOT_A_NUMBER}};
        if (id < rows) {
            float x[4];
            load_values<T>(planes, id * runs + quad / QUADS, static_cast<u32>(quad % QUADS), x);
            UNROLLED for (u32 k = 0; k < 4; k++) wide.word[k] = bits_of(x[k]);
        }
        store(out + 4 * (token * runs * QUADS + quad), wide);
    });
}

// table    the matrix in planes, `rows` rows of `runs` runs of 32 elements; a multiple of 256
// high     bytes from there to the plane of high bits, likewise `scales` and `d`; that of low bits is the first
// ids      `tokens` numbers of rows
// out      tokens x (runs * 32); a multiple of 16
// Grid: x over a row's pieces of four elements, 256 to a thread block, y over tokens; any size does all of the work. Block:
// 256 threads.
#define EMBED(name, T)                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        embed_##name(const u8 *table, u64 high, u64 scales, u64 d, u64 rows, const u32 *ids, float *out, u64 tokens,  \
                     u64 runs)                                                                                        \
    {                                                                                                                 \
        embed<T>(Planes{table, table + high, table + scales, table + d}, rows, ids, out, tokens, runs);               \
    }

EMBED(q8_0, Q8_0)
EMBED(q4_0, Q4_0)
EMBED(q4_1, Q4_1)
EMBED(q5_0, Q5_0)
EMBED(q5_1, Q5_1)
EMBED(q2_k, Q2_K)
EMBED(q3_k, Q3_K)
EMBED(q4_k, Q4_K)
EMBED(q5_k, Q5_K)
EMBED(q6_k, Q6_K)
EMBED(iq4_nl, IQ4_NL)
EMBED(iq4_xs, IQ4_XS)
EMBED(iq2_xxs, IQ2_XXS)

__device__ inline float as_f32(float x) { return x; }
__device__ inline float as_f32(f16 x) { return to_f32(x); }
__device__ inline float as_f32(bf16 x) { return to_f32(x); }

template <typename Float>
__device__ inline void embed_floats(const u8 *table, u64 rows, const u32 *ids, float *out, u64 tokens, u64 cols)
{
    const u64 stride = float_stride<Float>(cols);
    for_each_piece(ids, tokens, cols, [&](u64 token, u32 id, u64 col) {
        const u8 *at = table + id * stride + col * sizeof(Float);
        out[token * cols + col] = id < rows ? as_f32(load<Float>(at)) : float_of(NOT_A_NUMBER);
    });
}

// table    the matrix, `rows` rows of `cols` elements, each padded to a multiple of 16 bytes; a multiple of 256
// ids      `tokens` numbers of rows
// out      tokens x cols
// Grid: x over a row's elements, 256 to a thread block, y over tokens; any size does all of the work. Block: 256 threads.
#define EMBED_FLOATS(name, Float)                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        embed_##name(const u8 *table, u64 rows, const u32 *ids, float *out, u64 tokens, u64 cols)                     \
    {                                                                                                                 \
        embed_floats<Float>(table, rows, ids, out, tokens, cols);                                                     \
    }

EMBED_FLOATS(f32, float)
EMBED_FLOATS(f16, f16)
EMBED_FLOATS(bf16, bf16)
