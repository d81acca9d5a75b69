// Moves rows of blocks between the ggml and the planar layout: Q8_0 and Q4_0, both ways, byte for byte.
//
// Every kernel takes `rows` rows of `blocks` blocks (32 elements each). Strides are bytes from one row to the next.
//   ggml          rows x blocks x 34 or 18 bytes; address and stride even
//   planar        rows; `quants` bytes into each are its blocks x 32 or 16 bytes of quants, `scales` bytes into it its
//                 blocks x 2 bytes of f16 scales; address, stride and both offsets a multiple of 16
// Grid: x over tiles of 128 blocks, y over rows; any size does all of the work. Block: 256 threads.
//
// A permutation: nothing is computed, so every bit pattern is carried over. The planes' padding is not touched.
#include "rows.cuh"

template <typename Block, typename From, typename To>
__device__ inline void relayout(From from, To to, u64 rows, u64 blocks)
{
    constexpr u32 WORDS = Format<Block>::QUANTS / 4; // words of quants in a block
    constexpr u32 ROUNDS = TILE * WORDS / THREADS;
    alignas(16) __shared__ u8 from_memory[From::TILE_BYTES];
    alignas(16) __shared__ u8 to_memory[To::TILE_BYTES];

    for_each_tile(rows, blocks, [&](u64 row, u64 first, u32 n) {
        const auto source = from.tile(from_memory, row, first);
        const auto target = to.tile(to_memory, row, first);
        source.fetch(n);
        __syncthreads();
        UNROLLED for (u32 round = 0; round < ROUNDS; round++) {
            const u32 i = round * THREADS + threadIdx.x;
            const u32 block = i / WORDS, at = i % WORDS * 4;
            if (block < n) target.set_quants(block, at, source.quants(block, at));
        }
        if (threadIdx.x < n) target.set_scale(threadIdx.x, source.scale(threadIdx.x));
        __syncthreads();
        target.write_back(n);
        __syncthreads(); // the next tile overwrites this one
    });
}
static_assert(TILE <= THREADS, "each thread moves one scale");

extern "C" __global__ void __launch_bounds__(THREADS) relayout_q8_0_to_planar(
    const u8 *ggml, u64 ggml_stride, u8 *planar, u64 planar_stride, u64 quants, u64 scales, u64 rows, u64 blocks)
{
    relayout<BlockQ8_0>(Ggml<BlockQ8_0, const u8>{ggml, ggml_stride},
                        Planar<BlockQ8_0, u8>{planar, planar_stride, quants, scales}, rows, blocks);
}

extern "C" __global__ void __launch_bounds__(THREADS) relayout_q4_0_to_planar(
    const u8 *ggml, u64 ggml_stride, u8 *planar, u64 planar_stride, u64 quants, u64 scales, u64 rows, u64 blocks)
{
    relayout<BlockQ4_0>(Ggml<BlockQ4_0, const u8>{ggml, ggml_stride},
                        Planar<BlockQ4_0, u8>{planar, planar_stride, quants, scales}, rows, blocks);
}

extern "C" __global__ void __launch_bounds__(THREADS) relayout_q8_0_to_ggml(
    const u8 *planar, u64 planar_stride, u64 quants, u64 scales, u8 *ggml, u64 ggml_stride, u64 rows, u64 blocks)
{
    relayout<BlockQ8_0>(Planar<BlockQ8_0, const u8>{planar, planar_stride, quants, scales},
                        Ggml<BlockQ8_0, u8>{ggml, ggml_stride}, rows, blocks);
}

extern "C" __global__ void __launch_bounds__(THREADS) relayout_q4_0_to_ggml(
    const u8 *planar, u64 planar_stride, u64 quants, u64 scales, u8 *ggml, u64 ggml_stride, u64 rows, u64 blocks)
{
    relayout<BlockQ4_0>(Planar<BlockQ4_0, const u8>{planar, planar_stride, quants, scales},
                        Ggml<BlockQ4_0, u8>{ggml, ggml_stride}, rows, blocks);
}
