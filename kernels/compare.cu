// Compares two stretches of memory: how many bytes differ, and the first that does.
#include "intrinsics.cuh"

// 16-byte pieces that a thread compares in a row, and bytes that a thread block compares with them: 16 KiB.
constexpr u32 ROUNDS = 4;
constexpr u32 PIECE = ROUNDS * THREADS * sizeof(Wide);

// What a comparison has found.
struct Difference {
    u64 count; // bytes that differ
    u64 first; // the index of the first of them, or 2^64 - 1 where there is none
};
static_assert(sizeof(Difference) == 16);

// The bytes of a word that are not zero: the top bit of each is set in the result.
__device__ inline u32 nonzero_bytes(u32 x) { return (((x & 0x7f7f7f7f) + 0x7f7f7f7f) | x) & 0x80808080; }

// Adds what the lanes of a warp found; `first` of a lane without a difference is 2^64 - 1. All lanes take part.
__device__ inline void add(Difference *result, u64 count, u64 first)
{
    UNROLLED for (u32 step = 1; step < WARP; step *= 2) count += __shfl_xor_sync(ALL_LANES, count, step);
    if (count == 0) return; // the same for all lanes
    UNROLLED for (u32 step = 1; step < WARP; step *= 2) {
        const u64 other = __shfl_xor_sync(ALL_LANES, first, step);
        first = other < first ? other : first;
    }
    if (threadIdx.x % WARP == 0) {
        atomicAdd(&result->count, count);
        atomicMin(&result->first, first);
    }
}

// Makes `result` what it is before anything was compared. Grid: 1. Block: 1 thread does the work.
extern "C" __global__ void __launch_bounds__(THREADS) compare_begin(Difference *result)
{
    if (threadIdx.x == 0) *result = Difference{0, ~u64{0}};
}

// a, b     `bytes` bytes each, at any address; 16-byte loads where both are equally far past a multiple of 16
// result   as compare_begin has left it, or an earlier comparison whose findings are to be added to; a multiple of 8
// Grid: x over pieces of 16 KiB; any size does all of the work. Block: 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS)
    compare_bytes(const u8 *a, const u8 *b, u64 bytes, Difference *result)
{
    const u32 before = (sizeof(Wide) - misalignment(a)) % sizeof(Wide);
    const bool wide = misalignment(a) == misalignment(b) && before < bytes;
    const u32 head = wide ? before : 0;
    const u64 body = wide ? (bytes - head) / sizeof(Wide) * sizeof(Wide) : 0;

    u64 count = 0;
    u64 first = ~u64{0};
    for (u64 piece = u64{blockIdx.x} * PIECE; piece < body; piece += u64{gridDim.x} * PIECE) {
        Wide x[ROUNDS], y[ROUNDS];
        UNROLLED for (u32 round = 0; round < ROUNDS; round++) {
            const u64 i = piece + (round * THREADS + threadIdx.x) * sizeof(Wide);
            x[round] = i < body ? load<Wide>(a + head + i) : Wide{};
            y[round] = i < body ? load<Wide>(b + head + i) : Wide{};
        }
        UNROLLED for (u32 round = 0; round < ROUNDS; round++) {
            UNROLLED for (u32 k = 0; k < 4; k++) {
                const u32 bytes_of_word = nonzero_bytes(x[round].word[k] ^ y[round].word[k]);
                if (bytes_of_word == 0) continue;
                const u64 i = head + piece + (round * THREADS + threadIdx.x) * sizeof(Wide) + k * 4;
                count += count_ones(bytes_of_word);
                if (first == ~u64{0}) first = i + lowest_one(bytes_of_word) / 8;
            }
        }
    }
    // The rest byte by byte: at most 15 before the body and 15 behind it, or everything where the two lie unevenly.
    for (u64 rest = u64{blockIdx.x} * THREADS + threadIdx.x; rest < bytes - body; rest += u64{gridDim.x} * THREADS) {
        const u64 i = rest < head ? rest : rest + body;
        if (a[i] == b[i]) continue;
        count += 1;
        first = i < first ? i : first;
    }
    add(result, count, first);
}
