// The block structs of ggml, byte for byte, the only ones in the CUDA sources, and what is computed with them. The
// definition is that of `granule-quant` (`src/block.rs`).
#pragma once

#include "intrinsics.cuh"

// Elements in one block of each quantized type.
constexpr u32 BLOCK_LEN = 32;

// 32 elements in 34 bytes: x' = d * q.
//
//   byte  0     2                                                         34
//         | d   | q[0] q[1] q[2]  ...                          q[30] q[31] |
//         | f16 | i8   i8                                            i8    |
struct BlockQ8_0 {
    f16 d;
    i8 q[BLOCK_LEN];
};
static_assert(sizeof(BlockQ8_0) == 34 && alignof(BlockQ8_0) == 2);

// 32 elements in 18 bytes: x' = d * (q - 8).
//
//   byte  0     2             3                                           18
//         | d   | q[0]        | q[1]        |   ...         | q[15]        |
//         | f16 | lo x0 hi x16| lo x1 hi x17|               | lo x15 hi x31|
struct BlockQ4_0 {
    f16 d;
    u8 q[BLOCK_LEN / 2];
};
static_assert(sizeof(BlockQ4_0) == 18 && alignof(BlockQ4_0) == 2);

// What a kernel has to know of a format, apart from where its bytes are. Quants travel four to a word, one to a byte.
template <typename Block> struct Format;

// `1/d`, or 0 where that is not finite: what an encoder multiplies by.
__device__ inline float inverse_of(float d)
{
    const float inverse = 1.0f / d;
    return (bits_of(inverse) & 0x7fffffff) < 0x7f800000 ? inverse : 0.0f;
}

template <> struct Format<BlockQ8_0> {
    // Bytes of a block's quants.
    static constexpr u32 QUANTS = BLOCK_LEN;
    // Each element has a byte of its own.
    static constexpr bool NIBBLES = false;

    // The scale, before it is rounded to f16, for a block whose element of largest magnitude is `largest`.
    __device__ static float scale(float largest) { return float_of(bits_of(largest) & 0x7fffffff) / 127.0f; }

    // The quant of x: `y = x * inverse`, rounded half away from zero. What is added is the number just below one half:
    // with it a y just below n + 1/2 stays below n + 1, and n + 1/2 itself rounds up to it (for all |y| < 2^22).
    __device__ static u32 quant(float x, float inverse)
    {
        const float y = x * inverse;
        const float half = float_of((bits_of(y) & 0x80000000) | 0x3effffff);
        return static_cast<u32>(static_cast<i32>(y + half)) & 0xff;
    }

    // Element `k` of the four whose quants are `word`.
    __device__ static float value(float d, u32 word, u32 k)
    {
        return d * static_cast<float>(static_cast<i8>(word >> (8 * k)));
    }
};

template <> struct Format<BlockQ4_0> {
    // Bytes of a block's quants.
    static constexpr u32 QUANTS = BLOCK_LEN / 2;
    // Elements j (low) and j + 16 (high) share byte j.
    static constexpr bool NIBBLES = true;

    // As above. A division by -8, which is exact or rounds as this product does.
    __device__ static float scale(float largest) { return largest * -0.125f; }

    // The quant of x: `min(15, trunc(x * inverse + 8.5))`; the sum is never negative.
    __device__ static u32 quant(float x, float inverse)
    {
        const i32 whole = static_cast<i32>(x * inverse + 8.5f);
        return static_cast<u32>(whole < 15 ? whole : 15);
    }

    // Element `k` of the four whose quants are `word`.
    __device__ static float value(float d, u32 word, u32 k)
    {
        return d * static_cast<float>(static_cast<i32>(word >> (8 * k) & 15) - 8);
    }
};
