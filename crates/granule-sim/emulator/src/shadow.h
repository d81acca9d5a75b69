// What each word of memory remembers of its accesses, and where that is kept. The rules are in race.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace granule_emu {

// One access. 16 bytes.
struct Last {
    uint32_t interval;  // 0: none yet
    uint32_t clock;     // the thread's own time
    uint32_t code;      // code_number of where
    uint16_t thread;
    uint8_t bytes;  // of the whole access
};

// Accesses that need not be ordered among each other: reads, or atomic updates. As many are remembered as a later access
// that must be ordered after all of them needs. 40 bytes.
struct Crowd {
    enum Kind : uint8_t {
        lanes_at_once,  // `lanes` of one warp, all at `clock`
        times,          // `lanes` of one warp; clock is an index of their times
        warps,          // threads of more than one warp: `first` and `second` are of different ones
    };
    uint32_t interval, clock, lanes, code;
    uint16_t first, second;
    Kind kind;
    uint8_t bytes;
    Last outer;  // one of an earlier block of the launch
};

// Atomic accesses of a word; most words have none.
struct Atomics {
    Crowd updates, reads;
};

// A word of 4 bytes, or one byte of a word that was once accessed in parts.
struct Cell {
    Last writer;
    Crowd readers;
    uint32_t atomics;  // 0: none
    uint32_t split;    // 0: the word is accessed as a whole
};
static_assert(sizeof(Cell) == 64);

// The cell of the word that holds the address.
Cell& cell_at(uintptr_t address);
// Four cells, one for each byte, of a cell that was split.
void split_cell(Cell& cell);
Cell* bytes_of(const Cell& cell);
void add_atomics(Cell& cell);
Atomics& atomics_of(const Cell& cell);

// More is kept than is worth keeping for the next launch.
bool shadow_is_large();
void clear_shadow();

// Addresses in this library as 32 bits, and back; null is 0.
uint32_t code_number(const void* code);
const void* code_at(uint32_t number);

}  // namespace granule_emu
