// Every load and store of the checked build comes through here.
#pragma once

#include <cstddef>

namespace granule_emu {

// An access that the emulator makes on the running thread's behalf. `code` is where, for the source line.
void watch_range(const void* address, size_t bytes, bool write, const void* code);

}  // namespace granule_emu
