// The one launch that is running: its block, its threads, and who runs now. Everything else of the emulator looks here.
#pragma once

#include <cstdint>

#include "fiber.h"
#include "granule_emulator.h"
#include "granule_emulator_device.h"
#include "register.h"

namespace granule_emu {

#if defined(GRANULE_EMULATED_CHECKED)
constexpr bool checked = true;
#else
constexpr bool checked = false;
#endif

constexpr uint32_t max_threads = 1024;
constexpr uint32_t warp_lanes = 32;

// The barrier or warp intrinsic that a thread waits at, or was last at.
struct Meeting {
    unsigned what;  // granule_emu_warp_op; unused for the block barrier
    uint32_t mask;
    const char* file;
    int line;
    uint64_t value;  // what it brought
    int lane, width;
    uint64_t result;  // what it takes away
    const void* input;  // GRANULE_EMU_TOGETHER
    void* output;
    unsigned input_size, output_size;
    void (*together)(const void*, void*);
};

enum class State : uint8_t { fresh, ready, at_barrier, at_warp, exited };

// One CUDA thread of the running block.
struct Thread {
    Context context;
    uintptr_t stack_low;  // of its fiber's stack, while it has one
    Stack* stack;
    granule_emu_index place;  // threadIdx
    uint32_t index;           // x + y * block.x + z * block.x * block.y
    State state;
    Meeting meeting;
    // Happens-before inside a warp (race.h): its own time, and for each lane of the warp the first time that is not over.
    // They go on from block to block, so nothing has to be put back.
    uint32_t clock;
    uint32_t known[warp_lanes];
};

struct Warp {
    uint32_t gone;     // lanes that have exited or that the block does not have
    uint32_t waiting;  // lanes at a warp intrinsic
};

// The threads that may run: first in, first out where the seed is 0, else a random one.
class RunQueue {
public:
    void clear() { head_ = count_ = 0; }
    uint32_t size() const { return count_; }
    void push(uint32_t thread) { slots_[(head_ + count_++) % max_threads] = static_cast<uint16_t>(thread); }
    uint32_t pop(uint64_t random);

private:
    uint16_t slots_[max_threads] = {};
    uint32_t head_ = 0, count_ = 0;
};

struct Machine {
    // The launch.
    const Kernel* kernel;
    const granule_emu_launch* launch;
    uint64_t random;  // state of the generator; 0 means everything goes in order
    Context caller;   // where granule_emu_run waits for the block to end
    // The block.
    granule_emu_index block;
    granule_emu_index block_size, grid_size;
    uint32_t n_threads, n_exited, n_at_barrier, n_true;
    uint32_t first_at_barrier;  // who came first, where n_at_barrier is not 0
    RunQueue ready;
    Warp warps[max_threads / warp_lanes];
    Thread threads[max_threads];
    uint64_t fruitless;  // yields since a thread last ended or passed a barrier
    uint32_t atomics;    // calls of granule_emu_yield
    // Who runs. Null outside of kernels: then nothing is watched and no fault is ours.
    Thread* current;
    bool in_hook;    // the caller's code runs: its faults are not the kernel's
    bool unwatched;  // accesses are the emulator's own
    // What went wrong first; code 0 while nothing has.
    granule_emu_result result;
    const void* places[2];  // code addresses that belong to the message, or null
    bool by_signal;
};

extern Machine machine;

// Next value of the launch's generator. Only while random is not 0.
uint64_t next_random();

// Runs the machine's block to its end; false where something went wrong.
bool run_block();

// Where and who a thread is, for the hook and for messages.
granule_emu_where where_is(const Thread& thread);

// Writes a message that begins with the kernel and the running thread.
void describe(granule_emu_result& result, const char* format, ...) __attribute__((format(printf, 2, 3)));
// Ends the launch with that code and message, and continues at granule_emu_run.
[[noreturn]] void fail(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));
// The same with code addresses whose source lines are added to the message.
[[noreturn]] void fail_at(int code, const void* first, const void* second, const char* format, ...)
    __attribute__((format(printf, 4, 5)));
// Leaves the fiber for granule_emu_run after `result` was filled.
[[noreturn]] void leave();

}  // namespace granule_emu
