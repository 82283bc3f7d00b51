/* inflight for C++17: RAII over the C ABI, in one header.
 *
 *     inflight::scheduler_config config;  // with the library's defaults
 *     config.num_blocks = 1024;
 *     inflight::scheduler scheduler(config);
 *     scheduler.submit(inflight::request(1, prompt, 64));
 *     while (serving()) {
 *         const inflight::step step = scheduler.schedule(now());
 *         run_model(step.tokens(), step.slot_mapping(), step.kv_indices(), sampled);
 *         const inflight::outputs_view got = scheduler.commit(step, sampled);
 *         for (const inflight_output& output : got.outputs()) {
 *             deliver(output.request_id, got.tokens_of(output), inflight::finish_of(output));
 *         }
 *     }
 *
 * inflight.h stays the reference: what a call does, when it fails and on which threads it may be
 * made is said there, under the same name: a method has that of its call without the handle's, a
 * constructor is _create, and _get_ is left out. Other names have
 *
 *   scheduler::make_submitter    inflight_submitter_create
 *   scheduler::request_now       inflight_scheduler_get_request
 *   cache::register_blocks       inflight_cache_register; unregister_blocks, release_blocks alike
 *   cache::forget_prefixes       inflight_cache_reset, where OUT_OF_BLOCKS is false
 *   device::cpu, device::cuda    inflight_device_create_cpu, inflight_device_create_cuda
 *   device::cuda_count           inflight_cuda_device_count
 *   batch::from                  inflight_batch_from_step
 *   make_tensor, make_kv_cache   inflight_tensor_set_contiguous, and that of caches
 *
 * What this header adds:
 *
 * Handles
 *   Each is one pointer, can be moved and not copied, and frees what it has. Calls with a handle
 *   that was moved from fail with invalid_argument, as with NULL. get() is for calls in C.
 *
 * Errors
 *   Every call is there twice. try_schedule(now) returns a result<step>: the value, or a failure
 *   with status, field and message. schedule(now) returns the step, or throws inflight::error. Only
 *   the first kind is there with INFLIGHT_NO_EXCEPTIONS defined, or where the compiler has
 *   exceptions switched off; a result is then read with * and ->.
 *
 * Structs
 *   Configurations and arguments are the structs of C with a constructor that prepares them: their
 *   fields are those of inflight.h, and the pointers in them are the caller's as there. What keeps
 *   a pointer takes no temporary: it would be gone by the call. Views give their arrays as spans,
 * those of structs as strided ones, valid as long as inflight.h says.
 *
 * Cost
 *   All is inline. Nothing is allocated but by what throws.
 */
#ifndef INFLIGHT_HPP
#define INFLIGHT_HPP

#include <inflight.h>

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#if !defined(INFLIGHT_NO_EXCEPTIONS) && !defined(__cpp_exceptions)
#define INFLIGHT_NO_EXCEPTIONS 1
#endif
#ifndef INFLIGHT_NO_EXCEPTIONS
#include <stdexcept>
#include <string>
#endif

namespace inflight {

// The modes differ in what classes have: units of both may be in one program, as different types.
#ifdef INFLIGHT_NO_EXCEPTIONS
inline namespace expected_v1 {
#else
inline namespace throwing_v1 {
#endif

// ---- Numbers of the ABI as types ----

// ---- Made from inflight.h: INFLIGHT_REGENERATE=1 cargo test --test header ----

/// INFLIGHT_STATUS_*.
enum class status : std::int32_t {
    ok = INFLIGHT_STATUS_OK,
    invalid_argument = INFLIGHT_STATUS_INVALID_ARGUMENT,
    duplicate_request = INFLIGHT_STATUS_DUPLICATE_REQUEST,
    unknown_request = INFLIGHT_STATUS_UNKNOWN_REQUEST,
    prompt_too_long = INFLIGHT_STATUS_PROMPT_TOO_LONG,
    never_fits = INFLIGHT_STATUS_NEVER_FITS,
    unknown_step = INFLIGHT_STATUS_UNKNOWN_STEP,
    step_out_of_order = INFLIGHT_STATUS_STEP_OUT_OF_ORDER,
    output_mismatch = INFLIGHT_STATUS_OUTPUT_MISMATCH,
    struct_size = INFLIGHT_STATUS_STRUCT_SIZE,
    in_use = INFLIGHT_STATUS_IN_USE,
    closed = INFLIGHT_STATUS_CLOSED,
    forked = INFLIGHT_STATUS_FORKED,
    queue_full = INFLIGHT_STATUS_QUEUE_FULL,
    out_of_blocks = INFLIGHT_STATUS_OUT_OF_BLOCKS,
    too_many_steps_in_flight = INFLIGHT_STATUS_TOO_MANY_STEPS_IN_FLIGHT,
    stalled = INFLIGHT_STATUS_STALLED,
    out_of_memory = INFLIGHT_STATUS_OUT_OF_MEMORY,
    device = INFLIGHT_STATUS_DEVICE,
    cuda = INFLIGHT_STATUS_CUDA,
    out_of_device_memory = INFLIGHT_STATUS_OUT_OF_DEVICE_MEMORY,
    no_cuda = INFLIGHT_STATUS_NO_CUDA,
    no_kernel_image = INFLIGHT_STATUS_NO_KERNEL_IMAGE,
    unsupported = INFLIGHT_STATUS_UNSUPPORTED,
    corrupt = INFLIGHT_STATUS_CORRUPT,
    panic = INFLIGHT_STATUS_PANIC,
    poisoned = INFLIGHT_STATUS_POISONED,
};

/// INFLIGHT_LOG_*.
enum class log_level : std::uint32_t {
    error = INFLIGHT_LOG_ERROR,
    warning = INFLIGHT_LOG_WARNING,
    info = INFLIGHT_LOG_INFO,
};

/// INFLIGHT_POLICY_*.
enum class policy : std::uint32_t {
    continuous = INFLIGHT_POLICY_CONTINUOUS,
    static_batches = INFLIGHT_POLICY_STATIC,
    priority = INFLIGHT_POLICY_PRIORITY,
    no_evict = INFLIGHT_POLICY_NO_EVICT,
    max_utilization = INFLIGHT_POLICY_MAX_UTILIZATION,
    orca = INFLIGHT_POLICY_ORCA,
};

/// INFLIGHT_BLOCK_*.
enum class block_op_kind : std::uint32_t {
    copy = INFLIGHT_BLOCK_COPY,
    swap_out = INFLIGHT_BLOCK_SWAP_OUT,
    swap_in = INFLIGHT_BLOCK_SWAP_IN,
};

/// INFLIGHT_FINISH_*.
enum class finish : std::uint32_t {
    none = INFLIGHT_FINISH_NONE,
    eos = INFLIGHT_FINISH_EOS,
    stop_token = INFLIGHT_FINISH_STOP_TOKEN,
    length = INFLIGHT_FINISH_LENGTH,
    repetition = INFLIGHT_FINISH_REPETITION,
    stopped = INFLIGHT_FINISH_STOPPED,
};

/// INFLIGHT_EVENT_*.
enum class event_kind : std::uint32_t {
    refused = INFLIGHT_EVENT_REFUSED,
    finished = INFLIGHT_EVENT_FINISHED,
    cancelled = INFLIGHT_EVENT_CANCELLED,
    preempted = INFLIGHT_EVENT_PREEMPTED,
};

/// INFLIGHT_DEVICE_*.
enum class device_kind : std::uint32_t {
    cpu = INFLIGHT_DEVICE_CPU,
    cuda = INFLIGHT_DEVICE_CUDA,
};

/// INFLIGHT_ISA_*.
enum class isa : std::uint32_t {
    best = INFLIGHT_ISA_BEST,
    avx512_bf16 = INFLIGHT_ISA_AVX512_BF16,
    avx512 = INFLIGHT_ISA_AVX512,
    avx2 = INFLIGHT_ISA_AVX2,
    neon = INFLIGHT_ISA_NEON,
    portable = INFLIGHT_ISA_PORTABLE,
    portable_bf16 = INFLIGHT_ISA_PORTABLE_BF16,
};

/// INFLIGHT_DTYPE_*.
enum class dtype : std::uint32_t {
    f32 = INFLIGHT_DTYPE_F32,
    f16 = INFLIGHT_DTYPE_F16,
    bf16 = INFLIGHT_DTYPE_BF16,
    fp8_e4m3 = INFLIGHT_DTYPE_FP8_E4M3,
};

/// INFLIGHT_LAYOUT_*.
enum class layout : std::uint32_t {
    nhd = INFLIGHT_LAYOUT_NHD,
    hnd = INFLIGHT_LAYOUT_HND,
};

/// INFLIGHT_ROPE_PAIRS_*.
enum class rope_pairs : std::uint32_t {
    half = INFLIGHT_ROPE_PAIRS_HALF,
    interleaved = INFLIGHT_ROPE_PAIRS_INTERLEAVED,
};

/// INFLIGHT_ROPE_SCALING_*.
enum class rope_scaling : std::uint32_t {
    none = INFLIGHT_ROPE_SCALING_NONE,
    linear = INFLIGHT_ROPE_SCALING_LINEAR,
    ntk = INFLIGHT_ROPE_SCALING_NTK,
    dynamic_ntk = INFLIGHT_ROPE_SCALING_DYNAMIC_NTK,
    yarn = INFLIGHT_ROPE_SCALING_YARN,
    llama3 = INFLIGHT_ROPE_SCALING_LLAMA3,
};

/// INFLIGHT_DLPACK_*.
enum class dlpack : std::uint32_t {
    unversioned = INFLIGHT_DLPACK_UNVERSIONED,
    versioned = INFLIGHT_DLPACK_VERSIONED,
};

// ---- Written again ----

/// What can be done about a status, known or not.
enum class status_group {
    ok,        ///< Nothing.
    argument,  ///< Mend the call.
    capacity,  ///< Try again when requests have finished.
    device,    ///< Look at the device.
    internal,  ///< Report a bug of the library.
};

constexpr status_group group_of(status code) noexcept {
    const auto number = static_cast<std::int32_t>(code);
    return number == 0    ? status_group::ok
           : number < 200 ? status_group::argument
           : number < 300 ? status_group::capacity
           : number < 400 ? status_group::device
                          : status_group::internal;
}

/// What a status means, in a few words; lives as long as the library.
inline const char* status_string(status code) noexcept {
    return inflight_status_string(static_cast<std::int32_t>(code));
}

inline finish finish_of(const inflight_output& output) noexcept {
    return static_cast<finish>(output.finish);
}
inline finish finish_of(const inflight_event& event) noexcept {
    return static_cast<finish>(event.finish);
}
inline event_kind kind_of(const inflight_event& event) noexcept {
    return static_cast<event_kind>(event.kind);
}
inline status status_of(const inflight_event& event) noexcept {
    return static_cast<status>(event.status);
}
inline block_op_kind kind_of(const inflight_block_op& op) noexcept {
    return static_cast<block_op_kind>(op.kind);
}
inline device_kind kind_of(const inflight_device_info& info) noexcept {
    return static_cast<device_kind>(info.kind);
}
inline bool samples(const inflight_row& row) noexcept {
    return (row.flags & INFLIGHT_ROW_SAMPLES) != 0;
}
inline bool decodes(const inflight_row& row) noexcept {
    return (row.flags & INFLIGHT_ROW_DECODES) != 0;
}
inline bool admitted(const inflight_row& row) noexcept {
    return (row.flags & INFLIGHT_ROW_ADMITTED) != 0;
}

// ---- Arrays ----

namespace detail {

template <class C, class = void>
struct is_view : std::bool_constant<!std::is_array_v<C>> {};
template <class C>
struct is_view<C, std::void_t<decltype(std::declval<C&>().data())>>
    : std::bool_constant<
          std::is_trivially_copyable_v<C> &&
          std::is_constructible_v<C, decltype(std::declval<C&>().data()), std::size_t>> {};

/// Whether an argument `C&&` takes its elements with it at the end of the expression: a vector that
/// a call returned does, a span of one that has a name does not.
template <class C>
constexpr bool is_dying = !std::is_lvalue_reference_v<C> && !is_view<C>::value;

}  // namespace detail

/// A pointer and a length: what std::span is, which C++17 does not have. Converts from and to it,
/// and from arrays, std::vector, std::array and whatever else has data() and size(). As there, one
/// that can be written through is not made of a temporary.
template <class T>
class span {
   public:
    using element_type = T;
    using value_type = std::remove_cv_t<T>;

    constexpr span() noexcept = default;
    constexpr span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <std::size_t N>
    constexpr span(T (&array)[N]) noexcept : data_(array), size_(N) {}
    /// Arrays of a derived class are no arrays of its base, so the conversion is that of arrays.
    template <class C, class From = std::remove_pointer_t<decltype(std::declval<C&>().data())>,
              class = decltype(std::declval<C&>().size()),
              class = std::enable_if_t<std::is_convertible_v<From (*)[], T (*)[]> &&
                                       !std::is_same_v<std::decay_t<C>, span> &&
                                       (std::is_const_v<T> || !detail::is_dying<C>)>>
    constexpr span(C&& container) noexcept : data_(container.data()), size_(container.size()) {}

    constexpr T* data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T* begin() const noexcept { return data_; }
    constexpr T* end() const noexcept { return data_ + size_; }
    constexpr T& operator[](std::size_t index) const {
        assert(index < size_);
        return data_[index];
    }
    constexpr T& front() const { return (*this)[0]; }
    constexpr T& back() const { return (*this)[size_ - 1]; }
    constexpr span subspan(std::size_t offset, std::size_t count) const {
        assert(offset <= size_ && count <= size_ - offset);
        return span(data_ + offset, count);
    }
    constexpr span first(std::size_t count) const { return subspan(0, count); }

   private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

/// A span whose elements are read by a later call: not made of a temporary, as in
/// `request(1, tokenize(text), 64)`, whose tokens are gone by then. Give it a name.
template <class T>
class kept_span : public span<T> {
   public:
    constexpr kept_span() noexcept = default;
    constexpr kept_span(T* data, std::size_t size) noexcept : span<T>(data, size) {}
    template <class C,
              class = std::enable_if_t<!std::is_same_v<std::decay_t<C>, kept_span> &&
                                       std::is_convertible_v<C, span<T>> && !detail::is_dying<C>>>
    constexpr kept_span(C&& container) noexcept : span<T>(std::forward<C>(container)) {}
};

/// An array of the library's structs, which in a newer library may be larger than in this header:
/// the next element is `stride` bytes further.
template <class T>
class strided {
   public:
    class iterator {
       public:
        using iterator_category = std::forward_iterator_tag;
        using value_type = T;
        using difference_type = std::ptrdiff_t;
        using pointer = const T*;
        using reference = const T&;

        iterator() noexcept = default;
        iterator(const strided* of, std::size_t index) noexcept : of_(of), index_(index) {}
        reference operator*() const { return (*of_)[index_]; }
        pointer operator->() const { return &(*of_)[index_]; }
        iterator& operator++() noexcept {
            ++index_;
            return *this;
        }
        iterator operator++(int) noexcept { return iterator(of_, index_++); }
        bool operator==(const iterator& other) const noexcept { return index_ == other.index_; }
        bool operator!=(const iterator& other) const noexcept { return index_ != other.index_; }

       private:
        const strided* of_ = nullptr;
        std::size_t index_ = 0;
    };

    strided() noexcept = default;
    strided(const T* data, std::size_t size, std::size_t stride) noexcept
        : data_(data), size_(size), stride_(stride) {}
    strided(span<const T> of) noexcept : strided(of.data(), of.size(), sizeof(T)) {}

    const T* data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }
    std::size_t stride() const noexcept { return stride_; }
    bool empty() const noexcept { return size_ == 0; }
    iterator begin() const noexcept { return iterator(this, 0); }
    iterator end() const noexcept { return iterator(this, size_); }
    const T& operator[](std::size_t index) const {
        assert(index < size_);
        const void* at = reinterpret_cast<const unsigned char*>(data_) + index * stride_;
        return *static_cast<const T*>(at);
    }

   private:
    const T* data_ = nullptr;
    std::size_t size_ = 0;
    std::size_t stride_ = sizeof(T);
};

/// Something that a later call reads: not made of a temporary. Give it a name.
template <class T>
class kept {
   public:
    constexpr kept(const T& of) noexcept : at_(&of) {}
    kept(const T&& of) = delete;
    constexpr const T* get() const noexcept { return at_; }

   private:
    const T* at_;
};

using tokens_view = span<const std::uint32_t>;
using bytes_view = span<const std::uint8_t>;

/// The bytes of a text, for salts and names of adapters.
inline bytes_view bytes_of(std::string_view text) noexcept {
    return bytes_view(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
}
template <class Text, class = std::enable_if_t<detail::is_dying<Text>>>
bytes_view bytes_of(Text&& text) = delete;

// ---- Structs of the ABI as their _init prepares them, with setters ----

// ---- Made from inflight.h: INFLIGHT_REGENERATE=1 cargo test --test header ----

namespace detail {

/// inflight_request with its defaults.
template <class Self>
struct prepared_request : inflight_request {
    prepared_request() noexcept { inflight_request_init(this, sizeof(inflight_request)); }
    Self& set_prompt(kept_span<const std::uint32_t> elements) noexcept {
        prompt = elements.data();
        prompt_len = elements.size();
        return static_cast<Self&>(*this);
    }
    Self& set_stop_tokens(kept_span<const std::uint32_t> elements) noexcept {
        stop_tokens = elements.data();
        num_stop_tokens = elements.size();
        return static_cast<Self&>(*this);
    }
    Self& set_salt(kept_span<const std::uint8_t> elements) noexcept {
        salt = elements.data();
        salt_len = elements.size();
        return static_cast<Self&>(*this);
    }
    Self& set_adapter(kept_span<const std::uint8_t> elements) noexcept {
        adapter = elements.data();
        adapter_len = elements.size();
        return static_cast<Self&>(*this);
    }
    Self& set_contents(kept_span<const inflight_content> elements) noexcept {
        contents = elements.data();
        num_contents = elements.size();
        content_size = sizeof(inflight_content);
        return static_cast<Self&>(*this);
    }
};

/// inflight_scheduler_config with its defaults.
template <class Self>
struct prepared_scheduler_config : inflight_scheduler_config {
    prepared_scheduler_config() noexcept {
        inflight_scheduler_config_init(this, sizeof(inflight_scheduler_config));
    }
    Self& set_policy(inflight::policy chosen) noexcept {
        policy = static_cast<std::uint32_t>(chosen);
        return static_cast<Self&>(*this);
    }
};

/// inflight_group with its defaults.
template <class Self>
struct prepared_group : inflight_group {
    prepared_group() noexcept { inflight_group_init(this, sizeof(inflight_group)); }
};

/// inflight_scheduler_stats with its defaults.
template <class Self>
struct prepared_scheduler_stats : inflight_scheduler_stats {
    prepared_scheduler_stats() noexcept {
        inflight_scheduler_stats_init(this, sizeof(inflight_scheduler_stats));
    }
};

/// inflight_request_snapshot with its defaults.
template <class Self>
struct prepared_request_snapshot : inflight_request_snapshot {
    prepared_request_snapshot() noexcept {
        inflight_request_snapshot_init(this, sizeof(inflight_request_snapshot));
    }
};

/// inflight_cache_config with its defaults.
template <class Self>
struct prepared_cache_config : inflight_cache_config {
    prepared_cache_config() noexcept {
        inflight_cache_config_init(this, sizeof(inflight_cache_config));
    }
};

/// inflight_cache_stats with its defaults.
template <class Self>
struct prepared_cache_stats : inflight_cache_stats {
    prepared_cache_stats() noexcept {
        inflight_cache_stats_init(this, sizeof(inflight_cache_stats));
    }
};

/// inflight_cache_keys with its defaults.
template <class Self>
struct prepared_cache_keys : inflight_cache_keys {
    prepared_cache_keys() noexcept { inflight_cache_keys_init(this, sizeof(inflight_cache_keys)); }
    Self& set_salt(kept_span<const std::uint8_t> elements) noexcept {
        salt = elements.data();
        salt_len = elements.size();
        return static_cast<Self&>(*this);
    }
    Self& set_adapter(kept_span<const std::uint8_t> elements) noexcept {
        adapter = elements.data();
        adapter_len = elements.size();
        return static_cast<Self&>(*this);
    }
    Self& set_contents(kept_span<const inflight_content> elements) noexcept {
        contents = elements.data();
        num_contents = elements.size();
        content_size = sizeof(inflight_content);
        return static_cast<Self&>(*this);
    }
};

/// inflight_cpu_config with its defaults.
template <class Self>
struct prepared_cpu_config : inflight_cpu_config {
    prepared_cpu_config() noexcept { inflight_cpu_config_init(this, sizeof(inflight_cpu_config)); }
    Self& set_cores(kept_span<const std::uint32_t> elements) noexcept {
        cores = elements.data();
        num_cores = elements.size();
        return static_cast<Self&>(*this);
    }
    Self& set_isa(inflight::isa chosen) noexcept {
        isa = static_cast<std::uint32_t>(chosen);
        return static_cast<Self&>(*this);
    }
};

/// inflight_device_info with its defaults.
template <class Self>
struct prepared_device_info : inflight_device_info {
    prepared_device_info() noexcept {
        inflight_device_info_init(this, sizeof(inflight_device_info));
    }
    Self& set_kind(inflight::device_kind chosen) noexcept {
        kind = static_cast<std::uint32_t>(chosen);
        return static_cast<Self&>(*this);
    }
    Self& set_isa(inflight::isa chosen) noexcept {
        isa = static_cast<std::uint32_t>(chosen);
        return static_cast<Self&>(*this);
    }
};

/// inflight_tensor with its defaults.
template <class Self>
struct prepared_tensor : inflight_tensor {
    prepared_tensor() noexcept { inflight_tensor_init(this, sizeof(inflight_tensor)); }
    Self& set_dtype(inflight::dtype chosen) noexcept {
        dtype = static_cast<std::uint32_t>(chosen);
        return static_cast<Self&>(*this);
    }
};

/// inflight_kv_cache with its defaults.
template <class Self>
struct prepared_kv_cache : inflight_kv_cache {
    prepared_kv_cache() noexcept { inflight_kv_cache_init(this, sizeof(inflight_kv_cache)); }
};

/// inflight_batch with its defaults.
template <class Self>
struct prepared_batch : inflight_batch {
    prepared_batch() noexcept { inflight_batch_init(this, sizeof(inflight_batch)); }
};

/// inflight_mask with its defaults.
template <class Self>
struct prepared_mask : inflight_mask {
    prepared_mask() noexcept { inflight_mask_init(this, sizeof(inflight_mask)); }
};

/// inflight_attention_config with its defaults.
template <class Self>
struct prepared_attention_config : inflight_attention_config {
    prepared_attention_config() noexcept {
        inflight_attention_config_init(this, sizeof(inflight_attention_config));
    }
    Self& set_q_dtype(inflight::dtype chosen) noexcept {
        q_dtype = static_cast<std::uint32_t>(chosen);
        return static_cast<Self&>(*this);
    }
    Self& set_kv_dtype(inflight::dtype chosen) noexcept {
        kv_dtype = static_cast<std::uint32_t>(chosen);
        return static_cast<Self&>(*this);
    }
};

/// inflight_step_limits with its defaults.
template <class Self>
struct prepared_step_limits : inflight_step_limits {
    prepared_step_limits() noexcept {
        inflight_step_limits_init(this, sizeof(inflight_step_limits));
    }
};

/// inflight_attention_args with its defaults.
template <class Self>
struct prepared_attention_args : inflight_attention_args {
    prepared_attention_args() noexcept {
        inflight_attention_args_init(this, sizeof(inflight_attention_args));
    }
};

/// inflight_rope with its defaults.
template <class Self>
struct prepared_rope : inflight_rope {
    prepared_rope() noexcept { inflight_rope_init(this, sizeof(inflight_rope)); }
    Self& set_pairs(inflight::rope_pairs chosen) noexcept {
        pairs = static_cast<std::uint32_t>(chosen);
        return static_cast<Self&>(*this);
    }
};

/// inflight_rope_config with its defaults.
template <class Self>
struct prepared_rope_config : inflight_rope_config {
    prepared_rope_config() noexcept {
        inflight_rope_config_init(this, sizeof(inflight_rope_config));
    }
    Self& set_scaling(inflight::rope_scaling chosen) noexcept {
        scaling = static_cast<std::uint32_t>(chosen);
        return static_cast<Self&>(*this);
    }
};

/// inflight_append_args with its defaults.
template <class Self>
struct prepared_append_args : inflight_append_args {
    prepared_append_args() noexcept {
        inflight_append_args_init(this, sizeof(inflight_append_args));
    }
};

/// inflight_merge_args with its defaults.
template <class Self>
struct prepared_merge_args : inflight_merge_args {
    prepared_merge_args() noexcept { inflight_merge_args_init(this, sizeof(inflight_merge_args)); }
    Self& set_states(kept_span<const inflight_merge_state> elements) noexcept {
        states = elements.data();
        num_states = elements.size();
        state_size = sizeof(inflight_merge_state);
        return static_cast<Self&>(*this);
    }
};

}  // namespace detail

/// What a scheduler is made for.
///
/// Initialise it with `inflight_scheduler_config_init`, then set at least `num_blocks`.
struct scheduler_config : detail::prepared_scheduler_config<scheduler_config> {};

/// What a group of layers has of the cache in a step: layers that keep the same keys share it. A
/// model whose layers all do has one group.
///
/// Of groups in an array each has the same `struct_size`, and the next begins as many bytes
/// further. Those of a caller are initialised with `inflight_group_init`.
struct group : detail::prepared_group<group> {};

/// Counters since a scheduler was made, and its state now.
struct scheduler_stats : detail::prepared_scheduler_stats<scheduler_stats> {};

/// A request at this moment.
struct request_snapshot : detail::prepared_request_snapshot<request_snapshot> {};

/// What a cache manager is made for.
///
/// Initialise it with `inflight_cache_config_init`, then set at least `num_blocks`.
struct cache_config : detail::prepared_cache_config<cache_config> {};

/// Counters since a cache manager was made, and its state now.
struct cache_stats : detail::prepared_cache_stats<cache_stats> {};

/// What, besides its tokens, decides the content of a sequence's blocks: sequences share cached
/// blocks only where all of it is the same.
struct cache_keys : detail::prepared_cache_keys<cache_keys> {};

/// How many threads kernels have, where, and with which instructions.
struct cpu_config : detail::prepared_cpu_config<cpu_config> {};

/// What a device is.
struct device_info : detail::prepared_device_info<device_info> {};

/// Which of the last keys each query sees: a tree of drafts, or any pattern at all.
///
/// Row r's mask is over its last `widths[r]` keys; earlier keys are seen, and with width 0 all are.
/// Query i has `ceil(widths[r] / 8)` bytes from byte `indptr[r] + i * ceil(widths[r] / 8)` of
/// `bits`; bit b % 8 (the least significant is 0) of byte b / 8 says whether it sees key `kv_len -
/// widths[r] + b`. Causality and window hold as well: a pattern that looks ahead needs `causal` 0.
/// All arrays are in this process's memory, and copied.
struct mask : detail::prepared_mask<mask> {};

// ---- Written again ----

// ---- Failures ----

/// Why a call failed.
class failure {
   public:
    failure() noexcept { inflight_error_init(&raw_, sizeof raw_); }
    /// One that is not of the library.
    failure(status code, std::string_view field, std::string_view message) noexcept : failure() {
        raw_.code = static_cast<std::int32_t>(code);
        field.copy(raw_.field, sizeof raw_.field - 1);
        message.copy(raw_.message, sizeof raw_.message - 1);
    }

    status code() const noexcept { return static_cast<status>(raw_.code); }
    status_group group() const noexcept { return group_of(code()); }
    /// The field or argument at fault, as inflight.h spells it; empty where there is none.
    const char* field() const noexcept { return raw_.field; }
    const char* message() const noexcept { return raw_.message; }
    /// The request that it is about, where it is about one.
    std::optional<std::uint64_t> request_id() const noexcept {
        return raw_.has_request != 0 ? std::optional(raw_.request_id) : std::nullopt;
    }
    const inflight_error& raw() const noexcept { return raw_; }
    /// For the last argument of a call in C.
    inflight_error* out() noexcept { return &raw_; }

   private:
    inflight_error raw_;
};

#ifndef INFLIGHT_NO_EXCEPTIONS

/// What the calls without "try_" throw.
class error : public std::runtime_error {
   public:
    explicit error(const failure& why)
        : std::runtime_error(text(why)),
          code_(why.code()),
          field_(why.field()),
          request_id_(why.request_id()) {}

    status code() const noexcept { return code_; }
    status_group group() const noexcept { return group_of(code_); }
    /// The field or argument at fault, as inflight.h spells it; empty where there is none.
    const std::string& field() const noexcept { return field_; }
    /// The request that it is about, where it is about one.
    std::optional<std::uint64_t> request_id() const noexcept { return request_id_; }

   private:
    static std::string text(const failure& why) {
        std::string text = status_string(why.code());
        if (*why.field() != '\0') {
            text.append(": ").append(why.field());
        }
        if (*why.message() != '\0') {
            text.append(": ").append(why.message());
        }
        return text;
    }

    status code_;
    std::string field_;
    std::optional<std::uint64_t> request_id_;
};

#endif

/// A value, or why there is none.
template <class T>
class [[nodiscard]] result {
   public:
    result(T value) noexcept(std::is_nothrow_move_constructible_v<T>) : value_(std::move(value)) {}
    result(const failure& why) noexcept : why_(why) {}

    bool ok() const noexcept { return value_.has_value(); }
    explicit operator bool() const noexcept { return ok(); }

    /// The value, which must be there.
    T& operator*() & {
        assert(ok());
        return *value_;
    }
    const T& operator*() const& {
        assert(ok());
        return *value_;
    }
    T&& operator*() && {
        assert(ok());
        return *std::move(value_);
    }
    T* operator->() {
        assert(ok());
        return &*value_;
    }
    const T* operator->() const {
        assert(ok());
        return &*value_;
    }

    /// status::ok where there is a value.
    status code() const noexcept { return why_ ? why_->code() : status::ok; }
    /// The failure, which must be there.
    const failure& why() const {
        assert(why_.has_value());
        return *why_;
    }

#ifndef INFLIGHT_NO_EXCEPTIONS
    /// The value, or throws.
    T value() && {
        if (!ok()) {
            throw error(*why_);
        }
        return *std::move(value_);
    }
#endif

   private:
    std::optional<T> value_;
    /// Not prepared where there is none: half a kilobyte.
    std::optional<failure> why_;
};

/// Success, or why not.
template <>
class [[nodiscard]] result<void> {
   public:
    result() noexcept = default;
    result(const failure& why) noexcept : why_(why) {}

    bool ok() const noexcept { return !why_.has_value(); }
    explicit operator bool() const noexcept { return ok(); }
    status code() const noexcept { return why_ ? why_->code() : status::ok; }
    /// The failure, which must be there.
    const failure& why() const {
        assert(why_.has_value());
        return *why_;
    }

#ifndef INFLIGHT_NO_EXCEPTIONS
    /// Nothing, or throws.
    void value() const {
        if (!ok()) {
            throw error(*why_);
        }
    }
#endif

   private:
    std::optional<failure> why_;
};

namespace detail {

/// Makes a call: `call(inflight_error*)` returns its status.
template <class Call>
result<void> run(Call&& call) noexcept {
    failure why;
    if (call(why.out()) == INFLIGHT_STATUS_OK) {
        return result<void>();
    }
    return why;
}

/// Makes a call that fills in a value: `call(T&, inflight_error*)` returns its status.
template <class T, class Call>
result<T> fill(T value, Call&& call) noexcept {
    failure why;
    if (call(value, why.out()) == INFLIGHT_STATUS_OK) {
        return result<T>(std::move(value));
    }
    return why;
}

template <class Raw, void (*Free)(Raw*)>
struct freed {
    void operator()(Raw* raw) const noexcept { Free(raw); }
};

/// What all handles have. `Raw` is never complete: a unique_ptr needs no more.
template <class Raw, void (*Free)(Raw*)>
class handle {
   public:
    handle() noexcept = default;
    /// Takes over what a call in C made.
    explicit handle(Raw* raw) noexcept : raw_(raw) {}

    Raw* get() const noexcept { return raw_.get(); }
    explicit operator bool() const noexcept { return raw_ != nullptr; }
    /// Frees it now.
    void reset() noexcept { raw_.reset(); }
    /// Gives it up: the caller frees it.
    [[nodiscard]] Raw* release() noexcept { return raw_.release(); }

   private:
    std::unique_ptr<Raw, freed<Raw, Free>> raw_;
};

/// Makes a handle: `call(Raw**, inflight_error*)` returns its status.
template <class Handle, class Raw, class Call>
result<Handle> create(Call&& call) noexcept {
    failure why;
    Raw* raw = nullptr;
    if (call(&raw, why.out()) == INFLIGHT_STATUS_OK) {
        return result<Handle>(Handle(raw));
    }
    return why;
}

}  // namespace detail

// ---- The library ----

/// Version of the library that is loaded, as INFLIGHT_VERSION_NUMBER.
inline std::uint32_t version_number() noexcept { return inflight_version_number(); }
/// "0.1.0".
inline const char* version_string() noexcept { return inflight_version_string(); }
/// To be compared with INFLIGHT_ABI_VERSION where the library is loaded by path.
inline std::uint32_t abi_version() noexcept { return inflight_abi_version(); }

/// How the library was built.
struct build_info : inflight_build_info {
    build_info() noexcept { inflight_get_build_info(this, sizeof(inflight_build_info)); }
};

/// Has lines of the log given to `callback`, from any thread; nullptr for none.
inline void set_log_callback(inflight_log_callback callback, void* user_data,
                             log_level level) noexcept {
    inflight_set_log_callback(callback, user_data, static_cast<std::uint32_t>(level));
}

// ---- Scheduler ----

/// A request. Arrays are the caller's, and copied by the call that takes it: they must live until
/// then.
struct request : detail::prepared_request<request> {
    request() noexcept = default;
    request(std::uint64_t request_id, kept_span<const std::uint32_t> prompt_tokens,
            std::uint32_t max_output_tokens) noexcept
        : request() {
        id = request_id;
        prompt = prompt_tokens.data();
        prompt_len = prompt_tokens.size();
        max_tokens = max_output_tokens;
    }
};

/// One iteration. Its arrays are the scheduler's, valid until the step's commit or abandon; the
/// fields without an array are in `raw()`.
class step {
   public:
    step() noexcept { inflight_step_view_init(&raw_, sizeof raw_); }

    std::uint64_t id() const noexcept { return raw_.step_id; }
    /// Nothing to run. It is committed or abandoned all the same.
    bool empty() const noexcept { return raw_.num_rows == 0; }
    strided<inflight_row> rows() const noexcept {
        return {raw_.rows, raw_.num_rows, raw_.row_size};
    }
    tokens_view tokens() const noexcept { return {raw_.tokens, raw_.num_tokens}; }
    span<const std::uint32_t> positions() const noexcept {
        return {raw_.positions, raw_.num_tokens};
    }
    /// Empty rows included, as with `kv_indptr` and `kv_last_page_len`.
    span<const std::uint32_t> qo_indptr() const noexcept {
        return {raw_.qo_indptr, indptr_len(raw_.qo_indptr)};
    }
    /// What each group of layers has of the cache. The next four are of one of them.
    strided<inflight_group> groups() const noexcept {
        return {raw_.groups, raw_.num_groups,
                raw_.num_groups == 0 ? sizeof(inflight_group) : raw_.groups->struct_size};
    }
    span<const std::int64_t> slot_mapping(std::size_t group = 0) const {
        return {of(group).slot_mapping, raw_.num_tokens};
    }
    span<const std::uint32_t> kv_indptr(std::size_t group = 0) const {
        return {of(group).kv_indptr, indptr_len(of(group).kv_indptr)};
    }
    span<const std::uint32_t> kv_last_page_len(std::size_t group = 0) const {
        return {of(group).kv_last_page_len, raw_.num_padded_rows};
    }
    span<const std::uint32_t> kv_indices(std::size_t group = 0) const {
        return {of(group).kv_indices, of(group).num_kv_blocks};
    }
    span<const std::uint32_t> logits_indices() const noexcept {
        return {raw_.logits_indices, raw_.num_logits};
    }
    strided<inflight_pending_token> pending() const noexcept {
        return {raw_.pending, raw_.num_pending, raw_.pending_size};
    }
    strided<inflight_block_op> block_ops() const noexcept {
        return {raw_.block_ops, raw_.num_block_ops, raw_.block_op_size};
    }
    span<const std::uint64_t> preempted() const noexcept {
        return {raw_.preempted, raw_.num_preempted};
    }
    bytes_view packed() const noexcept { return {raw_.packed, raw_.packed_size}; }

    /// The tokens that a row computes.
    tokens_view tokens_of(std::size_t row) const {
        assert(row < raw_.num_rows);
        const std::uint32_t from = raw_.qo_indptr[row], to = raw_.qo_indptr[row + 1];
        return tokens().subspan(from, to - from);
    }
    /// The block table of a row.
    span<const std::uint32_t> blocks_of(std::size_t row, std::size_t group = 0) const {
        assert(row < raw_.num_rows);
        const std::uint32_t from = kv_indptr(group)[row], to = kv_indptr(group)[row + 1];
        return kv_indices(group).subspan(from, to - from);
    }

    const inflight_step_view& raw() const noexcept { return raw_; }
    inflight_step_view* out() noexcept { return &raw_; }

   private:
    /// One of `groups()`; of a step that was never scheduled an empty one.
    inflight_group of(std::size_t group) const {
        return raw_.num_groups == 0 ? inflight_group() : groups()[group];
    }
    std::size_t indptr_len(const std::uint32_t* indptr) const noexcept {
        return indptr == nullptr ? 0 : std::size_t{raw_.num_padded_rows} + 1;
    }

    inflight_step_view raw_;
};

/// What a commit delivers. Its arrays are the scheduler's, valid until its next schedule, commit or
/// abandon.
class outputs_view {
   public:
    outputs_view() noexcept { inflight_outputs_view_init(&raw_, sizeof raw_); }

    std::uint64_t step_id() const noexcept { return raw_.step_id; }
    strided<inflight_output> outputs() const noexcept {
        return {raw_.outputs, raw_.num_outputs, raw_.output_size};
    }
    /// Of all requests, one after the other.
    tokens_view tokens() const noexcept { return {raw_.tokens, raw_.num_tokens}; }
    /// Of one of `outputs()`.
    tokens_view tokens_of(const inflight_output& output) const {
        return tokens().subspan(output.first_token, output.num_tokens);
    }
    span<const std::uint64_t> released() const noexcept {
        return {raw_.released, raw_.num_released};
    }
    /// What the requests that finished have come to, in the order of their outputs.
    strided<inflight_request_result> results() const noexcept {
        return {raw_.results, raw_.num_results, raw_.result_size};
    }
    /// Of one of `outputs()`: nullptr where the request goes on.
    const inflight_request_result* result_of(const inflight_output& output) const {
        return finish_of(output) == finish::none ? nullptr : &results()[output.result];
    }

    const inflight_outputs_view& raw() const noexcept { return raw_; }
    inflight_outputs_view* out() noexcept { return &raw_; }

   private:
    inflight_outputs_view raw_;
};

/// Hands requests to a scheduler that another thread steps: any number of threads may use one. Its
/// fate is told by the scheduler's events.
class submitter : public detail::handle<inflight_submitter, inflight_submitter_free> {
   public:
    using handle::handle;

    result<void> try_submit(const inflight_request& request) const noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_submitter_submit(get(), &request, error);
        });
    }
    result<void> try_cancel(std::uint64_t request_id) const noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_submitter_cancel(get(), request_id, error);
        });
    }
    result<void> try_finish(std::uint64_t request_id, std::uint32_t keep_tokens) const noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_submitter_finish(get(), request_id, keep_tokens, error);
        });
    }

#ifndef INFLIGHT_NO_EXCEPTIONS
    void submit(const inflight_request& request) const { try_submit(request).value(); }
    void cancel(std::uint64_t request_id) const { try_cancel(request_id).value(); }
    void finish(std::uint64_t request_id, std::uint32_t keep_tokens) const {
        try_finish(request_id, keep_tokens).value();
    }
#endif
};

/// Decides, step by step, which requests run. One thread at a time.
class scheduler : public detail::handle<inflight_scheduler, inflight_scheduler_free> {
   public:
    using handle::handle;

    static result<scheduler> try_create(const inflight_scheduler_config& config) noexcept {
        return detail::create<scheduler, inflight_scheduler>(
            [&](inflight_scheduler** out, inflight_error* error) {
                return inflight_scheduler_create(&config, out, error);
            });
    }
    result<submitter> try_make_submitter() noexcept {
        return detail::create<submitter, inflight_submitter>(
            [&](inflight_submitter** out, inflight_error* error) {
                return inflight_submitter_create(get(), out, error);
            });
    }
    result<void> try_submit(const inflight_request& request) noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_scheduler_submit(get(), &request, error);
        });
    }
    result<void> try_cancel(std::uint64_t request_id) noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_scheduler_cancel(get(), request_id, error);
        });
    }
    /// Ends a request after its first `keep_tokens` output tokens; what it has come to.
    result<inflight_request_result> try_finish(std::uint64_t request_id,
                                               std::uint32_t keep_tokens) noexcept {
        return detail::fill(inflight_request_result(),
                            [&](inflight_request_result& ended, inflight_error* error) {
                                return inflight_scheduler_finish(get(), request_id, keep_tokens,
                                                                 &ended, sizeof ended, error);
                            });
    }
    /// Has `wake(user_data)` called, on the thread that submits, when there is something to
    /// schedule again; nullptr for no calls. It must not use this scheduler or its submitters.
    result<void> try_set_wake(inflight_wake_fn wake, void* user_data) noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_scheduler_set_wake(get(), wake, user_data, error);
        });
    }
    result<void> try_set_draft(std::uint64_t request_id, tokens_view draft) noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_scheduler_set_draft(get(), request_id, draft.data(), draft.size(),
                                                error);
        });
    }
    /// `now` in nanoseconds from any origin.
    result<step> try_schedule(std::uint64_t now) noexcept {
        return detail::fill(step(), [&](step& view, inflight_error* error) {
            return inflight_scheduler_schedule(get(), now, view.out(), error);
        });
    }
    /// `sampled` has a token for each row that samples; with drafts `indptr` says which tokens are
    /// whose.
    result<outputs_view> try_commit(std::uint64_t step_id, tokens_view sampled,
                                    span<const std::uint32_t> indptr = {}) noexcept {
        inflight_samples given;
        inflight_samples_init(&given, sizeof given);
        given.tokens = sampled.data();
        given.num_tokens = sampled.size();
        given.indptr = indptr.data();
        given.indptr_len = indptr.size();
        return detail::fill(outputs_view(), [&](outputs_view& view, inflight_error* error) {
            return inflight_scheduler_commit(get(), step_id, &given, view.out(), error);
        });
    }
    result<outputs_view> try_commit(const step& run, tokens_view sampled,
                                    span<const std::uint32_t> indptr = {}) noexcept {
        return try_commit(run.id(), sampled, indptr);
    }
    result<void> try_abandon(std::uint64_t step_id) noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_scheduler_abandon(get(), step_id, error);
        });
    }
    /// Takes the oldest events into `room`: those that were there, its first ones.
    result<span<const inflight_event>> try_events(span<inflight_event> room) noexcept {
        return detail::fill(span<const inflight_event>(), [&](span<const inflight_event>& taken,
                                                              inflight_error* error) {
            std::size_t count = 0;
            const inflight_status code = inflight_scheduler_events(
                get(), room.data(), sizeof(inflight_event), room.size(), &count, error);
            taken = {room.data(), count};
            return code;
        });
    }
    result<scheduler_stats> try_stats() noexcept {
        return detail::fill(scheduler_stats(), [&](scheduler_stats& stats, inflight_error* error) {
            return inflight_scheduler_get_stats(get(), &stats, error);
        });
    }
    result<request_snapshot> try_request(std::uint64_t request_id) noexcept {
        return detail::fill(request_snapshot(), [&](request_snapshot& now, inflight_error* error) {
            return inflight_scheduler_get_request(get(), request_id, &now, error);
        });
    }
    result<void> try_verify() noexcept {
        return detail::run(
            [&](inflight_error* error) { return inflight_scheduler_verify(get(), error); });
    }
    result<void> try_reset_prefix_cache() noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_scheduler_reset_prefix_cache(get(), error);
        });
    }

#ifndef INFLIGHT_NO_EXCEPTIONS
    explicit scheduler(const inflight_scheduler_config& config)
        : scheduler(try_create(config).value()) {}
    submitter make_submitter() { return try_make_submitter().value(); }
    void submit(const inflight_request& request) { try_submit(request).value(); }
    void cancel(std::uint64_t request_id) { try_cancel(request_id).value(); }
    inflight_request_result finish(std::uint64_t request_id, std::uint32_t keep_tokens) {
        return try_finish(request_id, keep_tokens).value();
    }
    void set_wake(inflight_wake_fn wake, void* user_data) { try_set_wake(wake, user_data).value(); }
    void set_draft(std::uint64_t request_id, tokens_view draft) {
        try_set_draft(request_id, draft).value();
    }
    step schedule(std::uint64_t now) { return try_schedule(now).value(); }
    outputs_view commit(std::uint64_t step_id, tokens_view sampled,
                        span<const std::uint32_t> indptr = {}) {
        return try_commit(step_id, sampled, indptr).value();
    }
    outputs_view commit(const step& run, tokens_view sampled,
                        span<const std::uint32_t> indptr = {}) {
        return try_commit(run, sampled, indptr).value();
    }
    void abandon(std::uint64_t step_id) { try_abandon(step_id).value(); }
    span<const inflight_event> events(span<inflight_event> room) {
        return try_events(room).value();
    }
    scheduler_stats stats() { return try_stats().value(); }
    request_snapshot request_now(std::uint64_t request_id) {
        return try_request(request_id).value();
    }
    void verify() { try_verify().value(); }
    void reset_prefix_cache() { try_reset_prefix_cache().value(); }
#endif
};

/// Abandons a step when its scope is left by an exception or an early return: what failed on the
/// way is computed again. Say `done()` once it is committed. The scheduler must stay where it is.
class step_guard {
   public:
    step_guard(scheduler& of, const step& run) noexcept : of_(&of), id_(run.id()) {}
    step_guard(const step_guard&) = delete;
    step_guard& operator=(const step_guard&) = delete;
    ~step_guard() {
        if (of_ != nullptr) {
            (void)of_->try_abandon(id_);
        }
    }
    void done() noexcept { of_ = nullptr; }

   private:
    scheduler* of_;
    std::uint64_t id_;
};

// ---- Cache, for stacks that have a scheduler of their own ----

/// Number of a sequence in a cache.
enum class sequence : std::uint64_t {};

/// Decides which block of a paged KV cache holds which tokens. One thread at a time.
class cache : public detail::handle<inflight_cache, inflight_cache_free> {
   public:
    using handle::handle;

    static result<cache> try_create(const inflight_cache_config& config) noexcept {
        return detail::create<cache, inflight_cache>(
            [&](inflight_cache** out, inflight_error* error) {
                return inflight_cache_create(&config, out, error);
            });
    }
    result<sequence> try_open() noexcept { return open_with(nullptr); }
    result<sequence> try_open(const inflight_cache_keys& keys) noexcept { return open_with(&keys); }
    result<void> try_extend(sequence seq, tokens_view tokens) noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_cache_extend(get(), raw(seq), tokens.data(), tokens.size(), error);
        });
    }
    result<std::uint64_t> try_lookup(sequence seq, std::uint64_t max_tokens) noexcept {
        return detail::fill(std::uint64_t{0}, [&](std::uint64_t& found, inflight_error* error) {
            return inflight_cache_lookup(get(), raw(seq), max_tokens, &found, error);
        });
    }
    result<std::uint64_t> try_blocks_needed(sequence seq, std::uint64_t num_cached,
                                            std::uint64_t write_from,
                                            std::uint64_t num_tokens) noexcept {
        return detail::fill(std::uint64_t{0}, [&](std::uint64_t& blocks, inflight_error* error) {
            return inflight_cache_blocks_needed(get(), raw(seq), num_cached, write_from, num_tokens,
                                                &blocks, error);
        });
    }
    /// The number of blocks it took from the free ones.
    result<std::uint64_t> try_allocate(sequence seq, std::uint64_t num_cached,
                                       std::uint64_t write_from,
                                       std::uint64_t num_tokens) noexcept {
        return detail::fill(std::uint64_t{0}, [&](std::uint64_t& blocks, inflight_error* error) {
            return inflight_cache_allocate(get(), raw(seq), num_cached, write_from, num_tokens,
                                           &blocks, error);
        });
    }
    result<void> try_register_blocks(sequence seq, std::uint64_t num_tokens) noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_cache_register(get(), raw(seq), num_tokens, error);
        });
    }
    result<void> try_unregister_blocks(sequence seq, std::uint64_t num_tokens) noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_cache_unregister(get(), raw(seq), num_tokens, error);
        });
    }
    /// Takes the oldest copies to be made into `room`; call until fewer come than it holds.
    result<span<const inflight_block_op>> try_take_ops(span<inflight_block_op> room) noexcept {
        return detail::fill(span<const inflight_block_op>(),
                            [&](span<const inflight_block_op>& taken, inflight_error* error) {
                                std::size_t count = 0;
                                const inflight_status code = inflight_cache_take_ops(
                                    get(), room.data(), sizeof(inflight_block_op), room.size(),
                                    &count, error);
                                taken = {room.data(), count};
                                return code;
                            });
    }
    /// The block table, valid until the next call that changes the sequence.
    result<span<const std::uint32_t>> try_table(sequence seq) noexcept {
        return detail::fill(span<const std::uint32_t>(),
                            [&](span<const std::uint32_t>& table, inflight_error* error) {
                                const std::uint32_t* blocks = nullptr;
                                std::size_t count = 0;
                                const inflight_status code =
                                    inflight_cache_table(get(), raw(seq), &blocks, &count, error);
                                table = {blocks, count};
                                return code;
                            });
    }
    result<void> try_truncate(sequence seq, std::uint64_t num_tokens) noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_cache_truncate(get(), raw(seq), num_tokens, error);
        });
    }
    result<sequence> try_fork(sequence seq) noexcept {
        return detail::fill(sequence{}, [&](sequence& child, inflight_error* error) {
            std::uint64_t number = 0;
            const inflight_status code = inflight_cache_fork(get(), raw(seq), &number, error);
            child = sequence{number};
            return code;
        });
    }
    result<void> try_release_blocks(sequence seq) noexcept {
        return detail::run(
            [&](inflight_error* error) { return inflight_cache_release(get(), raw(seq), error); });
    }
    result<void> try_close(sequence seq) noexcept {
        return detail::run(
            [&](inflight_error* error) { return inflight_cache_close(get(), raw(seq), error); });
    }
    result<void> try_swap_out(sequence seq) noexcept {
        return detail::run(
            [&](inflight_error* error) { return inflight_cache_swap_out(get(), raw(seq), error); });
    }
    result<void> try_swap_in(sequence seq) noexcept {
        return detail::run(
            [&](inflight_error* error) { return inflight_cache_swap_in(get(), raw(seq), error); });
    }
    /// Forgets cached prefixes; false, and nothing is forgotten, while any sequence holds blocks.
    result<bool> try_forget_prefixes() noexcept {
        return detail::fill(false, [&](bool& done, inflight_error* error) {
            const inflight_status code = inflight_cache_reset(get(), error);
            done = code == INFLIGHT_STATUS_OK;
            return code == INFLIGHT_STATUS_OUT_OF_BLOCKS ? INFLIGHT_STATUS_OK : code;
        });
    }
    result<cache_stats> try_stats() noexcept {
        return detail::fill(cache_stats(), [&](cache_stats& stats, inflight_error* error) {
            return inflight_cache_get_stats(get(), &stats, error);
        });
    }
    result<void> try_verify() noexcept {
        return detail::run(
            [&](inflight_error* error) { return inflight_cache_verify(get(), error); });
    }

#ifndef INFLIGHT_NO_EXCEPTIONS
    explicit cache(const inflight_cache_config& config) : cache(try_create(config).value()) {}
    sequence open() { return try_open().value(); }
    sequence open(const inflight_cache_keys& keys) { return try_open(keys).value(); }
    void extend(sequence seq, tokens_view tokens) { try_extend(seq, tokens).value(); }
    std::uint64_t lookup(sequence seq, std::uint64_t max_tokens) {
        return try_lookup(seq, max_tokens).value();
    }
    std::uint64_t blocks_needed(sequence seq, std::uint64_t num_cached, std::uint64_t write_from,
                                std::uint64_t num_tokens) {
        return try_blocks_needed(seq, num_cached, write_from, num_tokens).value();
    }
    std::uint64_t allocate(sequence seq, std::uint64_t num_cached, std::uint64_t write_from,
                           std::uint64_t num_tokens) {
        return try_allocate(seq, num_cached, write_from, num_tokens).value();
    }
    void register_blocks(sequence seq, std::uint64_t num_tokens) {
        try_register_blocks(seq, num_tokens).value();
    }
    void unregister_blocks(sequence seq, std::uint64_t num_tokens) {
        try_unregister_blocks(seq, num_tokens).value();
    }
    span<const inflight_block_op> take_ops(span<inflight_block_op> room) {
        return try_take_ops(room).value();
    }
    span<const std::uint32_t> table(sequence seq) { return try_table(seq).value(); }
    void truncate(sequence seq, std::uint64_t num_tokens) { try_truncate(seq, num_tokens).value(); }
    sequence fork(sequence seq) { return try_fork(seq).value(); }
    void release_blocks(sequence seq) { try_release_blocks(seq).value(); }
    void close(sequence seq) { try_close(seq).value(); }
    void swap_out(sequence seq) { try_swap_out(seq).value(); }
    void swap_in(sequence seq) { try_swap_in(seq).value(); }
    bool forget_prefixes() { return try_forget_prefixes().value(); }
    cache_stats stats() { return try_stats().value(); }
    void verify() { try_verify().value(); }
#endif

   private:
    static std::uint64_t raw(sequence seq) noexcept { return static_cast<std::uint64_t>(seq); }

    result<sequence> open_with(const inflight_cache_keys* keys) noexcept {
        return detail::fill(sequence{}, [&](sequence& seq, inflight_error* error) {
            std::uint64_t number = 0;
            const inflight_status code = inflight_cache_open(get(), keys, &number, error);
            seq = sequence{number};
            return code;
        });
    }
};

// ---- Devices and their arrays ----

/// A device that kernels run on. What is made for it keeps what it needs of it.
class device : public detail::handle<inflight_device, inflight_device_free> {
   public:
    using handle::handle;

    static result<device> try_cpu(const inflight_cpu_config& config = cpu_config()) noexcept {
        return detail::create<device, inflight_device>(
            [&](inflight_device** out, inflight_error* error) {
                return inflight_device_create_cpu(&config, out, error);
            });
    }
    static result<device> try_cuda(std::uint32_t ordinal = 0) noexcept {
        return detail::create<device, inflight_device>(
            [&](inflight_device** out, inflight_error* error) {
                return inflight_device_create_cuda(ordinal, out, error);
            });
    }
    /// How many GPUs the CUDA driver finds.
    static result<std::uint32_t> try_cuda_count() noexcept {
        return detail::fill(std::uint32_t{0}, [](std::uint32_t& count, inflight_error* error) {
            return inflight_cuda_device_count(&count, error);
        });
    }
    result<device_info> try_info() const noexcept {
        return detail::fill(device_info(), [&](device_info& info, inflight_error* error) {
            return inflight_device_get_info(get(), &info, error);
        });
    }
    result<void> try_check_pointer(const void* pointer) const noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_device_check_pointer(get(), pointer, error);
        });
    }

#ifndef INFLIGHT_NO_EXCEPTIONS
    static device cpu(const inflight_cpu_config& config = cpu_config()) {
        return try_cpu(config).value();
    }
    static device cuda(std::uint32_t ordinal = 0) { return try_cuda(ordinal).value(); }
    static std::uint32_t cuda_count() { return try_cuda_count().value(); }
    device_info info() const { return try_info().value(); }
    void check_pointer(const void* pointer) const { try_check_pointer(pointer).value(); }
#endif
};

/// Tokens of heads in the device's memory. `make_tensor` sets all fields.
struct tensor : detail::prepared_tensor<tensor> {};
/// A layer's K and V in the device's memory. `make_kv_cache` sets all fields but the scales.
struct kv_cache : detail::prepared_kv_cache<kv_cache> {
    /// Those of an fp8 cache: f32 in the device's memory, one, or one for each head.
    kv_cache& set_scales(const float* of_k, const float* of_v, bool each_head) noexcept {
        k.scales = of_k;
        v.scales = of_v;
        k.scale_head_stride = v.scale_head_stride = each_head ? 1 : 0;
        return *this;
    }
};

/// `[tokens, heads, head_dim]` without gaps.
inline result<tensor> try_make_tensor(void* data, std::uint64_t tokens, std::uint32_t heads,
                                      std::uint32_t head_dim, dtype type) noexcept {
    return detail::fill(tensor(), [&](tensor& made, inflight_error* error) {
        return inflight_tensor_set_contiguous(&made, static_cast<std::uint32_t>(type), data, tokens,
                                              heads, head_dim, error);
    });
}

/// K and V apart, each without gaps.
inline result<kv_cache> try_make_kv_cache(void* k, void* v, std::uint64_t num_blocks,
                                          std::uint32_t block_size, std::uint32_t num_heads,
                                          std::uint32_t head_dim, dtype type,
                                          layout order = layout::nhd) noexcept {
    return detail::fill(kv_cache(), [&](kv_cache& made, inflight_error* error) {
        return inflight_kv_cache_set_contiguous(&made, static_cast<std::uint32_t>(order),
                                                static_cast<std::uint32_t>(type), k, v, num_blocks,
                                                block_size, num_heads, head_dim, error);
    });
}

/// Sees an array of DLPack as a tensor; it stays the caller's. `write` is for outputs.
inline result<tensor> try_tensor_from_dlpack(const device& on, const void* managed, dlpack kind,
                                             bool write) noexcept {
    return detail::fill(tensor(), [&](tensor& seen, inflight_error* error) {
        return inflight_tensor_from_dlpack(on.get(), managed, static_cast<std::uint32_t>(kind),
                                           write ? 1 : 0, &seen, error);
    });
}

/// Sees two arrays of DLPack as K and V; they stay the caller's.
inline result<kv_cache> try_kv_cache_from_dlpack(const device& on, const void* k, const void* v,
                                                 dlpack kind, layout order) noexcept {
    return detail::fill(kv_cache(), [&](kv_cache& seen, inflight_error* error) {
        return inflight_kv_cache_from_dlpack(on.get(), k, v, static_cast<std::uint32_t>(kind),
                                             static_cast<std::uint32_t>(order), &seen, error);
    });
}

/// A `DLManagedTensorVersioned *` over a tensor, freed by its own deleter, which calls `release`.
inline result<void*> try_tensor_to_dlpack(const device& on, const tensor& exported, bool read_only,
                                          inflight_release_callback release = nullptr,
                                          void* user_data = nullptr) noexcept {
    return detail::fill(static_cast<void*>(nullptr), [&](void*& managed, inflight_error* error) {
        return inflight_tensor_to_dlpack(on.get(), &exported, read_only ? 1 : 0, release, user_data,
                                         &managed, error);
    });
}

#ifndef INFLIGHT_NO_EXCEPTIONS
inline tensor make_tensor(void* data, std::uint64_t tokens, std::uint32_t heads,
                          std::uint32_t head_dim, dtype type) {
    return try_make_tensor(data, tokens, heads, head_dim, type).value();
}
inline kv_cache make_kv_cache(void* k, void* v, std::uint64_t num_blocks, std::uint32_t block_size,
                              std::uint32_t num_heads, std::uint32_t head_dim, dtype type,
                              layout order = layout::nhd) {
    return try_make_kv_cache(k, v, num_blocks, block_size, num_heads, head_dim, type, order)
        .value();
}
inline tensor tensor_from_dlpack(const device& on, const void* managed, dlpack kind, bool write) {
    return try_tensor_from_dlpack(on, managed, kind, write).value();
}
inline kv_cache kv_cache_from_dlpack(const device& on, const void* k, const void* v, dlpack kind,
                                     layout order) {
    return try_kv_cache_from_dlpack(on, k, v, kind, order).value();
}
inline void* tensor_to_dlpack(const device& on, const tensor& exported, bool read_only,
                              inflight_release_callback release = nullptr,
                              void* user_data = nullptr) {
    return try_tensor_to_dlpack(on, exported, read_only, release, user_data).value();
}
#endif

// ---- Attention ----

/// The rows of a step. Arrays are copied by the calls that take it.
struct batch : detail::prepared_batch<batch> {
    batch() noexcept = default;

    /// Those of a scheduler's step: nothing is copied, and valid as long as the step.
    static result<batch> try_from(const step& of) noexcept {
        return detail::fill(batch(), [&](batch& rows, inflight_error* error) {
            return inflight_batch_from_step(&of.raw(), &rows, error);
        });
    }
#ifndef INFLIGHT_NO_EXCEPTIONS
    static batch from(const step& of) { return try_from(of).value(); }
#endif
};

/// The attention of a group of layers; all but these four has defaults.
struct attention_config : detail::prepared_attention_config<attention_config> {
    attention_config() noexcept = default;
    attention_config(std::uint32_t q_heads, std::uint32_t kv_heads, std::uint32_t elements,
                     dtype type) noexcept
        : attention_config() {
        num_q_heads = q_heads;
        num_kv_heads = kv_heads;
        head_dim = elements;
        q_dtype = static_cast<std::uint32_t>(type);
    }
    /// Memory of a GPU for splitting rows, of `attention::workspace_size` bytes. It stays the
    /// caller's, and lives as long as runs use it.
    attention_config& set_workspace(void* memory, std::uint64_t bytes) noexcept {
        workspace = memory;
        workspace_size = bytes;
        return *this;
    }
};

/// The largest steps that something is made for.
struct step_limits : detail::prepared_step_limits<step_limits> {
    step_limits() noexcept = default;
    step_limits(std::uint32_t rows, std::uint32_t tokens, std::uint32_t blocks,
                std::uint32_t kv_len) noexcept
        : step_limits() {
        max_rows = rows;
        max_tokens = tokens;
        max_blocks = blocks;
        max_kv_len = kv_len;
    }
};

/// What one layer's attention reads and writes. Tensors and cache must live until the call.
struct attention_args : detail::prepared_attention_args<attention_args> {
    attention_args() noexcept = default;
    attention_args(kept<inflight_tensor> queries, kept<inflight_tensor> outputs,
                   kept<inflight_kv_cache> of) noexcept
        : attention_args() {
        q = queries.get();
        o = outputs.get();
        cache = of.get();
    }
};

class step_buffer;

/// Varlen paged attention for one attention group. One thread at a time.
class attention : public detail::handle<inflight_attention, inflight_attention_free> {
   public:
    using handle::handle;

    static result<attention> try_create(const device& on, const inflight_attention_config& config,
                                        const inflight_step_limits& limits) noexcept {
        return detail::create<attention, inflight_attention>(
            [&](inflight_attention** out, inflight_error* error) {
                return inflight_attention_create(on.get(), &config, &limits, out, error);
            });
    }
    /// Bytes of a GPU's memory that one takes for splitting rows; 0 on a processor.
    static result<std::uint64_t> try_workspace_size(const device& on,
                                                    const inflight_attention_config& config,
                                                    const inflight_step_limits& limits) noexcept {
        return detail::fill(std::uint64_t{0}, [&](std::uint64_t& bytes, inflight_error* error) {
            return inflight_attention_workspace_size(on.get(), &config, &limits, &bytes, error);
        });
    }
    /// Once per step, before the upload to its buffer.
    result<void> try_plan(const inflight_batch& rows, std::uint64_t num_blocks,
                          const inflight_mask* masked = nullptr) noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_attention_plan(get(), &rows, num_blocks, masked, error);
        });
    }
    /// Once per layer, behind its append. `stream` is nullptr on a processor.
    inline result<void> try_run(step_buffer& uploaded, const inflight_attention_args& args,
                                void* stream = nullptr) noexcept;

#ifndef INFLIGHT_NO_EXCEPTIONS
    attention(const device& on, const inflight_attention_config& config,
              const inflight_step_limits& limits)
        : attention(try_create(on, config, limits).value()) {}
    static std::uint64_t workspace_size(const device& on, const inflight_attention_config& config,
                                        const inflight_step_limits& limits) {
        return try_workspace_size(on, config, limits).value();
    }
    void plan(const inflight_batch& rows, std::uint64_t num_blocks,
              const inflight_mask* masked = nullptr) {
        try_plan(rows, num_blocks, masked).value();
    }
    inline void run(step_buffer& uploaded, const inflight_attention_args& args,
                    void* stream = nullptr);
#endif
};

/// The rotary position embedding of a model.
struct rope_config : detail::prepared_rope_config<rope_config> {
    rope_config() noexcept = default;
    explicit rope_config(std::uint32_t rotated, float base = 10000.0f) noexcept : rope_config() {
        rotary_dim = rotated;
        theta = base;
    }
};

/// Fills in the table of rotations: `table` has `max_position * rotary_dim` elements or more.
inline result<void> try_rope_table(const inflight_rope_config& config, std::uint32_t max_position,
                                   span<float> table) noexcept {
    return detail::run([&](inflight_error* error) {
        return inflight_rope_table(&config, max_position, table.data(), table.size(), error);
    });
}

#ifndef INFLIGHT_NO_EXCEPTIONS
inline void rope_table(const inflight_rope_config& config, std::uint32_t max_position,
                       span<float> table) {
    try_rope_table(config, max_position, table).value();
}
#endif

/// Rotation of new keys, and of queries in place. Table and queries must live until the call.
struct rope : detail::prepared_rope<rope> {
    rope() noexcept = default;
    rope(const float* table, std::uint32_t positions, std::uint32_t rotated,
         const tensor* queries = nullptr) noexcept
        : rope() {
        cos_sin = table;
        max_position = positions;
        rotary_dim = rotated;
        q = queries;
    }
};

/// New keys and values of a layer. Tensors, cache and rope must live until the call.
struct append_args : detail::prepared_append_args<append_args> {
    append_args() noexcept = default;
    append_args(kept<inflight_tensor> keys, kept<inflight_tensor> values,
                kept<inflight_kv_cache> to, const inflight_rope* rotation = nullptr) noexcept
        : append_args() {
        k = keys.get();
        v = values.get();
        cache = to.get();
        rope = rotation;
    }
};

/// A step's arrays and plans where kernels find them. One thread at a time.
class step_buffer : public detail::handle<inflight_step_buffer, inflight_step_buffer_free> {
   public:
    using handle::handle;

    /// Room for the plans of `attentions`, `get()` of each; none for appending alone.
    static result<step_buffer> try_create(const device& on, const inflight_step_limits& limits,
                                          span<inflight_attention* const> attentions) noexcept {
        return detail::create<step_buffer, inflight_step_buffer>(
            [&](inflight_step_buffer** out, inflight_error* error) {
                return inflight_step_buffer_create(on.get(), &limits, attentions.data(),
                                                   attentions.size(), out, error);
            });
    }
    static result<step_buffer> try_create(const device& on, const inflight_step_limits& limits,
                                          const attention& one) noexcept {
        inflight_attention* const raw[] = {one.get()};
        return try_create(on, limits, span<inflight_attention* const>(raw));
    }
    result<void> try_upload(const inflight_batch& rows, void* stream = nullptr) noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_step_buffer_upload(get(), &rows, stream, error);
        });
    }
    result<void> try_append(const inflight_append_args& args, void* stream = nullptr) noexcept {
        return detail::run(
            [&](inflight_error* error) { return inflight_append(get(), &args, stream, error); });
    }

#ifndef INFLIGHT_NO_EXCEPTIONS
    step_buffer(const device& on, const inflight_step_limits& limits,
                span<inflight_attention* const> attentions)
        : step_buffer(try_create(on, limits, attentions).value()) {}
    step_buffer(const device& on, const inflight_step_limits& limits, const attention& one)
        : step_buffer(try_create(on, limits, one).value()) {}
    void upload(const inflight_batch& rows, void* stream = nullptr) {
        try_upload(rows, stream).value();
    }
    void append(const inflight_append_args& args, void* stream = nullptr) {
        try_append(args, stream).value();
    }
#endif
};

inline result<void> attention::try_run(step_buffer& uploaded, const inflight_attention_args& args,
                                       void* stream) noexcept {
    return detail::run([&](inflight_error* error) {
        return inflight_attention_run(get(), uploaded.get(), &args, stream, error);
    });
}

#ifndef INFLIGHT_NO_EXCEPTIONS
inline void attention::run(step_buffer& uploaded, const inflight_attention_args& args,
                           void* stream) {
    try_run(uploaded, args, stream).value();
}
#endif

/// What a merge reads and writes. The states and all tensors must live until the call.
struct merge_args : detail::prepared_merge_args<merge_args> {
    merge_args() noexcept = default;
    merge_args(kept_span<const inflight_merge_state> parts, kept<inflight_tensor> outputs) noexcept
        : merge_args() {
        set_states(parts);
        o = outputs.get();
    }
};

/// Merges attention over disjoint keys into the attention over all of them.
inline result<void> try_merge(const device& on, const inflight_merge_args& args,
                              void* stream = nullptr) noexcept {
    return detail::run(
        [&](inflight_error* error) { return inflight_merge(on.get(), &args, stream, error); });
}

#ifndef INFLIGHT_NO_EXCEPTIONS
inline void merge(const device& on, const inflight_merge_args& args, void* stream = nullptr) {
    try_merge(on, args, stream).value();
}
#endif

/// Carries out block operations on every layer's K and V. One thread at a time.
class block_mover : public detail::handle<inflight_block_mover, inflight_block_mover_free> {
   public:
    using handle::handle;

    /// The caches of all layers, and their counterparts in the host pool where operations swap: as
    /// many, or none. The structs are copied; their memory stays until the mover is freed.
    static result<block_mover> try_create(const device& on, span<const kv_cache> device_caches,
                                          span<const kv_cache> host_caches = {}) noexcept {
        if (!host_caches.empty() && host_caches.size() != device_caches.size()) {
            return failure(status::invalid_argument, "host_caches", "not one per layer");
        }
        return detail::create<block_mover, inflight_block_mover>([&](inflight_block_mover** out,
                                                                     inflight_error* error) {
            return inflight_block_mover_create(on.get(), device_caches.data(),
                                               host_caches.empty() ? nullptr : host_caches.data(),
                                               device_caches.size(), out, error);
        });
    }
    result<void> try_run(strided<inflight_block_op> ops, void* stream = nullptr) noexcept {
        return detail::run([&](inflight_error* error) {
            return inflight_block_mover_run(get(), ops.data(), ops.stride(), ops.size(), stream,
                                            error);
        });
    }
    result<void> try_run(span<const inflight_block_op> ops, void* stream = nullptr) noexcept {
        return try_run(strided<inflight_block_op>(ops), stream);
    }

#ifndef INFLIGHT_NO_EXCEPTIONS
    block_mover(const device& on, span<const kv_cache> device_caches,
                span<const kv_cache> host_caches = {})
        : block_mover(try_create(on, device_caches, host_caches).value()) {}
    void run(strided<inflight_block_op> ops, void* stream = nullptr) {
        try_run(ops, stream).value();
    }
    void run(span<const inflight_block_op> ops, void* stream = nullptr) {
        try_run(ops, stream).value();
    }
#endif
};

}  // namespace throwing_v1 or expected_v1
}  // namespace inflight

#endif  // INFLIGHT_HPP
