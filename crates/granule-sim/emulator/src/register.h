// How the generated file of each .cu hands its kernels to the emulator.
#pragma once

#include <cstddef>
#include <utility>

#include "granule_emulator.h"

namespace granule_emu {

// A kernel and how to call it.
struct Kernel {
    granule_emu_kernel public_part;
    const char* unit;                   // the generated file: its shared variables stand under this name
    void (*call)(const Kernel*, void** params);  // on the running thread's fiber
    void (*function)();
    const Kernel* next;
};

extern const Kernel* kernels;

// `void (A...)` as parameter sizes and a call.
template <class... A>
struct Signature {
    static constexpr uint32_t sizes[sizeof...(A) + 1] = {sizeof(A)..., 0};

    // Arguments are copied from the launch: not an access of the kernel, so not watched.
    template <size_t... i>
    __attribute__((no_sanitize("thread"))) static void call_with(void (*function)(A...), [[maybe_unused]] void** params,
                                                                 std::index_sequence<i...>) {
        function(*static_cast<const A*>(params[i])...);
    }
    __attribute__((no_sanitize("thread"))) static void call(const Kernel* kernel, void** params) {
        call_with(reinterpret_cast<void (*)(A...)>(kernel->function), params, std::index_sequence_for<A...>{});
    }
};

struct Registration {
    Kernel kernel;

    template <class... A>
    Registration(const char* name, const char* unit, void (*function)(A...))
        : kernel{{name, sizeof...(A), Signature<A...>::sizes},
                 unit,
                 &Signature<A...>::call,
                 reinterpret_cast<void (*)()>(function),
                 kernels} {
        kernels = &kernel;
    }
};

}  // namespace granule_emu

// Behind the kernels, one line each.
#define GRANULE_EMU_KERNEL(name) \
    static granule_emu::Registration granule_emu_registration_of_##name(#name, __FILE__, &name);
