// The C interface: finding kernels, and one launch from its checks to its result.
#include <cfenv>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "fault.h"
#include "granule_emulator_device.h"
#include "machine.h"
#include "race.h"
#include "shared.h"
#include "source_lines.h"

namespace granule_emu {

constinit const Kernel* kernels = nullptr;
constinit Machine machine = {};

namespace {

constinit std::mutex one_launch;

// CUDA C++ programming guide, "Features and Technical Specifications".
constexpr uint32_t grid_limits[3] = {0x7fffffff, 65535, 65535};
constexpr uint32_t block_limits[3] = {1024, 1024, 64};
constexpr uint32_t shared_limit = 227 * 1024;

int32_t refuse(granule_emu_result* result, const char* why) {
    result->code = GRANULE_EMU_BAD_LAUNCH;
    snprintf(result->message, sizeof result->message, "%s", why);
    return result->code;
}

const char* what_is_wrong(const granule_emu_kernel* kernel, const granule_emu_launch* launch) {
    if (kernel == nullptr || launch == nullptr) return "no kernel or no launch given";
    for (int axis = 0; axis < 3; ++axis) {
        if (launch->grid[axis] < 1 || launch->grid[axis] > grid_limits[axis]) {
            return "a grid has 1 to 2147483647 blocks in x and 1 to 65535 in y and z";
        }
        if (launch->block[axis] < 1 || launch->block[axis] > block_limits[axis]) {
            return "a block has 1 to 1024 threads in x and y and 1 to 64 in z";
        }
    }
    if (uint64_t{launch->block[0]} * launch->block[1] * launch->block[2] > max_threads) {
        return "a block has at most 1024 threads";
    }
    if (launch->shared_bytes > shared_limit) return "a block has at most 227 KiB of dynamic shared memory";
    if (kernel->n_params != 0 && launch->params == nullptr) return "the kernel takes parameters and none are given";
    for (uint32_t i = 0; i < kernel->n_params; ++i) {
        if (launch->params[i] == nullptr) return "a parameter's pointer is null";
    }
    if (!open_stacks()) return "no memory for the threads' stacks";
    return nullptr;
}

// The i-th block to run. With a seed, a permutation of 0..count: a full-period sequence modulo the next power of two,
// from which numbers that are too large are left out.
class BlockOrder {
public:
    BlockOrder(uint64_t count, bool shuffled) : count_(count) {
        while (mask_ + 1 < count) mask_ = mask_ * 2 + 1;
        if (shuffled) {
            factor_ = next_random() * 4 + 1;  // full period: odd increment, factor 1 modulo 4
            step_ = next_random();
            at_ = next_random() & mask_;
        }
    }
    uint64_t next() {
        do at_ = (at_ * factor_ + step_) & mask_;
        while (at_ >= count_);
        return at_;
    }

private:
    uint64_t count_, mask_ = 0, factor_ = 1, step_ = 1, at_ = ~uint64_t{0};
};

void run_blocks() {
    Machine& m = machine;
    const granule_emu_index grid = m.grid_size;
    const uint64_t count = uint64_t{grid.x} * grid.y * grid.z;
    BlockOrder order(count, m.random != 0);
    for (uint64_t i = 0; i < count; ++i) {
        const uint64_t block = order.next();
        m.block = {static_cast<uint32_t>(block % grid.x), static_cast<uint32_t>(block / grid.x % grid.y),
                   static_cast<uint32_t>(block / grid.x / grid.y)};
        poison_shared();
        if (!run_block()) return;
    }
}

}  // namespace
}  // namespace granule_emu

using namespace granule_emu;

unsigned granule_emu_index_of(unsigned which) {
    const Machine& m = machine;
    const granule_emu_index& index = which < 3   ? m.current->place
                                     : which < 6 ? m.block
                                     : which < 9 ? m.block_size
                                                 : m.grid_size;
    const unsigned axis = which % 3;
    return axis == 0 ? index.x : axis == 1 ? index.y : index.z;
}
void granule_emu_fence(int) {}

uint32_t granule_emu_abi(void) { return GRANULE_EMU_ABI; }

uint32_t granule_emu_checked(void) { return checked ? 1 : 0; }

const granule_emu_kernel* granule_emu_find(const char* name) {
    for (const Kernel* kernel = kernels; kernel != nullptr; kernel = kernel->next) {
        if (strcmp(kernel->public_part.name, name) == 0) return &kernel->public_part;
    }
    return nullptr;
}

const granule_emu_kernel* granule_emu_kernel_at(uint32_t index) {
    const Kernel* kernel = kernels;
    for (; kernel != nullptr && index != 0; --index) kernel = kernel->next;
    return kernel == nullptr ? nullptr : &kernel->public_part;
}

int32_t granule_emu_run(const granule_emu_kernel* kernel, const granule_emu_launch* launch, granule_emu_result* result) {
    result->code = GRANULE_EMU_OK;
    result->message[0] = '\0';
    const std::lock_guard<std::mutex> lock(one_launch);
    if (const char* const wrong = what_is_wrong(kernel, launch)) return refuse(result, wrong);
    Machine& m = machine;
    // public_part is a Kernel's first member.
    m.kernel = reinterpret_cast<const Kernel*>(kernel);
    if (const char* const wrong = open_shared(m.kernel, launch->shared_bytes, launch->seed)) return refuse(result, wrong);
    m.launch = launch;
    m.random = launch->seed;
    m.grid_size = {launch->grid[0], launch->grid[1], launch->grid[2]};
    m.block_size = {launch->block[0], launch->block[1], launch->block[2]};
    m.n_threads = m.block_size.x * m.block_size.y * m.block_size.z;
    m.atomics = 0;
    m.in_hook = m.unwatched = false;
    m.result = {};
    m.places[0] = m.places[1] = nullptr;
    if constexpr (checked) begin_launch_races();

    fenv_t environment;
    fegetenv(&environment);
    fesetenv(FE_DFL_ENV);
    catch_faults();
    run_blocks();
    release_faults();
    fesetenv(&environment);

    *result = m.result;
    if (result->code != GRANULE_EMU_OK) add_source_lines(result->message, sizeof result->message, m.places);
    return result->code;
}
