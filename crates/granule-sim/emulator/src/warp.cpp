// Warp intrinsics: lanes that name each other in a mask meet, exchange values and are ordered by it.
#include <cstring>

#include "granule_emulator_device.h"
#include "race.h"
#include "schedule.h"

namespace granule_emu {
namespace {

Thread& lane_of(uint32_t warp, uint32_t lane) { return machine.threads[warp * warp_lanes + lane]; }

// What a shuffle gives whose source lane is not there: CUDA leaves it undefined.
constexpr uint64_t poison = ~uint64_t{0};

// Source lane of a shuffle (PTX ISA, shfl.sync): the lane itself where the source is outside its segment.
uint32_t source_lane(const Meeting& meeting, uint32_t lane) {
    const uint32_t width = static_cast<uint32_t>(meeting.width);
    const uint32_t first = lane & ~(width - 1), last = first + width - 1;
    const int64_t by = meeting.lane;
    switch (meeting.what) {
        case GRANULE_EMU_SHUFFLE:
            return first + (static_cast<uint32_t>(meeting.lane) & (width - 1));
        case GRANULE_EMU_SHUFFLE_UP: {
            const int64_t from = int64_t{lane} - (by & 31);
            return from < int64_t{first} ? lane : static_cast<uint32_t>(from);
        }
        case GRANULE_EMU_SHUFFLE_DOWN: {
            const int64_t from = int64_t{lane} + (by & 31);
            return from > int64_t{last} ? lane : static_cast<uint32_t>(from);
        }
        default: {
            const uint32_t from = lane ^ (static_cast<uint32_t>(meeting.lane) & 31);
            return from > last ? lane : from;
        }
    }
}

uint32_t reduce(unsigned what, uint32_t a, uint32_t b) {
    const int32_t x = static_cast<int32_t>(a), y = static_cast<int32_t>(b);
    switch (what) {
        case GRANULE_EMU_REDUCE_ADD:
            return a + b;
        case GRANULE_EMU_REDUCE_AND:
            return a & b;
        case GRANULE_EMU_REDUCE_OR:
            return a | b;
        case GRANULE_EMU_REDUCE_XOR:
            return a ^ b;
        case GRANULE_EMU_REDUCE_MIN_UNSIGNED:
            return a < b ? a : b;
        case GRANULE_EMU_REDUCE_MAX_UNSIGNED:
            return a > b ? a : b;
        case GRANULE_EMU_REDUCE_MIN_SIGNED:
            return x < y ? a : b;
        default:
            return x > y ? a : b;
    }
}

// Bytes that GRANULE_EMU_TOGETHER hands to its function; the fragments of a warp-wide matrix instruction are below 128.
constexpr unsigned together_limit = 256;

void run_together(uint32_t warp, uint32_t lanes, const Meeting& any) {
    alignas(16) static unsigned char inputs[warp_lanes * together_limit], outputs[warp_lanes * together_limit];
    memset(inputs, 0xff, sizeof inputs);
    memset(outputs, 0xff, sizeof outputs);
    for (uint32_t lane = 0; lane < warp_lanes; ++lane) {
        if (lanes >> lane & 1) memcpy(inputs + lane * any.input_size, lane_of(warp, lane).meeting.input, any.input_size);
    }
    machine.unwatched = true;
    any.together(inputs, outputs);
    machine.unwatched = false;
    for (uint32_t lane = 0; lane < warp_lanes; ++lane) {
        if (lanes >> lane & 1) memcpy(lane_of(warp, lane).meeting.output, outputs + lane * any.output_size, any.output_size);
    }
}

// Computes what each of `lanes` takes away.
void exchange(uint32_t warp, uint32_t lanes, const Meeting& any) {
    uint64_t all = 0;
    if (any.what >= GRANULE_EMU_REDUCE_ADD && any.what <= GRANULE_EMU_REDUCE_MAX_SIGNED) {
        bool first = true;
        for (uint32_t lane = 0; lane < warp_lanes; ++lane) {
            if ((lanes >> lane & 1) == 0) continue;
            const uint32_t value = static_cast<uint32_t>(lane_of(warp, lane).meeting.value);
            all = first ? value : reduce(any.what, static_cast<uint32_t>(all), value);
            first = false;
        }
    } else if (any.what == GRANULE_EMU_BALLOT) {
        for (uint32_t lane = 0; lane < warp_lanes; ++lane) {
            if (lanes >> lane & 1) all |= lane_of(warp, lane).meeting.value << lane;
        }
    } else if (any.what == GRANULE_EMU_TOGETHER) {
        run_together(warp, lanes, any);
    }
    for (uint32_t lane = 0; lane < warp_lanes; ++lane) {
        if ((lanes >> lane & 1) == 0) continue;
        Meeting& meeting = lane_of(warp, lane).meeting;
        switch (any.what) {
            case GRANULE_EMU_SHUFFLE:
            case GRANULE_EMU_SHUFFLE_UP:
            case GRANULE_EMU_SHUFFLE_DOWN:
            case GRANULE_EMU_SHUFFLE_XOR: {
                const uint32_t from = source_lane(meeting, lane);
                meeting.result = lanes >> from & 1 ? lane_of(warp, from).meeting.value : poison;
                break;
            }
            case GRANULE_EMU_MATCH_ANY:
                meeting.result = 0;
                for (uint32_t other = 0; other < warp_lanes; ++other) {
                    if ((lanes >> other & 1) && lane_of(warp, other).meeting.value == meeting.value) {
                        meeting.result |= uint64_t{1} << other;
                    }
                }
                break;
            default:
                meeting.result = all;
        }
    }
}

// Lets the group of `lane` go on if everybody in its mask who has not exited has come to the same intrinsic.
bool complete(uint32_t warp, uint32_t lane) {
    Warp& w = machine.warps[warp];
    const Meeting& mine = lane_of(warp, lane).meeting;
    const uint32_t lanes = mine.mask & ~w.gone;
    if (mine.what == GRANULE_EMU_TOGETHER && lanes != mine.mask) {
        fail(GRANULE_EMU_BARRIER_DIVERGENCE, "a warp-wide instruction at %s:%d without lanes 0x%08x, which have exited or never "
             "were: it needs the whole warp", mine.file, mine.line, mine.mask & w.gone);
    }
    if ((w.waiting & lanes) != lanes) return false;
    for (uint32_t other = 0; other < warp_lanes; ++other) {
        if ((lanes >> other & 1) == 0) continue;
        const Meeting& theirs = lane_of(warp, other).meeting;
        if (theirs.mask != mine.mask || theirs.what != mine.what) return false;
        // Matrix instructions are `aligned`: all lanes execute the same one.
        if (mine.what == GRANULE_EMU_TOGETHER && (theirs.together != mine.together || theirs.line != mine.line)) return false;
    }
    w.waiting &= ~lanes;
    exchange(warp, lanes, mine);
    if constexpr (checked) order_lanes(warp, lanes);
    for (uint32_t other = 0; other < warp_lanes; ++other) {
        if ((lanes >> other & 1) == 0) continue;
        Thread& thread = lane_of(warp, other);
        thread.state = State::ready;
        machine.ready.push(thread.index);
    }
    return true;
}

void meet(Thread& thread) {
    const uint32_t warp = thread.index / warp_lanes, lane = thread.index % warp_lanes;
    const Meeting& meeting = thread.meeting;
    if ((meeting.mask >> lane & 1) == 0) {
        fail(GRANULE_EMU_BARRIER_DIVERGENCE, "a warp intrinsic at %s:%d has the mask 0x%08x, without its own lane %u",
             meeting.file, meeting.line, meeting.mask, lane);
    }
    thread.state = State::at_warp;
    machine.warps[warp].waiting |= 1u << lane;
    complete(warp, lane);
    wait_for_turn();
}

}  // namespace

void complete_warp_meetings(uint32_t warp) {
    for (uint32_t lane = 0; lane < warp_lanes; ++lane) {
        if (machine.warps[warp].waiting >> lane & 1) complete(warp, lane);
    }
}

}  // namespace granule_emu

using namespace granule_emu;

uint64_t granule_emu_warp_exchange(unsigned what, unsigned mask, uint64_t value, int lane, int width, const char* file,
                                   int line) {
    Thread& thread = *machine.current;
    if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
        fail(GRANULE_EMU_BARRIER_DIVERGENCE, "a shuffle at %s:%d has the width %d: it must be 1, 2, 4, 8, 16 or 32", file,
             line, width);
    }
    thread.meeting.what = what;
    thread.meeting.mask = mask;
    thread.meeting.file = file;
    thread.meeting.line = line;
    thread.meeting.value = value;
    thread.meeting.lane = lane;
    thread.meeting.width = width;
    meet(thread);
    return thread.meeting.result;
}

void granule_emu_warp_together(unsigned mask, const void* input, unsigned input_size, void* output, unsigned output_size,
                               void (*together)(const void*, void*), const char* file, int line) {
    Thread& thread = *machine.current;
    if (input_size > together_limit || output_size > together_limit) {
        fail(GRANULE_EMU_BAD_LAUNCH, "granule_emu_warp_together at %s:%d with more than %u bytes a lane", file, line,
             together_limit);
    }
    thread.meeting = Meeting{GRANULE_EMU_TOGETHER, mask, file, line, 0, 0, 32, 0,
                             input, output, input_size, output_size, together};
    meet(thread);
}
