//! `ffi-examples/go`: structs that are copied by hand.

use super::source::{Mirror, check, of};

const INFLIGHT: &str = "ffi-examples/go/inflight.go";
const STATUS: &str = "ffi-examples/go/status.go";
const STEP: &str = "ffi-examples/go/step.go";
const BOUNDARY: &str = "ffi-examples/go/boundary.h";

const MIRRORS: &[Mirror] = &[
    of("build_info", INFLIGHT, "func Build(", &["info.{}"], &[]),
    of("error", STATUS, "func failure(", &["detail.{}"], &[("code", "the call has returned it")]),
    of("step_view", STEP, "", &["s.view.{}"], &[]),
    of(
        "group",
        STEP,
        "",
        &["group.{}", "s.group().{}"],
        &[("block_size", "`Schedule` keeps it, for steps that are over")],
    ),
    of("samples", BOUNDARY, "static inline inflight_status boundary_commit(", &["samples.{}"], &[]),
    of("outputs_view", STEP, "", &["o.view.{}"], &[]),
];

const CACHES: &str = "the package is the scheduler: it has no caches of its own";
const KERNELS: &str = "the package is the scheduler: it calls no kernels";
const MADE: &str = "`tests/header` makes what Go has of it";

const LEFT_OUT: &[(&str, &str)] = &[
    ("row", MADE),
    ("pending_token", MADE),
    ("block_op", MADE),
    ("output", MADE),
    ("event", MADE),
    ("request_result", MADE),
    ("content", MADE),
    ("request", MADE),
    ("scheduler_config", MADE),
    ("scheduler_stats", MADE),
    ("request_snapshot", MADE),
    ("cache_config", CACHES),
    ("cache_stats", CACHES),
    ("cache_keys", CACHES),
    ("cpu_config", KERNELS),
    ("device_info", KERNELS),
    ("tensor", KERNELS),
    ("kv_array", KERNELS),
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
