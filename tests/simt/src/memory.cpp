// Device memory and pinned host memory: one reserved range of addresses, mapped where touched.
#include <sys/mman.h>

#include <cstdlib>
#include <mutex>

#include "machine.h"

namespace simt {

// Larger than the device presented, as freed ranges and guards leave holes.
constexpr size_t DEVICE_RANGE = 40ull << 30, HOST_RANGE = 16ull << 30;
constexpr size_t ARENA = DEVICE_RANGE + HOST_RANGE;
// Between allocations: an index too far lands here and is reported.
constexpr size_t GUARD = 4096;

static uint8_t* arena;
static std::map<uintptr_t, Allocation> taken;
static std::map<uintptr_t, size_t> holes[2];
static size_t used, host_used;

static void reserve() {
    if (arena) return;
    void* p = mmap(nullptr, ARENA, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    arena = static_cast<uint8_t*>(p);
    const auto start = reinterpret_cast<uintptr_t>(arena);
    holes[0][start] = DEVICE_RANGE;
    holes[1][start + DEVICE_RANGE] = HOST_RANGE;
}

bool in_arena(uintptr_t a) { return arena && a - reinterpret_cast<uintptr_t>(arena) < ARENA; }
uintptr_t arena_start() { return reinterpret_cast<uintptr_t>(arena); }
size_t device_bytes_used() { return used; }
size_t host_bytes_used() { return host_used; }

static size_t span(size_t n) { return (n + GUARD + 4095) / 4096 * 4096; }

void* arena_alloc(size_t n, MemKind kind) {
    reserve();
    if (n == 0 || n > DEVICE_BYTES) return nullptr;
    if (kind == DEVICE_MEM && used + n > DEVICE_BYTES) return nullptr;
    auto& free_list = holes[kind == HOST_MEM];
    for (auto it = free_list.begin(); it != free_list.end(); ++it) {
        if (it->second < span(n)) continue;
        const uintptr_t at = it->first;
        const size_t left = it->second - span(n);
        free_list.erase(it);
        if (left) free_list[at + span(n)] = left;
        taken[at] = {at, n, kind, true};
        (kind == DEVICE_MEM ? used : host_used) += n;
        // Fresh device memory is NaN, where it costs little: luck with zeros would hide mistakes.
        if (kind == DEVICE_MEM && n <= 64 << 20) memset(reinterpret_cast<void*>(at), 0xff, n);
        if (CHECK && kind == HOST_MEM) shadow_init(at, n);
        return reinterpret_cast<void*>(at);
    }
    return nullptr;
}

bool arena_free(void* p, MemKind kind) {
    const auto at = reinterpret_cast<uintptr_t>(p);
    const auto it = taken.find(at);
    if (it == taken.end() || it->second.kind != kind) return false;
    const size_t n = it->second.bytes;
    if (CHECK) shadow_forget(at, n);
    madvise(p, span(n), MADV_DONTNEED);
    (kind == DEVICE_MEM ? used : host_used) -= n;
    taken.erase(it);
    auto& free_list = holes[kind == HOST_MEM];
    auto hole = free_list.emplace(at, span(n)).first;
    const auto after = std::next(hole);
    if (after != free_list.end() && hole->first + hole->second == after->first) {
        hole->second += after->second;
        free_list.erase(after);
    }
    if (hole != free_list.begin()) {
        const auto before = std::prev(hole);
        if (before->first + before->second == hole->first) {
            before->second += hole->second;
            free_list.erase(hole);
        }
    }
    return true;
}

Allocation find_allocation(uintptr_t a) {
    auto it = taken.upper_bound(a);
    if (it == taken.begin()) return {0, 0, DEVICE_MEM, false};
    --it;
    if (a >= it->first + it->second.bytes) return {0, 0, DEVICE_MEM, false};
    return it->second;
}

Allocation allocation_before(uintptr_t a) {
    auto it = taken.upper_bound(a);
    if (it == taken.begin()) return {0, 0, DEVICE_MEM, false};
    --it;
    Allocation near = it->second;
    near.found = a < near.start + near.bytes + GUARD;
    return near;
}

void arena_reset() {
    while (!taken.empty()) {
        const Allocation a = taken.begin()->second;
        arena_free(reinterpret_cast<void*>(a.start), a.kind);
    }
}

// For programs without the driver's interface: their host code fills memory with plain stores.
void* dmalloc(size_t n) {
    void* p = arena_alloc(n, DEVICE_MEM);
    if (!p) abort();
    if (CHECK) shadow_init(reinterpret_cast<uintptr_t>(p), n);
    return p;
}
void dfree(void* p) { arena_free(p, DEVICE_MEM); }

}  // namespace simt
