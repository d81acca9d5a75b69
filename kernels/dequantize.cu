// Dequantizes rows of blocks: Q8_0 and Q4_0, in the ggml and in the planar layout, to f32, f16 and bf16.
//
// Every kernel takes `rows` rows of `blocks` blocks (32 elements each). Strides are bytes from one row to the next.
//   x (ggml)      rows x blocks x 34 or 18 bytes; address and stride even
//   x (planar)    rows; `quants` bytes into each are its blocks x 32 or 16 bytes of quants, `scales` bytes into it its
//                 blocks x 2 bytes of f16 scales; address, stride and both offsets a multiple of 16
//   y             rows x (blocks * 32) elements; address and stride a multiple of 16
// Grid: x over tiles of 128 blocks, y over rows; any size does all of the work. Block: 256 threads.
//
// Every number is the exact product (d * q has at most 19 significant bits), rounded once, to nearest even, where the
// target is f16 or bf16; what lies beyond the target's range becomes infinity there. Infinities and NaNs of d come out
// as such. Nothing in x is an error.
#include "rows.cuh"

template <typename Block, typename Rows, typename Float>
__device__ inline void dequantize(Rows x, Float *y, u64 y_stride, u64 rows, u64 blocks)
{
    constexpr u32 COUNT = Floats<Float>::COUNT;    // elements that a thread writes at once
    constexpr u32 PER_BLOCK = BLOCK_LEN / COUNT;  // pieces of so many in a block
    constexpr u32 ROUNDS = TILE * PER_BLOCK / THREADS;
    alignas(16) __shared__ u8 memory[Rows::TILE_BYTES];

    for_each_tile(rows, blocks, [&](u64 row, u64 first, u32 n) {
        const auto tile = x.tile(memory, row, first);
        u8 *to = reinterpret_cast<u8 *>(y) + row * y_stride + first * (BLOCK_LEN * sizeof(Float));
        tile.fetch(n);
        __syncthreads();
        UNROLLED for (u32 round = 0; round < ROUNDS; round++) {
            const u32 piece = round * THREADS + threadIdx.x;
            const u32 block = piece / PER_BLOCK, at = piece % PER_BLOCK * COUNT;
            if (block >= n) break;
            const float d = to_f32(tile.scale(block));
            float v[COUNT];
            UNROLLED for (u32 i = 0; i < COUNT; i += 4) {
                u32 word = tile.quants(block, (at + i) % Format<Block>::QUANTS);
                if (Format<Block>::NIBBLES) word = (at < BLOCK_LEN / 2 ? word : word >> 4) & 0x0f0f0f0f;
                Format<Block>::values(d, word, v + i);
            }
            store(to + piece * sizeof(Wide), Floats<Float>::pack(v));
        }
        __syncthreads(); // the next tile overwrites this one
    });
}

// ggml layout

extern "C" __global__ void __launch_bounds__(THREADS)
    dequantize_q8_0_f32(const u8 *x, u64 x_stride, float *y, u64 y_stride, u64 rows, u64 blocks)
{
    dequantize<BlockQ8_0>(Ggml<BlockQ8_0, const u8>{x, x_stride}, y, y_stride, rows, blocks);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    dequantize_q8_0_f16(const u8 *x, u64 x_stride, f16 *y, u64 y_stride, u64 rows, u64 blocks)
{
    dequantize<BlockQ8_0>(Ggml<BlockQ8_0, const u8>{x, x_stride}, y, y_stride, rows, blocks);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    dequantize_q8_0_bf16(const u8 *x, u64 x_stride, bf16 *y, u64 y_stride, u64 rows, u64 blocks)
{
    dequantize<BlockQ8_0>(Ggml<BlockQ8_0, const u8>{x, x_stride}, y, y_stride, rows, blocks);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    dequantize_q4_0_f32(const u8 *x, u64 x_stride, float *y, u64 y_stride, u64 rows, u64 blocks)
{
    dequantize<BlockQ4_0>(Ggml<BlockQ4_0, const u8>{x, x_stride}, y, y_stride, rows, blocks);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    dequantize_q4_0_f16(const u8 *x, u64 x_stride, f16 *y, u64 y_stride, u64 rows, u64 blocks)
{
    dequantize<BlockQ4_0>(Ggml<BlockQ4_0, const u8>{x, x_stride}, y, y_stride, rows, blocks);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    dequantize_q4_0_bf16(const u8 *x, u64 x_stride, bf16 *y, u64 y_stride, u64 rows, u64 blocks)
{
    dequantize<BlockQ4_0>(Ggml<BlockQ4_0, const u8>{x, x_stride}, y, y_stride, rows, blocks);
}

// planar layout

extern "C" __global__ void __launch_bounds__(THREADS) dequantize_planar_q8_0_f32(
    const u8 *x, u64 x_stride, u64 quants, u64 scales, float *y, u64 y_stride, u64 rows, u64 blocks)
{
    dequantize<BlockQ8_0>(Planar<BlockQ8_0, const u8>{x, x_stride, quants, scales}, y, y_stride, rows, blocks);
}

extern "C" __global__ void __launch_bounds__(THREADS) dequantize_planar_q8_0_f16(
    const u8 *x, u64 x_stride, u64 quants, u64 scales, f16 *y, u64 y_stride, u64 rows, u64 blocks)
{
    dequantize<BlockQ8_0>(Planar<BlockQ8_0, const u8>{x, x_stride, quants, scales}, y, y_stride, rows, blocks);
}

extern "C" __global__ void __launch_bounds__(THREADS) dequantize_planar_q8_0_bf16(
    const u8 *x, u64 x_stride, u64 quants, u64 scales, bf16 *y, u64 y_stride, u64 rows, u64 blocks)
{
    dequantize<BlockQ8_0>(Planar<BlockQ8_0, const u8>{x, x_stride, quants, scales}, y, y_stride, rows, blocks);
}

extern "C" __global__ void __launch_bounds__(THREADS) dequantize_planar_q4_0_f32(
    const u8 *x, u64 x_stride, u64 quants, u64 scales, float *y, u64 y_stride, u64 rows, u64 blocks)
{
    dequantize<BlockQ4_0>(Planar<BlockQ4_0, const u8>{x, x_stride, quants, scales}, y, y_stride, rows, blocks);
}

extern "C" __global__ void __launch_bounds__(THREADS) dequantize_planar_q4_0_f16(
    const u8 *x, u64 x_stride, u64 quants, u64 scales, f16 *y, u64 y_stride, u64 rows, u64 blocks)
{
    dequantize<BlockQ4_0>(Planar<BlockQ4_0, const u8>{x, x_stride, quants, scales}, y, y_stride, rows, blocks);
}

extern "C" __global__ void __launch_bounds__(THREADS) dequantize_planar_q4_0_bf16(
    const u8 *x, u64 x_stride, u64 quants, u64 scales, bf16 *y, u64 y_stride, u64 rows, u64 blocks)
{
    dequantize<BlockQ4_0>(Planar<BlockQ4_0, const u8>{x, x_stride, quants, scales}, y, y_stride, rows, blocks);
}
