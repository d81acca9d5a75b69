// What the ranks of a group do with each other's memory: add it up in the order of the ranks, and put it together.
//
// The memory may be other devices', which let this one reach it.
#include "floats.cuh"

// The most ranks of a group.
constexpr u32 RANKS = 16;

// What a launch adds up: out[i] = ((parts[0][i] + parts[1][i]) + parts[2][i]) + …, each sum rounded by itself.
struct RankSum {
    const float *parts[RANKS]; // `ranks` of them, each of `elements`
    float *out;                // as many; may be one of the parts
    u64 elements;
    u64 ranks; // 1 to 16
};

// Element i of the sum.
__device__ inline float sum_of(const RankSum &of, u64 i)
{
    float sum = load<float>(of.parts[0] + i);
    UNROLLED for (u32 rank = 1; rank < RANKS; rank++) {
        if (rank < of.ranks) sum = sum + load<float>(of.parts[rank] + i);
    }
    return sum;
}

// Grid: x over pieces of 4 elements, 256 to a thread block; any size of it does all of the work, once. Block: 256 threads. Where all addresses
// are multiples of 16 it moves 16 bytes at a time.
extern "C" __global__ void __launch_bounds__(THREADS) ranks_sum(const RankSum of)
{
    bool wide = misalignment(of.out) == 0;
    UNROLLED for (u32 rank = 0; rank < RANKS; rank++) wide = wide && (rank >= of.ranks || misalignment(of.parts[rank]) == 0);
    const u64 thread = u64{blockIdx.x} * THREADS + threadIdx.x, step = u64{gridDim.x} * THREADS;
    const u64 body = wide ? of.elements / 4 : 0;
    for (u64 i = thread; i < body; i += step) {
        const Wide first = load<Wide>(of.parts[0] + 4 * i);
        float sum[4];
        UNROLLED for (u32 k = 0; k < 4; k++) sum[k] = float_of(first.word[k]);
        UNROLLED for (u32 rank = 1; rank < RANKS; rank++) {
            if (rank < of.ranks) {
                const Wide next = load<Wide>(of.parts[rank] + 4 * i);
                UNROLLED for (u32 k = 0; k < 4; k++) sum[k] = sum[k] + float_of(next.word[k]);
            }
        }
        store(of.out + 4 * i, wide_of(sum));
    }
    for (u64 i = 4 * body + thread; i < of.elements; i += step) store(of.out + i, sum_of(of, i));
}

// What a launch puts together: out[begins[r] .. begins[r + 1]] = parts[r][0 ..].
struct RankGather {
    const float *parts[RANKS]; // `ranks` of them; one that lies where it goes stays
    u64 begins[RANKS + 1];     // in elements, not falling; those behind `ranks` are not looked at
    float *out;
    u64 ranks; // 1 to 16
};

// Grid: x over pieces of 4 elements of a part, 256 to a thread block, y over ranks; any size does all of the work. Block: 256
// threads. Where both addresses of a part are multiples of 16 it moves 16 bytes at a time.
extern "C" __global__ void __launch_bounds__(THREADS) ranks_gather(const RankGather of)
{
    const u64 thread = u64{blockIdx.x} * THREADS + threadIdx.x, step = u64{gridDim.x} * THREADS;
    ROLLED for (u64 part = blockIdx.y; part < of.ranks; part += gridDim.y) {
        // An array of parameters takes no index that is not known: it would be copied for that.
        const float *from = nullptr;
        u64 begin = 0, end = 0;
        UNROLLED for (u32 rank = 0; rank < RANKS; rank++) {
            if (rank == part) from = of.parts[rank], begin = of.begins[rank], end = of.begins[rank + 1];
        }
        float *to = of.out + begin;
        if (from == to) continue;
        const u64 elements = end - begin;
        const u64 body = misalignment(from) == 0 && misalignment(to) == 0 ? elements / 4 : 0;
        for (u64 i = thread; i < body; i += step) store(to + 4 * i, load<Wide>(from + 4 * i));
        for (u64 i = 4 * body + thread; i < elements; i += step) store(to + i, load<float>(from + i));
    }
}
