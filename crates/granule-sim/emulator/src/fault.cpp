// SIGSEGV and its relatives in a kernel: a message and the way back to granule_emu_run.
//
// The handler runs on a stack of its own (the fault may be a full fiber stack) and leaves it by switching to the caller's
// context, as a finished block does. What the handler's frame held is not needed again.
#include "fault.h"

#include <pthread.h>
#include <signal.h>

#include <cstring>

#include "machine.h"

namespace granule_emu {
namespace {

constexpr int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
constexpr int n_signals = sizeof signals / sizeof signals[0];

alignas(16) char handler_stack[64 * 1024];
struct sigaction before[n_signals];
stack_t stack_before;
sigset_t mask_before;
pthread_t runner;
// Somebody who handles faults may call us for what we passed on to them.
thread_local bool passing_on;

int index_of(int signal) {
    for (int i = 0; i < n_signals; ++i) {
        if (signals[i] == signal) return i;
    }
    return 0;
}

void pass_on(int signal, siginfo_t* info, void* context) {
    const struct sigaction& previous = before[index_of(signal)];
    const bool has_handler = (previous.sa_flags & SA_SIGINFO) != 0 ||
                             (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN);
    if (!has_handler || passing_on) {
        // The instruction runs again and meets the system's default.
        struct sigaction standard = {};
        standard.sa_handler = SIG_DFL;
        sigaction(signal, &standard, nullptr);
        return;
    }
    passing_on = true;
    if ((previous.sa_flags & SA_SIGINFO) != 0) {
        previous.sa_sigaction(signal, info, context);
    } else {
        previous.sa_handler(signal);
    }
    passing_on = false;
}

const void* code_address([[maybe_unused]] void* context) {
#if defined(__x86_64__)
    return reinterpret_cast<const void*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
#else
    return nullptr;
#endif
}

const char* direction([[maybe_unused]] void* context) {
#if defined(__x86_64__)
    return (static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2) != 0 ? "write to" : "read from";
#else
    return "access to";
#endif
}

void handle(int signal, siginfo_t* info, void* context) {
    if (machine.current == nullptr || machine.in_hook || pthread_equal(runner, pthread_self()) == 0) {
        pass_on(signal, info, context);
        return;
    }
    machine.by_signal = true;
    const void* const code = code_address(context);
    const uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
    bool in_guard = false;
    switch (signal) {
        case SIGSEGV:
        case SIGBUS:
            if (stack_at(address, &in_guard) != nullptr && in_guard) {
                fail_at(GRANULE_EMU_ILLEGAL_ADDRESS, code, nullptr,
                        "the thread's local memory (%zu bytes of stack) is full", stack_bytes);
            }
            if (info->si_code > 0 && info->si_code != SI_KERNEL) {
                fail_at(GRANULE_EMU_ILLEGAL_ADDRESS, code, nullptr, "illegal address: %s 0x%zx", direction(context),
                        static_cast<size_t>(address));
            }
            fail_at(GRANULE_EMU_ILLEGAL_ADDRESS, code, nullptr,
                    "illegal address, which the processor does not tell: not canonical, or misaligned for 16 bytes");
        case SIGFPE:
            fail_at(GRANULE_EMU_TRAP, code, nullptr, "integer division by zero, or its result does not fit");
        default:
            fail_at(GRANULE_EMU_TRAP, code, nullptr, "the kernel stopped itself (__builtin_trap)");
    }
}

}  // namespace

void catch_faults() {
    runner = pthread_self();
    stack_t own = {};
    own.ss_sp = handler_stack;
    own.ss_size = sizeof handler_stack;
    sigaltstack(&own, &stack_before);
    struct sigaction ours = {};
    ours.sa_sigaction = handle;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    for (int i = 0; i < n_signals; ++i) sigaction(signals[i], &ours, &before[i]);
    pthread_sigmask(SIG_SETMASK, nullptr, &mask_before);
    machine.by_signal = false;
}

void release_faults() {
    for (int i = 0; i < n_signals; ++i) {
        struct sigaction now;
        sigaction(signals[i], nullptr, &now);
        // Whoever put a handler over ours meanwhile keeps it.
        if (now.sa_sigaction == handle) sigaction(signals[i], &before[i], nullptr);
    }
    sigaltstack(&stack_before, nullptr);
    if (machine.by_signal) pthread_sigmask(SIG_SETMASK, &mask_before, nullptr);
}

}  // namespace granule_emu
