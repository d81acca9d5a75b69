// CUDA's atomic functions for emulated kernels, relaxed as CUDA's are.
//
// They are compiler builtins, so that a host thread which shares the memory (a pinned flag) sees them whole, and so that
// the checked build sees each as an atomic access. After each, another thread may run.
#ifndef GRANULE_EMULATOR_ATOMICS_H
#define GRANULE_EMULATOR_ATOMICS_H

template <unsigned size>
struct granule_emu_bits;
template <>
struct granule_emu_bits<2> {
    using type = uint16_t;
};
template <>
struct granule_emu_bits<4> {
    using type = uint32_t;
};
template <>
struct granule_emu_bits<8> {
    using type = uint64_t;
};

// old = *at; *at = step(old), as one access; answers old. Types of 2, 4 or 8 bytes.
template <class T, class Step>
inline T granule_emu_atomic_update(T* at, Step step) {
    using Bits = typename granule_emu_bits<sizeof(T)>::type;
    Bits* const bits = reinterpret_cast<Bits*>(at);
    Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(bits, &old, __builtin_bit_cast(Bits, step(__builtin_bit_cast(T, old))), false,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    granule_emu_yield();
    return __builtin_bit_cast(T, old);
}

// One line for each type that CUDA offers the function for.
#define GRANULE_EMU_ATOMIC_BUILTIN(name, builtin, type)                          \
    inline type name(type* at, type value) {                                     \
        const type old = builtin(at, value, __ATOMIC_RELAXED);                   \
        granule_emu_yield();                                                     \
        return old;                                                              \
    }
#define GRANULE_EMU_ATOMIC_STEP(name, type, expression)                          \
    inline type name(type* at, type value) {                                     \
        return granule_emu_atomic_update(at, [value](type old) -> type { return expression; }); \
    }
#define GRANULE_EMU_ATOMIC_INTEGER(type)                                         \
    GRANULE_EMU_ATOMIC_BUILTIN(atomicExch, __atomic_exchange_n, type)            \
    GRANULE_EMU_ATOMIC_BUILTIN(atomicAnd, __atomic_fetch_and, type)              \
    GRANULE_EMU_ATOMIC_BUILTIN(atomicOr, __atomic_fetch_or, type)                \
    GRANULE_EMU_ATOMIC_BUILTIN(atomicXor, __atomic_fetch_xor, type)              \
    GRANULE_EMU_ATOMIC_STEP(atomicMin, type, value < old ? value : old)          \
    GRANULE_EMU_ATOMIC_STEP(atomicMax, type, old < value ? value : old)          \
    inline type atomicCAS(type* at, type expected, type value) {                 \
        __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
        granule_emu_yield();                                                     \
        return expected;                                                         \
    }

GRANULE_EMU_ATOMIC_INTEGER(int)
GRANULE_EMU_ATOMIC_INTEGER(unsigned)
GRANULE_EMU_ATOMIC_INTEGER(unsigned long long)
GRANULE_EMU_ATOMIC_BUILTIN(atomicAdd, __atomic_fetch_add, int)
GRANULE_EMU_ATOMIC_BUILTIN(atomicAdd, __atomic_fetch_add, unsigned)
GRANULE_EMU_ATOMIC_BUILTIN(atomicAdd, __atomic_fetch_add, unsigned long long)
GRANULE_EMU_ATOMIC_BUILTIN(atomicSub, __atomic_fetch_sub, int)
GRANULE_EMU_ATOMIC_BUILTIN(atomicSub, __atomic_fetch_sub, unsigned)
GRANULE_EMU_ATOMIC_STEP(atomicAdd, float, old + value)
GRANULE_EMU_ATOMIC_STEP(atomicAdd, double, old + value)
GRANULE_EMU_ATOMIC_STEP(atomicExch, float, (static_cast<void>(old), value))
GRANULE_EMU_ATOMIC_STEP(atomicInc, unsigned, old >= value ? 0u : old + 1u)
GRANULE_EMU_ATOMIC_STEP(atomicDec, unsigned, old == 0u || old > value ? value : old - 1u)

#undef GRANULE_EMU_ATOMIC_BUILTIN
#undef GRANULE_EMU_ATOMIC_STEP
#undef GRANULE_EMU_ATOMIC_INTEGER

#endif
