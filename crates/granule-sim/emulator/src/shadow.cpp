// Shadow memory: 64 bytes for each word that a kernel touched, in pages that are made at the first touch.
#include "shadow.h"

#include <sys/mman.h>

#include <deque>
#include <unordered_map>

#include "machine.h"

namespace granule_emu {
namespace {

constexpr uintptr_t page_bits = 12;
constexpr size_t words_of_page = (size_t{1} << page_bits) / 4;
constexpr size_t shadow_of_page = words_of_page * sizeof(Cell);

struct Quads {
    Cell bytes[4];
};

struct Shadow {
    std::unordered_map<uintptr_t, Cell*> pages;
    std::deque<Quads> quads;
    std::deque<Atomics> atomics;
};

// Made at the first use and never destroyed: kernels may run while the process ends.
Shadow& shadow() {
    static Shadow* const it = new Shadow;
    return *it;
}

// The pages that were asked for last, by their lowest bits.
struct Recent {
    uintptr_t page;
    Cell* cells;
};
constexpr size_t n_recent = 4096;
constinit Recent recent[n_recent] = {};

// An address that lies in the library, from which code numbers count.
const char anchor = 0;

Cell* find_page(uintptr_t page) {
    Cell*& cells = shadow().pages[page];
    if (cells == nullptr) {
        void* const memory =
            mmap(nullptr, shadow_of_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) {
            fail(GRANULE_EMU_BAD_LAUNCH, "no memory to watch the kernel with: it needs 16 bytes for each byte touched");
        }
        cells = static_cast<Cell*>(memory);
    }
    recent[page % n_recent] = {page, cells};
    return cells;
}

}  // namespace

Cell& cell_at(uintptr_t address) {
    const uintptr_t page = address >> page_bits;
    const Recent& last = recent[page % n_recent];
    Cell* const cells = last.page == page && last.cells != nullptr ? last.cells : find_page(page);
    return cells[address / 4 % words_of_page];
}

void split_cell(Cell& cell) {
    Quads quads;
    for (Cell& byte : quads.bytes) {
        byte = cell;
        if (cell.atomics != 0) {
            add_atomics(byte);
            atomics_of(byte) = atomics_of(cell);
        }
    }
    shadow().quads.push_back(quads);
    cell.split = static_cast<uint32_t>(shadow().quads.size());
}

Cell* bytes_of(const Cell& cell) { return shadow().quads[cell.split - 1].bytes; }

void add_atomics(Cell& cell) {
    shadow().atomics.emplace_back();
    cell.atomics = static_cast<uint32_t>(shadow().atomics.size());
}

Atomics& atomics_of(const Cell& cell) { return shadow().atomics[cell.atomics - 1]; }

bool shadow_is_large() { return shadow().pages.size() > 4096 || shadow().quads.size() > 1u << 20; }

void clear_shadow() {
    for (const auto& [page, cells] : shadow().pages) munmap(cells, shadow_of_page);
    shadow().pages.clear();
    shadow().quads.clear();
    shadow().atomics.clear();
    for (Recent& entry : recent) entry = {};
}

uint32_t code_number(const void* code) {
    return code == nullptr ? 0 : static_cast<uint32_t>(reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(&anchor));
}

const void* code_at(uint32_t number) {
    if (number == 0) return nullptr;
    const intptr_t offset = static_cast<int32_t>(number);
    return reinterpret_cast<const void*>(reinterpret_cast<intptr_t>(&anchor) + offset);
}

}  // namespace granule_emu
