// Happens-before between the threads of a launch, and what each word of memory remembers of its accesses.
//
// Three things order threads: the end of a block barrier orders the whole block, a warp intrinsic orders the lanes that met
// in it, and nothing orders two blocks of one launch. Two accesses of one byte race when they are not ordered, one of them
// writes, and not both are atomic. That is found from the accesses alone, whatever order the threads happened to run in.
#pragma once

#include <cstddef>
#include <cstdint>

namespace granule_emu {

void begin_launch_races();
void begin_block_races();
// Ends the launch if a thread has read shared memory that nobody has written so far: at the block's end, and before
// anything else that ends it.
void settle_unwritten();
// The running block's barrier is complete.
void order_block();
// `lanes` of the warp have met.
void order_lanes(uint32_t warp, uint32_t lanes);

enum class Access : uint8_t { read, write, atomic_read, atomic_update };

// One access of the running thread, all of it in shared memory or all in global memory. Ends the launch where it races
// with an earlier one; remembers it where it reads shared memory that nobody has written in this block.
void check_races(uintptr_t address, size_t size, Access access, bool shared, const void* code);

// What lies there counts as unwritten from here on: a copy to it is on its way.
void forget_writers(uintptr_t address, size_t size);

}  // namespace granule_emu
