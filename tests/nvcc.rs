//! What the build asks of nvcc, by its version: programs stand in for it that say what each says.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[path = "../build/cost.rs"]
mod cost;
#[allow(dead_code, reason = "the part that looks for nvcc is for the build")]
#[path = "../build/nvcc.rs"]
mod nvcc;
#[allow(dead_code, reason = "the files are for builds")]
#[path = "../build/table.rs"]
mod table;

use nvcc::Nvcc;
use table::Table;

/// As build.rs has it, which ends.
fn fail(why: &str) -> ! {
    panic!("{why}")
}

fn family(source: &Path) -> &str {
    source.file_stem().and_then(|stem| stem.to_str()).expect("sources have names in ASCII")
}

const VERSIONS: [&str; 7] =
    ["12.3.107", "12.4.131", "12.6.85", "12.8.93", "12.9.86", "13.0.88", "13.1.80"];

/// What nvcc of a release, as `12.4`, says to `--version`.
fn said(release: &str) -> String {
    let is_of = |version: &&&str| version.rsplit_once('.').is_some_and(|(of, _)| of == release);
    let version = VERSIONS.iter().find(is_of).expect("one of them");
    format!(
        "nvcc: NVIDIA (R) Cuda compiler driver
Copyright (c) 2005-2025 NVIDIA Corporation
Cuda compilation tools, release {release}, V{version}
"
    )
}

/// A program cannot be run while it is written, or while another thread's child has it open still.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nvcc").join(name);
    fs::create_dir_all(&folder).expect("a folder of ours");
    folder
}

/// A program that says this to `--version`; else it writes its arguments where the image is to be.
fn stand_in(name: &str, said: &str) -> PathBuf {
    let program = folder(name).join("nvcc");
    let script = format!(
        "#!/bin/sh
if [ \"$1\" = --version ]; then cat <<'END'
{said}END
exit; fi
for word; do [ \"$previous\" = -o ] && out=$word; previous=$word; done
echo \"$@\" >\"$out\"
"
    );
    fs::write(&program, script).expect("a file of ours");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a file of ours");
    program
}

fn taken(name: &str, archs: &str) -> Result<Nvcc, String> {
    let said = said(name);
    let program = stand_in(name, &said);
    let version = nvcc::version(&program).expect("it runs");
    assert_eq!(version, said);
    Nvcc::new(program, version, archs, Vec::new())
}

fn refused(name: &str, archs: &str) -> String {
    taken(name, archs).err().unwrap_or_else(|| panic!("{name} is taken for {archs}"))
}

#[test]
fn flags_are_those_that_a_version_knows() {
    let _one = one_at_a_time();
    for (name, toolkit, compresses) in [
        ("12.4", 12_040, false),
        ("12.6", 12_060, false),
        ("12.8", 12_080, true),
        ("12.9", 12_090, true),
        ("13.0", 13_000, true),
        ("13.1", 13_010, true),
    ] {
        let nvcc = taken(name, "80;90a").unwrap();
        assert_eq!(nvcc.toolkit(), toolkit);
        let out = folder(name);
        let image = nvcc.compile(&[PathBuf::from("csrc/cache/copy.cu")], &out).remove(0);
        let asked = fs::read_to_string(image.expect("an image")).expect("its arguments");
        let has = |flag: &str| asked.split_whitespace().any(|word| word == flag);
        assert_eq!(has("--compress-mode=size"), compresses, "{name}: {asked}");
        assert_eq!(has("-lineinfo"), compresses, "{name}: {asked}");
        assert!(has("-fatbin") && has("-O3") && has("csrc/cache/copy.cu"), "{asked}");
        for arch in [80, 90] {
            let code = format!("arch=compute_{arch},code=[sm_{arch},compute_{arch}]");
            assert!(asked.contains(&code), "{asked}");
        }
    }
}

#[test]
fn another_version_compiles_again() {
    let _one = one_at_a_time();
    let (old, new) = (taken("12.4", "80").unwrap(), taken("13.0", "80").unwrap());
    let out = folder("again");
    let source = [PathBuf::from("csrc/cache/copy.cu")];
    let image = out.join("copy.fatbin");
    let compiled = |nvcc: &Nvcc| {
        nvcc.compile(&source, &out);
        fs::read_to_string(&image).expect("an image").contains("--compress-mode")
    };
    assert!(!compiled(&old));
    assert!(compiled(&new));
    assert!(!compiled(&old));
}

#[test]
fn blackwell_takes_12_8() {
    let _one = one_at_a_time();
    for archs in ["100", "80;90a;120", "103a", "100f"] {
        for name in ["12.4", "12.6"] {
            let why = refused(name, archs);
            let arch = archs.rsplit(';').next().unwrap();
            assert!(why.starts_with(&format!("INFLIGHT_CUDA_ARCHS has `{arch}`, ")), "{why}");
            assert!(
                why.contains(&format!("nvcc {name} ")) && why.contains("12.8 or later"),
                "{why}"
            );
        }
        for name in ["12.8", "12.9", "13.0", "13.1"] {
            assert!(taken(name, archs).is_ok(), "{name}");
        }
    }
    for archs in ["80", "86;89", "90 90a"] {
        assert!(taken("12.4", archs).is_ok(), "{archs}");
    }
    for archs in ["", ";"] {
        assert!(refused("13.0", archs).contains("INFLIGHT_CUDA_ARCHS names no architecture"));
    }
    for (archs, word) in [("sm_80", "sm_80"), ("80;ninety", "ninety"), ("75;80", "75")] {
        assert!(refused("13.0", archs).contains(&format!("INFLIGHT_CUDA_ARCHS has `{word}`")));
    }
}

#[test]
fn one_that_is_too_old_is_passed_over() {
    let first = |names: &[&'static str]| {
        let found = names.iter().map(|name| (*name, said(name)));
        nvcc::first_new_enough(found).map(|(name, _)| name)
    };
    assert_eq!(first(&["12.3", "12.6", "13.0"]), Some("12.6"));
    assert_eq!(first(&["13.0", "12.3"]), Some("13.0"));
    assert_eq!(first(&["12.3"]), Some("12.3"));
    assert_eq!(first(&[]), None);
}

#[test]
fn head_dimensions_are_those_of_kernels() {
    assert_eq!(nvcc::head_dim("decode_bf16_same_d128"), Some(128));
    assert_eq!(nvcc::head_dim("decode_bf16_same_d192_v128_sm90"), Some(192));
    assert_eq!(nvcc::head_dim("append_bf16_same"), None);
    let known = [128, 64, 256, 128];
    assert_eq!(nvcc::head_dims("256;64, 64", &known).unwrap(), [64, 256]);
    for text in ["80", "64;d128", "-64"] {
        let why = nvcc::head_dims(text, &known).unwrap_err();
        assert!(why.starts_with("INFLIGHT_CUDA_HEAD_DIMS has `"), "{why}");
        assert!(why.ends_with("for 64;128;256"), "{why}");
    }
    assert!(nvcc::head_dims(" ;", &known).unwrap_err().contains("names no head dimension"));
}

#[test]
fn a_row_of_the_table_is_a_file_for_each_type_of_queries() {
    let table = Table::parse(
        "#ifndef INFLIGHT_Q_TYPE
/* INFLIGHT_Q_TYPE(f64) */
INFLIGHT_Q_TYPE(bf16)
INFLIGHT_Q_TYPE(f16)
INFLIGHT_DEVICE_CLASS(sm80, 80, 999, 99)
INFLIGHT_DEVICE_CLASS(sm90, 90, 90, 227)
INFLIGHT_FAMILY(decode, some/where.cuh)
INFLIGHT_FAMILY(merge, else.cuh)
INFLIGHT_ATTENTION(decode,  same, 128, 128, 16, 64, 3, 128, 2, 1000, sm80)
INFLIGHT_ATTENTION(decode,  e4m3, 192, 128, 16, 64, 3, 128, 2, 1000, sm90)
INFLIGHT_ROWWISE(merge, any, 8)
",
    );
    let instances = table.instances();
    let names: Vec<_> = instances.iter().map(|instance| instance.name.as_str()).collect();
    let decode =
        ["bf16_same_d128", "f16_same_d128", "bf16_e4m3_d192_v128_sm90", "f16_e4m3_d192_v128_sm90"]
            .map(|suffix| format!("decode_{suffix}"));
    assert_eq!(names[..4], decode);
    assert_eq!(names[4..], ["merge_bf16", "merge_f16"]);
    assert_eq!(
        instances[3].text,
        "#include \"some/where.cuh\"\n\nINFLIGHT_DECODE_KERNELS(inflight_decode_f16_e4m3_d192_v128_sm90, \
         f16, e4m3, 192, 128, sm90)\n"
    );
    assert!(instances[5].text.ends_with("\nINFLIGHT_MERGE_KERNELS(inflight_merge_f16, f16)\n"));
}

/// C++ would take what this reader leaves out.
#[test]
#[should_panic(expected = "`ATTENTION(decode, same,` is not a row in one line")]
fn a_row_of_two_lines_is_refused() {
    Table::parse("INFLIGHT_ATTENTION(decode, same,\n64)\n");
}

#[test]
fn what_is_too_old_or_says_no_version_is_refused() {
    let _one = one_at_a_time();
    let why = refused("12.3", "80");
    assert!(why.contains("is of CUDA 12.3, and 12.4 is the oldest"), "{why}");
    let older = "Cuda compilation tools, release 9.2, V9.2.148\n";
    for (name, said, why) in [
        ("9.2", older, "is of CUDA 9.2, and 12.4"),
        ("clang", "clang version 21.1.2\n", "does not say its version as nvcc does"),
        ("empty", "", "does not say its version as nvcc does"),
        ("odd", "Cuda compilation tools, release thirteen, V13\n", "does not say its version"),
    ] {
        let program = stand_in(name, said);
        let version = nvcc::version(&program).expect("it runs");
        let refused = Nvcc::new(program, version, "80", Vec::new()).err().expect("it is refused");
        assert!(refused.contains(why) && refused.contains("set NVCC to"), "{refused}");
    }
    let missing = folder("missing").join("nvcc");
    assert_eq!(nvcc::version(&missing), None);
}
