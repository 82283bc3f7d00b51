//! `inflight info` and `inflight selftest`.

use serde_json::Value;

use crate::program::{command, finished, inflight};

fn json(args: &[&str]) -> Value {
    let ran = inflight(args);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{args:?}: {}", ran.stdout);
    serde_json::from_str(&ran.stdout).expect("JSON")
}

#[test]
fn info_says_what_there_is() {
    let machine = json(&["info", "--json"]);
    let keys: Vec<_> = machine.as_object().expect("an object").keys().map(String::as_str).collect();
    let expected = [
        "cores",
        "cores_allowed",
        "cpu",
        "cuda",
        "devices",
        "features",
        "huge_pages",
        "isa",
        "isas",
        "memory_available_bytes",
        "page_bytes",
        "read_gb_per_s",
        "target",
        "threads",
        "version",
    ];
    assert_eq!(keys, expected);
    let isas = machine["isas"].as_array().expect("names");
    assert!(isas.contains(&machine["isa"]) && isas.contains(&"portable".into()), "{machine}");
    assert_eq!(machine["version"], env!("CARGO_PKG_VERSION"));
    for key in ["one_thread", "all_threads"] {
        assert!(machine["read_gb_per_s"][key].as_f64().is_some_and(|x| x > 0.0), "{machine}");
    }
    assert_eq!(machine["devices"][0]["name"], "cpu");
    let (cuda, device) = (&machine["cuda"], &machine["devices"][1]);
    assert_eq!(device["name"], "cuda");
    let gpus = cuda["devices"].as_array().expect("a list");
    assert!(cuda["driver_needed"].as_u64().is_some_and(|version| version >= 12_040), "{cuda}");
    assert_eq!(cuda["toolkit"].is_null(), cuda["architectures"] == "", "{cuda}");
    // Either a reason, which is the device's note as well, or a GPU and its driver.
    match cuda["reason"].as_str() {
        Some(reason) => {
            assert!(gpus.is_empty() && !reason.is_empty(), "{cuda}");
            assert_eq!((&device["available"], &device["note"]), (&false.into(), &reason.into()));
        }
        None => {
            assert!(cuda["driver"].as_u64().is_some_and(|version| version >= 12_040), "{cuda}");
            assert!(gpus[0]["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 30));
        }
    }
    println!("{} keys, {} instruction sets", keys.len(), isas.len());

    let ran = inflight(&["info"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    for name in ["version", "cpu", "instructions", "cores", "huge pages", "read", "cuda", "devices"]
    {
        assert!(ran.stdout.lines().any(|line| line.starts_with(name)), "{name}: {}", ran.stdout);
    }
}

#[test]
fn the_selftest_passes() {
    let report = json(&["selftest", "--threads", "2", "--json"]);
    let keys: Vec<_> = report.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["cases", "device", "failed", "isas", "passed", "seconds", "threads"]);
    let cases = report["cases"].as_array().expect("cases");
    let mut compared = 0;
    for case in cases {
        assert_eq!(case["passed"], true, "{case}");
        let [error, bound] = ["max_error", "bound"].map(|key| case[key].as_f64());
        assert!(error.is_some() && error <= bound, "{case}");
        compared += case["compared"].as_u64().expect("a count");
    }
    for kind in ["attention, prefill", "attention, decode", "append", "merge", "move blocks"] {
        let named = |case: &&Value| case["case"].as_str().is_some_and(|c| c.starts_with(kind));
        assert!(cases.iter().filter(named).count() >= 3, "{kind}");
    }
    assert_eq!(
        (&report["failed"], report["passed"].as_u64()),
        (&0.into(), Some(cases.len() as u64))
    );
    assert_eq!(report["threads"], 2);
    println!("{} cases pass, {compared} numbers compared", cases.len());
    assert!(cases.len() > 60 && compared > 1_000_000);
}

/// The kernels of GPUs, on the emulator in the driver's place.
#[test]
fn the_selftest_of_a_gpu_passes() {
    let library = match simt::library(simt::Mode::Fast) {
        Ok(library) => library,
        Err(why) => return println!("skipped: {why}"),
    };
    let emulated = |args: &[&str]| {
        let output = command(args).env("LD_PRELOAD", library).output().expect("it starts");
        finished(args, output)
    };
    let ran = emulated(&["selftest", "--device", "cuda:0", "--json"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.stdout);
    let report: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!((&report["failed"], &report["device"]), (&0.into(), &"cuda:0".into()));
    assert!(report["passed"].as_u64().is_some_and(|passed| passed > 45), "{report}");
    assert!(report["name"].as_str().is_some_and(|name| name.contains("emulator")));
    let ran = emulated(&["selftest", "--device", "cuda:7"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    for (driver, says) in [
        (simt::Driver::Cuda13_0, "driver of CUDA 13.0"),
        (simt::Driver::Cuda12_4, "driver of CUDA 12.4"),
        (
            simt::Driver::Cuda12_3,
            "offers CUDA 12.3, and 12.4 is needed: update to driver 550 or later",
        ),
    ] {
        let library = simt::library_of(simt::Mode::Fast, driver).expect("built as the others are");
        let output = command(&["info"]).env("LD_PRELOAD", library).output().expect("it starts");
        let ran = finished(&["info"], output);
        let line = |name| ran.stdout.lines().find(|line| line.starts_with(name)).expect("a line");
        let (cuda, devices) = (line("cuda"), line("devices"));
        if driver == simt::Driver::Cuda12_3 {
            assert!(cuda.contains("no driver") && devices.contains(says), "{cuda}\n{devices}");
        } else {
            assert!(cuda.contains("emulator") && cuda.contains(says), "{cuda}");
        }
        assert!(cuda.contains("for drivers of CUDA 1"), "{cuda}");
    }
    println!("{} cases pass on the emulator", report["passed"]);
}

/// A GPU that is asked for and not there is an error, and nothing else is.
#[test]
fn a_selftest_without_a_gpu() {
    let machine = json(&["info", "--json"]);
    let Some(reason) = machine["cuda"]["reason"].as_str() else {
        return println!("skipped: there is a GPU");
    };
    let ran = inflight(&["selftest", "--device", "cuda"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains(reason), "{}", ran.stderr);
}

#[test]
fn what_makes_no_sense() {
    let cases: [(&[&str], &str); 9] = [
        (&["selftest", "--device", "tpu"], "--device `tpu` is not cpu"),
        (&["selftest", "--device", "cuda:one"], "--device `cuda:one` is not cpu"),
        (&["selftest", "--device", "cuda", "--threads", "1"], "--threads is an option of"),
        (&["selftest", "--isa", "mmx"], "--isa: `mmx` is not one of"),
        (&["selftest", "--threads", "0"], "--threads: 0 is not within"),
        (&["selftest", "--threads", "99999"], "--threads 99999: at most 8 per core"),
        (&["selftest", "--layers", "2"], "--layers"),
        (&["info", "--device", "cpu"], "--device"),
        (&["info", "everything"], "everything"),
    ];
    for (args, message) in cases {
        let ran = inflight(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{args:?}");
        assert!(ran.stderr.contains(message), "{args:?}: {}", ran.stderr);
    }
}
