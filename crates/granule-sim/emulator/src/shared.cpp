// Shared memory: found in the library's own symbol table, poisoned, and named for messages.
//
// `__shared__ float tile[32];` compiles as a function-local static. Such variables stand in the ELF symbol table with
// address and size, under the name of the file they come from (STT_FILE), mangled as `_ZZ…`: nothing else in a .cu is both
// function-local and writable. So the kernels need no annotation that g++ would not accept in a template.
#include "shared.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "granule_emulator_device.h"

namespace granule_emu {
namespace {

struct Variable {
    uintptr_t start;
    size_t size;
    const char* name;  // mangled; in the mapped file
    const char* unit;  // STT_FILE
};

struct Library {
    uintptr_t low, high;              // addresses of the whole library
    std::vector<Variable> variables;  // of all files, ascending
    bool readable;                    // its symbol table was found
};

// The piece between two inaccessible pages in which dynamic shared memory ends.
constexpr size_t arena_bytes = 232 * 1024;
constexpr size_t page = 4096;

struct Running {
    std::vector<Variable> variables;  // of the kernel's file, ascending
    const Kernel* kernel;
    uintptr_t arena;
    uintptr_t dynamic;
    uint32_t dynamic_bytes;
    int poison;
};

constinit Library library = {};
constinit Running running = {};

const char* base_name(const char* path) {
    const char* const slash = strrchr(path, '/');
    return slash == nullptr ? path : slash + 1;
}

void read_symbols(const char* file, size_t bytes, uintptr_t load_address) {
    const Elf64_Ehdr& header = *reinterpret_cast<const Elf64_Ehdr*>(file);
    if (bytes < sizeof header || memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return;
    const auto* const sections = reinterpret_cast<const Elf64_Shdr*>(file + header.e_shoff);
    for (unsigned i = 0; i < header.e_shnum; ++i) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        library.readable = true;
        const auto* const symbols = reinterpret_cast<const Elf64_Sym*>(file + sections[i].sh_offset);
        const size_t count = sections[i].sh_size / sizeof(Elf64_Sym);
        const char* const names = file + sections[sections[i].sh_link].sh_offset;
        const char* unit = "";
        for (size_t k = 0; k < count; ++k) {
            const Elf64_Sym& symbol = symbols[k];
            const char* const name = names + symbol.st_name;
            if (ELF64_ST_TYPE(symbol.st_info) == STT_FILE) unit = name;
            if (ELF64_ST_TYPE(symbol.st_info) != STT_OBJECT || ELF64_ST_BIND(symbol.st_info) != STB_LOCAL) continue;
            if (strncmp(name, "_ZZ", 3) != 0 || symbol.st_shndx >= header.e_shnum) continue;
            if ((sections[symbol.st_shndx].sh_flags & SHF_WRITE) == 0) continue;
            library.variables.push_back({load_address + symbol.st_value, symbol.st_size, name, unit});
        }
    }
    std::sort(library.variables.begin(), library.variables.end(),
              [](const Variable& a, const Variable& b) { return a.start < b.start; });
}

// The file is read when it is loaded: later it may have been built anew. It stays mapped for the names.
__attribute__((constructor)) void read_library() {
    Dl_info info;
    link_map* map = nullptr;
    if (dladdr1(reinterpret_cast<const void*>(&read_library), &info, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) == 0) {
        return;
    }
    const auto* const header = static_cast<const Elf64_Ehdr*>(info.dli_fbase);
    const auto* const segments =
        reinterpret_cast<const Elf64_Phdr*>(reinterpret_cast<const char*>(header) + header->e_phoff);
    library.low = reinterpret_cast<uintptr_t>(info.dli_fbase);
    for (unsigned i = 0; i < header->e_phnum; ++i) {
        if (segments[i].p_type != PT_LOAD) continue;
        library.high = std::max<uintptr_t>(library.high, map->l_addr + segments[i].p_vaddr + segments[i].p_memsz);
    }
    const int file = open(info.dli_fname, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file >= 0 && fstat(file, &status) == 0) {
        const size_t bytes = static_cast<size_t>(status.st_size);
        void* const content = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0);
        if (content != MAP_FAILED) read_symbols(static_cast<const char*>(content), bytes, map->l_addr);
    }
    if (file >= 0) close(file);
}

bool open_arena() {
    if (running.arena != 0) return true;
    void* const memory =
        mmap(nullptr, arena_bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    char* const arena = static_cast<char*>(memory) + page;
    if (mprotect(arena, arena_bytes, PROT_READ | PROT_WRITE) != 0) return false;
    running.arena = reinterpret_cast<uintptr_t>(arena);
    return true;
}

const Variable* variable_at(uintptr_t address) {
    const auto after = std::upper_bound(running.variables.begin(), running.variables.end(), address,
                                        [](uintptr_t at, const Variable& variable) { return at < variable.start; });
    if (after == running.variables.begin()) return nullptr;
    const Variable& before = *(after - 1);
    return address - before.start < before.size ? &before : nullptr;
}

}  // namespace

const char* open_shared(const Kernel* kernel, uint32_t dynamic_bytes, uint64_t seed) {
    if (!library.readable) return "the library of emulated kernels has no symbol table: it must not be stripped";
    if (!open_arena()) return "no memory for dynamic shared memory";
    if (running.kernel != kernel) {
        running.kernel = kernel;
        running.variables.clear();
        for (const Variable& variable : library.variables) {
            if (strcmp(base_name(variable.unit), base_name(kernel->unit)) == 0) running.variables.push_back(variable);
        }
    }
    // It ends where the inaccessible page begins, but for the alignment that CUDA promises.
    running.dynamic = running.arena + arena_bytes - (dynamic_bytes + 15u) / 16 * 16;
    running.dynamic_bytes = dynamic_bytes;
    // Bytes that read as NaN; as huge; as tiny and negative. A maximum hides the first, a minimum the second.
    constexpr int poisons[] = {0xff, 0x7f, 0xa5};
    running.poison = poisons[seed % 3];
    return nullptr;
}

void poison_shared() {
    for (const Variable& variable : running.variables) {
        memset(reinterpret_cast<void*>(variable.start), running.poison, variable.size);
    }
    memset(reinterpret_cast<void*>(running.dynamic), running.poison, running.dynamic_bytes);
}

Space space_of(uintptr_t address, size_t* bytes) {
    *bytes = 0;
    if (address - (running.arena - page) < arena_bytes + 2 * page) {
        const uintptr_t offset = address - running.dynamic;
        if (address < running.dynamic || offset >= running.dynamic_bytes) return Space::shared_outside;
        *bytes = running.dynamic_bytes - offset;
        return Space::shared;
    }
    if (address >= library.low && address < library.high) {
        const Variable* const variable = variable_at(address);
        if (variable == nullptr) return Space::library;
        *bytes = variable->size - (address - variable->start);
        return Space::shared;
    }
    return Space::elsewhere;
}

SharedName name_shared(uintptr_t address) {
    SharedName name;
    const Variable* const variable = variable_at(address);
    if (variable == nullptr) {
        const long offset = static_cast<long>(address - running.dynamic);
        snprintf(name.text, sizeof name.text, "dynamic shared memory %c %ld (of %u bytes)", offset < 0 ? '-' : '+',
                 labs(offset), running.dynamic_bytes);
        return name;
    }
    int status = 0;
    char* const demangled = abi::__cxa_demangle(variable->name, nullptr, nullptr, &status);
    const char* shown = demangled == nullptr ? variable->name : demangled;
    for (const char* colons = strstr(shown, "::"); colons != nullptr; colons = strstr(shown, "::")) shown = colons + 2;
    snprintf(name.text, sizeof name.text, "shared variable %s + %zu (of %zu bytes)", shown,
             static_cast<size_t>(address - variable->start), variable->size);
    free(demangled);
    return name;
}

}  // namespace granule_emu

void* granule_emu_dynamic_shared() { return reinterpret_cast<void*>(granule_emu::running.dynamic); }
