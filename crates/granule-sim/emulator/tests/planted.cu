// Kernels with one mistake each. The comment above a kernel says what must be reported.
#include "granule_emulator_device.h"

// Race on shared memory: no barrier between writing and reading the neighbour's value.
extern "C" __global__ void missing_barrier(uint32_t* to) {
    __shared__ uint32_t values[256];
    values[threadIdx.x] = threadIdx.x;
    to[threadIdx.x] = values[(threadIdx.x + 1) % blockDim.x];
}

// The same, in one warp and in dynamic shared memory: lanes are not in lockstep.
extern "C" __global__ void missing_syncwarp(uint32_t* to) {
    GRANULE_DYNAMIC_SHARED(uint32_t, values);
    values[threadIdx.x] = threadIdx.x;
    to[threadIdx.x] = values[threadIdx.x ^ 1];
}

// Race: the second round writes what slow threads of the first still read.
extern "C" __global__ void missing_second_barrier(uint32_t* to) {
    __shared__ uint32_t values[64];
    uint32_t sum = 0;
    for (uint32_t round = 0; round < 3; ++round) {
        values[threadIdx.x] = round + threadIdx.x;
        __syncthreads();
        sum += values[(threadIdx.x + 33) % 64];
    }
    to[threadIdx.x] = sum;
}

// Race: two threads write one byte of a word whose other bytes are other threads'.
extern "C" __global__ void shared_byte(uint32_t* to) {
    __shared__ unsigned char bytes[64];
    bytes[threadIdx.x == 63 ? 62 : threadIdx.x] = 1;
    __syncthreads();
    to[threadIdx.x] = bytes[threadIdx.x == 63 ? 0 : threadIdx.x];
}

// Race: a shuffle orders the lanes that met, not the other warp.
extern "C" __global__ void shuffle_is_no_barrier(uint32_t* to) {
    __shared__ uint32_t values[64];
    values[threadIdx.x] = threadIdx.x;
    const uint32_t by = __shfl_sync(0xffffffffu, 32u, 0);
    to[threadIdx.x] = values[(threadIdx.x + by) % 64];
}

// Race: __syncwarp with half a mask does not order the other half.
extern "C" __global__ void half_syncwarp(uint32_t* to) {
    __shared__ uint32_t values[32];
    values[threadIdx.x] = threadIdx.x;
    __syncwarp(threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u);
    to[threadIdx.x] = values[31 - threadIdx.x];
}

// Race: a plain read of what others update atomically.
extern "C" __global__ void read_of_atomic(uint32_t* to) {
    __shared__ uint32_t count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    atomicAdd(&count, 1u);
    to[threadIdx.x] = count;
}

// Race on global memory inside a block.
extern "C" __global__ void global_race(uint32_t* to) { to[threadIdx.x / 2] = threadIdx.x; }

// Race on global memory between blocks.
extern "C" __global__ void block_race(uint32_t* to) {
    if (threadIdx.x == 0) to[0] = to[0] + 1;
}

// Race between blocks: one reads what another writes.
extern "C" __global__ void block_read_race(const uint32_t* from, uint32_t* to) {
    if (threadIdx.x == 0) to[blockIdx.x] = from[(blockIdx.x + 1) % gridDim.x];
}

// Uninitialized read of static shared memory: the last element is never written.
extern "C" __global__ void uninitialized(uint32_t* to) {
    __shared__ uint32_t values[65];
    values[threadIdx.x] = 1;
    __syncthreads();
    to[threadIdx.x] = values[threadIdx.x + 1];
}

// Uninitialized: one byte of a dynamic word; the block before wrote it, which is no excuse.
extern "C" __global__ void uninitialized_byte(uint32_t* to) {
    GRANULE_DYNAMIC_SHARED(unsigned char, bytes);
    if (threadIdx.x == 0) {
        bytes[0] = bytes[1] = bytes[2] = 1;
        if (blockIdx.x == 0) bytes[3] = 1;
        to[blockIdx.x] = *reinterpret_cast<uint32_t*>(bytes);
    }
}

// Uninitialized: an atomic update of a counter that nobody set to zero.
extern "C" __global__ void uninitialized_atomic() {
    __shared__ uint32_t count;
    atomicAdd(&count, 1u);
}

// Reads shared memory before a copy has arrived: the wait is missing.
extern "C" __global__ void missing_async_wait(const uint32_t* from, uint32_t* to) {
    __shared__ __align__(16) uint32_t stage[128];
    granule_emu_async_copy(&stage[4 * threadIdx.x], from + 4 * threadIdx.x, 16, 16);
    granule_emu_async_commit();
    __syncthreads();
    to[threadIdx.x] = stage[threadIdx.x];
}

// Divergence: a barrier that the second half passes by, and exits.
extern "C" __global__ void divergent_exit() {
    if (threadIdx.x < blockDim.x / 2) __syncthreads();
}

// Divergence: an early return before a barrier.
extern "C" __global__ void early_return(uint32_t n) {
    if (threadIdx.x >= n) return;
    __syncthreads();
}

// Divergence: two barriers, half of the threads at each.
extern "C" __global__ void two_barriers(uint32_t* to) {
    if (threadIdx.x % 2 == 0) {
        __syncthreads();
        to[threadIdx.x] = 1;
    } else {
        __syncthreads();
        to[threadIdx.x] = 2;
    }
}

// Divergence: half of the warp waits for all of it, which is at the block's barrier.
extern "C" __global__ void shuffle_in_branch(uint32_t* to) {
    uint32_t value = threadIdx.x;
    if (threadIdx.x < 16) value += __shfl_xor_sync(0xffffffffu, value, 1);
    __syncthreads();
    to[threadIdx.x] = value;
}

// Divergence: a lane that its own mask does not name.
extern "C" __global__ void mask_without_self() { __syncwarp(0x0000fffeu); }

// Divergence: lanes that name each other with different masks.
extern "C" __global__ void different_masks() { __syncwarp(threadIdx.x % 2 ? 0xffffffffu : 0x7fffffffu); }

// Never ends: waits for a block that runs later, or has run.
extern "C" __global__ void waits_for_nobody(uint32_t* at) {
    while (atomicAdd(at, 0u) != 77u) {
    }
}

// Illegal address: past the end, by `at` elements.
extern "C" __global__ void write_at(uint32_t* to, unsigned long long at) {
    if (threadIdx.x == 3) to[at] = 1;
}
extern "C" __global__ void read_at(const uint32_t* from, uint32_t* to, unsigned long long at) { *to = from[at]; }

// Illegal address: past the end of a static and of the dynamic shared memory.
extern "C" __global__ void past_dynamic(uint32_t n) {
    GRANULE_DYNAMIC_SHARED(uint32_t, values);
    values[n] = 1;
}
extern "C" __global__ void past_static(uint32_t n) {
    __shared__ uint32_t values[32];
    unsigned char* const bytes = reinterpret_cast<unsigned char*>(values);
    memset(bytes + n, 1, 8);
}

// Misaligned: a 4-byte load at an odd address.
extern "C" __global__ void misaligned(const unsigned char* from, uint32_t* to) {
    *to = *reinterpret_cast<const uint32_t*>(from + 1);
}

// Misaligned: vectors at a multiple of half their size. The compiler may not split them before they are watched.
struct alignas(16) Four {
    uint32_t x, y, z, w;
};
struct alignas(8) Two {
    float x, y;
};
extern "C" __global__ void misaligned_four(const unsigned char* from, uint32_t* to) {
    const Four four = *reinterpret_cast<const Four*>(from + 8);
    *to = four.x + 3 * four.y + 5 * four.z + 7 * four.w;
}
extern "C" __global__ void misaligned_words(const unsigned char* from, uint32_t* to) {
    const Four four = reinterpret_cast<const Four*>(from + 8)[threadIdx.x];
    const uint32_t* const word = reinterpret_cast<const uint32_t*>(&four);
    uint32_t sum = 0;
    for (int i = 0; i < 4; ++i) sum += word[i];
    *to = sum;
}
extern "C" __global__ void misaligned_two(const unsigned char* from, float* to) {
    const Two two = *reinterpret_cast<const Two*>(from + 4);
    *to = two.x + two.y;
}
extern "C" __global__ void misaligned_store(uint32_t n, unsigned char* to) {
    const Four four{1, 2, 3, n};
    *reinterpret_cast<Four*>(to + 8) = four;
}

// Illegal: one thread's local array, reached by another.
extern "C" __global__ void foreign_local(uint32_t* to) {
    __shared__ uint32_t* pointer;
    uint32_t local[4] = {1, 2, 3, threadIdx.x};
    if (threadIdx.x == 0) pointer = local;
    __syncthreads();
    to[threadIdx.x] = pointer[3];
    __syncthreads();
}

// Local memory full.
extern "C" __global__ void deep(uint32_t* to, uint32_t n);
__device__ __noinline__ uint32_t dig(uint32_t n) {
    volatile uint32_t hole[64];
    hole[n % 64] = n;
    return n == 0 ? 0 : dig(n - 1) + hole[n % 64];
}
extern "C" __global__ void deep(uint32_t* to, uint32_t n) { *to = dig(n); }

// Stops itself.
extern "C" __global__ void traps(uint32_t n) {
    if (threadIdx.x == n) __trap();
}
extern "C" __global__ void builtin_traps(uint32_t n) {
    if (threadIdx.x == n) __builtin_trap();
}
extern "C" __global__ void asserts(uint32_t n) { assert(threadIdx.x != n); }
extern "C" __global__ void divides(uint32_t* to, int by) { *to = static_cast<uint32_t>(5 / by); }
