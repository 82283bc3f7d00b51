//! The emulated drivers: what each exports, what it says of itself, and which images it takes. Each
//! is opened by a process of its own.

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::process::Command;
use std::ptr;

use cudarc::driver::sys;
use simt::{Driver, Mode};

mod common;

/// The driver's functions of CUDA 12.4 that are emulated. cudarc declares those of its feature alone,
/// so that a later one is not compiled.
macro_rules! of_12_4 {
    ($($name:ident)*) => {
        [$({
            let _ = sys::$name;
            stringify!($name)
        }),*]
    };
}

const OF_12_4: [&str; 59] = of_12_4![
    cuCtxGetCurrent
    cuCtxGetDevice
    cuCtxPopCurrent_v2
    cuCtxPushCurrent_v2
    cuCtxSetCurrent
    cuCtxSynchronize
    cuDeviceGet
    cuDeviceGetAttribute
    cuDeviceGetCount
    cuDeviceGetName
    cuDeviceGetUuid_v2
    cuDevicePrimaryCtxRelease_v2
    cuDevicePrimaryCtxRetain
    cuDeviceTotalMem_v2
    cuDriverGetVersion
    cuEventCreate
    cuEventDestroy_v2
    cuEventElapsedTime
    cuEventQuery
    cuEventRecord
    cuEventSynchronize
    cuFuncLoad
    cuGetErrorName
    cuGetErrorString
    cuGraphDestroy
    cuGraphExecDestroy
    cuGraphInstantiateWithFlags
    cuGraphLaunch
    cuInit
    cuKernelGetAttribute
    cuKernelGetFunction
    cuKernelSetAttribute
    cuLaunchKernelEx
    cuLibraryGetKernel
    cuLibraryLoadData
    cuLibraryUnload
    cuMemAlloc_v2
    cuMemFreeHost
    cuMemFree_v2
    cuMemGetInfo_v2
    cuMemHostAlloc
    cuMemHostGetDevicePointer_v2
    cuMemcpyDtoDAsync_v2
    cuMemcpyDtoHAsync_v2
    cuMemcpyHtoDAsync_v2
    cuMemsetD8Async
    cuOccupancyMaxActiveBlocksPerMultiprocessor
    cuPointerGetAttribute
    cuStreamBeginCapture_v2
    cuStreamCreate
    cuStreamDestroy_v2
    cuStreamEndCapture
    cuStreamGetCtx
    cuStreamIsCapturing
    cuStreamQuery
    cuStreamSynchronize
    cuStreamWaitEvent
    cuTensorMapEncodeTiled
    cuThreadExchangeStreamCaptureMode
];

/// What a library exports, of the driver's functions; `None`, and a line that says why, where there
/// is no emulator or nothing that lists symbols.
fn exported(driver: Driver) -> Option<BTreeSet<String>> {
    let library = match simt::library_of(Mode::Fast, driver) {
        Ok(library) => library,
        Err(why) => {
            println!("skipped: {why}");
            return None;
        }
    };
    let Ok(listed) = Command::new("nm").args(["-D", "--defined-only", library]).output() else {
        println!("skipped: nm is not here");
        return None;
    };
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let text = String::from_utf8_lossy(&listed.stdout);
    let names = text.lines().filter_map(|line| line.split_whitespace().last());
    Some(names.filter(|name| name.starts_with("cu")).map(str::to_owned).collect())
}

#[test]
fn each_driver_has_what_its_version_has() {
    let all = Driver::ALL.map(exported);
    let [Some(of_12_3), Some(of_12_4), Some(of_12_8), Some(of_13_0)] = all else { return };
    assert_eq!(of_12_4, OF_12_4.map(str::to_owned).into());
    let newer = |new: &BTreeSet<String>, old: &BTreeSet<String>| -> Vec<String> {
        assert!(new.is_superset(old));
        new.difference(old).cloned().collect()
    };
    assert_eq!(newer(&of_12_4, &of_12_3), ["cuFuncLoad"]);
    assert_eq!(newer(&of_12_8, &of_12_4), ["cuEventElapsedTime_v2"]);
    assert_eq!(newer(&of_13_0, &of_12_8), Vec::<String>::new());
}

const CHILD: &str = "SIMT_DRIVERS_CHILD";

/// In the process of a driver: its version, and what it answers to images of each toolkit.
#[test]
fn one_driver() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let gpu = common::gpu(Mode::Fast).expect("the emulator is here");
    let emulator = gpu.emulator.expect("no GPU");
    let driver = Driver::asked();
    assert_eq!(emulator.driver(), driver);
    let mut version = 0;
    // SAFETY: `version` outlives the call.
    common::ok(unsafe { sys::cuDriverGetVersion(&raw mut version) });
    assert_eq!(version, driver.version());
    emulator.set_driver_version(11_080);
    // SAFETY: as above.
    common::ok(unsafe { sys::cuDriverGetVersion(&raw mut version) });
    assert_eq!(version, 11_080);
    emulator.set_driver_version(0);
    for name in ["cuFuncLoad", "cuEventElapsedTime_v2"] {
        let since = if name == "cuFuncLoad" { 12_040 } else { 12_080 };
        assert_eq!(emulator.symbol(name).is_some(), driver.version() >= since, "{name}");
    }

    let answers = |capability, toolkit| {
        emulator.set_device(capability, 4);
        emulator.set_toolkit(toolkit);
        let mut library = ptr::null_mut();
        let image: *const c_void = c"INFLIGHT-SIMT".as_ptr().cast();
        // SAFETY: the image is a string, and `library` outlives the call.
        unsafe {
            sys::cuLibraryLoadData(
                &raw mut library,
                image,
                ptr::null_mut(),
                ptr::null_mut(),
                0,
                ptr::null_mut(),
                ptr::null_mut(),
                0,
            )
        }
    };
    use sys::CUresult::*;
    let is_13 = driver == Driver::Cuda13_0;
    for capability in [80, 86, 90] {
        for toolkit in [0, 11_080, 12_030, 12_090] {
            assert_eq!(answers(capability, toolkit), CUDA_SUCCESS, "{capability} {toolkit}");
        }
        for toolkit in [13_000, 13_010] {
            let right = if is_13 { CUDA_SUCCESS } else { CUDA_ERROR_INVALID_IMAGE };
            assert_eq!(answers(capability, toolkit), right, "{capability} {toolkit}");
        }
    }
    // From PTX.
    for capability in [100, 120] {
        for toolkit in [0, 12_030, 12_040, 12_080, 12_090, 13_000, 13_010] {
            // 0 is what the environment says.
            let newest = if toolkit == 0 { 12_090 } else { toolkit };
            let right = match newest > driver.version() {
                true => CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
                false => CUDA_SUCCESS,
            };
            assert_eq!(answers(capability, toolkit), right, "{capability} {toolkit}");
        }
    }
    emulator.reset();
    println!("looked at {version}");
}

#[test]
fn every_driver() {
    if simt::wants_real_driver() || simt::library(Mode::Fast).is_err() {
        return println!("skipped: no emulator");
    }
    for driver in Driver::ALL {
        let mut child = Command::new(std::env::current_exe().expect("this test"));
        child.args(["--exact", "one_driver", "--nocapture"]).env(CHILD, "1");
        child.env("INFLIGHT_SIMT_TOOLKIT", "12.9").env(simt::DRIVER, driver.name());
        child.env_remove("INFLIGHT_SIMT_LIBRARY");
        let output = child.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("looked at"), "{driver:?}: {said}{told}");
    }
}
