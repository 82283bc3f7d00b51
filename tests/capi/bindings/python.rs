//! `ffi-examples/python`: classes over the structs of ctypes, by hand. `test_layout.py` there compares
//! what ctypes makes of the structs with the same record.

use super::source::{Mirror, check, of};

const LIBRARY: &str = "ffi-examples/python/inflight/_library.py";
const SCHEDULER: &str = "ffi-examples/python/inflight/scheduler.py";
const CACHE: &str = "ffi-examples/python/inflight/cache.py";
const ARRAYS: &str = "ffi-examples/python/inflight/arrays.py";
const ATTENTION: &str = "ffi-examples/python/inflight/attention.py";

const FIELD: &[&str] = &["    {}: "];
const PROPERTY: &[&str] = &["    def {}(self)", "    {} = property("];
const STRUCT: &[&str] = &["struct.{}", "\"{}\""];
const ARGS: &[&str] = &["args.{}"];
const LENGTH: &str = "the length of its array";
const STRIDE: &str = "the distance between structs in bytes";
const ONE_A_HEAD: &str = "kernels know one f32 per head, or one for all";
const PACKED: &str = "`from_step` has it of C";
const RETURNED: &str = "the call has returned it";

const MIRRORS: &[Mirror] = &[
    of("build_info", LIBRARY, "def build_info(", &["info.{}"], &[]),
    of("error", LIBRARY, "def check(", &["detail.{}"], &[("code", RETURNED)]),
    of(
        "step_view",
        SCHEDULER,
        "class Step:",
        PROPERTY,
        &[
            ("step_id", "`id`"),
            ("groups", "`_group`, of which arrays and `block_size` are"),
            ("num_groups", "one, so far"),
            ("row_size", STRIDE),
            ("pending_size", STRIDE),
            ("block_op_size", STRIDE),
            ("packed_size", LENGTH),
            ("num_pending", LENGTH),
            ("num_block_ops", LENGTH),
            ("num_preempted", LENGTH),
        ],
    ),
    of("group", SCHEDULER, "class Step:", &["group.{}", "    def {}(self)"], &[]),
    of("samples", SCHEDULER, "    def _commit(", &["samples.{}"], &[]),
    of(
        "output",
        SCHEDULER,
        "class Output(",
        FIELD,
        &[("first_token", "`tokens` begins there"), ("num_tokens", LENGTH)],
    ),
    of("output", SCHEDULER, "class Outputs:", &["o.{}"], &[]),
    of(
        "outputs_view",
        SCHEDULER,
        "class Outputs:",
        PROPERTY,
        &[
            ("outputs", "they are iterated over, or `records`"),
            ("num_outputs", LENGTH),
            ("num_tokens", LENGTH),
            ("num_released", LENGTH),
            ("num_results", LENGTH),
            ("output_size", STRIDE),
            ("result_size", STRIDE),
        ],
    ),
    of("event", SCHEDULER, "class Event(", FIELD, &[]),
    of("event", SCHEDULER, "    def events(", &["e.{}"], &[]),
    of("cache_config", CACHE, "    def __init__(", &["\"{}\": "], &[]),
    of("cpu_config", ATTENTION, "    def cpu(", &["config.{}", "\"{}\": "], &[]),
    of("device_info", ATTENTION, "    def info(", &["struct.{}"], &[]),
    of(
        "device_info",
        ATTENTION,
        "class DeviceInfo(",
        FIELD,
        &[
            ("compute_capability_major", "`compute_capability`"),
            ("compute_capability_minor", "`compute_capability`"),
        ],
    ),
    of("tensor", ARRAYS, "def _struct_of_numpy(", STRUCT, &[]),
    of("kv_cache", ARRAYS, "", &["\"{}\": ", "(\"{}\", {}_scales)"], &[]),
    of(
        "kv_array",
        ARRAYS,
        "",
        &["\"{}\": ", "side.{}"],
        &[
            ("scale_block_stride", ONE_A_HEAD),
            ("scale_token_stride", ONE_A_HEAD),
            ("scale_dtype", ONE_A_HEAD),
            ("scale_elements", ONE_A_HEAD),
        ],
    ),
    of(
        "batch",
        ATTENTION,
        "class Batch:",
        &["\"{}\": ", "struct.{}"],
        &[("packed", PACKED), ("packed_size", PACKED)],
    ),
    of("group", ATTENTION, "class Batch:", &["\"{}\": "], &[]),
    of("mask", ATTENTION, "    def plan(", STRUCT, &[]),
    of(
        "attention_config",
        ATTENTION,
        "def _config(",
        &["\"{}\": "],
        &[("workspace", "given apart"), ("workspace_size", "given apart")],
    ),
    of("attention_config", ATTENTION, "class Attention(", &["config.{}", "{}={}"], &[]),
    of("attention_args", ATTENTION, "    def run(", ARGS, &[]),
    of("rope", ATTENTION, "def append(", STRUCT, &[]),
    of("append_args", ATTENTION, "def append(", ARGS, &[]),
    of("merge_state", ATTENTION, "def merge(", &["struct.{}"], &[]),
    of("merge_args", ATTENTION, "def merge(", ARGS, &[]),
];

const MADE: &str = "`tests/header` makes a record of it";

const LEFT_OUT: &[(&str, &str)] = &[
    ("rope_config", "`rope_table` takes whatever field its ctypes struct has"),
    ("content", MADE),
    ("request", MADE),
    ("scheduler_config", MADE),
    ("row", MADE),
    ("pending_token", MADE),
    ("block_op", MADE),
    ("request_result", MADE),
    ("scheduler_stats", MADE),
    ("request_snapshot", MADE),
    ("cache_stats", MADE),
    ("cache_keys", MADE),
    ("step_limits", MADE),
];

#[test]
fn classes_of_python_know_every_field() {
    check(MIRRORS, LEFT_OUT);
}
