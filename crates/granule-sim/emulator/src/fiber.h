// One fiber: a stack of its own and a place to continue. Knows nothing of CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

// Where there is no switch of our own, the C library's does the same, many times slower.
#if !defined(GRANULE_EMU_OWN_SWITCH)
#if defined(__x86_64__)
#define GRANULE_EMU_OWN_SWITCH 1
#else
#define GRANULE_EMU_OWN_SWITCH 0
#endif
#endif
#if !GRANULE_EMU_OWN_SWITCH
#include <ucontext.h>
#endif

namespace granule_emu {

// Memory with an inaccessible page below it. Comes from and returns to a pool that keeps every stack it ever made.
struct Stack {
    char* low;    // lowest usable byte
    size_t size;  // usable bytes
    uint32_t number;  // its place in the pool
    Stack* next;      // in the pool's list of free ones
};

// Usable bytes of a fiber's stack: a thread's local memory.
#if defined(GRANULE_EMULATED_ASAN)
constexpr size_t stack_bytes = 256 * 1024;
#else
constexpr size_t stack_bytes = 64 * 1024;
#endif
constexpr size_t guard_bytes = 4096;
// One for each thread of the largest block.
constexpr uint32_t stack_count = 1024;

// Everything of a suspended flow of control that is not on its stack.
struct Context {
#if GRANULE_EMU_OWN_SWITCH
    void* stack_pointer;
#else
    ucontext_t registers;
#endif
#if defined(GRANULE_EMULATED_ASAN)
    void* fake_stack;
    const void* low;
    size_t size;
#endif
};

// Maps the pool's memory; false where the system refuses. Cheap when it is mapped already.
bool open_stacks();
// A free stack. There is always one: at most stack_count are out.
Stack* take_stack();
void give_stack(Stack* stack);
// The stack whose memory or guard page holds the address, or nullptr. `*in_guard` says which of the two.
const Stack* stack_at(uintptr_t address, bool* in_guard);

// Makes `context` start `entry` on the stack when it is first switched to. `entry` never returns.
void prepare(Context* context, Stack* stack, void (*entry)());
// Suspends here into `from` and continues `to`. `ends`: nothing will ever switch back to `from`.
void switch_context(Context* from, Context* to, bool ends = false);
// What the sanitizer must hear on the first instructions of a fiber.
void arrived(Context* at);

}  // namespace granule_emu
