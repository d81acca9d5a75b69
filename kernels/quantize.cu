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
#include "rows.cuh"

constexpr u32 NOT_FINITE = 1;
constexpr u32 OVERFLOW = 2;

template <typename Block, typename Rows, typename Float>
__device__ inline void quantize(const Float *x, u64 x_stride, Rows y, u64 rows, u64 blocks, u32 *flag)
{
    constexpr u32 COUNT = Floats<Float>::COUNT;  // elements that a thread reads at once
    constexpr u32 GROUP = BLOCK_LEN / COUNT;    // neighbouring lanes that have a block among them
    constexpr u32 ROUNDS = TILE * GROUP / THREADS;
    alignas(16) __shared__ u8 memory[Rows::TILE_BYTES];

    for_each_tile(rows, blocks, [&](u64 row, u64 first, u32 n) {
        const auto tile = y.tile(memory, row, first);
        const u8 *from = reinterpret_cast<const u8 *>(x) + row * x_stride + first * (BLOCK_LEN * sizeof(Float));
        Wide held[ROUNDS];
        UNROLLED for (u32 round = 0; round < ROUNDS; round++) {
            const u32 piece = round * THREADS + threadIdx.x;
            held[round] = piece / GROUP < n ? load<Wide>(from + piece * sizeof(Wide)) : Wide{};
        }
        UNROLLED for (u32 round = 0; round < ROUNDS; round++) {
            const u32 piece = round * THREADS + threadIdx.x;
            const u32 block = piece / GROUP, lane = piece % GROUP;
            float v[COUNT];
            UNROLLED for (u32 i = 0; i < COUNT; i++) v[i] = Floats<Float>::get(held[round], i);

            // The first element of largest magnitude, by its bits, in which NaN lies above infinity above the rest.
            u32 largest = bits_of(v[0]);
            UNROLLED for (u32 i = 1; i < COUNT; i++) {
                if ((bits_of(v[i]) & 0x7fffffff) > (largest & 0x7fffffff)) largest = bits_of(v[i]);
            }
            UNROLLED for (u32 step = 1; step < GROUP; step *= 2) {
                const u32 other = __shfl_xor_sync(ALL_LANES, largest, step);
                const u32 magnitude = other & 0x7fffffff, mine = largest & 0x7fffffff;
                if (magnitude > mine || (magnitude == mine && (lane & step) != 0)) largest = other;
            }
            const bool finite = (largest & 0x7fffffff) < 0x7f800000;
            const float scale = finite ? Format<Block>::scale(float_of(largest)) : 0.0f;
            const float inverse = inverse_of(scale);
            const f16 d = finite ? to_f16(scale) : f16{0x7fff};

            // Blocks past the end of the row take part in the shuffles and write nothing.
            if (lane == 0 && block < n) {
                tile.set_scale(block, d);
                if ((d.bits & 0x7fff) >= 0x7c00) atomicOr(flag, finite ? OVERFLOW : NOT_FINITE);
            }
            UNROLLED for (u32 i = 0; i < COUNT; i += 4) {
                u32 word = 0;
                UNROLLED for (u32 k = 0; k < 4; k++) {
                    word |= Format<Block>::quant(finite ? v[i + k] : 0.0f, inverse) << (8 * k);
                }
                const u32 at = lane * COUNT + i; // the four are elements at, at + 1, at + 2, at + 3
                if (Format<Block>::NIBBLES) word |= __shfl_xor_sync(ALL_LANES, word, GROUP / 2) << 4;
                if (block < n && at < Format<Block>::QUANTS) tile.set_quants(block, at, word);
            }
        }
        __syncthreads();
        tile.write_back(n);
        __syncthreads(); // the next tile overwrites this one
    });
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
