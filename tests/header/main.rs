//! `include/inflight.h` is what cbindgen makes of `src/capi`, and what bindings declare again is made
//! of that header: numbers, structs and what copies them in C++, Go and Python. Descriptions are part
//! of it: a field "1 if ..." is a flag, one that names `INFLIGHT_POLICY_*` has such a number, one whose
//! neighbour is `num_` it or it `_len` is an array.
//!
//! `INFLIGHT_REGENERATE=1 cargo test --test header` writes all of them.

use std::fs;
use std::path::Path;

mod abi;
mod cpp;
mod go;
#[path = "../capi/parse.rs"]
mod parse;
mod python;
mod source;

use source::Prepared;

/// The files of the ABI, in the order in which the header presents them: simple to special.
const FILES: [&str; 22] = [
    "library",
    "status",
    "request",
    "scheduler",
    "step_view",
    "event",
    "stats",
    "submitter",
    "cache",
    "sequence",
    "device",
    "tensor",
    "kv",
    "batch",
    "attention",
    "step_buffer",
    "attention_run",
    "rope",
    "append",
    "merge",
    "blocks",
    "dlpack",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The header, and the structs that have an initialiser.
fn header() -> (String, Vec<Prepared>) {
    let mut config = cbindgen::Config::from_file(root().join("cbindgen.toml"))
        .unwrap_or_else(|error| panic!("cbindgen.toml: {error}"));
    config.header = fs::read_to_string(root().join("src/capi/preamble.h")).ok();
    config.sort_by = cbindgen::SortKey::None;
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("header");
    fs::create_dir_all(&scratch).expect("the target directory is writable");
    let mut builder = cbindgen::Builder::new().with_config(config);
    let mut prepared = Vec::new();
    for file in FILES {
        let source = fs::read_to_string(root().join(format!("src/capi/{file}.rs")));
        let source = source.unwrap_or_else(|error| panic!("{file}.rs: {error}"));
        let expanded = scratch.join(format!("{file}.rs"));
        fs::write(&expanded, source::expand(&source, &mut prepared)).expect("it is writable");
        builder = builder.with_src(expanded);
    }
    let bindings = builder.generate().unwrap_or_else(|error| panic!("cbindgen: {error}"));
    let mut text = Vec::new();
    bindings.write(&mut text);
    (String::from_utf8(text).expect("it is UTF-8"), prepared)
}

#[test]
fn what_is_committed_is_what_the_source_says() {
    let (header, prepared) = header();
    let abi = abi::Abi::new(&header, prepared);
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap_or_default();
    let files = [
        ("include/inflight.hpp", cpp::generate(&abi, &read("include/inflight.hpp"))),
        ("ffi-examples/go/abi.go", go::generate(&abi)),
        ("ffi-examples/python/inflight/_structs.py", python::structs(&abi)),
        ("ffi-examples/python/inflight/_records.py", python::records(&abi)),
        ("ffi-examples/python/inflight/_numbers.py", python::numbers(&abi)),
        ("include/inflight.h", header),
    ];
    for (path, generated) in files {
        if std::env::var_os("INFLIGHT_REGENERATE").is_some() {
            fs::write(root().join(path), &generated).expect("the tree is writable");
        }
        let committed = read(path);
        let line = committed.lines().zip(generated.lines()).position(|(a, b)| a != b);
        assert!(
            committed == generated,
            "{path} differs from what src/capi makes of it, first at line {:?}: \
             run INFLIGHT_REGENERATE=1 cargo test --test header",
            line.map(|line| line + 1)
        );
    }
}
