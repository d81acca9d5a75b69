// Rows of weights as they lie in a file, in the ggml layout, into the planes of a matrix on the device (`weights.cuh` has the
// picture), byte for byte what `granule_quant::pack_planes_rows` makes.
//
// A thread takes a run: it reads its part of the block two bytes at a time, which neighbours have in the same lines of cache,
// and writes its words 16 bytes at a time where there are so many. Copying weights to the device takes longer than this.
#include "weight_blocks.cuh"

// The `N` words of bits FROM and on of a run's codes, N bits of each: word p those of code words p, p + N, ...
template <u32 N, u32 FROM> __device__ inline void store_bits(u8 *to, const u32 (&code)[8])
{
    constexpr u32 MASK = ((1u << N) - 1) * 0x01010101;
    u32 word[N];
    UNROLLED for (u32 p = 0; p < N; p++) {
        word[p] = 0;
        UNROLLED for (u32 n = p; n < 8; n += N) word[p] |= (code[n] >> FROM & MASK) << (n / N * N);
    }
    if constexpr (N % 4 == 0) {
        UNROLLED for (u32 p = 0; p < N; p += 4) {
            store(to + 4 * p, Wide{{word[p], word[p + 1], word[p + 2], word[p + 3]}});
        }
    } else if constexpr (N == 2) {
        store(to, word[0] | static_cast<u64>(word[1]) << 32);
    } else {
        static_assert(N == 1);
        store(to, word[0]);
    }
}

template <typename T>
__device__ inline void pack_weights(const u8 *from, u8 *to, u64 high, u64 scales, u64 d, u64 first, u64 blocks)
{
    using Block = typename BlockOf<T>::Block;
    const u64 runs = blocks * T::RUNS;
    for (u64 i = u64{blockIdx.x} * THREADS + threadIdx.x; i < runs; i += u64{gridDim.x} * THREADS) {
        const Block &block = reinterpret_cast<const Block *>(from)[i / T::RUNS];
        const u32 of_block = static_cast<u32>(i % T::RUNS);
        const u64 run = first * T::RUNS + i;
        u32 code[8] = {};
        BlockOf<T>::codes(block, of_block, code);
        store_bits<T::LOW, 0>(to + run * (4 * T::LOW), code);
        if constexpr (T::HIGH > 0) store_bits<T::HIGH, T::LOW>(to + high + run * (4 * T::HIGH), code);
        if constexpr (T::SCALE_BYTES > 0) {
            const u32 bytes = BlockOf<T>::scales(block, of_block);
            if constexpr (T::SCALE_BYTES == 1) {
                store(to + scales + run, static_cast<u8>(bytes));
            } else {
                static_assert(T::SCALE_BYTES == 2);
                store(to + scales + run * 2, static_cast<u16>(bytes));
            }
        }
        if (of_block == 0) {
            u8 *at = to + d + run / T::RUNS * T::D_BYTES;
            if constexpr (T::MINIMUM) {
                store(at, BlockOf<T>::d(block));
            } else {
                store(at, static_cast<u16>(BlockOf<T>::d(block)));
            }
        }
    }
}

// from     `blocks` blocks in the ggml layout, those of whole rows; even
// to       the whole matrix in planes; a multiple of 256
// high     bytes from there to the plane of high bits, likewise `scales` and `d`; that of low bits is the first
// first    number of the first block in the matrix
// Grid: x over runs, 256 to a thread block; any size does all of the work. Block: 256 threads.
#define PACK_WEIGHTS(name, T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS) pack_weights_##name(                                        \
        const u8 *from, u8 *to, u64 high, u64 scales, u64 d, u64 first, u64 blocks)                                   \
    {                                                                                                                 \
        pack_weights<T>(from, to, high, scales, d, first, blocks);                                                    \
    }

PACK_WEIGHTS(q8_0, Q8_0)
PACK_WEIGHTS(q4_0, Q4_0)
PACK_WEIGHTS(q4_1, Q4_1)
PACK_WEIGHTS(q5_0, Q5_0)
PACK_WEIGHTS(q5_1, Q5_1)
PACK_WEIGHTS(q2_k, Q2_K)
PACK_WEIGHTS(q3_k, Q3_K)
PACK_WEIGHTS(q4_k, Q4_K)
PACK_WEIGHTS(q5_k, Q5_K)
PACK_WEIGHTS(q6_k, Q6_K)
PACK_WEIGHTS(iq4_nl, IQ4_NL)
PACK_WEIGHTS(iq4_xs, IQ4_XS)
PACK_WEIGHTS(iq2_xxs, IQ2_XXS)

// Rows of floats, each padded with zeros to a multiple of 16 bytes.
//
// from     `rows` rows of `bytes` bytes, one behind the other; even, `bytes` too
// to       the whole matrix; a multiple of 256
// first    number of the first row in the matrix
// Grid: x over a row's pieces of 16 bytes, 256 to a thread block, y over rows; any size does all of the work. Block: 256
// threads.
extern "C" __global__ void __launch_bounds__(THREADS)
    pack_weights_floats(const u8 *from, u8 *to, u64 first, u64 rows, u64 bytes)
{
    constexpr u64 PIECE = sizeof(Wide);
    const u64 padded = (bytes + PIECE - 1) / PIECE * PIECE;
    for (u64 row = blockIdx.y; row < rows; row += gridDim.y) {
        const u64 step = u64{gridDim.x} * THREADS * PIECE;
        for (u64 at = (u64{blockIdx.x} * THREADS + threadIdx.x) * PIECE; at < bytes; at += step) {
            const u8 *source = from + row * bytes + at;
            const u64 left = bytes - at;
            Wide wide{};
            if (left >= PIECE && misalignment(source) == 0) {
                wide = load<Wide>(source);
            } else {
                UNROLLED for (u32 k = 0; k < PIECE / 2; k++) {
                    if (2 * k < left) wide.word[k / 2] |= static_cast<u32>(load<u16>(source + 2 * k)) << (k % 2 * 16);
                }
            }
            store(to + (first + row) * padded + at, wide);
        }
    }
}
