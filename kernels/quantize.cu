// Quantizes rows of f32, f16 and bf16 into blocks: Q8_0 and Q4_0, in the ggml and in the planar layout.
//
// Every kernel takes `rows` rows of `blocks` blocks (32 elements each). Strides are bytes from one row to the next.
//   x             rows x (blocks * 32) elements; address and stride a multiple of 16
//   y (ggml)      rows x blocks x 34 or 18 bytes; address and stride even
//   y (planar)    rows; `quants` bytes into each are its blocks x 32 or 16 bytes of quants, `scales` bytes into it its
//                 blocks x 2 bytes of f16 scales; address, stride and both offsets a multiple of 16
//   flag          one word: bit 0 is set where an element is NaN or infinite, bit 1 where a scale overflows f16
// Grid: x over tiles of 128 blocks, y over rows; any size does all of the work. Block: 256 threads.
//
// Bit for bit `granule_quant::scalar::encode`, which refuses the two cases that set the flag. What is written for such
// a block: with a NaN or an infinity in it, the scale is the NaN 0x7fff and every quant that of zero (0 in Q8_0, 8 in
// Q4_0), so all of it decodes to NaN; with a scale beyond f16, the scale is infinity with the scale's sign and the
// quants are those of the f32 scale. The planes' padding is not touched.
#include "encode.cuh"
#include "rows.cuh"

template <typename Block, typename Rows, typename Float>
__device__ inline void quantize(const Float *x, u64 x_stride, Rows y, u64 rows, u64 blocks, u32 *flag)
{
    // A lane has two pieces of a block: COUNT elements of its first half and, 16 further on, COUNT of its second; GROUP
    // neighbouring lanes have all of it.
    constexpr u32 COUNT = Floats<Float>::COUNT;
    constexpr u32 HALF = BLOCK_LEN / 2;
    constexpr u32 GROUP = HALF / COUNT;
    constexpr u32 ROUNDS = TILE * GROUP / THREADS;
    alignas(16) __shared__ u8 memory[Rows::TILE_BYTES];
    u32 raised = 0;

    for_each_tile(rows, blocks, [&](u64 row, u64 first, u32 n) {
        const auto tile = y.tile(memory, row, first);
        const u8 *from = reinterpret_cast<const u8 *>(x) + row * x_stride + first * (BLOCK_LEN * sizeof(Float));
        Wide held[ROUNDS][2];
        UNROLLED for (u32 round = 0; round < ROUNDS; round++) {
            const u32 i = round * THREADS + threadIdx.x;
            const u8 *piece = from + (i / GROUP * BLOCK_LEN + i % GROUP * COUNT) * sizeof(Float);
            // Blocks past the end of the row are zeros; the tile has room for them, and they go no further.
            const bool inside = i / GROUP < n;
            held[round][0] = inside ? load<Wide>(piece) : Wide{};
            held[round][1] = inside ? load<Wide>(piece + HALF * sizeof(Float)) : Wide{};
        }
        UNROLLED for (u32 round = 0; round < ROUNDS; round++) {
            const u32 i = round * THREADS + threadIdx.x;
            const u32 block = i / GROUP, at = i % GROUP * COUNT;
            float v[2 * COUNT];
            UNROLLED for (u32 k = 0; k < 2 * COUNT; k++) v[k] = Floats<Float>::get(held[round][k / COUNT], k % COUNT);

            const Scale scale = scale_of<Block, COUNT, GROUP>(v);
            if (at == 0) {
                tile.set_scale(block, scale.d);
                raised |= scale.raised;
            }
            UNROLLED for (u32 k = 0; k < COUNT; k += 4) {
                const u32 low = quants_of<Block>(v + k, scale), high = quants_of<Block>(v + COUNT + k, scale);
                if constexpr (Format<Block>::NIBBLES) {
                    tile.set_quants(block, at + k, low | high << 4);
                } else {
                    tile.set_quants(block, at + k, low);
                    tile.set_quants(block, HALF + at + k, high);
                }
            }
        }
        __syncthreads();
        tile.write_back(n);
        __syncthreads(); // the next tile overwrites this one
    });
    // At most one access a thread, of the few that have something to say.
    if (raised != 0) atomicOr(flag, raised);
}

// ggml layout

extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_q8_0_f32(const float *x, u64 x_stride, u8 *y, u64 y_stride, u64 rows, u64 blocks, u32 *flag)
{
    quantize<BlockQ8_0>(x, x_stride, Ggml<BlockQ8_0, u8>{y, y_stride}, rows, blocks, flag);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_q8_0_f16(const f16 *x, u64 x_stride, u8 *y, u64 y_stride, u64 rows, u64 blocks, u32 *flag)
{
    quantize<BlockQ8_0>(x, x_stride, Ggml<BlockQ8_0, u8>{y, y_stride}, rows, blocks, flag);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_q8_0_bf16(const bf16 *x, u64 x_stride, u8 *y, u64 y_stride, u64 rows, u64 blocks, u32 *flag)
{
    quantize<BlockQ8_0>(x, x_stride, Ggml<BlockQ8_0, u8>{y, y_stride}, rows, blocks, flag);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_q4_0_f32(const float *x, u64 x_stride, u8 *y, u64 y_stride, u64 rows, u64 blocks, u32 *flag)
{
    quantize<BlockQ4_0>(x, x_stride, Ggml<BlockQ4_0, u8>{y, y_stride}, rows, blocks, flag);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_q4_0_f16(const f16 *x, u64 x_stride, u8 *y, u64 y_stride, u64 rows, u64 blocks, u32 *flag)
{
    quantize<BlockQ4_0>(x, x_stride, Ggml<BlockQ4_0, u8>{y, y_stride}, rows, blocks, flag);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_q4_0_bf16(const bf16 *x, u64 x_stride, u8 *y, u64 y_stride, u64 rows, u64 blocks, u32 *flag)
{
    quantize<BlockQ4_0>(x, x_stride, Ggml<BlockQ4_0, u8>{y, y_stride}, rows, blocks, flag);
}

// planar layout

extern "C" __global__ void __launch_bounds__(THREADS) quantize_planar_q8_0_f32(
    const float *x, u64 x_stride, u8 *y, u64 y_stride, u64 quants, u64 scales, u64 rows, u64 blocks, u32 *flag)
{
    quantize<BlockQ8_0>(x, x_stride, Planar<BlockQ8_0, u8>{y, y_stride, quants, scales}, rows, blocks, flag);
}

extern "C" __global__ void __launch_bounds__(THREADS) quantize_planar_q8_0_f16(
    const f16 *x, u64 x_stride, u8 *y, u64 y_stride, u64 quants, u64 scales, u64 rows, u64 blocks, u32 *flag)
{
    quantize<BlockQ8_0>(x, x_stride, Planar<BlockQ8_0, u8>{y, y_stride, quants, scales}, rows, blocks, flag);
}

extern "C" __global__ void __launch_bounds__(THREADS) quantize_planar_q8_0_bf16(
    const bf16 *x, u64 x_stride, u8 *y, u64 y_stride, u64 quants, u64 scales, u64 rows, u64 blocks, u32 *flag)
{
    quantize<BlockQ8_0>(x, x_stride, Planar<BlockQ8_0, u8>{y, y_stride, quants, scales}, rows, blocks, flag);
}

extern "C" __global__ void __launch_bounds__(THREADS) quantize_planar_q4_0_f32(
    const float *x, u64 x_stride, u8 *y, u64 y_stride, u64 quants, u64 scales, u64 rows, u64 blocks, u32 *flag)
{
    quantize<BlockQ4_0>(x, x_stride, Planar<BlockQ4_0, u8>{y, y_stride, quants, scales}, rows, blocks, flag);
}

extern "C" __global__ void __launch_bounds__(THREADS) quantize_planar_q4_0_f16(
    const f16 *x, u64 x_stride, u8 *y, u64 y_stride, u64 quants, u64 scales, u64 rows, u64 blocks, u32 *flag)
{
    quantize<BlockQ4_0>(x, x_stride, Planar<BlockQ4_0, u8>{y, y_stride, quants, scales}, rows, blocks, flag);
}

extern "C" __global__ void __launch_bounds__(THREADS) quantize_planar_q4_0_bf16(
    const bf16 *x, u64 x_stride, u8 *y, u64 y_stride, u64 quants, u64 scales, u64 rows, u64 blocks, u32 *flag)
{
    quantize<BlockQ4_0>(x, x_stride, Planar<BlockQ4_0, u8>{y, y_stride, quants, scales}, rows, blocks, flag);
}
