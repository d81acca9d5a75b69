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

            u32 largest;
            if constexpr (Format<Block>::SIGNED) {
                largest = larger(first_largest<COUNT, GROUP>(v), first_largest<COUNT, GROUP>(v + COUNT));
            } else {
                largest = largest_magnitude<2 * COUNT, GROUP>(v);
            }
            const bool finite = (largest & 0x7fffffff) < 0x7f800000;
            const float scale = finite ? Format<Block>::scale(float_of(largest)) : 0.0f;
            const float inverse = inverse_of(scale);
            const f16 d = finite ? to_f16(scale) : f16{0x7fff};
            if (at == 0) {
                tile.set_scale(block, d);
                if ((d.bits & 0x7fff) >= 0x7c00) raised |= finite ? OVERFLOW : NOT_FINITE;
            }
            UNROLLED for (u32 k = 0; k < COUNT; k += 4) {
                u32 low = Format<Block>::quants(v + k, inverse), high = Format<Block>::quants(v + COUNT + k, inverse);
                if (!finite) low = high = Format<Block>::ZEROS;
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
