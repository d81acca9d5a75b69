// Fibers: the context switch, and the pool of stacks with guard pages.
#include "fiber.h"

#include <sys/mman.h>

#if defined(GRANULE_EMULATED_ASAN)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack_save, const void** bottom_old, size_t* size_old);
void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}
#endif

#if GRANULE_EMU_OWN_SWITCH
// granule_emu_switch(void** save, void* to): what the System V ABI lets a callee keep goes onto the stack, then the
// stack pointers change places. The floating-point control words are the same for all fibers.
asm(R"(
    .text
    .p2align 4
    .hidden granule_emu_switch
    .globl granule_emu_switch
    .type granule_emu_switch, @function
granule_emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size granule_emu_switch, .-granule_emu_switch
)");
extern "C" void granule_emu_switch(void** save, void* to);
#endif

namespace granule_emu {
namespace {

constexpr size_t pitch = stack_bytes + guard_bytes;

struct Pool {
    char* base;  // stack_count times (guard page, stack), then nothing
    Stack stacks[stack_count];
    Stack* free;
};
constinit Pool pool = {};

}  // namespace

bool open_stacks() {
    if (pool.base != nullptr) return true;
    void* const memory = mmap(nullptr, pitch * stack_count, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) return false;
    char* const base = static_cast<char*>(memory);
    for (uint32_t i = 0; i < stack_count; ++i) {
        if (mprotect(base + i * pitch, guard_bytes, PROT_NONE) != 0) {
            munmap(base, pitch * stack_count);
            return false;
        }
    }
    pool.base = base;
    for (uint32_t i = stack_count; i-- > 0;) {
        pool.stacks[i] = Stack{base + i * pitch + guard_bytes, stack_bytes, i, nullptr};
        give_stack(&pool.stacks[i]);
    }
    return true;
}

Stack* take_stack() {
    Stack* const stack = pool.free;
    pool.free = stack->next;
    return stack;
}

void give_stack(Stack* stack) {
    stack->next = pool.free;
    pool.free = stack;
}

const Stack* stack_at(uintptr_t address, bool* in_guard) {
    const uintptr_t offset = address - reinterpret_cast<uintptr_t>(pool.base);
    if (pool.base == nullptr || offset >= pitch * stack_count) return nullptr;
    *in_guard = offset % pitch < guard_bytes;
    return &pool.stacks[offset / pitch];
}

void prepare(Context* context, Stack* stack, void (*entry)()) {
#if defined(GRANULE_EMULATED_ASAN)
    // A launch that ended early leaves the red zones of its frames behind.
    __asan_unpoison_memory_region(stack->low, stack->size);
    context->fake_stack = nullptr;
    context->low = stack->low;
    context->size = stack->size;
#endif
#if GRANULE_EMU_OWN_SWITCH
    // Stacks begin at different cache sets: same-sized frames of a thousand threads would otherwise share a few.
    char* const top = stack->low + stack->size - (stack->number % 32) * 128;
    void** slots = reinterpret_cast<void**>(top) - 8;
    for (int i = 0; i < 6; ++i) slots[i] = nullptr;        // r15 r14 r13 r12 rbx rbp
    slots[6] = reinterpret_cast<void*>(entry);             // where ret goes; the stack is then 8 off a multiple of 16
    slots[7] = nullptr;                                    // entry's return address: it never returns
    context->stack_pointer = slots;
#else
    getcontext(&context->registers);
    context->registers.uc_stack.ss_sp = stack->low;
    context->registers.uc_stack.ss_size = stack->size;
    context->registers.uc_link = nullptr;
    makecontext(&context->registers, entry, 0);
#endif
}

void arrived([[maybe_unused]] Context* at) {
#if defined(GRANULE_EMULATED_ASAN)
    __sanitizer_finish_switch_fiber(at->fake_stack, nullptr, nullptr);
#endif
}

void switch_context(Context* from, Context* to, [[maybe_unused]] bool ends) {
#if defined(GRANULE_EMULATED_ASAN)
    __sanitizer_start_switch_fiber(ends ? nullptr : &from->fake_stack, to->low, to->size);
#endif
#if GRANULE_EMU_OWN_SWITCH
    granule_emu_switch(&from->stack_pointer, to->stack_pointer);
#else
    swapcontext(&from->registers, &to->registers);
#endif
    arrived(from);
}

}  // namespace granule_emu
