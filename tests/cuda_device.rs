//! The CUDA device layer, on the emulator, or on a GPU with `INFLIGHT_TEST_DRIVER=real`.
#![cfg(feature = "cuda-driver")]

#[path = "common/gpu.rs"]
mod device;

use std::ptr;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use inflight::Error;
use inflight::device::cuda::{
    self, Cuda, CudaBuffer, CudaEvent, CudaStream, Kernels, Launch, PinnedBuffer, check_pointer,
};
use inflight::error::CudaUnavailable;

/// What is refused, as a field and a reason.
fn refused<T>(result: inflight::Result<T>) -> (&'static str, String) {
    match result {
        Err(Error::InvalidArgument { field, reason }) => (field, reason),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was accepted"),
    }
}

fn current_context() -> *mut cudarc::driver::sys::CUctx_st {
    let mut context = ptr::null_mut();
    // SAFETY: the driver is there, and `context` outlives the call.
    let result = unsafe { cudarc::driver::sys::cuCtxGetCurrent(&raw mut context) };
    assert_eq!(result, cudarc::driver::sys::CUresult::CUDA_SUCCESS);
    context
}

#[test]
fn a_probe_says_what_there_is() {
    let Some(device) = device::device() else { return };
    let gpu = Arc::clone(&device.cuda);
    let devices = cuda::probe().expect("there is one");
    assert_eq!(&devices[0], gpu.info());
    let info = gpu.info();
    assert!(!info.name.is_empty() && info.multiprocessors > 0 && info.memory > 1 << 20, "{info:?}");
    assert!(info.compute_capability.0 >= 8 && info.max_shared_memory >= 99 << 10, "{info:?}");
    assert!(cuda::driver_version().is_ok_and(|version| version >= cuda::NEEDED_VERSION));
    let (field, reason) = refused(Cuda::new(devices.len()));
    assert_eq!(field, "device");
    assert!(reason.contains("is not one of the"), "{reason}");
    println!("{info:?}");
}

#[test]
fn what_is_missing_is_said_in_a_sentence() {
    let reason = "libcuda.so: no such file".to_owned();
    for (why, sentence) in [
        (CudaUnavailable::NoDriver { reason }, "no CUDA driver: libcuda.so: no such file"),
        (CudaUnavailable::NoDevice, "the CUDA driver finds no device"),
        (
            CudaUnavailable::DriverTooOld { found: 12_030, needed: 12_040 },
            "the CUDA driver offers CUDA 12.3, and 12.4 is needed: update to driver 550 or later",
        ),
        (
            CudaUnavailable::MissingSymbol { name: "cuLaunchKernelEx" },
            "the CUDA driver has no function `cuLaunchKernelEx`, as drivers since CUDA 12.4 have: \
             update or reinstall it",
        ),
    ] {
        assert_eq!(why.to_string(), sentence);
        assert_eq!(Error::NoCuda(why).to_string(), sentence);
    }
}

#[test]
fn the_callers_context_stays_current() {
    let Some(device) = device::device() else { return };
    let gpu = Arc::clone(&device.cuda);
    // A thread that has none has none afterwards.
    let none = || {
        assert!(current_context().is_null());
        let buffer = CudaBuffer::new(&gpu, 64).expect("memory");
        let stream = CudaStream::new(&gpu).expect("a stream");
        stream.fill(&buffer, 0, 64, 1).expect("queued");
        assert_eq!(refused(check_pointer(&gpu, "k", 0)).0, "k");
        stream.synchronize().expect("done");
        drop((buffer, stream));
        assert!(current_context().is_null());
    };
    std::thread::scope(|scope| scope.spawn(none).join()).expect("no panic");
}

#[test]
fn bytes_go_there_and_back() {
    let Some(device) = device::device() else { return };
    let gpu = Arc::clone(&device.cuda);
    let stream = CudaStream::new(&gpu).expect("a stream");
    let [a, b] = [256, 256].map(|len| CudaBuffer::new(&gpu, len).expect("memory"));
    assert!(a.address().is_multiple_of(256) && a.len() == 256 && a.address() != b.address());
    let sent: Vec<u8> = (0..=255).collect();
    stream.write(&a, 0, &sent).expect("written");
    stream.fill(&b, 0, 256, 7).expect("queued");
    stream.copy((&b, 16), (&a, 32), 64).expect("queued");
    let mut got = vec![0; 256];
    stream.read(&mut got, &b, 0).expect("read");
    let mut expected = vec![7; 256];
    expected[16..80].copy_from_slice(&sent[32..96]);
    assert_eq!(got, expected);

    let mut pinned = PinnedBuffer::new(&gpu, 128).expect("page-locked memory");
    assert!(pinned.iter().all(|&byte| byte == 0));
    assert_ne!(pinned.device_address().expect("an address"), 0);
    // SAFETY: `pinned` outlives the wait.
    unsafe { stream.download(&mut pinned, &a, 128) }.expect("queued");
    stream.synchronize().expect("done");
    assert!(stream.is_done().expect("known"));
    assert_eq!(pinned[..], sent[128..]);

    for (len, at) in [(257, 0), (1, 256), (2, usize::MAX)] {
        assert_eq!(refused(stream.fill(&a, at, len, 0)).0, "buffer");
        assert_eq!(refused(stream.write(&a, at, &vec![0; len])).0, "buffer");
        assert_eq!(refused(stream.copy((&b, 0), (&a, at), len)).0, "buffer");
    }
    let empty = CudaBuffer::new(&gpu, 0).expect("nothing");
    assert!(empty.is_empty() && stream.write(&empty, 0, &[]).is_ok());
}

#[test]
fn too_much_memory_is_an_error_of_its_own() {
    let Some(device) = device::device() else { return };
    let gpu = Arc::clone(&device.cuda);
    let (free, total) = gpu.memory().expect("known");
    assert!(free > 0 && free <= total);
    match CudaBuffer::new(&gpu, 1 << 46) {
        Err(Error::OutOfDeviceMemory { needed, free }) => {
            assert!(needed == 1 << 46 && free <= total);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn streams_wait_for_events() {
    let Some(device) = device::device() else { return };
    let gpu = Arc::clone(&device.cuda);
    let [first, second] = [(); 2].map(|()| CudaStream::new(&gpu).expect("a stream"));
    let buffer = CudaBuffer::new(&gpu, 1 << 20).expect("memory");
    let [start, end] = [(); 2].map(|()| CudaEvent::timed(&gpu).expect("an event"));
    let done = CudaEvent::new(&gpu).expect("an event");
    assert!(done.is_done().expect("it marks nothing yet"));
    start.record(&first).expect("recorded");
    first.fill(&buffer, 0, 1 << 20, 9).expect("queued");
    end.record(&first).expect("recorded");
    done.record(&first).expect("recorded");
    second.wait(&done).expect("queued");
    let mut got = vec![0; 1 << 20];
    second.read(&mut got, &buffer, 0).expect("read");
    assert!(got.iter().all(|&byte| byte == 9));
    end.synchronize().expect("done");
    assert!(end.is_done().expect("known"));
    assert!(end.seconds_since(&start).expect("both are timed") >= 0.0);
    assert_eq!(refused(end.seconds_since(&done)).0, "event");
}

#[test]
fn a_callers_stream_is_checked() {
    let Some(device) = device::device() else { return };
    let gpu = Arc::clone(&device.cuda);
    let own = CudaStream::new(&gpu).expect("a stream");
    // SAFETY: `own` outlives it.
    let borrowed = unsafe { CudaStream::borrowed(&gpu, own.handle()) }.expect("of this device");
    let buffer = CudaBuffer::new(&gpu, 16).expect("memory");
    borrowed.write(&buffer, 0, &[3; 16]).expect("written");
    drop(borrowed);
    let mut got = [0; 16];
    own.read(&mut got, &buffer, 0).expect("it was not destroyed");
    assert_eq!(got, [3; 16]);
    // SAFETY: null is the default stream.
    let default = unsafe { CudaStream::borrowed(&gpu, ptr::null_mut()) }.expect("the default one");
    default.synchronize().expect("done");
}

#[test]
fn pointers_are_checked_by_field() {
    let Some(device) = device::device() else { return };
    let gpu = Arc::clone(&device.cuda);
    let buffer = CudaBuffer::new(&gpu, 64).expect("memory");
    let pinned = PinnedBuffer::new(&gpu, 64).expect("memory");
    check_pointer(&gpu, "q", buffer.address()).expect("memory of the device");
    check_pointer(&gpu, "q", buffer.address() + 32).expect("inside");
    check_pointer(&gpu, "q", pinned.device_address().expect("an address")).expect("page-locked");
    let on_stack = 0_u64;
    for address in [0, (&raw const on_stack).addr() as u64] {
        assert_eq!(refused(check_pointer(&gpu, "q", address)).0, "q");
    }
}

#[test]
fn what_is_of_another_context_is_refused() {
    let Some(device) = device::device() else { return };
    let Some(emulator) = device.emulator else {
        return println!("skipped: one context a device is all that is made here");
    };
    let gpu = Arc::clone(&device.cuda);
    let (buffer, stream) =
        (CudaBuffer::new(&gpu, 64).expect("memory"), CudaStream::new(&gpu).expect("a stream"));
    emulator.set_foreign(true);
    let (field, reason) = refused(check_pointer(&gpu, "v", buffer.address()));
    assert_eq!((field, reason.as_str()), ("v", "is memory of another CUDA context"));
    // SAFETY: `stream` outlives it.
    let (field, reason) = refused(unsafe { CudaStream::borrowed(&gpu, stream.handle()) });
    assert_eq!(field, "stream");
    assert!(reason.contains("is not one of the primary context of CUDA device 0"), "{reason}");
    emulator.set_foreign(false);
    check_pointer(&gpu, "v", buffer.address()).expect("its own");
    // A handle that is none: the driver's words.
    let mut nobody = [0_u64; 64];
    let handle = (&raw mut nobody).cast();
    // SAFETY: the emulator looks a handle up before it follows it.
    assert_eq!(refused(unsafe { CudaStream::borrowed(&gpu, handle) }).0, "stream");
}

#[test]
fn images_that_the_device_cannot_run() {
    let Some(device) = device::device() else { return };
    let Some(emulator) = device.emulator else {
        return println!("skipped: a GPU has the kernels of its build or none");
    };
    // A family that no other test here loads: images are loaded once a process.
    let (family, name) = ("merge_f16", c"inflight_merge_f16");
    let kernels = Kernels::new(&device.cuda);
    let (no_binary, invalid_ptx, illegal_address) = (209, 218, 700);
    for call in ["cuLibraryLoadData", "cuLibraryGetKernel", "cuKernelGetFunction"] {
        for code in [no_binary, invalid_ptx] {
            emulator.fail_call(Some(call), 1, code, false);
            let error = kernels.prepare(family, name, 0).expect_err("its image is refused");
            assert!(!emulator.is_failure_pending(), "{call} is not called");
            if code == no_binary || !cuda::has_kernels() {
                let (major, minor) = device.cuda.info().compute_capability;
                let (device, built) = (format!("sm_{major}{minor}"), cuda::architectures());
                let refused = Error::NoKernelImage { device, built, outdated: None };
                assert_eq!(error, refused, "{call}");
            } else {
                assert!(matches!(&error, Error::Cuda(e) if e.call == call), "{error}");
            }
        }
        // What a kernel did before is not for want of an image.
        emulator.fail_call(Some(call), 1, illegal_address, false);
        let error = kernels.prepare(family, name, 0).expect_err("the call fails");
        assert!(matches!(&error, Error::Cuda(e) if e.sticky && e.call == call), "{error}");
        // Neither is remembered.
        if call == "cuKernelGetFunction" {
            kernels.prepare(family, name, 0).expect("it is there");
        }
    }
}

/// Drivers are newer than the list of results that the library was compiled with.
#[test]
fn results_of_later_versions_are_numbers() {
    let Some(device) = device::device() else { return };
    let Some(emulator) = device.emulator else {
        return println!("skipped: only the emulator fails on demand");
    };
    let stream = CudaStream::new(&device.cuda).expect("a stream");
    let (contained, tensor_memory_leak, of_tomorrow) = (226, 721, 12_345);
    for (code, is_sticky) in [(contained, true), (tensor_memory_leak, true), (of_tomorrow, false)] {
        emulator.fail_call(Some("cuStreamQuery"), 1, code, false);
        match stream.is_done() {
            Err(Error::Cuda(error)) => {
                assert_eq!((error.code, error.sticky), (code as u32, is_sticky), "{error}");
                assert_eq!(error.name, "unknown");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn images_of_a_newer_toolkit_than_the_driver() {
    let Some(device) = device::device() else { return };
    let Some(emulator) = device.emulator else {
        return println!("skipped: a GPU has the kernels of its build or none");
    };
    let (family, name) = ("merge_bf16", c"inflight_merge_bf16");
    for (capability, toolkit) in [(80, 14_000), (90, 14_000), (120, 13_010)] {
        emulator.set_device(capability, 4);
        let cuda = Cuda::new(0).expect("the same driver");
        emulator.set_toolkit(toolkit);
        let error = Kernels::new(&cuda).prepare(family, name, 0).expect_err("it is too new");
        emulator.set_toolkit(0);
        // With images of a newer toolkit it says what to do: see the tests of `Build`.
        let (device, built) = (cuda.info().sm(), cuda::architectures());
        if capability == 120 || !cuda::has_kernels() {
            assert_eq!(error, Error::NoKernelImage { device, built, outdated: None });
        } else {
            assert!(matches!(&error, Error::Cuda(e) if e.code == 200), "{error}");
        }
    }
    emulator.set_device(0, 0);
    for toolkit in [12_040, cuda::driver_version().expect("a driver")] {
        emulator.set_toolkit(toolkit);
        Kernels::new(&device.cuda).prepare(family, name, 0).expect("nothing is remembered");
    }
    emulator.set_toolkit(0);
}

#[test]
fn work_is_recorded_once_and_done_again() {
    let Some(device) = device::device() else { return };
    let gpu = Arc::clone(&device.cuda);
    let stream = CudaStream::new(&gpu).expect("a stream");
    let [a, b] = [64, 64].map(|len| CudaBuffer::new(&gpu, len).expect("memory"));
    stream.write(&b, 0, &[0; 64]).expect("written");
    let mut graph = stream
        .capture(|stream| {
            assert!(stream.is_capturing()?);
            stream.copy((&b, 0), (&a, 0), 64)
        })
        .expect("recorded");
    assert!(!stream.is_capturing().expect("known"));
    for round in 1..4_u8 {
        stream.write(&a, 0, &[round; 64]).expect("written");
        // SAFETY: both buffers live.
        unsafe { graph.launch(&stream) }.expect("launched");
        let mut got = [0; 64];
        stream.read(&mut got, &b, 0).expect("read");
        assert_eq!(got, [round; 64]);
    }
    // What cannot be recorded ends the capture, and the stream can be used again.
    let waits = stream.capture(|stream| stream.synchronize());
    assert!(matches!(waits, Err(Error::Cuda(_))), "{waits:?}");
    let own = Error::Device("its own".to_owned());
    let fails = stream.capture(|_| Err(own.clone()));
    assert!(fails.is_err_and(|error| error == own));
    assert!(!stream.is_capturing().expect("known"));
    stream.fill(&a, 0, 64, 1).expect("queued");
    stream.synchronize().expect("done");
}

#[test]
fn nothing_here_voids_the_capture_of_another() {
    use cudarc::driver::sys;
    let Some(device) = device::device() else { return };
    let gpu = Arc::clone(&device.cuda);
    let mode = || {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: `mode` outlives both calls; the second puts back what was found.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) }.result().expect("known");
        let found = mode;
        // SAFETY: as above.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) }.result().expect("known");
        found
    };
    let [stream, captured] = [(); 2].map(|()| CudaStream::new(&gpu).expect("a stream"));
    let (old, page) = (CudaBuffer::new(&gpu, 64).expect("memory"), PinnedBuffer::new(&gpu, 64));
    let event = CudaEvent::new(&gpu).expect("an event");
    event.record(&stream).expect("recorded");
    let (raw, context) = (captured.handle() as usize, gpu.context() as usize);
    let (begun, begins) = std::sync::mpsc::channel();
    let (go, ends) = std::sync::mpsc::channel::<()>();
    // As PyTorch captures: in the mode that minds what any thread does.
    let other = std::thread::spawn(move || {
        let stream = raw as sys::CUstream;
        let global = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
        let mut graph = ptr::null_mut();
        // SAFETY: the context lives until this thread has been joined.
        unsafe { sys::cuCtxSetCurrent(context as sys::CUcontext) }.result().expect("set");
        // SAFETY: the stream lives as long.
        unsafe { sys::cuStreamBeginCapture_v2(stream, global) }.result().expect("begun");
        begun.send(()).expect("somebody waits");
        ends.recv().expect("somebody tells");
        // SAFETY: as above, and `graph` outlives the call.
        let ended = unsafe { sys::cuStreamEndCapture(stream, &raw mut graph) }.result();
        // SAFETY: made by the capture, where that succeeded.
        ended.and_then(|()| unsafe { sys::cuGraphDestroy(graph) }.result())
    });
    begins.recv().expect("it begins");
    drop((old, page));
    let new = CudaBuffer::new(&gpu, 64).expect("memory");
    stream.write(&new, 0, &[1; 64]).expect("written");
    event.synchronize().expect("done");
    let loaded = Kernels::new(&gpu).prepare("copy", c"inflight_copy_blocks", 0);
    assert!(loaded.is_ok() || !cuda::has_kernels(), "{loaded:?}");
    gpu.synchronize().expect("done");
    assert_eq!(mode(), sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL);
    go.send(()).expect("it waits");
    let ended = other.join().expect("it does not panic");
    assert!(ended.is_ok(), "{ended:?}");
}

/// Of the emulator's own kernels.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct CopyWords {
    from: u64,
    to: u64,
    counter: u64,
    n: u32,
    wild: u32,
}

#[test]
fn kernels_are_found_and_launched() {
    let Some(device) = device::device() else { return };
    let gpu = Arc::clone(&device.cuda);
    let kernels = Kernels::new(&gpu);
    let (field, reason) = refused(kernels.prepare("no_such_family", c"none", 0));
    assert_eq!(
        (field, reason.as_str()),
        ("kernel", "`none` of `no_such_family` is not in this build")
    );
    let Some(family) = cuda::families().next() else {
        return println!("skipped: this tree has no kernel");
    };
    if simt::wants_real_driver() {
        if !cuda::has_kernels() {
            let error = kernels.prepare(family, c"none", 0).expect_err("it is a stub");
            assert!(error.to_string().ends_with("built without kernels (feature `cuda`)"));
        }
        return;
    }
    assert_eq!(refused(kernels.prepare(family, c"no_such_kernel", 0)).0, "kernel");
    assert_eq!(refused(kernels.prepare(family, c"selftest_copy", 1 << 20)).0, "shared");
    let name = c"selftest_dependent_copy";
    let kernel = kernels.prepare(family, name, 64 << 10).expect("it is there");
    assert!(kernel.blocks_per_multiprocessor(64, 0).expect("known") >= 1);
    let stream = CudaStream::new(&gpu).expect("a stream");
    let words: Vec<u32> = (0..64).collect();
    let [from, to] = [256, 256].map(|len| CudaBuffer::new(&gpu, len).expect("memory"));
    stream.write(&from, 0, bytemuck::cast_slice(&words)).expect("written");
    let params = CopyWords { from: from.address(), to: to.address(), counter: 0, n: 64, wild: 0 };
    for dependent in [false, true] {
        stream.fill(&to, 0, 256, 0).expect("queued");
        let launch = Launch { dependent, ..Launch::new(1, 64, 0) };
        // SAFETY: these are its parameters, and both buffers outlive the wait.
        unsafe { kernel.launch(&stream, &launch, &params, &[]) }.expect("launched");
        let mut got = vec![0_u32; 64];
        stream.read(bytemuck::cast_slice_mut(&mut got), &to, 0).expect("read");
        assert_eq!(got, words);
    }
    assert!(device.emulator.is_none_or(|emulator| emulator.reports().is_empty()));
    let launch = Launch::new(1, 64, (64 << 10) + 1);
    // SAFETY: it is refused.
    let too_much = unsafe { kernel.launch(&stream, &launch, &params, &[]) };
    assert_eq!(refused(too_much).0, "shared");
}

/// A kernel begins before the one before it is done only where its own code waits for that one:
/// PTX of 8.0 never does, whatever device it is compiled for.
#[test]
fn only_code_that_waits_is_launched_as_a_dependent() {
    let Some(device) = device::device() else { return };
    let Some(emulator) = device.emulator else {
        return println!("skipped: a GPU runs one image of each kernel");
    };
    let family = cuda::families().next().expect("there are kernels");
    emulator.set_dependent(false);
    for (archs, capability, waits) in [
        ("80;90", 80, false),
        ("80;90", 90, true),
        ("80;90", 100, true),
        ("80;90", 120, true),
        ("80", 90, false),
        ("80", 100, false),
        ("80;89", 89, false),
        ("80;100", 90, true),
    ] {
        emulator.set_archs(archs);
        emulator.set_device(capability, 4);
        let gpu = Cuda::new(0).expect("the emulator");
        let kernel = Kernels::new(&gpu).prepare(family, c"selftest_dependent", 0).expect("it is");
        let stream = CudaStream::new(&gpu).expect("a stream");
        let to = CudaBuffer::new(&gpu, 256).expect("memory");
        let params = CopyWords { from: 0, to: to.address(), counter: 0, n: 7, wild: 0 };
        let before = emulator.stats().dependents;
        for launch in [Launch::new(1, 64, 0), Launch::new(1, 64, 0).dependent()] {
            // SAFETY: these are its parameters, and the buffer outlives the wait.
            unsafe { kernel.launch(&stream, &launch, &params, &[]) }.expect("launched");
        }
        stream.synchronize().expect("done");
        let what = format!("images for {archs} on {capability}");
        assert_eq!(emulator.reports(), Vec::<String>::new(), "{what}");
        assert_eq!(emulator.stats().dependents - before, u64::from(waits), "{what}");
    }
    emulator.set_archs("");
    emulator.set_device(0, 0);
}
