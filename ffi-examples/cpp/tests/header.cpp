// inflight.hpp where exceptions are used: handles, errors, and a step through each of its classes.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <inflight.hpp>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>
#if __cplusplus >= 202002L
#include <span>
#endif

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(EXIT_FAILURE);                                             \
        }                                                                        \
    } while (0)

namespace {

// Handles move, and nothing else.
template <class Handle>
constexpr bool is_handle =
    std::is_nothrow_move_constructible_v<Handle> && std::is_nothrow_move_assignable_v<Handle> &&
    std::is_nothrow_default_constructible_v<Handle> && !std::is_copy_constructible_v<Handle> &&
    !std::is_copy_assignable_v<Handle> && sizeof(Handle) == sizeof(void*);
static_assert(is_handle<inflight::scheduler> && is_handle<inflight::submitter>);
static_assert(is_handle<inflight::cache> && is_handle<inflight::device>);
static_assert(is_handle<inflight::attention> && is_handle<inflight::step_buffer>);
static_assert(is_handle<inflight::block_mover>);

// What is passed to C is no larger than C takes it to be.
static_assert(sizeof(inflight::scheduler_config) == sizeof(inflight_scheduler_config));
static_assert(sizeof(inflight::request) == sizeof(inflight_request));
static_assert(sizeof(inflight::batch) == sizeof(inflight_batch));
static_assert(sizeof(inflight::kv_cache) == sizeof(inflight_kv_cache));
static_assert(std::is_standard_layout_v<inflight::attention_args>);

// Spans convert as std::span does.
static_assert(std::is_convertible_v<std::vector<std::uint32_t>&, inflight::tokens_view>);
static_assert(std::is_convertible_v<inflight::span<std::uint32_t>, inflight::tokens_view>);
static_assert(!std::is_convertible_v<inflight::tokens_view, inflight::span<std::uint32_t>>);
static_assert(!std::is_convertible_v<std::vector<int>&, inflight::tokens_view>);
#if __cplusplus >= 202002L
static_assert(std::is_convertible_v<std::span<const std::uint32_t>, inflight::tokens_view>);
static_assert(std::is_convertible_v<inflight::tokens_view, std::span<const std::uint32_t>>);
#endif

// What is read by a later call is not of a temporary; what is read by this one may be.
namespace temporaries {
using tokens = std::vector<std::uint32_t>;
template <class Tokens>
constexpr bool is_prompt =
    std::is_constructible_v<inflight::request, std::uint64_t, Tokens, std::uint32_t>;
static_assert(is_prompt<tokens&> && is_prompt<const tokens&> && is_prompt<std::uint32_t (&)[3]>);
static_assert(is_prompt<inflight::tokens_view> && is_prompt<inflight::span<std::uint32_t>>);
static_assert(!is_prompt<tokens> && !is_prompt<const tokens>);
static_assert(!is_prompt<std::array<std::uint32_t, 3>> && is_prompt<std::array<std::uint32_t, 3>&>);
#if __cplusplus >= 202002L
static_assert(is_prompt<std::span<const std::uint32_t>> && is_prompt<std::span<std::uint32_t, 3>>);
#endif

#define KEEPS(name)                                                                                \
    template <class Struct, class Array, class = void>                                             \
    constexpr bool name##_takes = false;                                                           \
    template <class Struct, class Array>                                                           \
    constexpr bool                                                                                 \
        name##_takes<Struct, Array,                                                                \
                     std::void_t<decltype(std::declval<Struct&>().name(std::declval<Array>()))>> = \
            true;                                                                                  \
    static_assert(true)
KEEPS(set_stop_tokens);
KEEPS(set_salt);
KEEPS(set_adapter);
KEEPS(set_contents);
KEEPS(set_cores);
using octets = std::vector<std::uint8_t>;
using contents = std::vector<inflight_content>;
using inflight::cache_keys, inflight::cpu_config, inflight::request;
static_assert(set_stop_tokens_takes<request, tokens&> && !set_stop_tokens_takes<request, tokens>);
static_assert(set_salt_takes<request, octets&> && !set_salt_takes<request, octets>);
static_assert(set_salt_takes<cache_keys, octets&> && !set_salt_takes<cache_keys, octets>);
static_assert(set_adapter_takes<request, octets&> && !set_adapter_takes<request, octets>);
static_assert(set_adapter_takes<cache_keys, octets&> && !set_adapter_takes<cache_keys, octets>);
static_assert(set_contents_takes<request, contents&> && !set_contents_takes<request, contents>);
static_assert(set_contents_takes<cache_keys, contents&> &&
              !set_contents_takes<cache_keys, contents>);
static_assert(set_cores_takes<cpu_config, tokens&> && !set_cores_takes<cpu_config, tokens>);

template <class Text, class = void>
constexpr bool has_bytes = false;
template <class Text>
constexpr bool has_bytes<Text, std::void_t<decltype(inflight::bytes_of(std::declval<Text>()))>> =
    true;
static_assert(has_bytes<std::string&> && has_bytes<const std::string&> && !has_bytes<std::string>);
static_assert(has_bytes<std::string_view> && has_bytes<const char (&)[3]> && has_bytes<char*>);

using inflight::attention_args, inflight::append_args, inflight::tensor, inflight::kv_cache;
static_assert(std::is_constructible_v<attention_args, tensor&, tensor&, const kv_cache&>);
static_assert(!std::is_constructible_v<attention_args, tensor&, tensor&, kv_cache>);
static_assert(!std::is_constructible_v<attention_args, tensor, tensor&, kv_cache&>);
static_assert(!std::is_constructible_v<attention_args, tensor&, tensor, kv_cache&>);
static_assert(std::is_constructible_v<append_args, tensor&, const tensor&, kv_cache&>);
static_assert(!std::is_constructible_v<append_args, tensor&, tensor, kv_cache&>);
static_assert(!std::is_constructible_v<append_args, tensor&, tensor&, kv_cache>);
static_assert(!std::is_constructible_v<append_args, tensor&, tensor&, kv_cache, inflight_rope*>);
using states = std::vector<inflight_merge_state>;
static_assert(std::is_constructible_v<inflight::merge_args, states&, tensor&>);
static_assert(!std::is_constructible_v<inflight::merge_args, states, tensor&>);
static_assert(!std::is_constructible_v<inflight::merge_args, states&, tensor>);

static_assert(std::is_convertible_v<tokens, inflight::tokens_view>);
static_assert(!std::is_convertible_v<tokens, inflight::span<std::uint32_t>>);
static_assert(std::is_convertible_v<tokens&, inflight::span<std::uint32_t>>);
}  // namespace temporaries

inflight::scheduler_config small() {
    inflight::scheduler_config config;
    config.num_blocks = 16;
    config.block_size = 4;
    return config;
}

const std::vector<std::uint32_t> prompt = {1, 2, 3, 4, 5};

template <class Call>
inflight::error caught(Call&& call) {
    try {
        call();
    } catch (const inflight::error& error) {
        return error;
    }
    CHECK(!"nothing was thrown");
    std::abort();
}

void defaults_are_those_of_c() {
    inflight_scheduler_config plain;
    inflight_scheduler_config_init(&plain, sizeof plain);
    const inflight::scheduler_config config;
    CHECK(config.struct_size == sizeof plain && config.block_size == plain.block_size);
    CHECK(config.max_num_batched_tokens == plain.max_num_batched_tokens);
    inflight::scheduler_config orca;
    CHECK(orca.set_policy(inflight::policy::orca).policy == INFLIGHT_POLICY_ORCA);
    const inflight::request request(7, prompt, 3);
    CHECK(request.id == 7 && request.prompt_len == 5 && request.eos == INFLIGHT_NO_TOKEN);
    const inflight::attention_config attention(8, 2, 64, inflight::dtype::bf16);
    CHECK(attention.causal == 1 && attention.window_left == INFLIGHT_NO_WINDOW);
    CHECK(inflight::abi_version() == INFLIGHT_ABI_VERSION);
    CHECK(inflight::version_number() >= INFLIGHT_VERSION_NUMBER);
    CHECK(*inflight::version_string() != '\0' && *inflight::build_info().target != '\0');
}

void handles_move() {
    inflight::scheduler first(small());
    inflight_scheduler* const raw = first.get();
    inflight::scheduler second = std::move(first);
    CHECK(!first && second && second.get() == raw);

    // A handle without an object is refused, not followed.
    const inflight::error error = caught([&] { first.schedule(0); });
    CHECK(error.code() == inflight::status::invalid_argument);
    CHECK(first.try_stats().code() == inflight::status::invalid_argument);

    // Assignment frees what was there; a vector moves its elements.
    second = inflight::scheduler(small());
    std::vector<inflight::scheduler> many;
    for (int i = 0; i < 9; i++) {
        many.emplace_back(small());
    }
    many.erase(many.begin());
    CHECK(many.back().stats().num_free_blocks == 15);
    second.reset();
    CHECK(!second);

    // Over to C and back.
    inflight_scheduler* owned = many.back().release();
    CHECK(!many.back() && owned != nullptr);
    inflight::scheduler again(owned);
    CHECK(again.stats().steps == 0);

    // A submitter may outlive its scheduler.
    inflight::submitter submitter = again.make_submitter();
    again.reset();
    CHECK(!submitter.try_submit(inflight::request(1, prompt, 3)));
}

void errors_say_what_is_wrong() {
    const inflight::error config =
        caught([] { inflight::scheduler scheduler{inflight::scheduler_config()}; });
    CHECK(config.code() == inflight::status::invalid_argument && config.field() == "num_blocks");
    CHECK(config.group() == inflight::status_group::argument);
    CHECK(std::string(config.what()).find("num_blocks") != std::string::npos);

    inflight::scheduler scheduler(small());
    scheduler.submit(inflight::request(1, prompt, 3));
    CHECK(caught([&] { scheduler.submit(inflight::request(1, prompt, 3)); }).code() ==
          inflight::status::duplicate_request);
    const std::vector<std::uint32_t> endless(1000);
    CHECK(caught([&] { scheduler.submit(inflight::request(2, endless, 3)); }).group() ==
          inflight::status_group::argument);
    CHECK(caught([&] { scheduler.cancel(9); }).code() == inflight::status::unknown_request);
    CHECK(caught([&] { scheduler.cancel(9); }).request_id() == std::uint64_t{9});
    CHECK(!caught([&] { scheduler.commit(77, prompt); }).request_id().has_value());
    CHECK(!config.request_id().has_value());
    CHECK(caught([&] { scheduler.commit(77, prompt); }).code() == inflight::status::unknown_step);

    // The same as results; a result that failed throws when its value is asked for.
    const auto failed = scheduler.try_submit(inflight::request(1, prompt, 3));
    CHECK(!failed && failed.why().code() == inflight::status::duplicate_request);
    CHECK(failed.why().request_id() == std::uint64_t{1});
    CHECK(caught([&] { failed.value(); }).code() == inflight::status::duplicate_request);
    CHECK(inflight::group_of(inflight::status::queue_full) == inflight::status_group::capacity);
    CHECK(inflight::group_of(static_cast<inflight::status>(950)) ==
          inflight::status_group::internal);
}

void a_scheduler_runs() {
    inflight::scheduler scheduler(small());
    const std::string salt = "tenant";
    const std::vector<std::uint32_t> stops = {42};
    inflight::request request(1, prompt, 8);
    request.set_salt(inflight::bytes_of(salt)).set_stop_tokens(stops);
    scheduler.submit(request);

    {
        // A model that throws: the step is taken back.
        const inflight::step step = scheduler.schedule(0);
        const inflight::step_guard guard(scheduler, step);
        CHECK(step.rows().size() == 1 && step.tokens_of(0).size() == prompt.size());
    }
    inflight::step step = scheduler.schedule(1);
    CHECK(!step.empty() && inflight::samples(step.rows()[0]) && inflight::admitted(step.rows()[0]));
    CHECK(step.positions().back() == 4 && step.slot_mapping().size() == 5);
    CHECK(step.blocks_of(0).size() == 2 && step.qo_indptr().back() == 5);
    CHECK(step.kv_last_page_len()[0] == 1 && step.packed().size() > 0);
    inflight::step_guard guard(scheduler, step);
    const std::array<std::uint32_t, 1> sampled = {9};
    inflight::outputs_view outputs = scheduler.commit(step, sampled);
    guard.done();
    CHECK(outputs.outputs().size() == 1 && outputs.tokens_of(outputs.outputs()[0])[0] == 9);
    CHECK(inflight::finish_of(outputs.outputs()[0]) == inflight::finish::none);
    CHECK(scheduler.request_now(1).num_output == 1);

    // A draft and its verification.
    const std::uint32_t draft[] = {10, 11};
    scheduler.set_draft(1, draft);
    step = scheduler.schedule(2);
    CHECK(step.rows()[0].num_draft == 2 && step.logits_indices().size() == 3);
    CHECK(!inflight::admitted(step.rows()[0]) && inflight::decodes(step.rows()[0]));
    const std::uint32_t accepted[] = {10, 42}, indptr[] = {0, 2};
    outputs = scheduler.commit(step, accepted, indptr);
    CHECK(outputs.tokens().size() == 2 && outputs.released().size() == 1);
    CHECK(inflight::finish_of(outputs.outputs()[0]) == inflight::finish::stop_token);
    CHECK(outputs.result_of(outputs.outputs()[0])->num_accepted == 1);

    // Without a submitter there is no waiter to tell.
    std::array<inflight_event, 4> room;
    CHECK(scheduler.events(room).empty());
    CHECK(scheduler.stats().finished == 1);
    scheduler.reset_prefix_cache();
    scheduler.verify();

    // Threads share one submitter, a const one.
    const inflight::submitter submitter = scheduler.make_submitter();
    std::vector<std::thread> threads;
    for (std::uint64_t id = 10; id < 14; id++) {
        threads.emplace_back([&submitter, id] {
            submitter.submit(inflight::request(id, prompt, 3));
            submitter.cancel(id);
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    step = scheduler.schedule(3);
    CHECK(step.empty() && step.tokens().empty());
    scheduler.abandon(step.id());
    CHECK(scheduler.events(room).size() == 4);
    CHECK(inflight::kind_of(room[3]) == inflight::event_kind::cancelled);

    scheduler.submit(inflight::request(2, prompt, 1));
    step = scheduler.schedule(4);
    scheduler.commit(step, sampled);
    const auto events = scheduler.events(room);
    CHECK(events.size() == 1 && inflight::kind_of(events[0]) == inflight::event_kind::finished);
    CHECK(events[0].result.num_output == 1 && events[0].result.first_token_at == 4);

    // Ended by its reader; the thread that steps is woken once.
    std::array<int, 1> calls = {0};
    scheduler.set_wake([](void* counted) { ++*static_cast<int*>(counted); }, calls.data());
    submitter.submit(inflight::request(3, prompt, 9));
    submitter.submit(inflight::request(4, prompt, 9));
    CHECK(calls[0] == 1);
    step = scheduler.schedule(5);
    const std::uint32_t both[] = {9, 9};
    outputs = scheduler.commit(step, both);
    CHECK(outputs.results().empty() && outputs.result_of(outputs.outputs()[0]) == nullptr);
    CHECK(scheduler.finish(3, 1).num_output == 1);
    submitter.finish(4, 0);
    CHECK(calls[0] == 2 &&
          scheduler.try_finish(3, 1).why().code() == inflight::status::unknown_request);
    step = scheduler.schedule(6);
    scheduler.abandon(step.id());
    const auto ends = scheduler.events(room);
    CHECK(ends.size() == 1 && inflight::finish_of(ends[0]) == inflight::finish::stopped);
    scheduler.set_wake(nullptr, nullptr);
}

void a_cache_works_alone() {
    inflight::cache_config config;
    config.num_blocks = 8;
    config.num_host_blocks = 8;
    config.block_size = 4;
    inflight::cache cache(config);
    inflight::cache_keys keys;
    const inflight::sequence seq = cache.open(keys.set_salt(inflight::bytes_of("a")));
    cache.extend(seq, prompt);
    CHECK(cache.lookup(seq, 4) == 0 && cache.blocks_needed(seq, 0, 0, 5) == 2);
    CHECK(cache.allocate(seq, 0, 0, 5) == 2);
    cache.register_blocks(seq, 5);
    CHECK(cache.table(seq).size() == 2);

    // A fork that writes gets a copy.
    const inflight::sequence child = cache.fork(seq);
    const std::uint32_t next[] = {6};
    cache.extend(child, next);
    cache.allocate(child, 0, 5, 6);
    std::array<inflight_block_op, 4> room;
    const auto ops = cache.take_ops(room);
    CHECK(ops.size() == 1 && inflight::kind_of(ops[0]) == inflight::block_op_kind::copy);

    cache.swap_out(child);
    CHECK(cache.take_ops(room).size() == 2 && cache.table(child).empty());
    cache.swap_in(child);
    cache.truncate(child, 4);
    cache.unregister_blocks(seq, 0);
    CHECK(!cache.forget_prefixes() && cache.stats().num_sequences == 2);
    cache.release_blocks(seq);
    cache.close(seq);
    CHECK(caught([&] { cache.extend(seq, prompt); }).group() == inflight::status_group::argument);
    cache.close(child);
    cache.verify();
    CHECK(cache.forget_prefixes() && cache.stats().num_free_blocks == 7);
    CHECK(caught([&] { cache.allocate(cache.open(), 0, 0, 999); }).code() ==
          inflight::status::invalid_argument);
}

// One head, one query, two keys: the mean of their values where the logits are equal.
void attention_runs() {
    constexpr std::uint32_t dim = 8, size = 4, blocks = 3;
    inflight::cpu_config threads;
    threads.threads = 1;
    inflight::device device = inflight::device::cpu(threads);
    const inflight::device_info info = device.info();
    CHECK(inflight::kind_of(info) == inflight::device_kind::cpu && info.threads == 1);
    alignas(64) static float memory[4][blocks * size * dim];
    device.check_pointer(memory);
    const inflight::step_limits limits(4, 8, 8, 16);
    inflight::attention_config config(1, 1, dim, inflight::dtype::f32);
    CHECK(inflight::attention::workspace_size(device, config, limits) == 0);
    config.set_workspace(memory, sizeof memory);
    CHECK(caught([&] { inflight::attention(device, config, limits); }).field() == "workspace");
    inflight::attention attention(device, config.set_workspace(nullptr, 0), limits);
    inflight::step_buffer buffer(device, limits, attention);
    inflight_attention* const raw[] = {attention.get()};
    inflight::step_buffer spare(device, limits, raw);
    spare = std::move(buffer);
    const auto cache = inflight::make_kv_cache(memory[0], memory[1], blocks, size, 1, dim,
                                               inflight::dtype::f32, inflight::layout::hnd);
    const auto host = inflight::make_kv_cache(memory[2], memory[3], blocks, size, 1, dim,
                                              inflight::dtype::f32, inflight::layout::hnd);
    const std::vector<inflight::kv_cache> layers = {cache}, host_layers = {host};
    inflight::block_mover mover(device, layers, host_layers);

    const std::uint32_t qo_indptr[] = {0, 2}, kv_indptr[] = {0, 1}, kv_indices[] = {2};
    const std::uint32_t last[] = {2}, positions[] = {0, 1};
    const std::int64_t slots[] = {2 * size, 2 * size + 1};
    inflight::group group;
    group.kv_indptr = kv_indptr;
    group.kv_indices = kv_indices;
    group.kv_last_page_len = last;
    group.slot_mapping = slots;
    group.num_kv_blocks = 1;
    group.block_size = size;
    inflight::batch batch;
    batch.qo_indptr = qo_indptr;
    batch.positions = positions;
    batch.groups = &group;
    batch.num_rows = 1;
    batch.num_tokens = 2;
    attention.plan(batch, blocks);
    spare.upload(batch);

    float k[2 * dim] = {}, v[2 * dim], q[2 * dim], o[2 * dim], lse[2];
    for (std::uint32_t i = 0; i < 2 * dim; i++) {
        v[i] = i < dim ? 1.0f : 3.0f;
        q[i] = 1.0f;
    }
    const auto tensor = [](float* data) {
        return inflight::make_tensor(data, 2, 1, dim, inflight::dtype::f32);
    };
    float table[16 * dim];
    inflight::rope_table(inflight::rope_config(dim), 16, table);
    const inflight::tensor queries = tensor(q), keys = tensor(k), values = tensor(v);
    const inflight::rope rope(table, 16, dim, &queries);
    spare.append(inflight::append_args(keys, values, cache, &rope));
    const inflight::tensor outputs = tensor(o);
    inflight::attention_args args(queries, outputs, cache);
    args.lse = lse;
    attention.run(spare, args);
    CHECK(o[0] == 1.0f && o[dim] == 2.0f);
    CHECK(q[0] == 1.0f && q[dim] != 1.0f);

    float merged[2 * dim];
    const inflight::tensor result = tensor(merged);
    const std::vector<inflight_merge_state> states = {{&outputs, lse}, {&outputs, lse}};
    inflight::merge(device, inflight::merge_args(states, result));
    CHECK(merged[0] == 1.0f && merged[dim] == 2.0f);

    const inflight_block_op ops[] = {{INFLIGHT_BLOCK_COPY, 2, 1}, {INFLIGHT_BLOCK_SWAP_OUT, 1, 0}};
    mover.run(ops);
    CHECK(memory[1][size * dim] == 1.0f && memory[3][dim] == 3.0f);
    const auto unequal = inflight::block_mover::try_create(
        device, layers, inflight::span<const inflight::kv_cache>(&cache, 0));
    CHECK(unequal.ok());
    const std::vector<inflight::kv_cache> two = {host, host};
    CHECK(caught([&] { inflight::block_mover wrong(device, layers, two); }).field() ==
          "host_caches");

    int released = 0;
    void* managed = inflight::tensor_to_dlpack(
        device, tensor(o), true, [](void* count) { ++*static_cast<int*>(count); }, &released);
    const auto seen =
        inflight::tensor_from_dlpack(device, managed, inflight::dlpack::versioned, false);
    CHECK(seen.data == o && seen.tokens == 2 && seen.head_dim == dim);
    CHECK(!inflight::try_tensor_from_dlpack(device, managed, inflight::dlpack::versioned, true));
    CHECK(!inflight::try_kv_cache_from_dlpack(device, managed, managed, inflight::dlpack::versioned,
                                              inflight::layout::nhd));
    // DLManagedTensorVersioned: version, manager_ctx, deleter.
    struct head {
        std::uint32_t version[2];
        void* context;
        void (*deleter)(void*);
    };
    static_cast<head*>(managed)->deleter(managed);
    CHECK(released == 1);

    const auto gpus = inflight::device::try_cuda_count();
    CHECK(gpus.ok() || inflight::group_of(gpus.code()) == inflight::status_group::device);
    if (!gpus) {
        CHECK(!inflight::device::try_cuda());
        CHECK(*gpus.why().message() != '\0');
    }
}

}  // namespace

int without_exceptions();

int main() {
    defaults_are_those_of_c();
    handles_move();
    errors_say_what_is_wrong();
    a_scheduler_runs();
    a_cache_works_alone();
    attention_runs();
    CHECK(without_exceptions() == 0);
    std::puts("inflight.hpp: as it should be");
    return EXIT_SUCCESS;
}
