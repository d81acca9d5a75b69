// Kernels without a mistake: their results are compared with the host's, and no build may report anything about them.
#include "granule_emulator_device.h"

// from: n f32, to: gridDim.x f32. to[b] = the sum of block b's elements, by shuffles and one shared value a warp.
extern "C" __global__ void __launch_bounds__(1024) block_sum(const float* __restrict__ from, float* __restrict__ to,
                                                             uint32_t n) {
    __shared__ float sums[32];
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum = i < n ? from[i] : 0.0f;
    for (int by = 16; by > 0; by /= 2) sum += __shfl_down_sync(0xffffffffu, sum, by);
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        sum = lane < blockDim.x / 32 ? sums[lane] : 0.0f;
        for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
        if (lane == 0) to[blockIdx.x] = sum;
    }
}

// from: n u32, to: 16 u32. to[k] += how many elements are k modulo 16: atomics in shared, then in global memory.
extern "C" __global__ void histogram(const uint32_t* from, uint32_t* to, uint32_t n) {
    __shared__ uint32_t bins[16];
    if (threadIdx.x < 16) bins[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        atomicAdd(&bins[from[i] % 16], 1u);
    }
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&to[threadIdx.x], bins[threadIdx.x]);
}

// Template with a shared variable of its own, as libraries of kernels have them.
template <typename T>
__device__ T reversed(T value) {
    __shared__ T values[256];
    values[threadIdx.x] = value;
    __syncthreads();
    return values[blockDim.x - 1 - threadIdx.x];
}

// to: blockDim.x u64, at most 256. to[i] = the numbers of the threads, reversed twice over with two types.
extern "C" __global__ void reverse(unsigned long long* to) {
    const uint32_t a = reversed(static_cast<uint32_t>(threadIdx.x));
    to[threadIdx.x] = reversed(static_cast<unsigned long long>(a) << 32 | threadIdx.x);
}

// to: blockDim.x u32. A tree in dynamic shared memory inside each warp, ordered by __syncwarp alone; to[i] = its warp's sum.
extern "C" __global__ void warp_tree(uint32_t* to) {
    GRANULE_DYNAMIC_SHARED(uint32_t, tree);
    uint32_t* const mine = tree + threadIdx.x / 32 * 32;
    const uint32_t lane = threadIdx.x % 32;
    mine[lane] = threadIdx.x;
    for (uint32_t by = 16; by > 0; by /= 2) {
        __syncwarp();
        const uint32_t sum = lane < by ? mine[lane] + mine[lane + by] : 0;
        __syncwarp();
        if (lane < by) mine[lane] = sum;
    }
    __syncwarp();
    to[threadIdx.x] = mine[0];
}

// to: 12 u32 for each thread of one warp: what the warp intrinsics answer.
extern "C" __global__ void warp_answers(uint32_t* to) {
    const uint32_t lane = threadIdx.x, all = 0xffffffffu;
    uint32_t* const mine = to + lane * 12;
    mine[0] = __shfl_sync(all, lane * 10, lane + 5, 8);
    mine[1] = __shfl_up_sync(all, lane * 10, 3, 16);
    mine[2] = __shfl_down_sync(all, lane * 10, 3, 16);
    mine[3] = __shfl_xor_sync(all, lane * 10, 9);
    mine[4] = __ballot_sync(all, lane % 3 == 0);
    mine[5] = static_cast<uint32_t>(__any_sync(all, lane == 7)) * 2 + static_cast<uint32_t>(__all_sync(all, lane < 31));
    mine[6] = __match_any_sync(all, lane / 4);
    mine[7] = __reduce_add_sync(all, lane);
    mine[8] = static_cast<uint32_t>(__reduce_min_sync(all, static_cast<int>(lane) - 20));
    mine[9] = __reduce_max_sync(all, lane ^ 21);
    // Two halves of the warp with masks of their own, one of them twice.
    if (lane < 16) {
        mine[10] = __ballot_sync(0x0000ffffu, lane % 2);
        mine[10] += __reduce_xor_sync(0x0000ffffu, lane);
    } else {
        mine[10] = __ballot_sync(0xffff0000u, lane % 2);
    }
    const double half = __shfl_xor_sync(all, lane * 0.5, 1);
    mine[11] = static_cast<uint32_t>(half * 2);
}

// to: 3 u32. __syncthreads_count, _and and _or over a block in which the first `n` threads say yes.
extern "C" __global__ void block_votes(uint32_t* to, uint32_t n) {
    const int yes = threadIdx.x < n;
    const int count = __syncthreads_count(yes), all = __syncthreads_and(yes), any = __syncthreads_or(yes);
    if (threadIdx.x == 0) {
        to[0] = static_cast<uint32_t>(count);
        to[1] = static_cast<uint32_t>(all);
        to[2] = static_cast<uint32_t>(any);
    }
}

// from: n u32 (n a multiple of 4 * blockDim.x), to: n u32. A copy through shared memory with cp.async, two groups in flight.
extern "C" __global__ void staged_copy(const uint32_t* from, uint32_t* to, uint32_t n) {
    __shared__ __align__(16) uint32_t stage[2][1024];
    const uint32_t step = 4 * blockDim.x, mine = 4 * threadIdx.x;
    granule_emu_async_copy(&stage[0][mine], from + mine, 16, 16);
    granule_emu_async_commit();
    for (uint32_t i = 0; i < n; i += step) {
        const uint32_t now = i / step % 2;
        if (i + step < n) granule_emu_async_copy(&stage[1 - now][mine], from + i + step + mine, 16, 16);
        granule_emu_async_commit();
        granule_emu_async_wait(1);
        __syncthreads();
        // Another thread's part, so that the barrier is needed.
        for (uint32_t k = threadIdx.x; k < step; k += blockDim.x) to[i + k] = stage[now][k];
        __syncthreads();
    }
}

// to: 32 u32. to[lane] = the sum over a warp, by a function over all lanes at once.
extern "C" __global__ void together(uint32_t* to) {
    struct Pair {
        uint32_t a, b;
    };
    const Pair mine{threadIdx.x, 100};
    uint32_t sum = 0;
    granule_emu_warp_together(
        0xffffffffu, &mine, sizeof mine, &sum, sizeof sum,
        [](const void* inputs, void* outputs) {
            uint32_t total = 0;
            for (int lane = 0; lane < 32; ++lane) total += static_cast<const Pair*>(inputs)[lane].a;
            for (int lane = 0; lane < 32; ++lane) {
                static_cast<uint32_t*>(outputs)[lane] = total + static_cast<const Pair*>(inputs)[lane].b;
            }
        },
        __FILE__, __LINE__);
    to[threadIdx.x] = sum;
}

// at: 1 u32, zero; to: 1 u32. A lock that threads of several warps spin on.
extern "C" __global__ void locked(uint32_t* at, volatile uint32_t* to) {
    if (threadIdx.x % 32 == 0) {
        while (atomicCAS(at, 0u, 1u) != 0) {
        }
        *to = *to + 1;
        atomicExch(at, 0u);
    }
}

// to: 3 u32 for each thread of the grid: indices in all three axes.
extern "C" __global__ void indices(uint32_t* to) {
    const uint32_t block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const uint32_t thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    uint32_t* const mine = to + 3 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
    mine[0] = block << 16 | thread;
    mine[1] = threadIdx.x << 16 | threadIdx.y << 8 | threadIdx.z;
    mine[2] = blockIdx.x << 16 | blockIdx.y << 8 | blockIdx.z;
}

// from, to: n f32. to[i] = from[i] / 2, subnormals included.
extern "C" __global__ void halve(const float* from, float* to, uint32_t n) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[i] = from[i] / 2;
}
