//! What is said where CUDA cannot be used. A process finds out once: each case has its own, which
//! is this test again with a driver that lacks something.
#![cfg(all(feature = "cuda-driver", target_os = "linux"))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use inflight::Error;
use inflight::device::cuda::{self, Cuda};
use inflight::error::CudaUnavailable;

const CASE: &str = "INFLIGHT_PROBE_CASE";

/// In the process of a case: what a probe says, and says again.
#[test]
fn probe() {
    let Ok(case) = std::env::var(CASE) else { return };
    if let Some(case) = case.strip_prefix("emulator ") {
        let emulator = simt::device(simt::Mode::Fast).expect("the case was run for it");
        match case.split_once(' ') {
            Some(("version", version)) => emulator.set_driver_version(version.parse().unwrap()),
            Some((call, code)) => emulator.fail_call(Some(call), 1, code.parse().unwrap(), false),
            None => panic!("{case}"),
        }
    }
    let why = cuda::probe().expect_err("it lacks something");
    // Found out once.
    assert_eq!(cuda::probe().expect_err("as before"), why);
    assert_eq!(cuda::driver_version().expect_err("as before"), why);
    match Cuda::new(0) {
        Err(Error::NoCuda(again)) => assert_eq!(again, why),
        other => panic!("{other:?}"),
    }
    println!("said: {why:?}");
}

/// What the probe of a process said that finds its driver here.
fn said(case: &str, libraries: Option<&Path>) -> String {
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    child.args(["--exact", "probe", "--nocapture"]).env(CASE, case);
    if let Some(libraries) = libraries {
        child.env("LD_LIBRARY_PATH", libraries);
    }
    let output = child.output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{case}: {text}{}", String::from_utf8_lossy(&output.stderr));
    let said = text.split_once("said: ").unwrap_or_else(|| panic!("{case}: {text}")).1;
    said.lines().next().expect("a line").to_owned()
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).expect("a folder of ours");
    folder
}

#[test]
fn no_driver() {
    let folder = folder("no-driver");
    for name in ["libcuda.so", "libcuda.so.1"] {
        fs::write(folder.join(name), "no library").expect("a file of ours");
    }
    let said = said("none", Some(&folder));
    assert!(said.starts_with("NoDriver { reason: \"") && said.contains("libcuda.so"), "{said}");
}

#[test]
fn a_function_is_missing() {
    let folder = folder("old-driver");
    let source = folder.join("driver.c");
    // The first two of those that are looked for.
    let code = "int cuInit(unsigned f) { return f; }\nint cuDriverGetVersion(int *v) { *v = 13000; \
                return 0; }\n";
    fs::write(&source, code).expect("a file of ours");
    let compiler = cc::Build::new()
        .opt_level(0)
        .target(env!("INFLIGHT_TARGET"))
        .host(env!("INFLIGHT_TARGET"))
        .cargo_metadata(false)
        .try_get_compiler();
    let Ok(compiler) = compiler else { return println!("skipped: no C compiler") };
    for name in ["libcuda.so", "libcuda.so.1"] {
        let library = folder.join(name);
        let mut command = compiler.to_command();
        command.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
        let built = command.arg("-Wl,-soname,libcuda.so").status();
        if !built.is_ok_and(|status| status.success()) {
            return println!("skipped: no C compiler that runs");
        }
    }
    let said = said("old", Some(&folder));
    assert_eq!(said, "MissingSymbol { name: \"cuDeviceGetCount\" }");
}

#[test]
fn a_driver_that_fails() {
    if let Err(why) = simt::device(simt::Mode::Fast) {
        return println!("skipped: {why}");
    }
    assert_eq!(
        said("emulator version 12080", None),
        "DriverTooOld { found: 12080, needed: 13000 }"
    );
    assert_eq!(
        said("emulator version 12999", None),
        "DriverTooOld { found: 12999, needed: 13000 }"
    );
    assert_eq!(said("emulator cuInit 100", None), "NoDevice");
    assert!(said("emulator cuInit 34", None).starts_with("NoDriver { reason: \"cuInit"));
    let failed = said("emulator cuInit 999", None);
    assert!(failed.starts_with("Failed(CudaError { call: \"cuInit\", code: 999"), "{failed}");
    assert_eq!(CudaUnavailable::NoDevice.to_string(), "the CUDA driver finds no device");
}
