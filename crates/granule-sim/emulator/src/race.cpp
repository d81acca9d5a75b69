// Races and uninitialized shared memory, from every access of the checked build.
#include "race.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <vector>

#include "machine.h"
#include "shadow.h"
#include "shared.h"

namespace granule_emu {
namespace {

// Numbers the intervals between two block barriers, through all blocks and launches: 0 is before everything.
constinit uint32_t interval = 0;
constinit uint32_t launch_began = 0, block_began = 0;

struct BlockBegan {
    uint32_t interval;
    granule_emu_index block;
};
constinit std::vector<BlockBegan> blocks;
// Times of each lane of a crowd whose lanes came at different times. Lives as long as the block.
struct LaneTimes {
    uint32_t clock[warp_lanes];
};
constinit std::vector<LaneTimes> lane_times;

// The block's first read of shared memory that nobody had written. The writer may only be late, and then it is a race: so
// it is told at the end of the interval, or in place of whatever goes wrong because of it.
struct Unwritten {
    bool read;
    const void* code;
    granule_emu_result result;
};
constinit Unwritten unwritten = {};

// What an access is, while it is checked.
struct Now {
    Thread& thread;
    uint32_t warp, lane;
    uintptr_t address;
    uint32_t size;
    Access access;
    bool shared;
    uint32_t code;
    const void* code_address;
};

// Was that access of this interval, by that thread at that time of its own, before this one?
bool ordered(const Now& now, uint32_t thread, uint32_t clock) {
    if (thread == now.thread.index) return true;
    return thread / warp_lanes == now.warp && clock < now.thread.known[thread % warp_lanes];
}

// Blocks of a launch share global memory and are not ordered.
bool of_earlier_block(const Now& now, uint32_t of) { return !now.shared && of >= launch_began && of < block_began; }

const char* verb(Access access) {
    switch (access) {
        case Access::read:
            return "reads";
        case Access::write:
            return "writes";
        case Access::atomic_read:
            return "atomically reads";
        default:
            return "atomically updates";
    }
}

[[noreturn]] void fail_race(const Now& now, Access earlier, uint32_t of, uint32_t by, uint32_t bytes, uint32_t code) {
    char what[128];
    if (now.shared) {
        snprintf(what, sizeof what, "%s", name_shared(now.address).text);
    } else {
        snprintf(what, sizeof what, "global memory 0x%zx", static_cast<size_t>(now.address));
    }
    unwritten.read = false;
    const granule_emu_where where = where_is(machine.threads[by]);
    const void* const earlier_code = code_at(code);
    if (of < block_began) {
        const auto after = std::upper_bound(blocks.begin(), blocks.end(), of,
                                            [](uint32_t at, const BlockBegan& block) { return at < block.interval; });
        const granule_emu_index& block = (after - 1)->block;
        fail_at(GRANULE_EMU_RACE, now.code_address, earlier_code,
                "race between blocks on %s: it %s %u bytes, thread (%u,%u,%u) of block (%u,%u,%u) %s %u bytes there, and "
                "nothing orders blocks",
                what, verb(now.access), now.size, where.thread[0], where.thread[1], where.thread[2], block.x, block.y,
                block.z, verb(earlier), bytes);
    }
    fail_at(GRANULE_EMU_RACE, now.code_address, earlier_code,
            "race on %s: it %s %u bytes, thread (%u,%u,%u) of the block %s %u bytes there, and no barrier is between them",
            what, verb(now.access), now.size, where.thread[0], where.thread[1], where.thread[2], verb(earlier), bytes);
}

void check_last(const Now& now, const Last& last, Access earlier) {
    const bool races = last.interval == interval ? !ordered(now, last.thread, last.clock)
                                                 : of_earlier_block(now, last.interval);
    if (races) fail_race(now, earlier, last.interval, last.thread, last.bytes, last.code);
}

void check_crowd(const Now& now, const Crowd& crowd, Access earlier) {
    if (crowd.outer.interval != 0) check_last(now, crowd.outer, earlier);
    if (crowd.interval != interval) {
        if (of_earlier_block(now, crowd.interval)) {
            fail_race(now, earlier, crowd.interval, crowd.first, crowd.bytes, crowd.code);
        }
        return;
    }
    if (crowd.kind == Crowd::warps) {
        const uint32_t other = crowd.first / warp_lanes != now.warp ? crowd.first : crowd.second;
        fail_race(now, earlier, interval, other, crowd.bytes, crowd.code);
    }
    const uint32_t first_lane = crowd.first / warp_lanes * warp_lanes;
    for (uint32_t lanes = crowd.lanes; lanes != 0; lanes &= lanes - 1) {
        const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(lanes));
        const uint32_t clock = crowd.kind == Crowd::times ? lane_times[crowd.clock].clock[lane] : crowd.clock;
        if (!ordered(now, first_lane + lane, clock)) {
            fail_race(now, earlier, interval, first_lane + lane, crowd.bytes, crowd.code);
        }
    }
}

void join(const Now& now, Crowd& crowd) {
    const uint32_t bit = 1u << now.lane;
    const bool same_warp = crowd.first / warp_lanes == now.warp;
    if (crowd.interval == interval && crowd.kind == Crowd::warps) return;
    if (crowd.interval == interval && !same_warp) {
        crowd.kind = Crowd::warps;
        crowd.second = static_cast<uint16_t>(now.thread.index);
        return;
    }
    if (crowd.interval == interval) {
        if (crowd.kind == Crowd::lanes_at_once && crowd.clock == now.thread.clock) {
            crowd.lanes |= bit;
            return;
        }
        // Those who were here before and are ordered before this thread need not be remembered: whoever is ordered after
        // this thread is ordered after them.
        LaneTimes times = {};
        uint32_t lanes = 0;
        for (uint32_t rest = crowd.lanes; rest != 0; rest &= rest - 1) {
            const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(rest));
            const uint32_t clock = crowd.kind == Crowd::times ? lane_times[crowd.clock].clock[lane] : crowd.clock;
            if (lane == now.lane || clock < now.thread.known[lane]) continue;
            lanes |= 1u << lane;
            times.clock[lane] = clock;
        }
        if (lanes != 0) {
            times.clock[now.lane] = now.thread.clock;
            crowd.lanes = lanes | bit;
            crowd.kind = Crowd::times;
            crowd.clock = static_cast<uint32_t>(lane_times.size());
            lane_times.push_back(times);
            return;
        }
    } else if (of_earlier_block(now, crowd.interval)) {
        crowd.outer = Last{crowd.interval, crowd.clock, crowd.code, crowd.first, crowd.bytes};
    } else if (crowd.interval < launch_began) {
        crowd.outer.interval = 0;
    }
    crowd.interval = interval;
    crowd.clock = now.thread.clock;
    crowd.lanes = bit;
    crowd.first = static_cast<uint16_t>(now.thread.index);
    crowd.kind = Crowd::lanes_at_once;
    crowd.bytes = static_cast<uint8_t>(now.size);
    crowd.code = now.code;
}

void check_initialized(const Now& now, const Cell& cell) {
    if (!now.shared || now.access == Access::write || unwritten.read) return;
    if (cell.writer.interval >= block_began) return;
    if (cell.atomics != 0 && atomics_of(cell).updates.interval >= block_began) return;
    unwritten.read = true;
    unwritten.code = now.code_address;
    unwritten.result.code = GRANULE_EMU_UNINITIALIZED_SHARED;
    describe(unwritten.result, "it %s %u bytes of %s, which no thread of the block has written", verb(now.access), now.size,
             name_shared(now.address).text);
}

void check_cell(const Now& now, Cell& cell) {
    check_initialized(now, cell);
    check_last(now, cell.writer, Access::write);
    if (now.access == Access::read) {
        if (cell.atomics != 0) check_crowd(now, atomics_of(cell).updates, Access::atomic_update);
        join(now, cell.readers);
        return;
    }
    if (now.access == Access::write) {
        check_crowd(now, cell.readers, Access::read);
        if (cell.atomics != 0) {
            check_crowd(now, atomics_of(cell).updates, Access::atomic_update);
            check_crowd(now, atomics_of(cell).reads, Access::atomic_read);
        }
        cell.writer = Last{interval, now.thread.clock, now.code, static_cast<uint16_t>(now.thread.index),
                           static_cast<uint8_t>(now.size)};
        return;
    }
    if (now.access == Access::atomic_update) check_crowd(now, cell.readers, Access::read);
    if (cell.atomics == 0) add_atomics(cell);
    join(now, now.access == Access::atomic_update ? atomics_of(cell).updates : atomics_of(cell).reads);
}

}  // namespace

void begin_launch_races() {
    // Memory that earlier launches left behind says nothing about this one; it goes when there is much of it.
    if (shadow_is_large() || interval >= 1u << 31) {
        clear_shadow();
        if (interval >= 1u << 31) interval = 0;
    }
    launch_began = ++interval;
    blocks.clear();
}

void begin_block_races() {
    block_began = ++interval;
    blocks.push_back({interval, machine.block});
    lane_times.clear();
    unwritten.read = false;
}

void settle_unwritten() {
    if (!unwritten.read) return;
    machine.result = unwritten.result;
    machine.places[0] = unwritten.code;
    machine.places[1] = nullptr;
    leave();
}

void order_block() {
    settle_unwritten();
    ++interval;
}

void order_lanes(uint32_t warp, uint32_t lanes) {
    Thread* const threads = &machine.threads[warp * warp_lanes];
    uint32_t known[warp_lanes] = {};
    uint32_t latest = 0;
    for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
        Thread& thread = threads[__builtin_ctz(rest)];
        thread.known[thread.index % warp_lanes] = thread.clock + 1;
        latest = std::max(latest, thread.clock);
        for (uint32_t i = 0; i < warp_lanes; ++i) known[i] = std::max(known[i], thread.known[i]);
    }
    for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
        Thread& thread = threads[__builtin_ctz(rest)];
        memcpy(thread.known, known, sizeof known);
        thread.clock = latest + 1;
    }
}

void check_races(uintptr_t address, size_t size, Access access, bool shared, const void* code) {
    Thread& thread = *machine.current;
    Now now{thread, thread.index / warp_lanes, thread.index % warp_lanes, address, static_cast<uint32_t>(size),
            access, shared, code_number(code), code};
    const uintptr_t end = address + size;
    while (address < end) {
        const uintptr_t word_end = std::min(end, (address | 3) + 1);
        now.address = address;
        Cell& cell = cell_at(address);
        if (cell.split == 0 && word_end - address == 4) {
            check_cell(now, cell);
        } else {
            if (cell.split == 0) split_cell(cell);
            for (uintptr_t at = address; at < word_end; ++at) {
                now.address = at;
                check_cell(now, bytes_of(cell)[at % 4]);
            }
        }
        address = word_end;
    }
}

void forget_writers(uintptr_t address, size_t size) {
    const auto forget = [](Cell& cell) {
        cell.writer.interval = 0;
        if (cell.atomics != 0) atomics_of(cell).updates.interval = 0;
    };
    for (uintptr_t at = address; at < address + size; at = (at | 3) + 1) {
        Cell& cell = cell_at(at);
        forget(cell);
        if (cell.split != 0) {
            for (uint32_t byte = 0; byte < 4; ++byte) forget(bytes_of(cell)[byte]);
        }
    }
}

}  // namespace granule_emu
