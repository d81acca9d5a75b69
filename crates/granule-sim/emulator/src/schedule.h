// Between the scheduler, the warp intrinsics and the rules that threads must meet by.
#pragma once

#include "machine.h"

namespace granule_emu {

// Suspends the running thread, which is in the ready queue or waits for others, until it is its turn again.
void wait_for_turn();

// Lets every group of the warp go on whose lanes have all come.
void complete_warp_meetings(uint32_t warp);

// The running thread has come to a block barrier: fails where that cannot be the barrier that the others wait at.
void check_barrier(const Thread& thread);
// `gone` has exited while others wait at a block barrier.
[[noreturn]] void fail_at_barrier(const Thread& gone);
// Threads are left and none of them can run.
[[noreturn]] void fail_nobody_runs();
// The threads that can run do nothing but yield.
[[noreturn]] void fail_spinning();

}  // namespace granule_emu
