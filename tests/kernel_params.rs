//! What kernels read: structs of C and of Rust are the same. (What the library packs are these.)
//!
//! `.ci/run bindings` compares `src/params.rs` with what bindgen makes of
//! `csrc/kernel_params.h`; with `INFLIGHT_REGENERATE=1` it writes it.

use std::fmt::Write;
use std::fs;
use std::process::Command;

/// The Rust compiler has checked the numbers in `params.rs`; the C compiler checks them here.
#[test]
fn a_c_compiler_lays_structs_out_alike() {
    let out = env!("CARGO_TARGET_TMPDIR");
    let mut build = cc::Build::new();
    build.target(env!("INFLIGHT_TARGET")).host(env!("INFLIGHT_TARGET")).opt_level(0);
    let compiler = match build.cargo_metadata(false).out_dir(out).try_get_compiler() {
        Ok(compiler) => compiler,
        Err(error) => return println!("skipped: no C compiler here: {error}"),
    };
    let mut program = "#include <stddef.h>\n#include \"kernel_params.h\"\n".to_owned();
    let mut checks = 0;
    let committed = include_str!("../src/params.rs");
    // `["Offset of field: s::f"][... - 8usize];`, `["Size of s"][... - 8usize];`
    for check in committed.split("[\"").skip(1) {
        let (what, rest) = check.split_once("\"]").expect("it is quoted");
        let (before, _) = rest.split_once("usize]").expect("it ends in a number");
        let number = before.rsplit(' ').next().expect("a number");
        let expression = if let Some(name) = what.strip_prefix("Size of ") {
            format!("sizeof(struct {name})")
        } else if let Some(name) = what.strip_prefix("Offset of field: ") {
            format!("offsetof(struct {})", name.replace("::", ", "))
        } else {
            continue;
        };
        writeln!(program, "_Static_assert({expression} == {number}, \"{what}\");").expect("room");
        checks += 1;
    }
    assert!(checks > 140, "only {checks} numbers found");
    let source = format!("{out}/layouts.c");
    fs::write(&source, program).expect("a file");
    let mut command = compiler.to_command();
    command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", "csrc"]);
    let ran = command.arg(&source).output().expect("the C compiler runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    println!("{checks} sizes and offsets");
}

/// Only with the libclang in the folder that INFLIGHT_LIBCLANG names, one version of which `.ci/run`
/// installs: others may say the same in other words. bindgen looks for it in LIBCLANG_PATH, which is
/// set for another process: Cargo compiles bindgen, and all tests, again where that is another.
#[test]
fn what_is_committed_is_what_bindgen_makes() {
    use bindgen::callbacks::{DeriveInfo, ParseCallbacks};

    #[derive(Debug)]
    struct Derives;

    impl ParseCallbacks for Derives {
        fn add_derives(&self, of: &DeriveInfo<'_>) -> Vec<String> {
            let has_floats = ["inflight_attention_params", "inflight_mixed_params"];
            let eq = (!has_floats.contains(&of.name)).then_some("Eq");
            let all = ["PartialEq"].into_iter().chain(eq);
            all.chain(["bytemuck::Pod", "bytemuck::Zeroable"]).map(str::to_owned).collect()
        }
    }

    let Some(folder) = std::env::var_os("INFLIGHT_LIBCLANG") else {
        return println!("skipped: INFLIGHT_LIBCLANG is not set; `.ci/run bindings` sets it");
    };
    if std::env::var_os("LIBCLANG_PATH").as_ref() != Some(&folder) {
        let mut again = Command::new(std::env::current_exe().expect("this program"));
        again.args(["what_is_committed_is_what_bindgen_makes", "--exact", "--nocapture"]);
        let ran = again.env("LIBCLANG_PATH", folder).status().expect("this program runs");
        return assert!(ran.success(), "see above");
    }
    let made = bindgen::Builder::default()
        .header("csrc/kernel_params.h")
        .allowlist_file(".*kernel_params.h")
        // Its comments are plain C's.
        .clang_arg("-fparse-all-comments")
        .derive_default(true)
        .parse_callbacks(Box::new(Derives))
        .formatter(bindgen::Formatter::None)
        .disable_header_comment()
        .raw_line("// Made by bindgen from csrc/kernel_params.h: see tests/kernel_params.rs.")
        .generate()
        .expect("bindgen reads the header");
    let made = rustfmt(&made.to_string());
    let path = "src/params.rs";
    if std::env::var_os("INFLIGHT_REGENERATE").is_some() {
        fs::write(path, &made).expect("the file can be written");
    }
    let committed = fs::read_to_string(path).expect("it is committed");
    assert!(made == committed, "{path} is out of date: set INFLIGHT_REGENERATE=1 to write it");
}

/// As the rest of the tree.
fn rustfmt(code: &str) -> String {
    let path = format!("{}/params.rs", env!("CARGO_TARGET_TMPDIR"));
    fs::write(&path, code).expect("a file");
    let mut command = Command::new("rustfmt");
    command.args(["--edition", "2024", "--config-path", "rustfmt.toml", &path]);
    assert!(command.status().expect("rustfmt runs").success());
    fs::read_to_string(&path).expect("it is there")
}
