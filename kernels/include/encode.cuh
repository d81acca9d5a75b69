// Floats into blocks: the arithmetic of every encoder on the device, once, whoever holds the floats and wherever the bytes
// go. Bit for bit `granule_quant::scalar::encode`.
#pragma once

#include "blocks.cuh"

// Bits of the flag word: an element is NaN or infinite; a scale, or an element of a narrower type, overflows.
constexpr u32 NOT_FINITE = 1;
constexpr u32 OVERFLOW = 2;

// The larger of two magnitudes with its sign, the first of equal ones; NaN and infinity lie above all the rest.
__device__ inline u32 larger(u32 first, u32 second)
{
    return (second & 0x7fffffff) > (first & 0x7fffffff) ? second : first;
}

// The first element of largest magnitude among the COUNT that each of GROUP neighbouring lanes has, by its bits, for all
// of them; a NaN where there is one. Lower lanes have earlier elements. All lanes of the warp take part.
template <u32 COUNT, u32 GROUP> __device__ inline u32 first_largest(const float *x)
{
    float found = x[0], magnitude = x[0];
    UNROLLED for (u32 i = 1; i < COUNT; i++) {
        // False for a NaN, which the magnitude does not lose.
        if (magnitude_of(x[i]) > magnitude_of(found)) found = x[i];
        magnitude = larger_magnitude(magnitude, x[i]);
    }
    u32 largest = magnitude == magnitude ? bits_of(found) : bits_of(magnitude);
    UNROLLED for (u32 step = 1; step < GROUP; step *= 2) {
        const u32 other = __shfl_xor_sync(ALL_LANES, largest, step);
        largest = (threadIdx.x & step) == 0 ? larger(largest, other) : larger(other, largest);
    }
    return largest;
}

// The largest magnitude among the COUNT elements of each of GROUP neighbouring lanes, as above.
template <u32 COUNT, u32 GROUP> __device__ inline u32 largest_magnitude(const float *x)
{
    float magnitude = larger_magnitude(x[0], x[1]);
    UNROLLED for (u32 i = 2; i < COUNT; i++) magnitude = larger_magnitude(magnitude, x[i]);
    u32 largest = bits_of(magnitude) & 0x7fffffff;
    UNROLLED for (u32 step = 1; step < GROUP; step *= 2) {
        largest = larger(largest, __shfl_xor_sync(ALL_LANES, largest, step));
    }
    return largest;
}

// A block's scale and what its quants are made with.
struct Scale {
    f16 d;
    float inverse;
    bool finite;
    u32 raised; // bits of the flag
};

// The scale of the block that GROUP neighbouring lanes hold: each has COUNT elements of its first half in v[0..COUNT] and,
// 16 further on, COUNT of its second in v[COUNT..2 COUNT]. The same for all of them; all lanes of the warp take part.
template <typename Block, u32 COUNT, u32 GROUP> __device__ inline Scale scale_of(const float *v)
{
    u32 largest;
    if constexpr (Format<Block>::SIGNED) {
        largest = larger(first_largest<COUNT, GROUP>(v), first_largest<COUNT, GROUP>(v + COUNT));
    } else {
        largest = largest_magnitude<2 * COUNT, GROUP>(v);
    }
    const bool finite = (largest & 0x7fffffff) < 0x7f800000;
    const float scale = finite ? Format<Block>::scale(float_of(largest)) : 0.0f;
    const f16 d = finite ? to_f16(scale) : f16{0x7fff};
    const u32 raised = (d.bits & 0x7fff) < 0x7c00 ? 0 : finite ? OVERFLOW : NOT_FINITE;
    return Scale{d, inverse_of(scale), finite, raised};
}

// The quants of four elements of a block with that scale, one to a byte.
template <typename Block> __device__ inline u32 quants_of(const float *v, const Scale &scale)
{
    const u32 word = Format<Block>::quants(v, scale.inverse);
    return scale.finite ? word : Format<Block>::ZEROS;
}
