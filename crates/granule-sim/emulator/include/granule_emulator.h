// The emulator's C interface: find an emulated kernel by name, run one launch of it, get one result.
//
// A library of emulated kernels (libgranule_emulated.so, …_checked.so, …_asan.so) exports exactly these functions.
// It never allocates device memory: addresses in `params` are host addresses that the caller mapped.
// Launches of one library run one at a time; granule_emu_run waits for another thread's launch to end.
#ifndef GRANULE_EMULATOR_H
#define GRANULE_EMULATOR_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__)
#pragma GCC visibility push(default)  // everything else in a library of emulated kernels is hidden
#endif

// What granule_emu_abi answers for this header.
#define GRANULE_EMU_ABI 1u

// Codes of a granule_emu_result.
enum {
    GRANULE_EMU_OK = 0,
    GRANULE_EMU_ILLEGAL_ADDRESS = 1,       // the processor refused an access, or it was outside shared memory
    GRANULE_EMU_BARRIER_DIVERGENCE = 2,    // threads that must meet at a barrier or warp intrinsic never do
    GRANULE_EMU_RACE = 3,                  // two threads, no barrier between them, one writes (checked build)
    GRANULE_EMU_UNINITIALIZED_SHARED = 4,  // a read of shared memory that no thread wrote (checked build)
    GRANULE_EMU_REFUSED = 5,               // hooks->access answered non-zero
    GRANULE_EMU_TRAP = 6,                  // __trap, __builtin_trap, a failed assert, an integer division by zero
    GRANULE_EMU_BAD_LAUNCH = 7             // grid, block or shared memory outside CUDA's limits, or bad arguments
};

// One `extern "C" __global__` function. Lives as long as the library; nothing here is freed.
typedef struct {
    const char *name;             // as in the .cu, zero-terminated
    uint32_t n_params;            // number of entries in param_sizes and in a launch's params
    const uint32_t *param_sizes;  // bytes of each parameter
} granule_emu_kernel;

// A thread of a launch: blockIdx and threadIdx, x y z.
typedef struct {
    uint32_t block[3], thread[3];
} granule_emu_where;

// What the caller wants to see. Called on the thread that called granule_emu_run, on a stack of 64 KiB less what the
// kernel used. Must not call granule_emu_run, throw, or leave by longjmp.
typedef struct {
    void *context;  // handed to access
    // One access of `size` bytes to global memory: anything that is not the thread's own stack, shared memory or a
    // constant of the library. Before the access happens. `is_write` is 0 or 1; an atomic read-modify-write is a write
    // with is_atomic 1. Sizes are 1, 2, 4, 8, 16, or any number for a copied range. Non-zero ends the launch with
    // GRANULE_EMU_REFUSED; the refused access does not happen. Only checked libraries call it.
    int (*access)(void *context, uint64_t address, uint32_t size, uint32_t is_write, uint32_t is_atomic,
                  const granule_emu_where *where);
} granule_emu_hooks;

typedef struct {
    uint32_t grid[3], block[3];
    uint32_t shared_bytes;  // dynamic shared memory, bytes
    uint64_t seed;          // 0: blocks and threads in order; else both shuffled, threads at every scheduling point
    void **params;          // n_params pointers to the parameters' values, as cuLaunchKernel takes them; may be NULL for none
    const granule_emu_hooks *hooks;  // may be NULL: then global memory is checked for races only
} granule_emu_launch;

typedef struct {
    int32_t code;  // one of the codes above
    char message[512];  // what happened, for a person; zero-terminated; empty where code is 0
} granule_emu_result;

// GRANULE_EMU_ABI of the header that the library was built with. Ask before anything else.
uint32_t granule_emu_abi(void);

// 1 where every load and store of the kernels is seen (the checked build), else 0.
uint32_t granule_emu_checked(void);

// The kernel of that name, NULL where the library has none.
const granule_emu_kernel *granule_emu_find(const char *name);

// The kernels of the library in no particular order: index 0, 1, … until NULL.
const granule_emu_kernel *granule_emu_kernel_at(uint32_t index);

// Runs a launch to its end, or to the first thing that is wrong with it. Fills *result and returns its code. The
// process survives whatever the kernel did, except writes to memory that it may write but should not have. The caller's
// floating-point environment and signal handlers are as before; kernels run in the default environment.
int32_t granule_emu_run(const granule_emu_kernel *kernel, const granule_emu_launch *launch, granule_emu_result *result);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif

#endif
