//! What is said where CUDA cannot be used. A process finds out once: each case has its own, which
//! is this test again with a driver that lacks something.
#![cfg(all(feature = "cuda-driver", target_os = "linux"))]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use inflight::Error;
use inflight::device::cuda::{self, Cuda, CudaBuffer, CudaStream, PinnedBuffer, TensorMap, Tile};
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

/// In the process of a driver that has all but what makes tensor maps.
#[test]
fn tensor_map() {
    if !std::env::var(CASE).is_ok_and(|case| case == "tensor map") {
        return;
    }
    simt::device(simt::Mode::Fast).expect("the case was run for it");
    let cuda = Cuda::new(0).expect("no map was asked for");
    let tile =
        Tile { address: 1 << 20, element: 2, dims: &[64], strides: &[], tile: &[64], swizzle: 0 };
    match TensorMap::new(&cuda, &tile) {
        Err(error @ Error::NoCuda(_)) => println!("said: {error}"),
        other => panic!("{other:?}"),
    }
}

/// In a process that forks after it has used the driver.
#[test]
fn fork() {
    if !std::env::var(CASE).is_ok_and(|case| case == "fork") {
        return;
    }
    let emulator = simt::device(simt::Mode::Fast).expect("the case was run for it");
    let cuda = Cuda::new(0).expect("the emulator's");
    let made = (
        CudaBuffer::new(&cuda, 64).expect("there is memory"),
        PinnedBuffer::new(&cuda, 64).expect("there is memory"),
        CudaStream::new(&cuda).expect("it is like any"),
    );
    // SAFETY: the child runs what is below and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: no preconditions.
        unsafe { libc::alarm(120) };
        let child = std::panic::AssertUnwindSafe(|| {
            let alive = emulator.alive();
            let forked = || Err(Error::NoCuda(CudaUnavailable::Forked));
            assert_eq!(cuda::probe(), Err(CudaUnavailable::Forked));
            assert_eq!(Cuda::new(0).map(|_| ()), forked());
            assert_eq!(CudaBuffer::new(&cuda, 64).map(|_| ()), forked());
            assert_eq!(made.2.synchronize(), forked());
            drop(made);
            drop(cuda);
            assert_eq!(emulator.alive(), alive, "the driver was called");
        });
        let outcome = std::panic::catch_unwind(child);
        // SAFETY: no preconditions.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    let mut status = -1;
    // SAFETY: the status outlives the call.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0, "the child has failed");
    made.2.synchronize().expect("the parent goes on");
    println!("said: {}", CudaUnavailable::Forked);
}

/// What the probe of a process said that finds its driver here.
fn said(case: &str, libraries: Option<&Path>) -> String {
    let libraries = libraries.map(|path| ("LD_LIBRARY_PATH", path.as_os_str()));
    said_with("probe", case, libraries)
}

/// What this test said in a process of its own, with one more variable in its environment.
fn said_with(test: &str, case: &str, variable: Option<(&str, &OsStr)>) -> String {
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    child.args(["--exact", test, "--nocapture"]).env(CASE, case).envs(variable);
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
    for version in [12_039, 11_080] {
        let why = format!("DriverTooOld {{ found: {version}, needed: 12040 }}");
        assert_eq!(said(&format!("emulator version {version}"), None), why);
    }
    assert!(
        said("emulator cuDriverGetVersion 34", None).starts_with("NoDriver { reason: \"cuDriver")
    );
    assert_eq!(said("emulator cuInit 100", None), "NoDevice");
    assert!(said("emulator cuInit 34", None).starts_with("NoDriver { reason: \"cuInit"));
    let failed = said("emulator cuInit 999", None);
    assert!(failed.starts_with("Failed(CudaError { call: \"cuInit\", code: 999"), "{failed}");
    assert_eq!(CudaUnavailable::NoDevice.to_string(), "the CUDA driver finds no device");
}

#[test]
fn a_driver_that_the_parent_has_used() {
    if let Err(why) = simt::device(simt::Mode::Fast) {
        return println!("skipped: {why}");
    }
    assert_eq!(
        said_with("fork", "fork", None),
        "CUDA was used before fork(), and its driver does not work in the child: start this process \
         with exec (`spawn` in Python's multiprocessing)"
    );
}

/// CUDA 12.3, whose driver lacks a function as well: its version is what is said.
#[test]
fn a_driver_that_is_too_old() {
    let Ok(library) = simt::library_of(simt::Mode::Fast, simt::Driver::Cuda12_3) else {
        return println!("skipped: no emulator");
    };
    if std::env::var_os("INFLIGHT_SIMT_LIBRARY").is_some() {
        return println!("skipped: the driver is what INFLIGHT_SIMT_LIBRARY names");
    }
    let driver = Some((simt::DRIVER, OsStr::new("12.3")));
    let said = |case| said_with("probe", case, driver);
    assert_eq!(said("emulator cuInit 999"), "DriverTooOld { found: 12030, needed: 12040 }");
    // One that says otherwise is found out.
    assert_eq!(said("emulator version 12040"), "MissingSymbol { name: \"cuFuncLoad\" }");
    // By its plain name, as a system has it.
    let folder = Path::new(library).parent().expect("it is in a folder");
    let found = said_with("probe", "none", Some(("LD_LIBRARY_PATH", folder.as_os_str())));
    assert_eq!(found, "DriverTooOld { found: 12030, needed: 12040 }");
}

#[test]
fn a_driver_without_tensor_maps() {
    let Ok(library) = simt::library(simt::Mode::Fast) else {
        return println!("skipped: no emulator");
    };
    // The emulator, with the function under another name.
    let mut bytes = fs::read(library).expect("the emulator");
    let name = b"\0cuTensorMapEncodeTiled\0";
    let places: Vec<_> = bytes
        .windows(name.len())
        .enumerate()
        .filter(|(_, at)| at == name)
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at + 1] = b'x';
    }
    let library = folder("no-tensor-maps").join("libcuda.so");
    fs::write(&library, bytes).expect("a file of ours");
    let library = Some(("INFLIGHT_SIMT_LIBRARY", library.as_os_str()));
    assert_eq!(
        said_with("tensor_map", "tensor map", library),
        "the CUDA driver has no function `cuTensorMapEncodeTiled`, as drivers since CUDA 12.4 have: \
         update or reinstall it"
    );
}
