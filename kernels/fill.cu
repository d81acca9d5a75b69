// Fills memory with a pattern of 16 bytes, which is any pattern of 1, 2, 4, 8 or 16 bytes repeated.
#include "intrinsics.cuh"

// 16-byte pieces that a thread writes in a row, and bytes that a thread block writes with them: 16 KiB.
constexpr u32 ROUNDS = 4;
constexpr u32 PIECE = ROUNDS * THREADS * sizeof(Wide);

// Byte `i` of the pattern, `i` below 16.
__device__ inline u8 byte_of(u64 low, u64 high, u32 i)
{
    return static_cast<u8>((i < 8 ? low : high) >> (i % 8 * 8));
}

// to       `bytes` bytes, at any address; byte i becomes byte i % 16 of the pattern
// low      bytes 0 to 7 of the pattern, little-endian
// high     bytes 8 to 15 of it
// Grid: x over pieces of 16 KiB; any size does all of the work. Block: 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS) fill_bytes(u8 *to, u64 bytes, u64 low, u64 high)
{
    const u32 before = (sizeof(Wide) - misalignment(to)) % sizeof(Wide);
    const u32 head = before < bytes ? before : static_cast<u32>(bytes);
    const u64 body = (bytes - head) / sizeof(Wide) * sizeof(Wide);

    // The pattern as the first whole 16-byte piece sees it, which begins at byte `head`.
    Wide wide{};
    UNROLLED for (u32 i = 0; i < sizeof(Wide); i++) {
        wide.word[i / 4] |= static_cast<u32>(byte_of(low, high, (head + i) % sizeof(Wide))) << (i % 4 * 8);
    }
    for (u64 piece = u64{blockIdx.x} * PIECE; piece < body; piece += u64{gridDim.x} * PIECE) {
        UNROLLED for (u32 round = 0; round < ROUNDS; round++) {
            const u64 i = piece + (round * THREADS + threadIdx.x) * sizeof(Wide);
            if (i < body) store(to + head + i, wide);
        }
    }
    // At most 15 bytes before the body and 15 behind it.
    if (blockIdx.x == 0 && threadIdx.x < bytes - body) {
        const u64 i = threadIdx.x < head ? threadIdx.x : threadIdx.x + body;
        to[i] = byte_of(low, high, static_cast<u32>(i % sizeof(Wide)));
    }
}
