// Shared memory: the static variables of the kernel's file, and one dynamic piece.
#pragma once

#include <cstddef>
#include <cstdint>

#include "register.h"

namespace granule_emu {

// Makes the shared memory of the kernel's launches. Null, or why it cannot be had.
const char* open_shared(const Kernel* kernel, uint32_t dynamic_bytes, uint64_t seed);

// Before each block: every byte of shared memory holds what no kernel expects.
void poison_shared();

enum class Space : uint8_t {
    shared,          // a shared variable of this kernel's file, or dynamic shared memory
    shared_outside,  // where dynamic shared memory could be, but past its end
    library,         // the library's own memory: constants and the emulator
    elsewhere,       // global memory, stacks
};

// What an address is, as far as shared memory knows: `bytes` from there on belong to the same thing.
Space space_of(uintptr_t address, size_t* bytes);

// "shared variable tile + 16", "dynamic shared memory + 16". For addresses of Space::shared and shared_outside.
struct SharedName {
    char text[96];
};
SharedName name_shared(uintptr_t address);

}  // namespace granule_emu
