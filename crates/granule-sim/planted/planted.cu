// Kernels with a bug each, and what their corrected twins need. They prove that a checker finds what it is for.
#include "intrinsics.cuh"

// values: n f32. Thread i < count writes values[i] = i; the bug is a count above n.
extern "C" __global__ void planted_write(float *values, u32 count) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) {
        values[i] = (float)i;
    }
}

// from: n u32, to: n u32. to[i] = from[i] + 1.
extern "C" __global__ void planted_increment(const u32 *from, u32 *to, u32 n) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        to[i] = from[i] + 1;
    }
}

// to: blockDim.x u32, one block of at most 256 threads. Each thread hands its number to its neighbour through shared
// memory; with no barrier between writing and reading (barrier == 0) that is a race.
extern "C" __global__ void planted_hand_over(u32 *to, u32 barrier) {
    __shared__ u32 hands[256];
    u32 i = threadIdx.x;
    hands[i] = i;
    if (barrier != 0) {
        __syncthreads();
    }
    to[i] = hands[(i + 1) % blockDim.x];
}

// to: blockDim.x u32, one block. Every second thread of a warp waits at another barrier than its neighbour
// (divergent != 0), or all wait at one.
extern "C" __global__ void planted_barrier(u32 *to, u32 divergent) {
    u32 i = threadIdx.x;
    if (divergent != 0 && i % 2 == 0) {
        to[i] = 1;
        __syncthreads();
    } else {
        __syncthreads();
        to[i] = 2;
    }
}
