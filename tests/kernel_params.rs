//! What kernels are given: structs of C, of Rust, and what the library packs, are the same.
//!
//! `.ci/run bindings` compares `src/kernels/cuda/params.rs` with what bindgen makes of
//! `csrc/kernel_params.h`; with `INFLIGHT_REGENERATE=1` it writes it.
#![cfg(feature = "cuda-driver")]

use std::fmt::Write;
use std::fs;
use std::process::Command;

use inflight::batch::Header;
use inflight::cache::BlockOp;
use inflight::kernels::cuda::params;
use inflight::plan::{Merge, Part};

/// Asserts that two structs have the same fields at the same offsets.
macro_rules! assert_same {
    ($ours:ident, $c:ident { $($field:ident)* }) => {{
        // A field that is not listed does not compile.
        #[allow(dead_code, reason = "its patterns are all there is to it")]
        fn all_fields(ours: $ours, c: params::$c) {
            let $ours { $($field: _),* } = ours;
            let params::$c { $($field: _),* } = c;
        }
        assert_eq!(size_of::<$ours>(), size_of::<params::$c>());
        assert_eq!(align_of::<$ours>(), align_of::<params::$c>());
        $(assert_eq!(
            std::mem::offset_of!($ours, $field),
            std::mem::offset_of!(params::$c, $field),
            stringify!($field)
        );)*
    }};
}

#[test]
fn what_the_library_packs_is_what_kernels_read() {
    assert_same!(Header, inflight_step {
        magic total_bytes step num_rows padded_rows num_tokens num_logits num_pending num_ops
        num_kv_blocks block_size max_q_len max_kv_len tokens positions slot_mapping qo_indptr
        kv_indptr kv_last_page_len logits_indices pending ops kv_indices plans
    });
    assert_same!(Part, inflight_part {
        row head num_heads q_start q_len kv_start kv_end partial merge
    });
    assert_same!(Merge, inflight_merge {
        row head num_heads q_start q_len partial count first_part
    });
    assert_same!(BlockOp, inflight_block_op { kind src dst });
    assert_eq!(inflight::batch::MAGIC, params::INFLIGHT_STEP_MAGIC);
    assert_eq!(Part::WHOLE, params::INFLIGHT_WHOLE);
}

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
    let committed = include_str!("../src/kernels/cuda/params.rs");
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
        fn add_derives(&self, _: &DeriveInfo<'_>) -> Vec<String> {
            ["PartialEq", "bytemuck::Pod", "bytemuck::Zeroable"].map(str::to_owned).into()
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
    let path = "src/kernels/cuda/params.rs";
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
