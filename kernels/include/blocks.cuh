// The block structs of ggml, byte for byte, and what is computed with them: those that caches have too. With those of
// `weight_blocks.cuh` they are the only ones in the CUDA sources. The definition is that of `granule-quant` (`src/block/`).
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
    // The scale has no sign.
    static constexpr bool SIGNED = false;
    // Four quants of zero.
    static constexpr u32 ZEROS = 0;

    // The scale, before it is rounded to f16, for a block whose element of largest magnitude is `largest`.
    __device__ static float scale(float largest) { return magnitude_of(largest) / 127.0f; }

    // The quants of four elements, each `y = x * inverse` rounded half away from zero. What is added is the number just
    // below one half: with it a y just below n + 1/2 stays below n + 1, and n + 1/2 itself rounds up to it (for all
    // |y| < 2^22).
    __device__ static u32 quants(const float *x, float inverse)
    {
        u32 q[4];
        UNROLLED for (u32 k = 0; k < 4; k++) {
            const float y = x[k] * inverse;
            q[k] = static_cast<u32>(truncate(y + with_sign_of(y, 0x1.fffffep-2f)));
        }
        return low_bytes(q[0], q[1], q[2], q[3]);
    }

    // Four elements from the bytes of their quants.
    __device__ static void values(float d, u32 word, float *x)
    {
        const u32 biased = word ^ 0x80808080; // q + 128
        UNROLLED for (u32 k = 0; k < 4; k++) x[k] = d * (byte_above_2_23(biased, k) - (8388608.0f + 128.0f));
    }
};

template <> struct Format<BlockQ4_0> {
    // Bytes of a block's quants.
    static constexpr u32 QUANTS = BLOCK_LEN / 2;
    // Elements j (low) and j + 16 (high) share byte j.
    static constexpr bool NIBBLES = true;
    // The scale has the sign of the first element of largest magnitude, reversed.
    static constexpr bool SIGNED = true;
    // Four quants of zero.
    static constexpr u32 ZEROS = 0x08080808;

    // As above. A division by -8, which is exact or rounds as this product does.
    __device__ static float scale(float largest) { return largest * -0.125f; }

    // The quants of four elements, each `min(15, trunc(x * inverse + 8.5))`; the sum is from 0 to below 17.
    __device__ static u32 quants(const float *x, float inverse)
    {
        u32 q[4];
        UNROLLED for (u32 k = 0; k < 4; k++) q[k] = static_cast<u32>(truncate(x[k] * inverse + 8.5f));
        const u32 word = low_bytes(q[0], q[1], q[2], q[3]);
        return word - (word >> 4 & 0x01010101); // 16 becomes 15
    }

    // Four elements from their quants, one to a byte.
    __device__ static void values(float d, u32 word, float *x)
    {
        UNROLLED for (u32 k = 0; k < 4; k++) x[k] = d * (byte_above_2_23(word, k) - (8388608.0f + 8.0f));
    }
};
