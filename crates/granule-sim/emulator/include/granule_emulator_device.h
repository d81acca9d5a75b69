// What a .cu file sees instead of CUDA when it is compiled for the emulator (GRANULE_EMULATED is defined then).
//
// The keywords, thread indices, barriers, warp intrinsics, atomics and asynchronous copies of CUDA C++, under CUDA's own
// names. Everything that other threads take part in ends in one of the granule_emu_* functions below, which the emulator
// implements. Pure functions (conversions, dp4a, byte permutes) have their CPU twins in kernels/include/intrinsics.cuh.
//
// What differs from CUDA: dynamic shared memory is declared with GRANULE_DYNAMIC_SHARED(type, name), because
// `extern __shared__` cannot be spelled in C++; __activemask is missing, because its value promises nothing.
#ifndef GRANULE_EMULATOR_DEVICE_H
#define GRANULE_EMULATOR_DEVICE_H

// Keywords. Launch bounds are the compiler's business on a GPU; here they only have to parse.
#if defined(GRANULE_EMULATED_SCAN)
// The builder preprocesses each file once this way and reads the kernels' names behind the marker.
#define __global__ __granule_emulated_kernel__
#else
#if defined(GRANULE_EMULATED_CHECKED) && defined(GRANULE_EMULATED)
// g++ expands copies of a constant size without telling -fsanitize=thread. Under these names each one is a call that the
// emulator sees (-fno-builtin-memcpy and so on keep it from knowing better).
using size_t = decltype(sizeof 0);
extern "C" {
void* memcpy(void*, const void*, size_t) noexcept __asm__("granule_emu_memcpy");
void* memmove(void*, const void*, size_t) noexcept __asm__("granule_emu_memmove");
void* memset(void*, int, size_t) noexcept __asm__("granule_emu_memset");
}
#define __builtin_memcpy memcpy
#define __builtin_memmove memmove
#define __builtin_memset memset
#endif
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#define __global__
#endif
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
// Shared variables are function-local statics: blocks run one after another, and the emulator finds them (name, address,
// size) in the library's symbol table, poisons them before each block and, in the checked build, watches every byte.
#define __shared__ static
// CUDA: `extern __shared__ type name[];`. 16-byte aligned, as on a GPU.
#define GRANULE_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(granule_emu_dynamic_shared())
#define warpSize 32

// A thread, block, block size or grid size.
struct granule_emu_index {
    unsigned x, y, z;
};

extern "C" {
// threadIdx.x, .y, .z, then the same of blockIdx, blockDim and gridDim. They do not change while a thread lives, so the
// compiler may ask once.
unsigned granule_emu_index_of(unsigned which) __attribute__((const));
void* granule_emu_dynamic_shared() __attribute__((const));

// Block barrier. Answers `count` (how many threads gave a true predicate), which serves all three __syncthreads_*.
unsigned granule_emu_block_barrier(int predicate, const char* file, int line);
// Warp intrinsics; the enumerations stand below. `value` is zero-extended.
uint64_t granule_emu_warp_exchange(unsigned what, unsigned mask, uint64_t value, int lane, int width, const char* file,
                                   int line);
// Calls `together(inputs, outputs)` once for all lanes of `mask`, with 32 inputs and outputs of the given sizes behind
// each other (lanes outside the mask: poison), then hands each lane its output. For warp-wide matrix instructions.
void granule_emu_warp_together(unsigned mask, const void* input, unsigned input_size, void* output, unsigned output_size,
                               void (*together)(const void* inputs, void* outputs), const char* file, int line);
// Another thread may run now. Called after atomics, so that loops which wait for one make progress.
void granule_emu_yield();
// Memory fence of a thread: 0 block, 1 device, 2 system.
void granule_emu_fence(int scope);
[[noreturn]] void granule_emu_trap(const char* file, int line);
[[noreturn]] void granule_emu_assert_failed(const char* what, const char* file, int line);
// cp.async of 4, 8 or 16 bytes, of which the first `valid` are read and the rest is zero. The bytes arrive when the thread
// waits for their group, not before.
void granule_emu_async_copy(void* shared, const void* global, unsigned size, unsigned valid);
void granule_emu_async_commit();
void granule_emu_async_wait(unsigned groups_still_in_flight);
}

// Of the three calls only those remain whose answer is used.
__forceinline__ granule_emu_index granule_emu_index_from(unsigned first) {
    return {granule_emu_index_of(first), granule_emu_index_of(first + 1), granule_emu_index_of(first + 2)};
}
#define threadIdx granule_emu_index_from(0)
#define blockIdx granule_emu_index_from(3)
#define blockDim granule_emu_index_from(6)
#define gridDim granule_emu_index_from(9)

// `file` and `line` are where the kernel called: barriers at different lines are different barriers, and messages name them.
#define GRANULE_EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(GRANULE_EMU_HERE) { granule_emu_block_barrier(0, file, line); }
inline int __syncthreads_count(int predicate, GRANULE_EMU_HERE) {
    return static_cast<int>(granule_emu_block_barrier(predicate, file, line));
}
inline int __syncthreads_or(int predicate, GRANULE_EMU_HERE) {
    return granule_emu_block_barrier(predicate, file, line) != 0;
}
inline int __syncthreads_and(int predicate, GRANULE_EMU_HERE) {
    return granule_emu_block_barrier(predicate == 0, file, line) == 0;
}

// What granule_emu_warp_exchange does with the lanes' values.
enum granule_emu_warp_op : unsigned {
    GRANULE_EMU_SYNC,
    GRANULE_EMU_SHUFFLE,
    GRANULE_EMU_SHUFFLE_UP,
    GRANULE_EMU_SHUFFLE_DOWN,
    GRANULE_EMU_SHUFFLE_XOR,
    GRANULE_EMU_BALLOT,
    GRANULE_EMU_MATCH_ANY,
    GRANULE_EMU_REDUCE_ADD,
    GRANULE_EMU_REDUCE_AND,
    GRANULE_EMU_REDUCE_OR,
    GRANULE_EMU_REDUCE_XOR,
    GRANULE_EMU_REDUCE_MIN_UNSIGNED,
    GRANULE_EMU_REDUCE_MAX_UNSIGNED,
    GRANULE_EMU_REDUCE_MIN_SIGNED,
    GRANULE_EMU_REDUCE_MAX_SIGNED,
    GRANULE_EMU_TOGETHER,
};

inline void __syncwarp(unsigned mask = 0xffffffffu, GRANULE_EMU_HERE) {
    granule_emu_warp_exchange(GRANULE_EMU_SYNC, mask, 0, 0, 32, file, line);
}

template <class T>
inline T granule_emu_shuffle(granule_emu_warp_op what, unsigned mask, T value, int lane, int width, const char* file,
                             int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    if constexpr (sizeof(T) == 4) {
        const uint32_t bits = __builtin_bit_cast(uint32_t, value);
        const uint64_t got = granule_emu_warp_exchange(what, mask, bits, lane, width, file, line);
        return __builtin_bit_cast(T, static_cast<uint32_t>(got));
    } else {
        const uint64_t bits = __builtin_bit_cast(uint64_t, value);
        return __builtin_bit_cast(T, granule_emu_warp_exchange(what, mask, bits, lane, width, file, line));
    }
}
template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, GRANULE_EMU_HERE) {
    return granule_emu_shuffle(GRANULE_EMU_SHUFFLE, mask, value, lane, width, file, line);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, GRANULE_EMU_HERE) {
    return granule_emu_shuffle(GRANULE_EMU_SHUFFLE_UP, mask, value, static_cast<int>(delta), width, file, line);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, GRANULE_EMU_HERE) {
    return granule_emu_shuffle(GRANULE_EMU_SHUFFLE_DOWN, mask, value, static_cast<int>(delta), width, file, line);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, GRANULE_EMU_HERE) {
    return granule_emu_shuffle(GRANULE_EMU_SHUFFLE_XOR, mask, value, lane_mask, width, file, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, GRANULE_EMU_HERE) {
    return static_cast<unsigned>(
        granule_emu_warp_exchange(GRANULE_EMU_BALLOT, mask, predicate != 0, 0, 32, file, line));
}
inline int __any_sync(unsigned mask, int predicate, GRANULE_EMU_HERE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, GRANULE_EMU_HERE) {
    return __ballot_sync(mask, predicate == 0, file, line) == 0;
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, GRANULE_EMU_HERE) {
    return static_cast<unsigned>(
        granule_emu_shuffle(GRANULE_EMU_MATCH_ANY, mask, value, 0, 32, file, line));
}

// __reduce_*_sync of sm_80.
#define GRANULE_EMU_REDUCE(name, type, what)                                                                   \
    inline type name(unsigned mask, type value, GRANULE_EMU_HERE) {                                            \
        return static_cast<type>(                                                                              \
            granule_emu_warp_exchange(what, mask, static_cast<unsigned>(value), 0, 32, file, line));           \
    }
GRANULE_EMU_REDUCE(__reduce_add_sync, unsigned, GRANULE_EMU_REDUCE_ADD)
GRANULE_EMU_REDUCE(__reduce_add_sync, int, GRANULE_EMU_REDUCE_ADD)
GRANULE_EMU_REDUCE(__reduce_min_sync, unsigned, GRANULE_EMU_REDUCE_MIN_UNSIGNED)
GRANULE_EMU_REDUCE(__reduce_min_sync, int, GRANULE_EMU_REDUCE_MIN_SIGNED)
GRANULE_EMU_REDUCE(__reduce_max_sync, unsigned, GRANULE_EMU_REDUCE_MAX_UNSIGNED)
GRANULE_EMU_REDUCE(__reduce_max_sync, int, GRANULE_EMU_REDUCE_MAX_SIGNED)
GRANULE_EMU_REDUCE(__reduce_and_sync, unsigned, GRANULE_EMU_REDUCE_AND)
GRANULE_EMU_REDUCE(__reduce_or_sync, unsigned, GRANULE_EMU_REDUCE_OR)
GRANULE_EMU_REDUCE(__reduce_xor_sync, unsigned, GRANULE_EMU_REDUCE_XOR)
#undef GRANULE_EMU_REDUCE

inline void __threadfence_block() { granule_emu_fence(0); }
inline void __threadfence() { granule_emu_fence(1); }
inline void __threadfence_system() { granule_emu_fence(2); }
inline void __nanosleep(unsigned) { granule_emu_yield(); }
[[noreturn]] inline void __trap(GRANULE_EMU_HERE) { granule_emu_trap(file, line); }

#undef assert
#define assert(what) ((what) ? static_cast<void>(0) : granule_emu_assert_failed(#what, __FILE__, __LINE__))

#include "granule_emulator_atomics.h"

#endif
