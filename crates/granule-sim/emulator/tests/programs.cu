// An interpreter: each thread does what its list of operations says. The host makes random lists and knows which of them
// race.
#include "granule_emulator_device.h"

enum Kind : uint32_t { NOTHING, READ, WRITE, UPDATE, VOLATILE_READ, SYNC_WARP, SYNC_BLOCK };

// An access of `size` bytes at `offset`, or a meeting of the lanes in `mask`.
struct Op {
    uint32_t kind, offset, size, mask;
};

__device__ uint32_t read(const unsigned char* at, uint32_t size) {
    if (size == 1) return *at;
    if (size == 2) return *reinterpret_cast<const uint16_t*>(at);
    return *reinterpret_cast<const uint32_t*>(at);
}

__device__ void write(unsigned char* at, uint32_t size, uint32_t value) {
    if (size == 1) {
        *at = static_cast<unsigned char>(value);
    } else if (size == 2) {
        *reinterpret_cast<uint16_t*>(at) = static_cast<uint16_t>(value);
    } else {
        *reinterpret_cast<uint32_t*>(at) = value;
    }
}

// ops: n for each thread of each block. memory: 16 bytes that all blocks share, or null for 16 bytes of shared memory.
// sums: one for each thread.
extern "C" __global__ void run_program(const Op* ops, uint32_t n, unsigned char* memory, uint32_t* sums) {
    GRANULE_DYNAMIC_SHARED(unsigned char, own);
    if (memory == nullptr) {
        memory = own;
        if (threadIdx.x < 16) own[threadIdx.x] = 0;
        __syncthreads();
    }
    const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < n; ++i) {
        const Op op = ops[thread * n + i];
        unsigned char* const at = memory + op.offset;
        switch (op.kind) {
            case READ:
                sum += read(at, op.size);
                break;
            case WRITE:
                write(at, op.size, thread);
                break;
            case UPDATE:
                atomicAdd(reinterpret_cast<uint32_t*>(at), 1u);
                break;
            case VOLATILE_READ:
                sum += *reinterpret_cast<volatile uint32_t*>(at);
                break;
            case SYNC_WARP:
                __syncwarp(op.mask);
                break;
            case SYNC_BLOCK:
                __syncthreads();
                break;
            default:
                break;
        }
    }
    sums[thread] = sum;
}
