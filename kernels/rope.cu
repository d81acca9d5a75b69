// Turns the first elements of every head by rotary positions, in place: adjacent pairs (a, b) become (a cos - b sin,
// a sin + b cos), each product and each difference rounded by itself, as the host does it.
//
//   x         tokens x heads x head_dim, f32, dense; a multiple of 16
//   angles    tokens x dims, f32: cosine and sine of each pair; dims is even and at most head_dim; a multiple of 16
// Grid: x over pieces of four elements (two where dims or head_dim is no multiple of four) of a token's heads, y over tokens; any
// size does all of the work. Block: 256 threads.
#include "floats.cuh"

// What a launch turns.
struct RopeTurn {
    float *x;
    const float *angles;
    u32 tokens, n_heads, head_dim, dims;
};

// Turns a pair.
__device__ inline void turn(float &a, float &b, float cos, float sin)
{
    const float x = a, y = b;
    a = x * cos - y * sin;
    b = x * sin + y * cos;
}

extern "C" __global__ void __launch_bounds__(THREADS) rope(const RopeTurn to)
{
    const bool wide = to.head_dim % 4 == 0 && to.dims % 4 == 0;
    const u32 pieces = to.dims / (wide ? 4 : 2);
    const u64 in_token = u64{to.n_heads} * to.head_dim;
    for (u64 token = blockIdx.y; token < to.tokens; token += gridDim.y) {
        const float *angles = to.angles + token * to.dims;
        for (u32 i = blockIdx.x * THREADS + threadIdx.x; i < to.n_heads * pieces; i += gridDim.x * THREADS) {
            const u32 piece = i % pieces;
            float *x = to.x + token * in_token + u64{i / pieces} * to.head_dim;
            if (wide) {
                const Wide by = load<Wide>(angles + 4 * piece), from = load<Wide>(x + 4 * piece);
                float v[4];
                UNROLLED for (u32 k = 0; k < 4; k++) v[k] = float_of(from.word[k]);
                turn(v[0], v[1], float_of(by.word[0]), float_of(by.word[1]));
                turn(v[2], v[3], float_of(by.word[2]), float_of(by.word[3]));
                store(x + 4 * piece, wide_of(v));
            } else {
                turn(x[2 * piece], x[2 * piece + 1], angles[2 * piece], angles[2 * piece + 1]);
            }
        }
    }
}
