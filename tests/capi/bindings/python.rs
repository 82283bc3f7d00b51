//! `ffi-examples/python`: structs of ctypes, and classes over them. `test_layout.py` there compares
//! what ctypes makes of the structs with the same record.

use super::abi::{Field, constant, statuses, structs};
use super::source::{Mirror, block, check, of, text};

const STRUCTS: &str = "ffi-examples/python/inflight/_structs.py";
const LIBRARY: &str = "ffi-examples/python/inflight/_library.py";
const REQUEST: &str = "ffi-examples/python/inflight/request.py";
const SCHEDULER: &str = "ffi-examples/python/inflight/scheduler.py";
const CACHE: &str = "ffi-examples/python/inflight/cache.py";
const ARRAYS: &str = "ffi-examples/python/inflight/arrays.py";
const ATTENTION: &str = "ffi-examples/python/inflight/attention.py";

const FIELD: &[&str] = &["    {}: "];
const PROPERTY: &[&str] = &["    def {}(self)", "    {} = property("];
const STRUCT: &[&str] = &["struct.{}", "\"{}\""];
const ARGS: &[&str] = &["args.{}"];
const LENGTH: &str = "the length of its array";
const RETURNED: &str = "the call has returned it";

const MIRRORS: &[Mirror] = &[
    of("build_info", LIBRARY, "def build_info(", &["info.{}"], &[]),
    of("error", LIBRARY, "def check(", &["detail.{}"], &[("code", RETURNED)]),
    of("content", REQUEST, "class Content", FIELD, &[("id_len", LENGTH)]),
    of("content", REQUEST, "def contents_of(", STRUCT, &[]),
    of("request", REQUEST, "class CRequest", STRUCT, &[]),
    of(
        "request",
        REQUEST,
        "class Request:",
        FIELD,
        &[
            ("prompt_len", LENGTH),
            ("num_stop_tokens", LENGTH),
            ("salt_len", LENGTH),
            ("adapter_len", LENGTH),
            ("num_contents", LENGTH),
        ],
    ),
    of("scheduler_config", SCHEDULER, "class SchedulerConfig:", FIELD, &[]),
    of("row", SCHEDULER, "class Row(", FIELD, &[]),
    of("row", SCHEDULER, "class Step:", &["r.{}"], &[]),
    of("pending_token", SCHEDULER, "class PendingToken(", FIELD, &[]),
    of("block_op", SCHEDULER, "class BlockOp(", FIELD, &[]),
    of(
        "step_view",
        SCHEDULER,
        "class Step:",
        PROPERTY,
        &[
            ("step_id", "`id`"),
            ("packed_size", LENGTH),
            ("num_kv_blocks", LENGTH),
            ("num_pending", LENGTH),
            ("num_block_ops", LENGTH),
            ("num_preempted", LENGTH),
        ],
    ),
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
        ],
    ),
    of("request_result", SCHEDULER, "class RequestResult(", FIELD, &[]),
    of("request_result", SCHEDULER, "    def _of(", &["r.{}"], &[]),
    of("event", SCHEDULER, "class Event(", FIELD, &[]),
    of("event", SCHEDULER, "    def events(", &["e.{}"], &[]),
    of("scheduler_stats", SCHEDULER, "class SchedulerStats(", FIELD, &[]),
    of("request_snapshot", SCHEDULER, "class RequestSnapshot(", FIELD, &[]),
    of("cache_config", CACHE, "    def __init__(", &["\"{}\": "], &[]),
    of("cache_stats", CACHE, "class CacheStats(", FIELD, &[]),
    of("cache_keys", CACHE, "    def open(", &["keys.{}"], &[]),
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
    of(
        "kv_cache",
        ARRAYS,
        "",
        &["\"{}\": ", "({}, \"{}\")", "(\"{}\", {})"],
        &[
            ("k_block_stride", "`{name}_block_stride`"),
            ("v_block_stride", "`{name}_block_stride`"),
            ("k_token_stride", "`{name}_token_stride`"),
            ("v_token_stride", "`{name}_token_stride`"),
            ("k_head_stride", "`{name}_head_stride`"),
            ("v_head_stride", "`{name}_head_stride`"),
        ],
    ),
    of("batch", ATTENTION, "class Batch:", &["\"{}\": "], &[]),
    of("mask", ATTENTION, "    def plan(", STRUCT, &[]),
    of(
        "attention_config",
        ATTENTION,
        "def _config(",
        &["\"{}\": "],
        &[("workspace", "given apart"), ("workspace_size", "given apart")],
    ),
    of("attention_config", ATTENTION, "class Attention(", &["config.{}", "{}={}"], &[]),
    of("step_limits", ATTENTION, "class StepLimits:", FIELD, &[]),
    of("attention_args", ATTENTION, "    def run(", ARGS, &[]),
    of("rope", ATTENTION, "def append(", STRUCT, &[]),
    of("append_args", ATTENTION, "def append(", ARGS, &[]),
    of("merge_state", ATTENTION, "def merge(", &["struct.{}"], &[]),
    of("merge_args", ATTENTION, "def merge(", ARGS, &[]),
];

const LEFT_OUT: &[(&str, &str)] =
    &[("rope_config", "`rope_table` takes whatever field its ctypes struct has")];

#[test]
fn classes_of_python_know_every_field() {
    check(MIRRORS, LEFT_OUT);
}

/// "step_view" is StepView.
fn class(name: &str) -> String {
    let capital = |word: &str| match word {
        "kv" => "KV".to_owned(),
        word => word[..1].to_uppercase() + &word[1..],
    };
    name.split('_').map(capital).collect()
}

/// What a type of C is in ctypes.
fn kind(of: &str) -> String {
    match of.split_once(" [") {
        Some((element, count)) => {
            let count = count.trim_end_matches(']');
            let named = count.strip_prefix("INFLIGHT_").unwrap_or(count);
            format!("{} * {named}", kind(element))
        }
        None if of == "const char *" => "c_char_p".to_owned(),
        None if of.ends_with('*') => "c_void_p".to_owned(),
        None if of.starts_with("struct inflight_") => class(&of["struct inflight_".len()..]),
        None if of == "size_t" => "c_size_t".to_owned(),
        None if of == "inflight_status" => "c_int32".to_owned(),
        None => format!("c_{}", of.trim_end_matches("_t")),
    }
}

/// Bytes of a type of ctypes, and what it is aligned to.
fn size(kind: &str) -> (usize, usize) {
    if let Some((element, count)) = kind.split_once(" * ") {
        let (size, align) = size(element);
        let count = count.parse().unwrap_or_else(|_| constant(&format!("INFLIGHT_{count}")));
        return (size * count, align);
    }
    match kind {
        "c_size_t" | "c_uint64" | "c_int64" | "c_void_p" | "c_char_p" => (8, 8),
        "c_uint32" | "c_int32" | "c_float" => (4, 4),
        "c_uint8" | "c_char" => (1, 1),
        class => {
            let fields = fields(class);
            let align = fields.iter().map(|field| size(&field.of).1).max().unwrap_or(1);
            (fields.last().map_or(0, |field| field.end).next_multiple_of(align), align)
        }
    }
}

/// The fields that a class declares, where C puts them.
fn fields(class: &str) -> Vec<Field> {
    let block = block(STRUCTS, &format!("class {class}(Structure):"));
    let lines = block.lines().filter_map(|line| line.trim().strip_prefix("(\""));
    let mut at = 0_usize;
    let of = |line: &str| {
        let (name, rest) = line.split_once("\", ").expect("a type follows");
        let of = rest.trim_end_matches(',').strip_suffix(')').expect("it is closed").to_owned();
        let (bytes, align) = size(&of);
        let start = at.next_multiple_of(align);
        at = start + bytes;
        Field { name: name.to_owned(), start, end: at, of }
    };
    lines.map(of).collect()
}

#[test]
fn structs_of_ctypes_are_those_of_c() {
    let structs = structs();
    for of in &structs {
        let class = class(&of.name);
        let wanted = |field: &Field| Field { of: kind(&field.of), ..field.clone() };
        let wanted: Vec<Field> = of.fields.iter().map(wanted).collect();
        assert_eq!(fields(&class), wanted, "{class}");
        assert_eq!(size(&class).0, of.size, "{class}");
    }
    let declared = text(STRUCTS).lines().filter(|line| line.ends_with("(Structure):")).count();
    assert_eq!(declared, structs.len());
}

#[test]
fn statuses_of_python_are_those_of_c() {
    let here = block("ffi-examples/python/inflight/errors.py", "class Status(");
    for (name, number) in statuses() {
        assert!(here.contains(&format!("\n    {name} = {number}\n")), "{name}");
    }
}
