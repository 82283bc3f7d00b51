//! All that the library asks of a driver, on emulated drivers of each version that is new enough:
//! each in a process of its own, since a process has one driver.

use std::process::Command;

use inflight::device::cuda::{self, CudaEvent};
use simt::Driver;

use crate::faults::{Everything, case, check};
use crate::gpu;

const CHILD: &str = "INFLIGHT_DRIVERS_CHILD";

/// In the process of a driver: probe, kernels, a step's work, events with times, and a graph.
#[test]
fn start() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let gpu = gpu::gpu().expect("the emulator is here");
    let version = cuda::driver_version().expect("a driver");
    assert_eq!(version, gpu.emulator().expect("no GPU").driver().version());
    assert_eq!(cuda::probe().expect("a device").len(), 1);
    let case = case();
    let mut all = Everything::new(&gpu.cuda, &case).unwrap();
    let [from, to] = [(); 2].map(|()| CudaEvent::timed(&gpu.cuda).unwrap());
    from.record(&gpu.stream).unwrap();
    check(&case, &all.work(&case).unwrap());
    to.record(&gpu.stream).unwrap();
    gpu.stream.synchronize().unwrap();
    assert!(to.seconds_since(&from).unwrap() >= 0.0);
    assert_eq!(gpu.reports(), Vec::<String>::new());
    println!("started on {version}");
}

#[test]
fn on_every_driver() {
    if simt::wants_real_driver() {
        return println!("skipped: the emulator's drivers");
    }
    if let Err(why) = simt::library_of(simt::Mode::Fast, Driver::Cuda12_4) {
        return println!("skipped: {why}");
    }
    for driver in [Driver::Cuda12_4, Driver::Cuda12_8, Driver::Cuda13_0] {
        let mut child = Command::new(std::env::current_exe().expect("this test"));
        child.args(["--exact", "drivers::start", "--nocapture"]).env(CHILD, "1");
        child.env(simt::DRIVER, driver.name());
        for other in ["INFLIGHT_SIMT", "INFLIGHT_SIMT_LIBRARY"] {
            child.env_remove(other);
        }
        let output = child.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{driver:?}: {said}{told}");
        let started = format!("started on {}", driver.version());
        assert!(said.contains(&started), "{driver:?}: {said}{told}");
    }
}
