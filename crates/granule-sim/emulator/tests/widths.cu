// One kernel for each way to reach memory that a compiler may turn into something else. The hook must see them all.
#include "granule_emulator_device.h"

struct alignas(16) Wide {
    uint32_t word[4];
};
struct alignas(8) Pair {
    uint32_t x, y;
};
struct Loose {
    uint32_t x, y, z, w;
};
struct Block34 {
    uint16_t d;
    signed char q[32];
};
struct Block18 {
    uint16_t d;
    unsigned char q[16];
};
struct Three {
    unsigned char a, b, c;
};

template <typename T>
struct [[gnu::may_alias]] Cell {
    T value;
};

// Each reads one T at `from` and writes one at `to`: by assignment, through a cast with may_alias, by memcpy of a constant
// size, by its builtin, and element by element.
#define WIDTH(name, T)                                                                                   \
    extern "C" __global__ void assign_##name(const T* from, T* to) { *to = *from; }                      \
    extern "C" __global__ void cell_##name(const void* from, void* to) {                                 \
        static_cast<Cell<T>*>(to)->value = static_cast<const Cell<T>*>(from)->value;                     \
    }                                                                                                    \
    extern "C" __global__ void copy_##name(const T* from, T* to) { memcpy(to, from, sizeof(T)); }        \
    extern "C" __global__ void builtin_##name(const T* from, T* to) {                                    \
        T value;                                                                                         \
        __builtin_memcpy(&value, from, sizeof(T));                                                       \
        __builtin_memcpy(to, &value, sizeof(T));                                                         \
    }                                                                                                    \
    extern "C" __global__ void bytes_##name(const T* from, T* to) {                                      \
        const unsigned char* const source = reinterpret_cast<const unsigned char*>(from);                \
        unsigned char* const target = reinterpret_cast<unsigned char*>(to);                              \
        for (unsigned i = 0; i < sizeof(T); ++i) target[i] = source[i];                                  \
    }
WIDTH(u8, unsigned char)
WIDTH(u16, uint16_t)
WIDTH(u32, uint32_t)
WIDTH(u64, unsigned long long)
WIDTH(f32, float)
WIDTH(f64, double)
WIDTH(wide, Wide)
WIDTH(pair, Pair)
WIDTH(loose, Loose)
WIDTH(block34, Block34)
WIDTH(block18, Block18)
WIDTH(three, Three)

// Sets and clears: 64 bytes at `to`.
extern "C" __global__ void set_constant(void* to) { memset(to, 7, 64); }
extern "C" __global__ void set_loop(unsigned char* to, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) to[i] = 7;
}
// Moves: 64 bytes.
extern "C" __global__ void move_loop(const uint32_t* __restrict__ from, uint32_t* __restrict__ to, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) to[i] = from[i];
}
