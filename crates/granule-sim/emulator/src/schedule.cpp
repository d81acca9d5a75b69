// Who runs next: starting threads, block barriers, yielding, and noticing that nobody can run.
#include "schedule.h"

#include "async_copy.h"
#include "granule_emulator_device.h"
#include "race.h"

namespace granule_emu {
namespace {

// So many yields in a row during which no thread ended or passed a barrier mean that all of them wait for something that
// will not come: about a second of spinning.
constexpr uint64_t spin_limit = uint64_t{1} << 24;

void run_threads();

// Continues `next`, which is not the running thread. `ends`: the running fiber will not be continued.
void continue_with(Thread& next, bool ends) {
    Context* const here = &machine.current->context;
    machine.current = &next;
    if (next.state == State::fresh) {
        next.stack = take_stack();
        next.stack_low = reinterpret_cast<uintptr_t>(next.stack->low);
        prepare(&next.context, next.stack, run_threads);
    }
    switch_context(here, &next.context, ends);
}

Thread* next_thread() {
    if (machine.ready.size() == 0) return nullptr;
    return &machine.threads[machine.ready.pop(machine.random == 0 ? 0 : next_random())];
}

// A thread returned from the kernel.
void exit_thread(Thread& thread) {
    drop_async_copies(thread);
    thread.state = State::exited;
    ++machine.n_exited;
    machine.fruitless = 0;
    if (machine.n_at_barrier != 0) fail_at_barrier(thread);
    Warp& warp = machine.warps[thread.index / warp_lanes];
    warp.gone |= 1u << thread.index % warp_lanes;
    if (warp.waiting != 0) complete_warp_meetings(thread.index / warp_lanes);
}

// A fiber's whole life: threads that have not begun yet run here one after another, on the same stack.
void run_threads() {
    arrived(&machine.current->context);
    for (;;) {
        Thread& thread = *machine.current;
        thread.state = State::ready;
        machine.kernel->call(machine.kernel, machine.launch->params);
        exit_thread(thread);
        if (machine.n_exited == machine.n_threads) {
            if constexpr (checked) settle_unwritten();
            leave();
        }
        Thread* const next = next_thread();
        if (next == nullptr) fail_nobody_runs();
        if (next->state == State::fresh) {
            next->stack = thread.stack;
            next->stack_low = thread.stack_low;
            machine.current = next;
            continue;
        }
        give_stack(thread.stack);
        continue_with(*next, true);
    }
}

}  // namespace

uint32_t RunQueue::pop(uint64_t random) {
    if (random != 0) {
        // Swap a random one to the front.
        const uint32_t chosen = (head_ + static_cast<uint32_t>(random >> 33) % count_) % max_threads;
        const uint16_t first = slots_[head_];
        slots_[head_] = slots_[chosen];
        slots_[chosen] = first;
    }
    const uint32_t thread = slots_[head_];
    head_ = (head_ + 1) % max_threads;
    --count_;
    return thread;
}

uint64_t next_random() {
    // xorshift64* (Vigna 2016).
    uint64_t x = machine.random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    machine.random = x;
    return x * 0x2545f4914f6cdd1d | 1;
}

bool run_block() {
    Machine& m = machine;
    m.n_exited = m.n_at_barrier = m.n_true = 0;
    m.fruitless = 0;
    m.ready.clear();
    for (uint32_t warp = 0; warp * warp_lanes < m.n_threads; ++warp) {
        const uint32_t lanes = m.n_threads - warp * warp_lanes;
        m.warps[warp] = Warp{lanes < warp_lanes ? ~0u << lanes : 0u, 0};
    }
    granule_emu_index place = {0, 0, 0};
    for (uint32_t i = 0; i < m.n_threads; ++i) {
        m.threads[i].state = State::fresh;
        m.threads[i].index = i;
        m.threads[i].place = place;
        m.ready.push(i);
        if (++place.x < m.block_size.x) continue;
        place.x = 0;
        if (++place.y < m.block_size.y) continue;
        place.y = 0;
        ++place.z;
    }
    if constexpr (checked) begin_block_races();
    Thread& first = *next_thread();
    first.stack = take_stack();
    first.stack_low = reinterpret_cast<uintptr_t>(first.stack->low);
    prepare(&first.context, first.stack, run_threads);
    m.current = &first;
    switch_context(&m.caller, &first.context);
    // Back from leave(): the block is done, or something went wrong.
    if (m.result.code == 0) {
        give_stack(m.current->stack);
        m.current = nullptr;
        return true;
    }
    m.current = nullptr;
    for (uint32_t i = 0; i < m.n_threads; ++i) {
        Thread& thread = m.threads[i];
        if (thread.state != State::fresh && thread.state != State::exited) {
            drop_async_copies(thread);
            give_stack(thread.stack);
        }
    }
    return false;
}

void leave() {
    switch_context(&machine.current->context, &machine.caller, true);
    __builtin_unreachable();
}

void wait_for_turn() {
    Thread& thread = *machine.current;
    Thread* const next = next_thread();
    if (next == nullptr) fail_nobody_runs();
    if (next != &thread) continue_with(*next, false);
    thread.state = State::ready;
}

}  // namespace granule_emu

using namespace granule_emu;

unsigned granule_emu_block_barrier(int predicate, const char* file, int line) {
    Machine& m = machine;
    Thread& thread = *m.current;
    thread.meeting.file = file;
    thread.meeting.line = line;
    thread.state = State::at_barrier;
    check_barrier(thread);
    if (m.n_at_barrier == 0) m.first_at_barrier = thread.index;
    m.n_true += predicate != 0;
    if (++m.n_at_barrier < m.n_threads) {
        wait_for_turn();
        return static_cast<unsigned>(thread.meeting.result);
    }
    const uint32_t n_true = m.n_true;
    m.n_at_barrier = m.n_true = 0;
    m.fruitless = 0;
    if constexpr (checked) order_block();
    for (uint32_t i = 0; i < m.n_threads; ++i) {
        m.threads[i].meeting.result = n_true;
        m.threads[i].state = State::ready;
        m.ready.push(i);
    }
    wait_for_turn();
    return n_true;
}

void granule_emu_yield() {
    Machine& m = machine;
    // In order: rarely, only so that waiting loops end. Shuffled: one atomic in four.
    if (m.random == 0 ? ++m.atomics % 64 != 0 : next_random() >> 62 != 0) return;
    if (m.ready.size() == 0) return;
    if (++m.fruitless > spin_limit) fail_spinning();
    m.ready.push(m.current->index);
    wait_for_turn();
}
