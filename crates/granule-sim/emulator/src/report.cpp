// The message of a launch that went wrong: kernel, thread, what happened, source lines.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "machine.h"
#include "race.h"

namespace granule_emu {
namespace {

void write_message(granule_emu_result& result, const char* format, va_list arguments) {
    int used = 0;
    if (machine.current != nullptr) {
        const granule_emu_where at = where_is(*machine.current);
        used = snprintf(result.message, sizeof result.message,
                        "kernel %s, thread (%u,%u,%u) of block (%u,%u,%u): ", machine.kernel->public_part.name,
                        at.thread[0], at.thread[1], at.thread[2], at.block[0], at.block[1], at.block[2]);
    }
    if (used >= 0 && static_cast<size_t>(used) < sizeof result.message) {
        vsnprintf(result.message + used, sizeof result.message - static_cast<size_t>(used), format, arguments);
    }
}

[[noreturn]] void end_launch(int code, const char* format, va_list arguments) {
    if constexpr (checked) settle_unwritten();
    machine.result.code = code;
    write_message(machine.result, format, arguments);
    leave();
}

}  // namespace

granule_emu_where where_is(const Thread& thread) {
    const granule_emu_index &block = machine.block, &place = thread.place;
    return {{block.x, block.y, block.z}, {place.x, place.y, place.z}};
}

void describe(granule_emu_result& result, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    write_message(result, format, arguments);
    va_end(arguments);
}

void fail(int code, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    end_launch(code, format, arguments);
}

void fail_at(int code, const void* first, const void* second, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    machine.places[0] = first;
    machine.places[1] = second;
    end_launch(code, format, arguments);
}

}  // namespace granule_emu

using namespace granule_emu;

void granule_emu_trap(const char* file, int line) { fail(GRANULE_EMU_TRAP, "__trap at %s:%d", file, line); }

void granule_emu_assert_failed(const char* what, const char* file, int line) {
    fail(GRANULE_EMU_TRAP, "assertion failed at %s:%d: %s", file, line, what);
}
