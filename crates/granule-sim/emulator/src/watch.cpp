// The functions that g++ -fsanitize=thread calls before every load and store. Ours, in place of the sanitizer's.
#include "watch.h"

#include <cstdint>
#include <cstring>

#include "fiber.h"
#include "machine.h"
#include "race.h"
#include "shared.h"

namespace granule_emu {
namespace {

const char* noun(Access access) {
    switch (access) {
        case Access::read:
            return "read";
        case Access::write:
            return "write";
        case Access::atomic_read:
            return "atomic read";
        default:
            return "atomic update";
    }
}

// The caller's hook, asked about global memory.
void ask_hook(uintptr_t address, size_t size, Access access, const void* code) {
    const granule_emu_hooks* const hooks = machine.launch->hooks;
    if (hooks == nullptr || hooks->access == nullptr) return;
    const granule_emu_where where = where_is(*machine.current);
    const bool writes = access == Access::write || access == Access::atomic_update;
    const bool atomic = access == Access::atomic_read || access == Access::atomic_update;
    machine.in_hook = true;
    const int refused = hooks->access(hooks->context, address, static_cast<uint32_t>(size), writes, atomic, &where);
    machine.in_hook = false;
    if (refused != 0) {
        fail_at(GRANULE_EMU_REFUSED, code, nullptr, "%s of %zu bytes at 0x%zx refused", noun(access), size,
                static_cast<size_t>(address));
    }
}

void check(uintptr_t address, size_t size, Access access, const void* code) {
    size_t belongs = 0;
    switch (space_of(address, &belongs)) {
        case Space::shared:
            if (size > belongs) {
                fail_at(GRANULE_EMU_ILLEGAL_ADDRESS, code, nullptr, "%s of %zu bytes runs past the end of %s", noun(access),
                        size, name_shared(address).text);
            }
            check_races(address, size, access, true, code);
            return;
        case Space::shared_outside:
            fail_at(GRANULE_EMU_ILLEGAL_ADDRESS, code, nullptr, "%s of %zu bytes outside of shared memory, at %s",
                    noun(access), size, name_shared(address).text);
        case Space::library:
            return;
        case Space::elsewhere:
            break;
    }
    bool in_guard = false;
    if (stack_at(address, &in_guard) != nullptr) {
        fail_at(GRANULE_EMU_ILLEGAL_ADDRESS, code, nullptr, "%s of %zu bytes in another thread's local memory", noun(access),
                size);
    }
    ask_hook(address, size, access, code);
    check_races(address, size, access, false, code);
}

// True where nobody is interested: outside of kernels, and on the thread's own stack.
inline bool uninteresting(const void* pointer) {
    const Thread* const thread = machine.current;
    return thread == nullptr || machine.unwatched ||
           reinterpret_cast<uintptr_t>(pointer) - thread->stack_low < stack_bytes;
}

inline void watch(const void* pointer, size_t size, Access access, const void* code) {
    if (uninteresting(pointer)) return;
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    const void* const call = static_cast<const char*>(code) - 1;
    if (size <= 16 && address % size != 0) {
        fail_at(GRANULE_EMU_ILLEGAL_ADDRESS, call, nullptr,
                "misaligned address 0x%zx: a %s of %zu bytes needs a multiple of its size", static_cast<size_t>(address),
                noun(access), size);
    }
    check(address, size, access, call);
}

}  // namespace

void watch_range(const void* pointer, size_t size, bool write, const void* code) {
    if (size == 0 || uninteresting(pointer)) return;
    check(reinterpret_cast<uintptr_t>(pointer), size, write ? Access::write : Access::read,
          static_cast<const char*>(code) - 1);
}

}  // namespace granule_emu

using namespace granule_emu;

#define HERE __builtin_return_address(0)

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void** at, void*) { watch(at, sizeof(void*), Access::write, HERE); }

#define ACCESSES(bytes)                                                                                  \
    void __tsan_read##bytes(void* at) { watch(at, bytes, Access::read, HERE); }                          \
    void __tsan_write##bytes(void* at) { watch(at, bytes, Access::write, HERE); }                        \
    /* PTX: a volatile access is as strong as a relaxed atomic one. */                                   \
    void __tsan_volatile_read##bytes(void* at) { watch(at, bytes, Access::atomic_read, HERE); }          \
    void __tsan_volatile_write##bytes(void* at) { watch(at, bytes, Access::atomic_update, HERE); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

// Structs whose alignment is less than their size, and sizes that are no power of two.
void __tsan_read_range(void* at, size_t bytes) { watch_range(at, bytes, false, HERE); }
void __tsan_write_range(void* at, size_t bytes) { watch_range(at, bytes, true, HERE); }

void* granule_emu_memcpy(void* to, const void* from, size_t bytes) {
    watch_range(from, bytes, false, HERE);
    watch_range(to, bytes, true, HERE);
    return memcpy(to, from, bytes);
}
void* granule_emu_memmove(void* to, const void* from, size_t bytes) {
    watch_range(from, bytes, false, HERE);
    watch_range(to, bytes, true, HERE);
    return memmove(to, from, bytes);
}
void* granule_emu_memset(void* to, int value, size_t bytes) {
    watch_range(to, bytes, true, HERE);
    return memset(to, value, bytes);
}

// Memory orders are ignored: fibers of one thread see each other's accesses in order, and orders between threads that rest
// on acquire and release are not modelled (README.md).
#define READ_MODIFY_WRITE(bits, name)                                                                    \
    uint##bits##_t __tsan_atomic##bits##_##name(volatile uint##bits##_t* at, uint##bits##_t value, int) { \
        watch(const_cast<uint##bits##_t*>(at), bits / 8, Access::atomic_update, HERE);                   \
        return __atomic_##name(at, value, __ATOMIC_SEQ_CST);                                             \
    }
#define COMPARE_EXCHANGE(bits, name)                                                                     \
    int __tsan_atomic##bits##_##name(volatile uint##bits##_t* at, uint##bits##_t* expected, uint##bits##_t value, int, \
                                     int) {                                                              \
        watch(const_cast<uint##bits##_t*>(at), bits / 8, Access::atomic_update, HERE);                   \
        return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }
#define ATOMICS(bits)                                                                                    \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* at, int) {                  \
        watch(const_cast<const uint##bits##_t*>(at), bits / 8, Access::atomic_read, HERE);               \
        return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                                    \
    }                                                                                                    \
    void __tsan_atomic##bits##_store(volatile uint##bits##_t* at, uint##bits##_t value, int) {           \
        watch(const_cast<uint##bits##_t*>(at), bits / 8, Access::atomic_update, HERE);                   \
        __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                                   \
    }                                                                                                    \
    uint##bits##_t __tsan_atomic##bits##_exchange(volatile uint##bits##_t* at, uint##bits##_t value, int) { \
        watch(const_cast<uint##bits##_t*>(at), bits / 8, Access::atomic_update, HERE);                   \
        return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);                                         \
    }                                                                                                    \
    READ_MODIFY_WRITE(bits, fetch_add)                                                                   \
    READ_MODIFY_WRITE(bits, fetch_sub)                                                                   \
    READ_MODIFY_WRITE(bits, fetch_and)                                                                   \
    READ_MODIFY_WRITE(bits, fetch_or)                                                                    \
    READ_MODIFY_WRITE(bits, fetch_xor)                                                                   \
    READ_MODIFY_WRITE(bits, fetch_nand)                                                                  \
    COMPARE_EXCHANGE(bits, compare_exchange_strong)                                                      \
    COMPARE_EXCHANGE(bits, compare_exchange_weak)
ATOMICS(8)
ATOMICS(16)
ATOMICS(32)
ATOMICS(64)

void __tsan_atomic_thread_fence(int) {}
void __tsan_atomic_signal_fence(int) {}

}  // extern "C"
