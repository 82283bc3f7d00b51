//! The driver's interface: order of streams, capture, refusals, as cudarc calls it.

#![allow(clippy::multiple_unsafe_ops_per_block, reason = "calls of the driver in a row")]

mod common;

use std::ptr::{null, null_mut};

use common::{
    CUDA_SUCCESS, CUresult, Gpu, Launch, OobFill, TensorMap, alloc, download, gpu, ok, stream,
    sync, upload,
};
use cudarc::driver::sys;
use simt::Mode;

#[repr(C)]
#[derive(Clone, Copy)]
struct Small {
    input: u64,
    out: u64,
    counter: u64,
    n: u32,
    wild: u32,
}

fn event() -> sys::CUevent {
    let mut e = null_mut();
    // SAFETY: the pointer is to a local.
    ok(unsafe { sys::cuEventCreate(&raw mut e, 2) });
    e
}
fn pinned(words: usize) -> &'static mut [u32] {
    let mut p = null_mut();
    // SAFETY: the pointer is to a local.
    ok(unsafe { sys::cuMemHostAlloc(&raw mut p, words * 4, 0) });
    // SAFETY: as many words, never freed before the process ends.
    unsafe { std::slice::from_raw_parts_mut(p.cast(), words) }
}
fn copy(gpu: &Gpu, from: u64, to: u64, s: sys::CUstream) -> CUresult {
    let params = Small { input: from, out: to, counter: 0, n: 64, wild: 0 };
    launch(gpu, "selftest_copy", 1, &params, s, false)
}
fn launch(
    gpu: &Gpu,
    kernel: &str,
    blocks: u32,
    params: &Small,
    stream: sys::CUstream,
    dependent: bool,
) -> CUresult {
    let grid = [blocks, 1, 1];
    gpu.enqueue(&Launch { kernel, grid, threads: 64, smem: 256, stream, dependent }, params)
}

#[test]
fn tensor_maps_that_fill_with_nan_are_refused() {
    let Some(_gpu) = gpu(Mode::Fast) else { return };
    let (base, mut map) = (upload(&[0u16; 4096]), TensorMap([0; 16]));
    let mut encode = |fill| map.encode(base, [64, 1, 64, 1], [64, 1, 64, 1], fill);
    assert_eq!(encode(OobFill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE), CUDA_SUCCESS);
    let nan = OobFill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA;
    assert_eq!(encode(nan), CUresult::CUDA_ERROR_NOT_SUPPORTED);
}

#[test]
fn the_device_is_the_emulator() {
    let Some(gpu) = gpu(Mode::Fast) else { return };
    let mut name = [0u8; 64];
    // SAFETY: as many bytes as said.
    ok(unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), 64, 0) });
    assert!(name.starts_with(b"inflight SIMT emulator\0"));
    assert!(!gpu.emulator.unwrap().is_checking());
    let why = simt::device(Mode::Checking).unwrap_err();
    println!("one mode a process: {why}");
}

/// A copy lands at the latest when it is waited for, with a seed maybe at once: in some order what
/// is still read is overwritten, and in some it is not there when it is read.
#[test]
fn copies_land_late_or_at_once() {
    let Some(gpu) = gpu(Mode::Fast) else { return };
    let emulator = gpu.emulator.unwrap();
    let overwritten = |seed| {
        emulator.set_seed(seed);
        let params = Small {
            input: upload(&[7_u32; 128]),
            out: upload(&[0_u32; 32]),
            counter: 0,
            n: 0,
            wild: 0,
        };
        assert_eq!(gpu.run("selftest_overwritten", [1, 1, 1], 64, 512, &params), CUDA_SUCCESS);
        download::<u32>(params.out, 32).iter().filter(|&&x| x == 7).count()
    };
    assert_eq!(overwritten(0), 0);
    let seeds: Vec<usize> = (1..40).map(overwritten).collect();
    assert!(seeds.contains(&0) && seeds.iter().any(|&n| n > 0), "{seeds:?}");
    emulator.set_seed(0);
}

/// Pinned memory is read when the copy happens: overwriting it too early shows.
#[test]
fn copies_from_pinned_memory_are_late() {
    let Some(_gpu) = gpu(Mode::Fast) else { return };
    let (s, host, to) = (stream(), pinned(4), alloc(16));
    host.fill(1);
    // SAFETY: both sides have 16 bytes.
    ok(unsafe { sys::cuMemcpyHtoDAsync_v2(to, host.as_ptr().cast(), 16, s) });
    host.fill(2);
    ok(sync(s));
    assert_eq!(download::<u32>(to, 4), [2; 4]);
    // Ordinary memory was copied away.
    let mut plain = [3u32; 4];
    // SAFETY: both sides have 16 bytes.
    ok(unsafe { sys::cuMemcpyHtoDAsync_v2(to, plain.as_ptr().cast(), 16, s) });
    plain.fill(4);
    ok(sync(s));
    assert_eq!((download::<u32>(to, 4), plain), (vec![3; 4], [4; 4]));
}

#[test]
fn streams_are_ordered_by_events_alone() {
    let Some(gpu) = gpu(Mode::Fast) else { return };
    let (a, b, done) = (stream(), stream(), event());
    let input = upload(&[7u32; 64]);
    let (middle, out) = (upload(&[0u32; 64]), upload(&[0u32; 64]));
    for waits in [false, true] {
        ok(copy(&gpu, input, middle, a));
        // SAFETY: handles of this context.
        ok(unsafe { sys::cuEventRecord(done, a) });
        if waits {
            // SAFETY: handles of this context.
            ok(unsafe { sys::cuStreamWaitEvent(b, done, 0) });
        }
        ok(copy(&gpu, middle, out, b));
        ok(sync(b));
        // Without the event nothing says that `a` comes first.
        assert_eq!(download::<u32>(out, 64), if waits { [7; 64] } else { [0; 64] });
        ok(sync(a));
        // SAFETY: the memory has 256 bytes.
        ok(unsafe { sys::cuMemsetD8Async(middle, 0, 256, null_mut()) });
    }
    // Who asks meets NOT_READY once, and gets there.
    ok(copy(&gpu, input, out, a));
    // SAFETY: handles of this context.
    ok(unsafe { sys::cuEventRecord(done, a) });
    let mut answers = Vec::new();
    while answers.last() != Some(&CUDA_SUCCESS) {
        // SAFETY: handles of this context.
        answers.push(unsafe { sys::cuEventQuery(done) });
    }
    assert_eq!(answers, [CUresult::CUDA_ERROR_NOT_READY, CUDA_SUCCESS]);
}

#[test]
fn graphs_replay_what_was_captured() {
    let Some(gpu) = gpu(Mode::Fast) else { return };
    let (s, host) = (stream(), pinned(64));
    let (input, out) = (alloc(256), upload(&[0u32; 64]));
    let (mut graph, mut exec) = (null_mut(), null_mut());
    // SAFETY: handles and memory of this context.
    unsafe {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        ok(sys::cuStreamBeginCapture_v2(s, mode));
        ok(sys::cuMemcpyHtoDAsync_v2(input, host.as_ptr().cast(), 256, s));
        ok(copy(&gpu, input, out, s));
        ok(sys::cuStreamEndCapture(s, &raw mut graph));
        ok(sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0));
        ok(sys::cuGraphDestroy(graph));
    }
    assert_eq!(download::<u32>(out, 64), [0; 64], "capture runs nothing");
    for round in 1..4 {
        host.fill(round);
        // SAFETY: handles of this context.
        ok(unsafe { sys::cuGraphLaunch(exec, s) });
        ok(sync(s));
        assert_eq!(download::<u32>(out, 64), [round; 64]);
    }
    // SAFETY: not used again.
    ok(unsafe { sys::cuGraphExecDestroy(exec) });
}

/// Memory of a chain of launches: what the first one copies, where to, and where the last one does.
struct Chain {
    stream: sys::CUstream,
    input: u64,
    middle: u64,
    out: u64,
    aside: u64,
}

const WORDS: usize = 64 * 40;

impl Chain {
    /// Words are 7, then 0, then 1.
    fn new() -> Self {
        let of = |word: u32| upload(&[word; WORDS]);
        Self { stream: stream(), input: of(7), middle: of(0), out: of(1), aside: of(2) }
    }
    /// As launched first, before all others: what they depend on.
    fn first(&self, gpu: &Gpu, blocks: u32) {
        let params = Small { n: WORDS as u32, ..self.params(self.input, self.middle) };
        ok(launch(gpu, "selftest_copy", blocks, &params, self.stream, false));
    }
    fn dependent(&self, gpu: &Gpu, kernel: &str, blocks: u32, [from, to]: [u64; 2], n: u32) {
        let params = Small { n, ..self.params(from, to) };
        ok(launch(gpu, kernel, blocks, &params, self.stream, true));
    }
    fn params(&self, input: u64, out: u64) -> Small {
        Small { input, out, counter: self.aside, n: 0, wild: 0 }
    }
    /// The words that the last launch has copied.
    fn found(&self) -> Vec<u32> {
        ok(sync(self.stream));
        download(self.out, WORDS)
    }
    /// The same of a launch of one block that copies what the first has written.
    fn of_one(gpu: &Gpu, kernel: &str) -> u32 {
        let chain = Self::new();
        chain.first(gpu, 1);
        chain.dependent(gpu, kernel, 1, [chain.middle, chain.out], 1);
        chain.found()[0]
    }
}

/// A dependent runs up to its wait before the launch before it does anything that it might see.
#[test]
fn dependents_begin_before_the_launch_before_them_is_done() {
    let Some(gpu) = gpu(Mode::Fast) else { return };
    let Some(emulator) = gpu.emulator else { return };
    emulator.set_device(90, 0);
    // What waits is right; what reads before it has waited finds what was there before.
    for (kernel, word) in [
        ("selftest_dependent_copy", 7),
        ("selftest_dependent_lets_next", 7),
        ("selftest_dependent_reads_early", 0),
        ("selftest_dependent_asks_early", 0),
    ] {
        assert_eq!(Chain::of_one(&gpu, kernel), word, "{kernel}");
        // Before 9.0 no launch is one, unless the test asks for it.
        emulator.set_device(89, 0);
        assert_eq!(Chain::of_one(&gpu, kernel), 7, "{kernel}");
        emulator.set_dependent(true);
        assert_eq!(Chain::of_one(&gpu, kernel), word, "{kernel}");
        emulator.set_dependent(false);
        emulator.set_device(90, 0);
    }
    assert_eq!(gpu.reports(), Vec::<String>::new());
    // Code for 8.0 does not wait.
    emulator.set_archs("80");
    assert_eq!(Chain::of_one(&gpu, "selftest_dependent_copy"), 0);
    let reports = gpu.reports();
    assert!(reports[0].ends_with("its code, of compute_80, never waits"), "{reports:?}");
    emulator.set_archs("");

    // As many blocks as are resident, at most 16; the others begin when those are done.
    for (multiprocessors, early) in [(4, 16), (0, 16)] {
        emulator.set_device(90, multiprocessors);
        let chain = Chain::new();
        chain.first(&gpu, 40);
        let kernel = "selftest_dependent_reads_early";
        chain.dependent(&gpu, kernel, 40, [chain.middle, chain.out], 0);
        let found = chain.found();
        assert!(found[..64 * early].iter().all(|&x| x == 0), "{found:?}");
        assert!(found[64 * early..].iter().all(|&x| x == 7), "{found:?}");
    }
    emulator.reset();
}

/// Only what follows on a launch in its stream is a dependent of it.
#[test]
fn what_lies_between_two_launches_is_waited_for() {
    let Some(gpu) = gpu(Mode::Fast) else { return };
    let Some(emulator) = gpu.emulator else { return };
    emulator.set_device(90, 0);
    let (mark, other) = (event(), stream());
    for between in ["", "copy", "fill", "event", "wait", "other stream"] {
        let chain = Chain::new();
        chain.first(&gpu, 1);
        // SAFETY: handles and memory of this context.
        unsafe {
            match between {
                "copy" => {
                    let (to, from) = (chain.aside, chain.input);
                    ok(sys::cuMemcpyDtoDAsync_v2(to, from, 4, chain.stream));
                }
                "fill" => ok(sys::cuMemsetD8Async(chain.aside, 0, 4, chain.stream)),
                "event" => ok(sys::cuEventRecord(mark, chain.stream)),
                "wait" => {
                    ok(sys::cuEventRecord(mark, other));
                    ok(sys::cuStreamWaitEvent(chain.stream, mark, 0));
                }
                "other stream" => ok(copy(&gpu, chain.input, chain.aside, other)),
                _ => {}
            }
        }
        let kernel = "selftest_dependent_reads_early";
        chain.dependent(&gpu, kernel, 1, [chain.middle, chain.out], 0);
        let is_next = matches!(between, "" | "other stream");
        assert_eq!(chain.found()[0], if is_next { 0 } else { 7 }, "{between:?} between");
    }
    assert_eq!(gpu.reports(), Vec::<String>::new());
    emulator.reset();
}

/// A launch waits for the one before it, and for no other: if that one is done without having
/// waited, those before it may still be at work.
#[test]
fn a_launch_that_does_not_wait_is_done_before_the_one_before_it() {
    let Some(gpu) = gpu(Mode::Fast) else { return };
    let Some(emulator) = gpu.emulator else { return };
    emulator.set_device(90, 0);
    for captured in [false, true] {
        // Blocks that wait, of the launch between; what the one after it does; what that finds.
        for (between, waits, kernel, word) in [
            ("selftest_dependent_ends_early", 0, "selftest_dependent_copy", 0),
            ("selftest_dependent_ends_early", 1, "selftest_dependent_copy", 7),
            ("selftest_dependent_ends_early", 2, "selftest_dependent_copy", 7),
            // It may begin when all blocks of the one before it have let it, or have ended.
            ("selftest_dependent_ends_early", 0, "selftest_dependent_reads_early", 0),
            ("selftest_dependent_lets_next", 2, "selftest_dependent_reads_early", 0),
            ("selftest_dependent_copy", 2, "selftest_dependent_reads_early", 7),
        ] {
            let chain = Chain::new();
            let (mut graph, mut exec) = (null_mut(), null_mut());
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            if captured {
                // SAFETY: a stream of this context.
                ok(unsafe { sys::cuStreamBeginCapture_v2(chain.stream, mode) });
            }
            chain.first(&gpu, 2);
            chain.dependent(&gpu, between, 2, [chain.input, chain.aside], waits);
            chain.dependent(&gpu, kernel, 2, [chain.middle, chain.out], 0);
            if captured {
                // SAFETY: handles of this context, pointers to locals.
                unsafe {
                    ok(sys::cuStreamEndCapture(chain.stream, &raw mut graph));
                    ok(sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0));
                    ok(sys::cuGraphDestroy(graph));
                    ok(sys::cuGraphLaunch(exec, chain.stream));
                }
            }
            let what = format!("{between}, {waits}, {kernel}, captured: {captured}");
            assert_eq!(chain.found()[..128], [word; 128], "{what}");
            if captured {
                // SAFETY: not used again.
                ok(unsafe { sys::cuGraphExecDestroy(exec) });
            }
        }
    }
    assert_eq!(gpu.reports(), Vec::<String>::new());
    emulator.reset();
}

#[test]
fn capture_refuses_what_the_driver_refuses() {
    let Some(gpu) = gpu(Mode::Fast) else { return };
    let global = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    let relaxed = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    let (s, mut graph, mut at) = (stream(), null_mut(), 0);
    // SAFETY: handles and memory of this context.
    unsafe {
        ok(sys::cuStreamBeginCapture_v2(s, global));
        let error = sys::cuMemAlloc_v2(&raw mut at, 16);
        assert_eq!(error, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        let error = sys::cuStreamEndCapture(s, &raw mut graph);
        assert_eq!(error, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

        ok(sys::cuStreamBeginCapture_v2(s, relaxed));
        ok(sys::cuMemAlloc_v2(&raw mut at, 256));
        assert_eq!(sync(s), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        let error = sys::cuStreamEndCapture(s, &raw mut graph);
        assert_eq!(error, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

        // A second stream joins by an event, and has to be waited for.
        for rejoins in [false, true] {
            let (t, fork, join) = (stream(), event(), event());
            ok(sys::cuStreamBeginCapture_v2(s, relaxed));
            ok(sys::cuEventRecord(fork, s));
            ok(sys::cuStreamWaitEvent(t, fork, 0));
            ok(copy(&gpu, at, at, t));
            if rejoins {
                ok(sys::cuEventRecord(join, t));
                ok(sys::cuStreamWaitEvent(s, join, 0));
            }
            let result = sys::cuStreamEndCapture(s, &raw mut graph);
            let unjoined = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
            assert_eq!(result, if rejoins { CUDA_SUCCESS } else { unjoined });
        }
    }
}

#[test]
fn launches_are_checked() {
    let Some(gpu) = gpu(Mode::Fast) else { return };
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    let out = alloc(256);
    let params = Small { input: out, out, counter: 0, n: 0, wild: 0 };
    assert_eq!(gpu.run("selftest_copy", [1, 1, 1], 128, 0, &params), invalid);
    assert_eq!(gpu.run("selftest_copy", [0, 1, 1], 64, 0, &params), invalid);
    assert_eq!(gpu.run("selftest_copy", [1, 65536, 1], 64, 0, &params), invalid);
    let kernel = gpu.kernel("selftest_copy");
    let dynamic = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let mut value = 0;
    // SAFETY: handles of this context, pointers to locals.
    unsafe {
        ok(sys::cuKernelGetAttribute(&raw mut value, dynamic, kernel, 0));
        assert_eq!(value, 48 << 10);
        assert_eq!(sys::cuKernelSetAttribute(dynamic, (163 << 10) + 1, kernel, 0), invalid);
        let mut library = null_mut();
        let junk = *b"neither this nor that";
        let result = sys::cuLibraryLoadData(
            &raw mut library,
            junk.as_ptr().cast(),
            null_mut(),
            null_mut(),
            0,
            null_mut(),
            null_mut(),
            0,
        );
        assert_eq!(result, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        let mut none = null_mut();
        let result = sys::cuLibraryGetKernel(&raw mut none, gpu.library, c"no_such".as_ptr());
        assert_eq!(result, CUresult::CUDA_ERROR_NOT_FOUND);
        let mut name = null();
        ok(sys::cuGetErrorName(result, &raw mut name));
        assert_eq!(std::ffi::CStr::from_ptr(name), c"CUDA_ERROR_NOT_FOUND");
    }
}

/// Memory beyond 2^31 elements costs only what is touched; a fault ends the context, not the
/// process.
#[test]
fn large_memory_and_faults() {
    let Some(gpu) = gpu(Mode::Fast) else { return };
    let large = alloc(10 << 30);
    let end = large + (10 << 30) - 256;
    let params = Small { input: upload(&[9u32; 64]), out: end, counter: 0, n: 64, wild: 0 };
    assert_eq!(gpu.run("selftest_copy", [1, 1, 1], 64, 0, &params), CUDA_SUCCESS);
    assert_eq!(download::<u32>(end, 64), [9; 64]);
    let mut at = 0;
    // SAFETY: the pointer is to a local.
    let result = unsafe { sys::cuMemAlloc_v2(&raw mut at, 8 << 30) };
    assert_eq!(result, CUresult::CUDA_ERROR_OUT_OF_MEMORY);

    let result = gpu.run("selftest_deadlock", [1, 1, 1], 64, 0, &params);
    assert_eq!(result, CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(sync(null_mut()), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    let reports = gpu.reports();
    assert!(reports[0].starts_with("deadlock: 32 threads are left"), "{reports:?}");
}

#[test]
fn figures() {
    let Some(gpu) = gpu(Mode::Fast) else { return };
    for (kernel, threads, per) in
        [("selftest_mma_speed", 32, "warp mma"), ("selftest_barrier_speed", 128, "thread barrier")]
    {
        let n = 20_000;
        let params = Small { input: 0, out: 0, counter: 0, n, wild: 0 };
        let start = std::time::Instant::now();
        assert_eq!(gpu.run(kernel, [1, 1, 1], threads, 0, &params), CUDA_SUCCESS);
        let units = f64::from(n) * if threads == 32 { 1.0 } else { f64::from(threads) };
        println!("{per}: {:.0} ns", start.elapsed().as_secs_f64() * 1e9 / units);
    }
}

#[test]
fn failures_and_devices_are_as_asked_for() {
    let Some(gpu) = gpu(Mode::Fast) else { return };
    let Some(emulator) = gpu.emulator else { return };
    let alloc = || {
        let mut at = 0;
        // SAFETY: the pointer is to a local.
        let result = unsafe { sys::cuMemAlloc_v2(&raw mut at, 64) };
        (result, at)
    };
    let before = emulator.alive();
    emulator.fail_call(Some("cuMemAlloc_v2"), 2, 2, false);
    let (first, at) = alloc();
    ok(first);
    assert!(emulator.is_failure_pending());
    assert_eq!(emulator.alive().device_bytes, before.device_bytes + 64);
    assert_eq!(alloc().0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    assert!(!emulator.is_failure_pending());
    emulator.fail_call(None, 1, 999, false);
    // Calls that give back do not count.
    // SAFETY: allocated above.
    ok(unsafe { sys::cuMemFree_v2(at) });
    assert_eq!(emulator.alive(), before);
    assert_eq!(alloc().0, CUresult::CUDA_ERROR_UNKNOWN);
    assert_eq!(sync(null_mut()), CUDA_SUCCESS);
    emulator.fail_call(Some("cuStreamSynchronize"), 1, 700, true);
    assert_eq!(sync(null_mut()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(alloc().0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    emulator.reset();

    let attribute = |which| {
        let mut value = 0;
        // SAFETY: the pointer is to a local.
        ok(unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, 0) });
        value
    };
    use sys::CUdevice_attribute::*;
    emulator.set_device(75, 40);
    assert_eq!(attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR), 7);
    assert_eq!(attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR), 5);
    assert_eq!(attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT), 40);
    // Code of the device: that of its major version with the highest minor one, or from PTX.
    for (archs, capability, ptx, binary) in [
        ("", 75, None, 0),
        ("", 80, Some(80), 80),
        ("", 86, Some(80), 80),
        ("", 89, Some(80), 80),
        ("", 90, Some(90), 90),
        ("", 100, Some(90), 100),
        ("", 121, Some(90), 121),
        ("80", 90, Some(80), 90),
        ("80", 100, Some(80), 100),
        ("80;89", 86, Some(80), 80),
        ("80;89", 89, Some(89), 89),
        ("80;90a,100", 90, Some(90), 90),
        ("80;90a,100", 103, Some(100), 100),
        ("80;90a,100", 120, Some(90), 120),
        ("90", 86, Some(80), 86),
    ] {
        emulator.set_archs(archs);
        emulator.set_device(capability, 0);
        let mut kernel = null_mut();
        let name = c"selftest_copy".as_ptr();
        // SAFETY: the library is loaded, the name ends in a zero.
        let found = unsafe { sys::cuLibraryGetKernel(&raw mut kernel, gpu.library, name) };
        let Some(ptx) = ptx else {
            assert_eq!(found, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
            continue;
        };
        ok(found);
        let version = |which| {
            let mut value = 0;
            // SAFETY: the kernel was found above, the pointer is to a local.
            ok(unsafe { sys::cuKernelGetAttribute(&raw mut value, which, kernel, 0) });
            value
        };
        use sys::CUfunction_attribute::*;
        let what = format!("{archs:?} on {capability}");
        assert_eq!(version(CU_FUNC_ATTRIBUTE_PTX_VERSION), ptx, "{what}");
        assert_eq!(version(CU_FUNC_ATTRIBUTE_BINARY_VERSION), binary, "{what}");
    }
    emulator.reset();
}
