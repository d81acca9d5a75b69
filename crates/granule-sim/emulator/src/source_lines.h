// Code addresses as lines of the source.
#pragma once

#include <cstddef>

namespace granule_emu {

// Appends " [file:line]" for the addresses that are not null, as far as there is room and addr2line knows them.
void add_source_lines(char* message, size_t size, const void* const places[2]);

}  // namespace granule_emu
