/* Devices, layouts, tables and arrays of others with every argument wrong in turn. */
#include <math.h>

#include "kernels.h"

/* What dlpack.h has. */
typedef struct {
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} dl_tensor;

typedef struct dl_managed {
    dl_tensor tensor;
    void* context;
    void (*deleter)(struct dl_managed*);
} dl_managed;

typedef struct dl_versioned {
    uint32_t major, minor;
    void* context;
    void (*deleter)(struct dl_versioned*);
    uint64_t flags;
    dl_tensor tensor;
} dl_versioned;

struct world {
    inflight_device* device;
    /* Where results go. */
    inflight_device_info info;
    inflight_tensor tensor;
    inflight_kv_cache cache;
    inflight_batch batch;
    float table[64];
    uint32_t count;
    /* Calls of a release. */
    uint32_t releases;
};

struct state {
    inflight_device_info info;
    unsigned char tensor[sizeof(inflight_tensor) - sizeof(size_t)];
    unsigned char cache[sizeof(inflight_kv_cache) - sizeof(size_t)];
    unsigned char batch[sizeof(inflight_batch) - sizeof(size_t)];
    float table[64];
    uint32_t count, releases;
};

static struct state look(const struct world* w) {
    struct state state;
    memset(&state, 0, sizeof state);
    memcpy(&state.info, &w->info, sizeof state.info);
    /* The tables of sizes write them. */
    state.info.struct_size = 0;
    memcpy(state.tensor, (const char*)&w->tensor + sizeof(size_t), sizeof state.tensor);
    memcpy(state.cache, (const char*)&w->cache + sizeof(size_t), sizeof state.cache);
    memcpy(state.batch, (const char*)&w->batch + sizeof(size_t), sizeof state.batch);
    memcpy(state.table, w->table, sizeof state.table);
    state.count = w->count;
    state.releases = w->releases;
    return state;
}

#include "faults.h"

static struct world w;
static float ELEMENTS[2 * 4 * 2 * 8 + 4], OTHERS[2 * 4 * 2 * 8 + 4];

static void device_faults(void) {
    inflight_cpu_config config;
    inflight_cpu_config_init(&config, sizeof config);
    const uint32_t cores[1025] = {0}, no_core[] = {UINT32_MAX};
    inflight_device *const sentinel = w.device, *out = sentinel;
#define CREATE inflight_device_create_cpu(&config, &out, error)
#define FIELD(assignment, name)                          \
    do {                                                 \
        out = sentinel;                                  \
        REFUSED_FIELD(config, assignment, name, CREATE); \
        CHECK(out == NULL);                              \
    } while (0)
    REFUSED(BAD, "config", inflight_device_create_cpu(MISALIGNED(&config), &out, error));
    REFUSED(BAD, "out", inflight_device_create_cpu(&config, NULL, error));
    REFUSED(BAD, "out", inflight_device_create_cpu(&config, MISALIGNED(&out), error));
    REFUSED_SIZES(config, "config", CREATE);
    FIELD(threads = 1025, "threads");
    FIELD(threads = UINT32_MAX, "threads");
    FIELD(num_cores = 1, "cores");
    config.cores = cores;
    FIELD(num_cores = 1025, "num_cores");
    FIELD(num_cores = SIZE_MAX, "num_cores");
    config.num_cores = 1;
    FIELD(threads = 2, "cores");
    FIELD(cores = MISALIGNED(cores), "cores");
    FIELD(cores = no_core, "cores");
    FIELD(isa = INFLIGHT_ISA_PORTABLE_BF16 + 1, "isa");
    FIELD(isa = UINT32_MAX, "isa");
#if defined(__x86_64__)
    FIELD(isa = INFLIGHT_ISA_NEON, "isa");
#endif

    REFUSED(BAD, "device", inflight_device_get_info(NULL, &w.info, error));
    REFUSED(BAD, "info", inflight_device_get_info(w.device, NULL, error));
    REFUSED(BAD, "info", inflight_device_get_info(w.device, MISALIGNED(&w.info), error));
    REFUSED_SIZES(w.info, "info", inflight_device_get_info(w.device, &w.info, error));
    REFUSED(BAD, "device", inflight_device_check_pointer(NULL, &w, error));
    REFUSED(BAD, "pointer", inflight_device_check_pointer(w.device, NULL, error));

    REFUSED(BAD, "count", inflight_cuda_device_count(NULL, error));
    REFUSED(BAD, "count", inflight_cuda_device_count(MISALIGNED(&w.count), error));
    REFUSED(BAD, "out", inflight_device_create_cuda(0, NULL, error));
    REFUSED(BAD, "out", inflight_device_create_cuda(0, MISALIGNED(&out), error));
    uint32_t count;
    inflight_error detail = new_error();
    if (inflight_cuda_device_count(&count, &detail) == INFLIGHT_STATUS_OK) {
        REFUSED(BAD, "device", inflight_device_create_cuda(count, &out, error));
        REFUSED(BAD, "device", inflight_device_create_cuda(UINT32_MAX, &out, error));
    } else {
        CHECK(detail.code == INFLIGHT_STATUS_NO_CUDA);
        REFUSED(INFLIGHT_STATUS_NO_CUDA, "", inflight_cuda_device_count(&w.count, error));
        out = sentinel;
        REFUSED(INFLIGHT_STATUS_NO_CUDA, "", inflight_device_create_cuda(0, &out, error));
    }
    CHECK(out == NULL);
}

static void layout_faults(void) {
    uint32_t dtype = INFLIGHT_DTYPE_F32, layout = INFLIGHT_LAYOUT_NHD, most = UINT32_MAX;
    inflight_tensor* tensor = &w.tensor;
#define TENSOR(heads, dim) \
    inflight_tensor_set_contiguous(tensor, dtype, ELEMENTS, 4, heads, dim, error)
    REFUSED(BAD, "heads", TENSOR(most, most));
    REFUSED_SIZES(w.tensor, "tensor", TENSOR(2, 8));
    tensor = NULL;
    REFUSED(BAD, "tensor", TENSOR(2, 8));
    tensor = MISALIGNED(&w.tensor);
    REFUSED(BAD, "tensor", TENSOR(2, 8));

    inflight_kv_cache* cache = &w.cache;
#define CACHE(size, heads, dim)                                                                \
    inflight_kv_cache_set_contiguous(cache, layout, dtype, ELEMENTS, ELEMENTS, 2, size, heads, \
                                     dim, error)
    REFUSED_SIZES(w.cache, "cache", CACHE(4, 2, 8));
    const uint32_t no_layouts[] = {0, 3, UINT32_MAX};
    for (size_t i = 0; i < sizeof no_layouts / sizeof *no_layouts; i++) {
        layout = no_layouts[i];
        REFUSED(BAD, "layout", CACHE(4, 2, 8));
    }
    for (layout = INFLIGHT_LAYOUT_NHD; layout <= INFLIGHT_LAYOUT_HND; layout++) {
        REFUSED(BAD, "cache", CACHE(most, most, most));
    }
    layout = INFLIGHT_LAYOUT_NHD;
    const uint32_t no_dtypes[] = {0, 5, UINT32_MAX};
    for (size_t i = 0; i < sizeof no_dtypes / sizeof *no_dtypes; i++) {
        dtype = no_dtypes[i];
        REFUSED(BAD, "dtype", CACHE(4, 2, 8));
    }
    dtype = INFLIGHT_DTYPE_F32;
    cache = NULL;
    REFUSED(BAD, "cache", CACHE(4, 2, 8));
    cache = MISALIGNED(&w.cache);
    REFUSED(BAD, "cache", CACHE(4, 2, 8));

    inflight_step_view view = new_step();
#define FROM_STEP inflight_batch_from_step(&view, &w.batch, error)
    REFUSED(BAD, "view", inflight_batch_from_step(NULL, &w.batch, error));
    REFUSED(BAD, "view", inflight_batch_from_step(MISALIGNED(&view), &w.batch, error));
    REFUSED(BAD, "batch", inflight_batch_from_step(&view, NULL, error));
    REFUSED(BAD, "batch", inflight_batch_from_step(&view, MISALIGNED(&w.batch), error));
    REFUSED_SIZES(view, "view", FROM_STEP);
    REFUSED_SIZES(w.batch, "batch", FROM_STEP);
}

static void rope_faults(void) {
    inflight_rope_config config;
    inflight_rope_config_init(&config, sizeof config);
    config.rotary_dim = 8;
#define TABLE inflight_rope_table(&config, 8, w.table, 64, error)
#define ROPE(assignment, name) REFUSED_FIELD(config, assignment, name, TABLE)
    REFUSED(BAD, "config", inflight_rope_table(NULL, 8, w.table, 64, error));
    REFUSED(BAD, "config", inflight_rope_table(MISALIGNED(&config), 8, w.table, 64, error));
    REFUSED(BAD, "table", inflight_rope_table(&config, 8, NULL, 64, error));
    REFUSED(BAD, "table", inflight_rope_table(&config, 8, MISALIGNED(w.table), 64, error));
    REFUSED(BAD, "table_len", inflight_rope_table(&config, 8, w.table, 63, error));
    REFUSED(BAD, "table_len", inflight_rope_table(&config, INFLIGHT_MAX_COUNT, w.table, 64, error));
    REFUSED(BAD, "max_position", inflight_rope_table(&config, ABOVE_MAX, w.table, 64, error));
    REFUSED(BAD, "max_position", inflight_rope_table(&config, UINT32_MAX, w.table, 64, error));
    REFUSED_SIZES(config, "config", TABLE);
    const uint32_t no_dims[] = {0, 1, 7, 258, UINT32_MAX};
    for (size_t i = 0; i < sizeof no_dims / sizeof *no_dims; i++) {
        ROPE(rotary_dim = no_dims[i], "rotary_dim");
    }
    ROPE(scaling = INFLIGHT_ROPE_SCALING_LLAMA3 + 1, "scaling");
    ROPE(scaling = UINT32_MAX, "scaling");
    ROPE(truncate = 2, "truncate");
    ROPE(reserved = 1, "reserved");
    const float no_numbers[] = {NAN, INFINITY, -INFINITY, -1};
    const float numbers[] = {NAN, INFINITY, -INFINITY, -1, 0};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        ROPE(theta = numbers[i], "theta");
    }
    ROPE(theta = 1, "theta");
    for (uint32_t scaling = 1; scaling <= INFLIGHT_ROPE_SCALING_LLAMA3; scaling++) {
        config.scaling = scaling;
        config.original_max_position = 4;
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
            ROPE(factor = numbers[i], "factor");
        }
        ROPE(factor = 0.5F, "factor");
        if (scaling >= INFLIGHT_ROPE_SCALING_DYNAMIC_NTK) {
            ROPE(original_max_position = 0, "original_max_position");
        }
    }
    config.scaling = INFLIGHT_ROPE_SCALING_NTK;
    ROPE(rotary_dim = 2, "rotary_dim");
    config.scaling = INFLIGHT_ROPE_SCALING_YARN;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        ROPE(beta_fast = numbers[i], "beta_fast");
        ROPE(beta_slow = numbers[i], "beta_slow");
    }
    ROPE(beta_fast = 0.5F, "beta_fast");
    for (size_t i = 0; i < sizeof no_numbers / sizeof *no_numbers; i++) {
        ROPE(attention_factor = no_numbers[i], "attention_factor");
        ROPE(mscale = no_numbers[i], "mscale");
        ROPE(mscale_all_dim = no_numbers[i], "mscale_all_dim");
    }
    config.scaling = INFLIGHT_ROPE_SCALING_LLAMA3;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        ROPE(low_freq_factor = numbers[i], "low_freq_factor");
        ROPE(high_freq_factor = numbers[i], "high_freq_factor");
    }
    ROPE(high_freq_factor = 1, "high_freq_factor");
}

static dl_tensor array(int32_t ndim, int64_t* shape, int64_t* strides) {
    uintptr_t aligned = ((uintptr_t)ELEMENTS + 15) / 16 * 16;
    return (dl_tensor){(void*)aligned, 1, 0, ndim, 2, 32, 1, shape, strides, 0};
}

/* Every fault of a managed tensor `m` with `call`, which names it `name`. */
#define ARRAY_FAULTS(m, name, call)                                                  \
    do {                                                                             \
        int64_t negative[4] = {-1, 4, 2, 8}, huge[4] = {INT64_MAX, INT64_MAX, 2, 8}; \
        int64_t spread[4] = {64, 16, 8, 2};                                          \
        REFUSED_FIELD(m, major = 0, name, call);                                     \
        REFUSED_FIELD(m, major = 2, name, call);                                     \
        REFUSED_FIELD(m, major = UINT32_MAX, name, call);                            \
        REFUSED_FIELD(m, flags = 1, name, call);                                     \
        REFUSED_FIELD(m, tensor.data = NULL, name, call);                            \
        REFUSED_FIELD(m, tensor.data = MISALIGNED(m.tensor.data), name, call);       \
        REFUSED_FIELD(m, tensor.device_type = 0, name, call);                        \
        REFUSED_FIELD(m, tensor.device_type = 2, name, call);                        \
        REFUSED_FIELD(m, tensor.device_type = INT32_MIN, name, call);                \
        REFUSED_FIELD(m, tensor.ndim = m.tensor.ndim - 1, name, call);               \
        REFUSED_FIELD(m, tensor.ndim = m.tensor.ndim + 1, name, call);               \
        REFUSED_FIELD(m, tensor.ndim = 0, name, call);                               \
        REFUSED_FIELD(m, tensor.ndim = -1, name, call);                              \
        REFUSED_FIELD(m, tensor.ndim = INT32_MIN, name, call);                       \
        REFUSED_FIELD(m, tensor.code = 0, name, call);                               \
        REFUSED_FIELD(m, tensor.code = 255, name, call);                             \
        REFUSED_FIELD(m, tensor.bits = 64, name, call);                              \
        REFUSED_FIELD(m, tensor.bits = 0, name, call);                               \
        REFUSED_FIELD(m, tensor.lanes = 0, name, call);                              \
        REFUSED_FIELD(m, tensor.lanes = 2, name, call);                              \
        REFUSED_FIELD(m, tensor.shape = NULL, name, call);                           \
        REFUSED_FIELD(m, tensor.shape = MISALIGNED(m.tensor.shape), name, call);     \
        REFUSED_FIELD(m, tensor.shape = negative, name, call);                       \
        REFUSED_FIELD(m, tensor.strides = MISALIGNED(m.tensor.strides), name, call); \
        REFUSED_FIELD(m, tensor.strides = spread + 4 - m.tensor.ndim, name, call);   \
        REFUSED_FIELD(m, tensor.byte_offset = UINT64_MAX, name, call);               \
        REFUSED_FIELD(m, tensor.byte_offset = 2, name, call);                        \
        m.tensor.strides = NULL;                                                     \
        REFUSED_FIELD(m, tensor.shape = huge, name, call);                           \
    } while (0)

static void tensor_from_dlpack_faults(void) {
    int64_t shape[] = {4, 2, 8}, strides[] = {16, 8, 1};
    const dl_versioned right = {1, 0, NULL, NULL, 0, array(3, shape, strides)};
    dl_versioned managed = right;
    uint32_t kind = INFLIGHT_DLPACK_VERSIONED, write = 1;
#define SEE inflight_tensor_from_dlpack(w.device, &managed, kind, write, &w.tensor, error)
    REFUSED(BAD, "device",
            inflight_tensor_from_dlpack(NULL, &managed, kind, write, &w.tensor, error));
    REFUSED(BAD, "managed",
            inflight_tensor_from_dlpack(w.device, NULL, kind, write, &w.tensor, error));
    REFUSED(
        BAD, "managed",
        inflight_tensor_from_dlpack(w.device, MISALIGNED(&managed), kind, write, &w.tensor, error));
    REFUSED(BAD, "tensor",
            inflight_tensor_from_dlpack(w.device, &managed, kind, write, NULL, error));
    REFUSED(
        BAD, "tensor",
        inflight_tensor_from_dlpack(w.device, &managed, kind, write, MISALIGNED(&w.tensor), error));
    const uint32_t no_kinds[] = {2, UINT32_MAX};
    for (size_t i = 0; i < 2; i++) {
        kind = no_kinds[i];
        REFUSED(BAD, "kind", SEE);
        kind = INFLIGHT_DLPACK_VERSIONED;
        write = no_kinds[i];
        REFUSED(BAD, "write", SEE);
        write = 1;
    }
    ARRAY_FAULTS(managed, "managed", SEE);
    managed = right;
    const int64_t no_shapes[][3] = {{4, 0, 8},
                                    {4, 2, 0},
                                    {4, INT64_C(1) << 32, 8},
                                    {4, 2, INT64_C(1) << 32},
                                    {INT64_C(1) << 31, 2, 8}};
    for (size_t i = 0; i < sizeof no_shapes / sizeof *no_shapes; i++) {
        memcpy(shape, no_shapes[i], sizeof shape);
        REFUSED(BAD, "managed", SEE);
    }
    memcpy(shape, (int64_t[]){4, 2, 8}, sizeof shape);
    const int64_t no_strides[][3] = {{-16, 8, 1}, {16, -8, 1}, {INT64_MAX, 8, 1}, {16, 8, 0}};
    for (size_t i = 0; i < sizeof no_strides / sizeof *no_strides; i++) {
        memcpy(strides, no_strides[i], sizeof strides);
        REFUSED(BAD, "managed", SEE);
    }
    memcpy(strides, (int64_t[]){16, 8, 1}, sizeof strides);
    const dl_managed old = {array(4, shape, strides), NULL, NULL};
    REFUSED(BAD, "managed",
            inflight_tensor_from_dlpack(w.device, &old, INFLIGHT_DLPACK_UNVERSIONED, 1, &w.tensor,
                                        error));
    inflight_error* error = NULL;
    const inflight_tensor before = w.tensor;
    managed.flags = 1;
    write = 0;
    CHECK(SEE == INFLIGHT_STATUS_OK && w.tensor.data == right.tensor.data);
    w.tensor = before;
}

static void cache_from_dlpack_faults(void) {
    int64_t shape[] = {2, 4, 2, 8}, strides[] = {64, 16, 8, 1}, other[] = {2, 4, 1, 8};
    const dl_versioned right = {1, 0, NULL, NULL, 0, array(4, shape, strides)};
    dl_versioned k = right, v = right;
    v.tensor.data = (void*)(((uintptr_t)OTHERS + 15) / 16 * 16);
    uint32_t kind = INFLIGHT_DLPACK_VERSIONED, layout = INFLIGHT_LAYOUT_NHD;
#undef SEE
#define SEE inflight_kv_cache_from_dlpack(w.device, &k, &v, kind, layout, &w.cache, error)
    REFUSED(BAD, "device",
            inflight_kv_cache_from_dlpack(NULL, &k, &v, kind, layout, &w.cache, error));
    REFUSED(BAD, "k",
            inflight_kv_cache_from_dlpack(w.device, NULL, &v, kind, layout, &w.cache, error));
    REFUSED(
        BAD, "k",
        inflight_kv_cache_from_dlpack(w.device, MISALIGNED(&k), &v, kind, layout, &w.cache, error));
    REFUSED(BAD, "v",
            inflight_kv_cache_from_dlpack(w.device, &k, NULL, kind, layout, &w.cache, error));
    REFUSED(
        BAD, "v",
        inflight_kv_cache_from_dlpack(w.device, &k, MISALIGNED(&v), kind, layout, &w.cache, error));
    REFUSED(BAD, "cache",
            inflight_kv_cache_from_dlpack(w.device, &k, &v, kind, layout, NULL, error));
    REFUSED(
        BAD, "cache",
        inflight_kv_cache_from_dlpack(w.device, &k, &v, kind, layout, MISALIGNED(&w.cache), error));
    const uint32_t no_layouts[] = {0, 3, UINT32_MAX};
    for (size_t i = 0; i < sizeof no_layouts / sizeof *no_layouts; i++) {
        layout = no_layouts[i];
        REFUSED(BAD, "layout", SEE);
    }
    layout = INFLIGHT_LAYOUT_NHD;
    kind = 2;
    REFUSED(BAD, "kind", SEE);
    kind = INFLIGHT_DLPACK_VERSIONED;
    REFUSED_FIELD(k, major = 2, "k", SEE);
    REFUSED_FIELD(k, flags = 1, "k", SEE);
    REFUSED_FIELD(k, tensor.device_type = 2, "k", SEE);
    REFUSED_FIELD(k, tensor.ndim = 3, "k", SEE);
    REFUSED_FIELD(k, tensor.code = 0, "k", SEE);
    REFUSED_FIELD(k, tensor.shape = NULL, "k", SEE);
    REFUSED_FIELD(v, major = 0, "v", SEE);
    REFUSED_FIELD(v, flags = 1, "v", SEE);
    REFUSED_FIELD(v, tensor.device_type = 0, "v", SEE);
    REFUSED_FIELD(v, tensor.ndim = 5, "v", SEE);
    REFUSED_FIELD(v, tensor.lanes = 2, "v", SEE);
    REFUSED_FIELD(v, tensor.shape = MISALIGNED(shape), "v", SEE);
    /* K and V of different shapes and types. */
    REFUSED_FIELD(v, tensor.shape = other, "v", SEE);
    REFUSED_FIELD(v, tensor.bits = 16, "v", SEE);
    /* The cache that would result. */
    REFUSED_FIELD(k, tensor.data = NULL, "cache.k", SEE);
    REFUSED_FIELD(v, tensor.byte_offset = 4, "cache.v", SEE);
    REFUSED_FIELD(v, tensor.data = k.tensor.data, "cache.v", SEE);
    const int64_t no_strides[][4] = {
        {-64, 16, 8, 1}, {64, 18, 8, 1}, {0, 16, 8, 1}, {64, 16, 4, 1}, {INT64_MAX, 16, 8, 1}};
    for (size_t i = 0; i < sizeof no_strides / sizeof *no_strides; i++) {
        memcpy(strides, no_strides[i], sizeof strides);
        REFUSED(BAD, "cache.k", SEE);
    }
    memcpy(strides, (int64_t[]){64, 16, 8, 1}, sizeof strides);
    const struct {
        int64_t shape[4];
        const char* name;
    } no_shapes[] = {
        {{0, 4, 2, 8}, "cache.num_blocks"}, {{INT64_C(1) << 31, 4, 2, 8}, "cache.num_blocks"},
        {{2, 0, 2, 8}, "cache.block_size"}, {{2, INT64_C(1) << 31, 2, 8}, "cache.block_size"},
        {{2, 4, 0, 8}, "cache.num_heads"},  {{2, 4, 65537, 8}, "cache.num_heads"},
        {{2, 4, 2, 0}, "cache.k.head_dim"}, {{2, 4, 2, 12}, "cache.k.head_dim"},
        {{2, INT64_C(1) << 32, 2, 8}, "k"}, {{2, 4, INT64_MAX, 8}, "k"}};
    for (size_t i = 0; i < sizeof no_shapes / sizeof *no_shapes; i++) {
        memcpy(shape, no_shapes[i].shape, sizeof shape);
        REFUSED(BAD, no_shapes[i].name, SEE);
    }
    memcpy(shape, (int64_t[]){2, 4, 2, 8}, sizeof shape);
    inflight_error* error = NULL;
    const inflight_kv_cache before = w.cache;
    CHECK(SEE == INFLIGHT_STATUS_OK && w.cache.num_blocks == 2);
    w.cache = before;
}

static void count_release(void* user_data) { ++*(uint32_t*)user_data; }

static void to_dlpack_faults(void) {
    inflight_tensor tensor = new_tensor(ELEMENTS, 4, 2);
    void *const sentinel = &w, *managed = sentinel;
#define EXPORT \
    inflight_tensor_to_dlpack(w.device, &tensor, 0, count_release, &w.releases, &managed, error)
    REFUSED(
        BAD, "device",
        inflight_tensor_to_dlpack(NULL, &tensor, 0, count_release, &w.releases, &managed, error));
    CHECK(managed == NULL);
    REFUSED(
        BAD, "tensor",
        inflight_tensor_to_dlpack(w.device, NULL, 0, count_release, &w.releases, &managed, error));
    REFUSED(BAD, "tensor",
            inflight_tensor_to_dlpack(w.device, MISALIGNED(&tensor), 0, count_release, &w.releases,
                                      &managed, error));
    REFUSED(
        BAD, "managed",
        inflight_tensor_to_dlpack(w.device, &tensor, 0, count_release, &w.releases, NULL, error));
    REFUSED(BAD, "managed",
            inflight_tensor_to_dlpack(w.device, &tensor, 0, count_release, &w.releases,
                                      MISALIGNED(&managed), error));
    const uint32_t no_flags[] = {2, UINT32_MAX};
    for (size_t i = 0; i < 2; i++) {
        managed = sentinel;
        REFUSED(BAD, "read_only",
                inflight_tensor_to_dlpack(w.device, &tensor, no_flags[i], count_release,
                                          &w.releases, &managed, error));
        CHECK(managed == NULL);
    }
    TENSOR_FAULTS(tensor, "tensor", EXPORT);
    inflight_error* error = NULL;
    CHECK(EXPORT == INFLIGHT_STATUS_OK && managed != NULL && w.releases == 0);
    dl_versioned* exported = managed;
    CHECK(exported->major == 1 && exported->tensor.ndim == 3);
    exported->deleter(exported);
    CHECK(w.releases == 1);
    /* Nobody to be told. */
    CHECK(inflight_tensor_to_dlpack(w.device, &tensor, 1, NULL, NULL, &managed, NULL) == 0);
    exported = managed;
    CHECK(exported->flags == 1);
    exported->deleter(exported);
}

int main(void) {
    w.device = new_device();
    inflight_device_info_init(&w.info, sizeof w.info);
    inflight_batch_init(&w.batch, sizeof w.batch);
    w.tensor = new_tensor(ELEMENTS, 4, 2);
    w.cache = new_kv_cache(ELEMENTS, OTHERS);
    memset(w.table, 0xa5, sizeof w.table);
    w.count = 77;
    device_faults();
    layout_faults();
    rope_faults();
    tensor_from_dlpack_faults();
    cache_from_dlpack_faults();
    to_dlpack_faults();
    inflight_device_free(w.device);
    printf("%u wrong calls refused\n", num_refused);
    return EXIT_SUCCESS;
}
