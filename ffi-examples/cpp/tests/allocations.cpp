// A step through inflight.hpp allocates nothing. For glibc, and not with sanitizers: malloc is this
// program's own.
#include <cstdio>
#include <cstdlib>
#include <inflight.hpp>
#include <vector>

extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t n, std::size_t size);
void* __libc_realloc(void* at, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
}

namespace {
unsigned long allocations;
constexpr std::uint32_t running = 64;
}  // namespace

extern "C" {
void* malloc(std::size_t size) noexcept {
    allocations++;
    return __libc_malloc(size);
}
void* calloc(std::size_t n, std::size_t size) noexcept {
    allocations++;
    return __libc_calloc(n, size);
}
void* realloc(void* at, std::size_t size) noexcept {
    allocations++;
    return __libc_realloc(at, size);
}
int posix_memalign(void** at, std::size_t alignment, std::size_t size) noexcept {
    allocations++;
    *at = __libc_memalign(alignment, size);
    return *at == nullptr;
}
void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
    allocations++;
    return __libc_memalign(alignment, size);
}
}

int main() {
    inflight::scheduler_config config;
    config.num_blocks = 20000;
    config.max_num_seqs = running;
    inflight::scheduler scheduler(config);
    for (std::uint32_t id = 0; id < running; id++) {
        // Of all lengths, so that blocks fill in every step.
        const std::vector<std::uint32_t> prompt(1 + id % 48, id);
        scheduler.submit(inflight::request(id, prompt, 100000));
    }
    const std::vector<std::uint32_t> sampled(running, 7);
    std::vector<inflight_event> room(8);
    std::uint64_t now = 0, delivered = 0;
    const auto steps = [&](int count) {
        for (int i = 0; i < count; i++) {
            const inflight::step step = scheduler.schedule(now++);
            for (const inflight_output& got : scheduler.commit(step, sampled).outputs()) {
                delivered += got.num_tokens;
            }
            (void)scheduler.events(room);
        }
    };
    steps(64);
    const unsigned long before = allocations;
    steps(1000);
    const unsigned long counted = allocations - before;
    std::printf("1000 steps of %u requests: %lu allocations\n", running, counted);
    return counted == 0 && before > running && delivered == 1064 * running ? EXIT_SUCCESS
                                                                           : EXIT_FAILURE;
}
