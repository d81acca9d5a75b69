// What attention and products do to single words: the twins of the instructions behind it, one argument a thread.
#include "attend.cuh"

// from: n pairs of words; to: for each what `permuted` gives for the four selections that kernels use.
extern "C" __global__ void permute(const u32 *from, u32 *to, u32 n)
{
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    const u32 a = from[2 * i], b = from[2 * i + 1];
    to[4 * i] = permuted<0x5410>(a, b);
    to[4 * i + 1] = permuted<0x7632>(a, b);
    to[4 * i + 2] = permuted<0x0400>(a, b);
    to[4 * i + 3] = permuted<0x0501>(a, b);
}

// from: n pairs of f32; to: n words of two bf16.
extern "C" __global__ void pairs_of_bf16(const float *from, u32 *to, u32 n)
{
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i < n) to[i] = to_bf16_pair(from[2 * i], from[2 * i + 1]);
}

// to: n whole numbers.
extern "C" __global__ void nearest_whole(const float *from, i32 *to, u32 n)
{
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i < n) to[i] = nearest(from[i]);
}

// to: for each of n words the bf16s of bytes 0 and 2, and of the low nibbles of them.
extern "C" __global__ void quants_as_bf16(const u32 *from, u32 *to, u32 n)
{
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    to[2 * i] = from_bytes(from[i]);
    to[2 * i + 1] = from_nibbles(from[i]);
}

// from: n pairs of f32; to: three words of two bf16 for each, which add up to it.
extern "C" __global__ void split_pairs(const float *from, u32 *to, u32 n)
{
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 pair[3];
    split_f32(from[2 * i], from[2 * i + 1], pair);
    for (u32 k = 0; k < 3; k++) to[3 * i + k] = pair[k];
}

// from: n times three words of two f16; to: a word of two for each, the product of the first two and the third.
extern "C" __global__ void fused_pairs(const u32 *from, u32 *to, u32 n)
{
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i < n) to[i] = fused_f16(from[3 * i], from[3 * i + 1], from[3 * i + 2]);
}
