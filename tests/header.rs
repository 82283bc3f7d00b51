//! `include/inflight.h` is what cbindgen makes of `src/capi`.
//!
//! `INFLIGHT_REGENERATE=1 cargo test --test header` writes it.

use std::path::Path;

/// The files of the ABI, in the order in which the header presents them: simple to special.
const FILES: [&str; 22] = [
    "library",
    "status",
    "request",
    "scheduler",
    "step",
    "event",
    "report",
    "submitter",
    "cache",
    "sequence",
    "device",
    "tensor",
    "kv",
    "batch",
    "attention",
    "steps",
    "plan",
    "rope",
    "append",
    "merge",
    "blocks",
    "dlpack",
];

fn generate() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml"))
        .unwrap_or_else(|error| panic!("cbindgen.toml: {error}"));
    config.header = std::fs::read_to_string(root.join("src/capi/preamble.h")).ok();
    config.sort_by = cbindgen::SortKey::None;
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in FILES {
        builder = builder.with_src(root.join(format!("src/capi/{file}.rs")));
    }
    let bindings = builder.generate().unwrap_or_else(|error| panic!("cbindgen: {error}"));
    let mut text = Vec::new();
    bindings.write(&mut text);
    String::from_utf8(text).expect("it is UTF-8")
}

#[test]
fn the_committed_header_is_what_the_source_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/inflight.h");
    let generated = generate();
    if std::env::var_os("INFLIGHT_REGENERATE").is_some() {
        std::fs::create_dir_all(path.parent().expect("it is in a directory")).expect("writable");
        std::fs::write(&path, &generated).expect("the header is writable");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let line = committed.lines().zip(generated.lines()).position(|(a, b)| a != b);
    assert!(
        committed == generated,
        "include/inflight.h differs from src/capi, first at line {:?}: \
         run INFLIGHT_REGENERATE=1 cargo test --test header",
        line.map(|line| line + 1)
    );
}
