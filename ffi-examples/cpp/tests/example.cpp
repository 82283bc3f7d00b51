// The example at the head of inflight.hpp, which `check` takes from there: it compiles and serves.
#include <cstdio>
#include <cstdlib>
#include <inflight.hpp>
#include <vector>

namespace {

std::uint64_t delivered;
bool finished;
std::vector<std::uint32_t> sampled;

bool serving() { return !finished; }
std::uint64_t now() { return delivered; }

void run_model(inflight::tokens_view tokens, inflight::span<const std::int64_t> slots,
               inflight::span<const std::uint32_t> blocks, std::vector<std::uint32_t>& next) {
    next.assign(1, tokens.back() + 1);
    finished = slots.size() != tokens.size() || blocks.empty();
}

void deliver(std::uint64_t request, inflight::tokens_view tokens, inflight::finish why) {
    delivered += request * tokens.size();
    finished |= why == inflight::finish::length;
}

void example(const std::vector<std::uint32_t>& prompt) {
#include "example.inc"
}

}  // namespace

int main() {
    example({1, 2, 3});
    std::printf("the example of inflight.hpp: %llu tokens\n",
                static_cast<unsigned long long>(delivered));
    return delivered == 64 ? EXIT_SUCCESS : EXIT_FAILURE;
}
