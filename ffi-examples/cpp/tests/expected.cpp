// inflight.hpp where exceptions are not used: compiled with -fno-exceptions, or with
// INFLIGHT_NO_EXCEPTIONS, into the same program as the units that use them.
#include <cstdio>
#include <inflight.hpp>
#include <type_traits>
#include <vector>

#ifndef INFLIGHT_NO_EXCEPTIONS
#error "this unit is to be compiled with -fno-exceptions or INFLIGHT_NO_EXCEPTIONS"
#endif

int without_exceptions();

namespace {

// Calls that would throw are not there.
template <class Handle, class = void>
struct throws : std::false_type {};
template <class Handle>
struct throws<Handle, std::void_t<decltype(std::declval<Handle&>().verify())>> : std::true_type {};
static_assert(!throws<inflight::scheduler>::value && !throws<inflight::cache>::value);
static_assert(!std::is_constructible_v<inflight::scheduler, inflight::scheduler_config>);

/// The line at which something is wrong.
int wrong(int line) {
    std::fprintf(stderr, "expected.cpp:%d\n", line);
    return line;
}

}  // namespace

#define EXPECT(condition)       \
    if (!(condition)) {         \
        return wrong(__LINE__); \
    }

int without_exceptions() {
    inflight::scheduler_config config;
    auto refused = inflight::scheduler::try_create(config);
    EXPECT(!refused && refused.code() == inflight::status::invalid_argument);
    EXPECT(std::string_view(refused.why().field()) == "num_blocks");

    config.num_blocks = 16;
    auto created = inflight::scheduler::try_create(config);
    EXPECT(created && created.code() == inflight::status::ok);
    inflight::scheduler scheduler = *std::move(created);
    EXPECT(scheduler && !*created);

    const std::vector<std::uint32_t> prompt = {1, 2, 3};
    EXPECT(scheduler.try_submit(inflight::request(1, prompt, 1)));
    EXPECT(scheduler.try_submit(inflight::request(1, prompt, 1)).code() ==
           inflight::status::duplicate_request);
    const auto step = scheduler.try_schedule(0);
    EXPECT(step && step->rows().size() == 1);
    const std::uint32_t sampled[] = {4};
    const auto outputs = scheduler.try_commit(*step, sampled);
    EXPECT(outputs && outputs->tokens().size() == 1);
    EXPECT(inflight::finish_of(outputs->outputs()[0]) == inflight::finish::length);
    EXPECT(scheduler.try_stats()->finished == 1);

    auto cache = inflight::cache::try_create(inflight::cache_config());
    EXPECT(!cache && cache.why().group() == inflight::status_group::argument);
    const auto device = inflight::device::try_cpu();
    EXPECT(device && device->try_info()->threads > 0);
    return 0;
}
