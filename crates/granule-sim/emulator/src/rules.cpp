// Messages for threads that should have met and did not.
//
// A block barrier is one line of the source, and every thread of the block has to reach it. That is the rule of the CUDA
// C++ programming guide ("only if the conditional evaluates identically across the entire thread block"). Since sm_70 the
// hardware also lets a barrier go when the missing threads have exited (PTX ISA, `exit`), and lets two different
// bar.sync of one number meet; here both are reported, as synccheck does, because both are how a divergent barrier looks.
// A warp intrinsic, on the contrary, waits only for the lanes of its mask that have not exited, as the guide has it.
#include <cstdio>
#include <cstring>

#include "granule_emulator_device.h"
#include "schedule.h"

namespace granule_emu {
namespace {

bool same_place(const Meeting& a, const Meeting& b) {
    return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

const char* name_of(unsigned what) {
    switch (what) {
        case GRANULE_EMU_SYNC:
            return "__syncwarp";
        case GRANULE_EMU_SHUFFLE:
            return "__shfl_sync";
        case GRANULE_EMU_SHUFFLE_UP:
            return "__shfl_up_sync";
        case GRANULE_EMU_SHUFFLE_DOWN:
            return "__shfl_down_sync";
        case GRANULE_EMU_SHUFFLE_XOR:
            return "__shfl_xor_sync";
        case GRANULE_EMU_BALLOT:
            return "__ballot_sync";
        case GRANULE_EMU_MATCH_ANY:
            return "__match_any_sync";
        case GRANULE_EMU_TOGETHER:
            return "a warp-wide instruction";
        default:
            return "__reduce_sync";
    }
}

struct Text {
    char chars[160];
};

// "thread (3,0,0)".
Text thread_text(const Thread& thread) {
    const granule_emu_where where = where_is(thread);
    Text text;
    snprintf(text.chars, sizeof text.chars, "thread (%u,%u,%u)", where.thread[0], where.thread[1], where.thread[2]);
    return text;
}

// Where a thread is that is not running.
Text whereabouts(const Thread& thread) {
    Text text;
    const Meeting& meeting = thread.meeting;
    switch (thread.state) {
        case State::at_barrier:
            snprintf(text.chars, sizeof text.chars, "waits at __syncthreads %s:%d", meeting.file, meeting.line);
            break;
        case State::at_warp:
            snprintf(text.chars, sizeof text.chars, "waits at %s %s:%d with mask 0x%08x", name_of(meeting.what),
                     meeting.file, meeting.line, meeting.mask);
            break;
        case State::exited:
            snprintf(text.chars, sizeof text.chars, "has exited");
            break;
        default:
            snprintf(text.chars, sizeof text.chars, "still runs");
    }
    return text;
}

const Thread* first_in(State state) {
    for (uint32_t i = 0; i < machine.n_threads; ++i) {
        if (machine.threads[i].state == state) return &machine.threads[i];
    }
    return nullptr;
}

}  // namespace

void check_barrier(const Thread& thread) {
    if (machine.n_exited != 0) {
        const Thread& gone = *first_in(State::exited);
        fail(GRANULE_EMU_BARRIER_DIVERGENCE,
             "__syncthreads at %s:%d is not reached by every thread of the block: %s and %u others have exited",
             thread.meeting.file, thread.meeting.line, thread_text(gone).chars, machine.n_exited - 1);
    }
    if (machine.n_at_barrier == 0) return;
    const Thread& first = machine.threads[machine.first_at_barrier];
    if (!same_place(first.meeting, thread.meeting)) {
        fail(GRANULE_EMU_BARRIER_DIVERGENCE,
             "threads of the block are at different barriers: this one at __syncthreads %s:%d, %s and %u others at "
             "__syncthreads %s:%d",
             thread.meeting.file, thread.meeting.line, thread_text(first).chars, machine.n_at_barrier - 1,
             first.meeting.file, first.meeting.line);
    }
}

void fail_at_barrier(const Thread&) {
    const Thread& first = machine.threads[machine.first_at_barrier];
    fail(GRANULE_EMU_BARRIER_DIVERGENCE,
         "it exits while %s and %u others wait at __syncthreads %s:%d, which every thread of the block has to reach",
         thread_text(first).chars, machine.n_at_barrier - 1, first.meeting.file, first.meeting.line);
}

void fail_nobody_runs() {
    const Thread* const lane = first_in(State::at_warp);
    if (lane == nullptr) {
        const Thread& first = machine.threads[machine.first_at_barrier];
        fail(GRANULE_EMU_BARRIER_DIVERGENCE, "no thread can go on: %u of %u wait at __syncthreads %s:%d",
             machine.n_at_barrier, machine.n_threads, first.meeting.file, first.meeting.line);
    }
    const uint32_t warp = lane->index / warp_lanes;
    uint32_t missing = lane->meeting.mask & ~machine.warps[warp].gone;
    const Thread* absent = nullptr;
    for (uint32_t i = 0; i < warp_lanes; ++i) {
        if ((missing >> i & 1) == 0) continue;
        const Thread& other = machine.threads[warp * warp_lanes + i];
        if (other.state == State::at_warp && other.meeting.mask == lane->meeting.mask &&
            other.meeting.what == lane->meeting.what) {
            missing &= ~(1u << i);
        } else if (absent == nullptr) {
            absent = &other;
        }
    }
    fail(GRANULE_EMU_BARRIER_DIVERGENCE, "no thread can go on: %s %s, which lanes 0x%08x never reach: %s %s",
         thread_text(*lane).chars, whereabouts(*lane).chars, missing, absent ? thread_text(*absent).chars : "",
         absent ? whereabouts(*absent).chars : "");
}

void fail_spinning() {
    fail(GRANULE_EMU_BARRIER_DIVERGENCE,
         "no thread has ended or passed a barrier for a long time: they wait for a value that nobody writes (blocks run one "
         "after another, so a block cannot wait for a later one)");
}

}  // namespace granule_emu
