//! What fails on the way: every call says so, nothing panics or leaks, and where CUDA allows it the
//! library goes on. Failures are the emulator's.

use std::sync::Arc;

use inflight::cache::BlockOp;
use inflight::device::cuda::{Cuda, CudaBuffer, CudaEvent, CudaStream, PinnedBuffer};
use inflight::kernels::cuda::{Append, Attention, BlockMover, HEAD_DIMS, Merge, StepBuffer};
use inflight::kernels::{AppendArgs, AttentionArgs, AttentionConfig, DType, State, StepArrays};
use inflight::{Error, Result};

use crate::attention::{Answer, Case, Spec, judge, naive, oracle};
use crate::gpu::{self, Gpu, OnDevice};

const OUT_OF_MEMORY: i32 = 2;
const ILLEGAL_ADDRESS: i32 = 700;
const LAUNCH_FAILED: i32 = 719;
const UNKNOWN: i32 = 999;

pub(crate) fn case() -> Case {
    let config = AttentionConfig::new(4, 2, 64, DType::Bf16);
    Case::new(&Spec::new(3, config, &[(1, 700), (5, 20), (40, 90)]))
}

/// All that the library has for a GPU, and one layer's work for it.
pub(crate) struct Everything {
    stream: CudaStream,
    other: CudaStream,
    event: CudaEvent,
    attention: Attention,
    step: StepBuffer,
    memory: OnDevice,
    copy: OnDevice,
    append: Append,
    merge: Merge,
    mover: BlockMover,
}

/// Appends to no slot: the cache stays as it is.
fn slots(case: &Case) -> Vec<i64> {
    vec![-1; case.num_tokens()]
}

impl Everything {
    pub(crate) fn new(cuda: &Arc<Cuda>, case: &Case) -> Result<Self> {
        let (stream, other) = (CudaStream::new(cuda)?, CudaStream::new(cuda)?);
        let config = case.spec.config;
        let attention = Attention::new(cuda, config, gpu::limits(case))?;
        let step = StepBuffer::new(cuda, *attention.limits(), &[&attention])?;
        let memory = OnDevice::try_new(&stream, case)?;
        let copy = OnDevice::try_new(&stream, case)?;
        let mover = BlockMover::new(cuda, &[memory.args.cache], &[])?;
        Ok(Self {
            event: CudaEvent::new(cuda)?,
            append: Append::new(cuda, config.q_dtype, config.kv_dtype)?,
            merge: Merge::new(cuda, config.q_dtype)?,
            other,
            stream,
            attention,
            step,
            memory,
            copy,
            mover,
        })
    }

    fn plan(&mut self, case: &Case) -> Result<()> {
        self.attention.plan(case.batch(), case.cache.layout.num_blocks, None)
    }

    fn upload(&mut self, case: &Case) -> Result<()> {
        let slots = slots(case);
        let arrays =
            StepArrays { batch: case.batch(), slot_mapping: &slots, positions: &[], tokens: &[] };
        self.step.upload(&self.stream, &arrays, &[&self.attention])
    }

    fn attend(&self, stream: &CudaStream, args: &AttentionArgs) -> Result<()> {
        // SAFETY: all memory lives until the stream is done.
        unsafe { self.attention.run(stream, &self.step, 0, args) }
    }

    fn append(&self, case: &Case) -> Result<()> {
        // New keys: any of the right shape, as none has a slot.
        let (heads, dim) = (case.spec.config.num_kv_heads, case.spec.config.head_dim);
        let shape = inflight::kernels::tensor::Shape::contiguous(case.num_tokens(), heads, dim);
        let q = self.memory.args.q;
        // SAFETY: queries have more heads than keys.
        let new = unsafe { inflight::kernels::DeviceTensor::new(q.address(), q.dtype(), shape) };
        let args = AppendArgs { k: new, v: new, cache: self.memory.args.cache, rope: None };
        // SAFETY: all memory lives until the stream is done.
        unsafe { self.append.run(&self.stream, &self.step, &args) }
    }

    /// Of one state with itself: what it was.
    fn merge(&self) -> Result<()> {
        let AttentionArgs { o, lse, .. } = self.memory.args;
        let states = [State { o, lse }];
        let AttentionArgs { o, lse, .. } = self.copy.args;
        // SAFETY: all memory lives until the stream is done.
        unsafe { self.merge.run(&self.stream, &states, o, lse) }
    }

    /// Everything once, and a graph.
    pub(crate) fn work(&mut self, case: &Case) -> Result<Answer> {
        self.plan(case)?;
        self.upload(case)?;
        self.mover.run(&self.stream, &[BlockOp { kind: BlockOp::COPY, src: 0, dst: 0 }])?;
        self.append(case)?;
        self.attend(&self.stream, &self.memory.args)?;
        self.event.record(&self.stream)?;
        self.other.wait(&self.event)?;
        let args = self.memory.args;
        let mut graph = self.stream.capture(|stream| self.attend(stream, &args))?;
        // SAFETY: all memory lives until the stream is done.
        unsafe { graph.launch(&self.stream) }?;
        self.merge()?;
        self.event.synchronize()?;
        self.other.synchronize()?;
        self.stream.synchronize()?;
        self.copy.try_answer(&self.stream, case)
    }
}

pub(crate) fn check(case: &Case, answer: &Answer) {
    judge(case, &oracle(case), &naive(case, None), answer).unwrap();
}

fn emulator(gpu: &Gpu) -> Option<&'static simt::Emulator> {
    if gpu.emulator().is_none() {
        println!("skipped: only the emulator fails on demand");
    }
    gpu.emulator()
}

/// Fails the first, the second and each later call of the driver, one a round, until a round makes
/// no more; how many there were.
fn each_call_fails(gpu: &Gpu, function: Option<&str>, code: i32, good: fn(&Error, i32)) -> u64 {
    let Some(emulator) = emulator(gpu) else { return 0 };
    let case = case();
    let before = emulator.alive();
    for nth in 1.. {
        emulator.fail_call(function, nth, code, false);
        let result = Everything::new(&gpu.cuda, &case).and_then(|mut all| {
            let answer = all.work(&case)?;
            Ok((all, answer))
        });
        let is_over = emulator.is_failure_pending();
        emulator.fail_call(None, 0, 0, false);
        match result {
            Err(error) => good(&error, code),
            Ok((_all, answer)) => {
                check(&case, &answer);
                assert!(is_over, "call {nth} failed, and nobody said so");
            }
        }
        assert_eq!(emulator.alive(), before, "after call {nth} of {function:?} had failed");
        if is_over {
            return nth - 1;
        }
    }
    0
}

#[test]
fn any_call_of_the_driver_may_fail() {
    let Some(gpu) = gpu::gpu() else { return };
    let failed = each_call_fails(&gpu, None, UNKNOWN, |error, code| match error {
        Error::Cuda(error) => {
            assert_eq!(error.code, code as u32);
            assert!(!error.sticky && error.call.starts_with("cu"), "{error:?}");
        }
        // Of a build without kernels, whose images no driver takes.
        Error::NoKernelImage { .. } if !inflight::device::cuda::has_kernels() => {}
        error => panic!("{error}"),
    });
    println!("{failed} calls of the driver, each failed once");
    assert_eq!(gpu.reports(), Vec::<String>::new());
}

#[test]
fn any_allocation_may_fail() {
    let Some(gpu) = gpu::gpu() else { return };
    let device = each_call_fails(&gpu, Some("cuMemAlloc_v2"), OUT_OF_MEMORY, |error, _| {
        let named = matches!(error, Error::OutOfDeviceMemory { needed: 1.., free: 1.. });
        assert!(named, "{error}");
    });
    let host = each_call_fails(&gpu, Some("cuMemHostAlloc"), OUT_OF_MEMORY, |error, _| {
        assert!(error.to_string().contains("page-locked host memory cannot be had"), "{error}");
    });
    println!("{device} allocations of device memory, {host} of host memory");
    assert!(gpu.emulator().is_none() || device >= 10 && host >= 4);
}

/// An error that a kernel has left behind, perhaps long before.
fn sticky<T>(result: Result<T>, code: i32) {
    match result {
        Err(Error::Cuda(error)) => {
            assert!(error.sticky && error.code == code as u32, "{error}");
            assert!(!error.name.is_empty() && !error.meaning.is_empty(), "{error}");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was accepted"),
    }
}

#[test]
fn a_lost_context_is_named_by_every_call() {
    let Some(gpu) = gpu::gpu() else { return };
    let Some(emulator) = emulator(&gpu) else { return };
    let case = case();
    for code in [ILLEGAL_ADDRESS, LAUNCH_FAILED] {
        let mut all = Everything::new(&gpu.cuda, &case).unwrap();
        all.work(&case).unwrap();
        let args = all.memory.args;
        let mut graph = all.stream.capture(|stream| all.attend(stream, &args)).unwrap();
        let (cuda, stream) = (&gpu.cuda, &all.stream);
        let buffer = CudaBuffer::new(cuda, 64).unwrap();
        let mut pinned = PinnedBuffer::new(cuda, 64).unwrap();
        emulator.fail_call(Some("cuStreamQuery"), 1, code, true);
        sticky(stream.is_done(), code);

        sticky(stream.is_done(), code);
        sticky(stream.synchronize(), code);
        sticky(stream.is_capturing(), code);
        sticky(stream.write(&buffer, 0, &[1]), code);
        sticky(stream.read(&mut [1], &buffer, 0), code);
        sticky(stream.copy((&buffer, 0), (&buffer, 16), 8), code);
        sticky(stream.fill(&buffer, 0, 8, 1), code);
        // SAFETY: `pinned` lives; nothing is queued.
        sticky(unsafe { stream.upload(&buffer, 0, &pinned) }, code);
        // SAFETY: as above.
        sticky(unsafe { stream.download(&mut pinned, &buffer, 0) }, code);
        sticky(stream.wait(&all.event), code);
        sticky(stream.capture(|_| Ok(())), code);
        // SAFETY: nothing is queued.
        sticky(unsafe { graph.launch(stream) }, code);
        // SAFETY: as above.
        sticky(unsafe { CudaStream::borrowed(cuda, stream.handle()) }, code);
        sticky(pinned.device_address(), code);
        sticky(all.event.record(stream), code);
        sticky(all.event.is_done(), code);
        sticky(all.event.synchronize(), code);
        sticky(cuda.memory(), code);
        sticky(cuda.synchronize(), code);
        sticky(CudaBuffer::new(cuda, 64), code);
        sticky(PinnedBuffer::new(cuda, 64), code);
        sticky(CudaStream::new(cuda), code);
        sticky(CudaEvent::new(cuda), code);
        sticky(inflight::device::cuda::check_pointer(cuda, "q", buffer.address()), code);
        sticky(all.attend(stream, &args), code);
        sticky(all.append(&case), code);
        sticky(all.merge(), code);
        let op = [BlockOp { kind: BlockOp::COPY, src: 0, dst: 0 }];
        sticky(all.mover.run(stream, &op), code);
        sticky(all.upload(&case), code);
        all.plan(&case).expect("the host's own work");
        sticky(all.upload(&case), code);
        sticky(Everything::new(cuda, &case), code);
        let limits = gpu::limits(&case);
        sticky(Attention::new(cuda, case.spec.config, limits), code);
        sticky(StepBuffer::new(cuda, limits, &[]), code);
        sticky(Append::new(cuda, DType::F16, DType::F16), code);
        sticky(Merge::new(cuda, DType::F16), code);
        sticky(BlockMover::new(cuda, &[args.cache], &[]), code);
        drop((graph, buffer, pinned, all));

        // Another process, as it were.
        emulator.reset();
        let mut all = Everything::new(&gpu.cuda, &case).unwrap();
        check(&case, &all.work(&case).unwrap());
    }
    assert_eq!(gpu.reports(), Vec::<String>::new());
}

/// A kernel that is given a wild address. Only the emulator that checks survives it.
#[test]
fn a_wild_address_loses_the_context() {
    let Some(gpu) = gpu::gpu() else { return };
    let Some(emulator) = emulator(&gpu).filter(|emulator| emulator.is_checking()) else { return };
    let case = case();
    let mut all = Everything::new(&gpu.cuda, &case).unwrap();
    all.plan(&case).unwrap();
    all.upload(&case).unwrap();
    let mut args = all.memory.args;
    args.lse = 1 << 20;
    all.attend(&all.stream, &args).unwrap();
    sticky(all.stream.synchronize(), ILLEGAL_ADDRESS);
    sticky(all.attend(&all.stream, &args), ILLEGAL_ADDRESS);
    drop(all);
    assert!(!gpu.reports().is_empty());
    emulator.reset();
    let mut all = Everything::new(&gpu.cuda, &case).unwrap();
    check(&case, &all.work(&case).unwrap());
}

/// Devices by what they are: which have kernels in a build, and how much of them fits.
#[test]
fn every_architecture_has_kernels_or_a_reason() {
    let Some(gpu) = gpu::gpu() else { return };
    let Some(emulator) = emulator(&gpu) else { return };
    let case = case();
    for old in [53, 70, 72, 75] {
        emulator.set_device(old, 4);
        let cuda = Cuda::new(0).unwrap();
        let sm = format!("sm_{old}");
        let refused = |result: Result<()>| match result {
            Err(error @ Error::NoKernelImage { .. }) => {
                let built = inflight::device::cuda::architectures();
                let device = sm.clone();
                assert_eq!(error, Error::NoKernelImage { device, built, outdated: None });
                let text = error.to_string();
                assert!(text.contains(&sm) && text.contains(built), "{text}");
            }
            other => panic!("{sm}: {other:?}"),
        };
        let limits = gpu::limits(&case);
        refused(Attention::new(&cuda, case.spec.config, limits).map(|_| ()));
        refused(Append::new(&cuda, DType::F16, DType::Fp8E4m3).map(|_| ()));
        refused(Merge::new(&cuda, DType::Bf16).map(|_| ()));
        let memory = OnDevice::new(&gpu, &case);
        refused(BlockMover::new(&cuda, &[memory.args.cache], &[]).map(|_| ()));
    }
    let mut prepared = 0;
    // Shared memory of a block: 163, 99 and 227 KiB.
    for (capability, multiprocessors) in
        [(80, 108), (86, 84), (87, 16), (89, 142), (90, 132), (100, 148), (103, 160), (120, 170)]
    {
        emulator.set_device(capability, multiprocessors);
        let cuda = Cuda::new(0).unwrap();
        for (q, kv) in gpu::TYPES {
            for &dim in HEAD_DIMS {
                let mut config = AttentionConfig::new(8, 2, dim, q);
                config.kv_dtype = kv;
                let attention = Attention::new(&cuda, config, gpu::limits(&case));
                attention.unwrap_or_else(|why| panic!("{capability}, {dim} {q} {kv}: {why}"));
                prepared += 1;
            }
        }
        check(&case, &Everything::new(&cuda, &case).unwrap().work(&case).unwrap());
    }
    emulator.set_device(0, 0);
    println!("{prepared} attentions prepared");
}
