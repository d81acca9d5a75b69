// Code addresses as lines of the source: binutils' addr2line is asked.
#include "source_lines.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

namespace granule_emu {
namespace {

// "name.cu:12" of an absolute "/…/name.cu:12 (discriminator 3)".
const char* shorten(char* line) {
    if (char* const end = strpbrk(line, " \n")) *end = '\0';
    const char* const slash = strrchr(line, '/');
    return slash == nullptr ? line : slash + 1;
}

// One address's line. Empty where nobody knows.
struct Line {
    const void* place;
    char text[128];
};

// Tests that provoke the same fault again and again ask for the same few addresses.
constinit Line answered[64] = {};
constinit size_t n_answered = 0;

Line ask(const void* place) {
    Line line = {place, {}};
    Dl_info info;
    link_map* map = nullptr;
    if (dladdr1(place, &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) == 0 ||
        strchr(info.dli_fname, '\'') != nullptr) {
        return line;
    }
    char command[4352];
    snprintf(command, sizeof command, "addr2line -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
             static_cast<size_t>(reinterpret_cast<uintptr_t>(place) - map->l_addr));
    FILE* const answer = popen(command, "re");
    if (answer == nullptr) return line;
    char whole[1024];
    if (fgets(whole, sizeof whole, answer) != nullptr && strncmp(whole, "??", 2) != 0) {
        snprintf(line.text, sizeof line.text, "%.120s", shorten(whole));
    }
    pclose(answer);
    return line;
}

Line line_of(const void* place) {
    for (const Line& line : answered) {
        if (line.place == place) return line;
    }
    return answered[n_answered++ % 64] = ask(place);
}

}  // namespace

void add_source_lines(char* message, size_t size, const void* const places[2]) {
    bool any = false;
    for (int i = 0; i < 2; ++i) {
        if (places[i] == nullptr) continue;
        const Line line = line_of(places[i]);
        if (line.text[0] == '\0') continue;
        const size_t used = strlen(message);
        snprintf(message + used, size - used, "%s%s", any ? ", " : " [", line.text);
        any = true;
    }
    const size_t used = strlen(message);
    if (any) snprintf(message + used, size - used, "]");
}

}  // namespace granule_emu
