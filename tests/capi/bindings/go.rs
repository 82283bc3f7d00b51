//! `ffi-examples/go`: types that lie over those of C, and structs that are copied.

use super::abi::{Field, statuses, structs};
use super::source::{Mirror, block, check, of, text};

const INFLIGHT: &str = "ffi-examples/go/inflight.go";
const CONFIG: &str = "ffi-examples/go/config.go";
const REQUEST: &str = "ffi-examples/go/request.go";
const SCHEDULER: &str = "ffi-examples/go/scheduler.go";
const STATUS: &str = "ffi-examples/go/status.go";
const STEP: &str = "ffi-examples/go/step.go";
const BORDER: &str = "ffi-examples/go/border.h";

/// Types that lie over C's: memory of the library is read as theirs.
const OVER: [(&str, &str, &str); 6] = [
    ("row", STEP, "Row"),
    ("pending_token", STEP, "PendingToken"),
    ("block_op", STEP, "BlockOp"),
    ("output", STEP, "Output"),
    ("event", SCHEDULER, "Event"),
    ("request_result", SCHEDULER, "RequestResult"),
];

const MIRRORS: &[Mirror] = &[
    of("build_info", INFLIGHT, "func Build(", &["info.{}"], &[]),
    of("error", STATUS, "func failure(", &["detail.{}"], &[("code", "the call has returned it")]),
    of("content", REQUEST, "func pass(", &["\t{}:"], &[]),
    of("request", REQUEST, "func pass(", &["c.{}"], &[]),
    of("scheduler_config", CONFIG, "func (c *Config) toC(", &["out.{}"], &[]),
    of("step_view", STEP, "", &["s.view.{}"], &[]),
    of("samples", BORDER, "static inline inflight_status border_commit(", &["samples.{}"], &[]),
    of("outputs_view", STEP, "", &["o.view.{}"], &[]),
    of("scheduler_stats", SCHEDULER, "func (s *Scheduler) Stats(", &["c.{}"], &[]),
    of("request_snapshot", SCHEDULER, "func (s *Scheduler) Request(", &["c.{}"], &[]),
];

const CACHES: &str = "the package is the scheduler: it has no caches of its own";
const KERNELS: &str = "the package is the scheduler: it calls no kernels";
const LIES_OVER: &str = "a type of Go lies over it";

const LEFT_OUT: &[(&str, &str)] = &[
    ("row", LIES_OVER),
    ("pending_token", LIES_OVER),
    ("block_op", LIES_OVER),
    ("output", LIES_OVER),
    ("event", LIES_OVER),
    ("request_result", LIES_OVER),
    ("cache_config", CACHES),
    ("cache_stats", CACHES),
    ("cache_keys", CACHES),
    ("cpu_config", KERNELS),
    ("device_info", KERNELS),
    ("tensor", KERNELS),
    ("kv_cache", KERNELS),
    ("batch", KERNELS),
    ("mask", KERNELS),
    ("attention_config", KERNELS),
    ("step_limits", KERNELS),
    ("attention_args", KERNELS),
    ("rope", KERNELS),
    ("rope_config", KERNELS),
    ("append_args", KERNELS),
    ("merge_state", KERNELS),
    ("merge_args", KERNELS),
];

#[test]
fn go_reads_or_sets_every_field() {
    check(MIRRORS, LEFT_OUT);
}

/// What a field is called in Go, in types that lie over C's.
fn name(of: &str, field: &str) -> String {
    match (of, field) {
        (_, "reserved") => return "_".to_owned(),
        // Of an output, whose tokens a method gives.
        ("output", "first_token") => return "first".to_owned(),
        ("output", "num_tokens") => return "num".to_owned(),
        ("output", "result") => return field.to_owned(),
        _ => {}
    }
    let word = |word: &str| match word {
        "id" => "ID".to_owned(),
        word => word[..1].to_uppercase() + &word[1..],
    };
    field.split('_').map(word).collect()
}

/// The type of C that a type of Go is.
fn underlying(of: &str) -> String {
    let known = [
        ("uint64", "uint64_t"),
        ("uint32", "uint32_t"),
        ("int32", "int32_t"),
        // Nanoseconds; the time of nothing, 2^64 - 1, is negative.
        ("time.Duration", "uint64_t"),
        ("RequestResult", "struct inflight_request_result"),
    ];
    if let Some((_, c)) = known.iter().find(|(go, _)| *go == of) {
        return (*c).to_owned();
    }
    let declares = |line: &str| {
        let of = line.strip_prefix(&format!("type {of} "))?;
        Some(underlying(of.trim_start_matches("= ")))
    };
    let files = [INFLIGHT, SCHEDULER, STATUS, STEP];
    let found = files.iter().find_map(|file| text(file).lines().find_map(declares));
    found.unwrap_or_else(|| panic!("type {of} is declared nowhere"))
}

#[test]
fn types_of_go_lie_over_those_of_c() {
    let structs = structs();
    for (of, file, go) in OVER {
        let of = structs.iter().find(|one| one.name == of).expect("it is on record");
        let block = block(file, &format!("type {go} struct {{"));
        let lines = block.lines().skip(2).map(str::trim);
        let lines =
            lines.filter(|line| !line.is_empty() && *line != "}" && !line.starts_with("//"));
        let mut at = 0;
        let fields = lines.map(|line| {
            let mut words = line.split_whitespace();
            let mut word = || words.next().expect("a name and a type").to_owned();
            let (name, of) = (word(), underlying(&word()));
            let start = at;
            let inner = structs.iter().find(|one| of == format!("struct inflight_{}", one.name));
            at += match inner {
                Some(inner) => inner.size,
                None if of == "uint64_t" => 8,
                None => 4,
            };
            Field { name, start, end: at, of }
        });
        let fields: Vec<Field> = fields.collect();
        let wanted = of.fields.iter().map(|field| {
            let integer = if field.of == "inflight_status" { "int32_t" } else { &field.of };
            Field { name: name(&of.name, &field.name), of: integer.to_owned(), ..field.clone() }
        });
        assert_eq!(fields, wanted.collect::<Vec<_>>(), "{go}");
        assert_eq!(at, of.size, "{go}");
    }
}

#[test]
fn statuses_of_go_are_those_of_c() {
    let here = text(STATUS);
    for (name, _) in statuses().iter().filter(|(name, _)| name != "OK") {
        assert!(here.contains(&format!(" Status = C.INFLIGHT_STATUS_{name}\n")), "{name}");
    }
}
