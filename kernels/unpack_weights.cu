// Rows of weights out of their planes (weights.cuh) as dense rows of 16-bit floats: what a library's products take.
//
//   quantized    the f16 nearest to each number of `granule_quant::decode`; beyond 65504 infinity
//   f32          two terms: the bf16 nearest to each number, and the bf16 nearest to what that leaves
//
// Matrices of f16 and bf16 are such rows already.
#include "weights.cuh"

// Elements that a thread takes at a time.
constexpr u32 QUAD = 4;

template <typename T>
__device__ inline void unpack(const Planes &planes, u64 first, u64 runs, u8 *out)
{
    constexpr u32 QUADS = BLOCK_LEN / QUAD;
    const u64 step = u64{gridDim.x} * THREADS;
    for (u64 i = u64{blockIdx.x} * THREADS + threadIdx.x; i < runs * QUADS; i += step) {
        float x[QUAD];
        load_values<T>(planes, first + i / QUADS, static_cast<u32>(i % QUADS), x);
        store(out + i * sizeof(HalfWide), HalfWide{{to_f16_pair(x[0], x[1]), to_f16_pair(x[2], x[3])}});
    }
}

// weights  the matrix in planes; a multiple of 256
// high     bytes from there to the plane of high bits, likewise `scales` and `d`; that of low bits is the first
// first    number of the first run in the matrix, that of a row
// runs     how many: those of whole rows
// out      runs x 32 f16; a multiple of 16
// Grid: x over pieces of four elements, 256 to a thread block; any size does all of the work. Block: 256 threads.
#define UNPACK_WEIGHTS(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS) unpack_weights_##name(                                      \
        const u8 *weights, u64 high, u64 scales, u64 d, u64 first, u64 runs, u8 *out)                                 \
    {                                                                                                                 \
        unpack<T>(Planes{weights, weights + high, weights + scales, weights + d}, first, runs, out);                  \
    }

UNPACK_WEIGHTS(q8_0, Q8_0)
UNPACK_WEIGHTS(q4_0, Q4_0)
UNPACK_WEIGHTS(q4_1, Q4_1)
UNPACK_WEIGHTS(q5_0, Q5_0)
UNPACK_WEIGHTS(q5_1, Q5_1)
UNPACK_WEIGHTS(q2_k, Q2_K)
UNPACK_WEIGHTS(q3_k, Q3_K)
UNPACK_WEIGHTS(q4_k, Q4_K)
UNPACK_WEIGHTS(q5_k, Q5_K)
UNPACK_WEIGHTS(q6_k, Q6_K)
UNPACK_WEIGHTS(iq4_nl, IQ4_NL)
UNPACK_WEIGHTS(iq4_xs, IQ4_XS)
UNPACK_WEIGHTS(iq2_xxs, IQ2_XXS)

// weights  the matrix, rows of `cols` f32, each padded with zeros to a multiple of 16 bytes; a multiple of 256
// first    number of the first row
// rows     how many
// out      rows x cols bf16, from one row to the next a multiple of 16 bytes: the first terms; a multiple of 16
// rest     bytes from there to the second terms, which lie as the first ones do; a multiple of 16
// Grid: x over a row's pieces of four elements, 256 to a thread block, y over rows; any size does all of the work. Block:
// 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS)
    unpack_weights_f32(const u8 *weights, u64 first, u64 rows, u64 cols, u8 *out, u64 rest)
{
    const u64 stride = float_stride<float>(cols), to_stride = float_stride<bf16>(cols);
    for (u64 row = blockIdx.y; row < rows; row += gridDim.y) {
        const u64 step = u64{gridDim.x} * THREADS;
        for (u64 i = u64{blockIdx.x} * THREADS + threadIdx.x; i * QUAD < cols; i += step) {
            const Wide wide = load<Wide>(weights + (first + row) * stride + i * sizeof(Wide));
            HalfWide high, low;
            UNROLLED for (u32 k = 0; k < 2; k++) {
                const float a = float_of(wide.word[2 * k]), b = float_of(wide.word[2 * k + 1]);
                const u32 pair = to_bf16_pair(a, b);
                high.word[k] = pair;
                low.word[k] = to_bf16_pair(a - float_of(pair << 16), b - float_of(pair & 0xffff0000));
            }
            u8 *to = out + row * to_stride + i * sizeof(HalfWide);
            store(to, high);
            store(to + rest, low);
        }
    }
}
