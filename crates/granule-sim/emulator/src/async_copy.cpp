// Asynchronous copies into shared memory. They arrive as late as CUDA allows: when their thread waits for the group. The
// checked build has them write twice, because they may arrive at any time in between: at their start, where whoever still
// reads or writes what was there before is in a race with them, and at the wait. In between nobody has written the target.
#include "async_copy.h"

#include <cstring>
#include <vector>

#include "granule_emulator_device.h"
#include "race.h"
#include "watch.h"

namespace granule_emu {
namespace {

struct Copy {
    void* shared;
    const void* global;
    uint32_t size, valid;
    uint32_t group;
};

struct Copies {
    std::vector<Copy> started;  // oldest first
    uint32_t committed;         // groups so far; copies of the open group carry this number
};

constinit Copies copies[max_threads] = {};

}  // namespace

void drop_async_copies(Thread& thread) {
    Copies& mine = copies[thread.index];
    mine.started.clear();
    mine.committed = 0;
}

}  // namespace granule_emu

using namespace granule_emu;

void granule_emu_async_copy(void* shared, const void* global, unsigned size, unsigned valid) {
    if ((size != 4 && size != 8 && size != 16) || valid > size) {
        fail(GRANULE_EMU_TRAP, "cp.async of %u bytes, %u of them valid: it copies 4, 8 or 16", size, valid);
    }
    if (reinterpret_cast<uintptr_t>(shared) % size != 0 || reinterpret_cast<uintptr_t>(global) % size != 0) {
        fail(GRANULE_EMU_ILLEGAL_ADDRESS, "cp.async of %u bytes from %p to %p: both must be aligned to its size", size,
             global, shared);
    }
    if constexpr (checked) {
        watch_range(global, valid, false, __builtin_return_address(0));
        watch_range(shared, size, true, __builtin_return_address(0));
        forget_writers(reinterpret_cast<uintptr_t>(shared), size);
    }
    Copies& mine = copies[machine.current->index];
    mine.started.push_back({shared, global, size, valid, mine.committed});
}

void granule_emu_async_commit() { ++copies[machine.current->index].committed; }

void granule_emu_async_wait(unsigned groups_still_in_flight) {
    Copies& mine = copies[machine.current->index];
    const uint32_t done = mine.committed > groups_still_in_flight ? mine.committed - groups_still_in_flight : 0;
    size_t arrived = 0;
    for (; arrived < mine.started.size() && mine.started[arrived].group < done; ++arrived) {
        const Copy& copy = mine.started[arrived];
        if constexpr (checked) watch_range(copy.shared, copy.size, true, __builtin_return_address(0));
        memcpy(copy.shared, copy.global, copy.valid);
        memset(static_cast<char*>(copy.shared) + copy.valid, 0, copy.size - copy.valid);
    }
    mine.started.erase(mine.started.begin(), mine.started.begin() + static_cast<ptrdiff_t>(arrived));
}
