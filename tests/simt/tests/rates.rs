//! What instructions, copies, memory and launches take on a GPU: `INFLIGHT_TEST_DRIVER=real` and
//! `INFLIGHT_ARCH_IMAGE`, what nvcc made of `kernels/rates.cu`. `INFLIGHT_RATES_RECORD` names a file
//! to write to, a line of JSON per figure. Under the emulator the same runs once, small: there it is
//! looked at whether kernels compute what they are to compute, and nothing is said of time.

#![allow(clippy::multiple_unsafe_ops_per_block, reason = "calls of the driver in a row")]

mod common;
#[path = "rates/queues.rs"]
mod queues;

use std::cell::Cell;
use std::io::Write;
use std::time::Instant;

use common::{
    CUDA_SUCCESS, Gpu, Launch, Rng, TensorMap, alloc, download, gpu, ok, to_bf16, upload,
};
use cudarc::driver::sys;
use half::f16;
use queues::{Events, graph};
use simt::Mode;

#[repr(C)]
struct Params {
    input: u64,
    out: u64,
    clocks: u64,
    turns: u64,
}

#[repr(C)]
struct BulkParams {
    map: TensorMap,
    params: Params,
}

/// Instructions per turn.
const STEPS: u64 = 64;
/// Bytes that the copy engine moves at once.
const BOX: usize = 8192;
/// Times a figure is taken; the least counts.
const TRIES: usize = 5;

/// A figure, printed and, where a file is named, written to it at once.
fn record(fields: &str) {
    println!("{fields}");
    if let Some(path) = std::env::var_os("INFLIGHT_RATES_RECORD") {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(file, "{{{fields}}}").unwrap();
    }
}

fn figure(name: &str, value: f64, unit: &str) {
    record(&format!(r#""name": "{name}", "value": {value:.4}, "unit": "{unit}""#));
}

fn attribute(which: sys::CUdevice_attribute) -> u32 {
    let mut value = 0;
    // SAFETY: the pointer is to a local; device 0 is what `gpu` has made current.
    ok(unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, 0) });
    value.cast_unsigned()
}

/// 80 for 8.0.
fn capability() -> u32 {
    use sys::CUdevice_attribute as Of;
    10 * attribute(Of::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        + attribute(Of::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
}

/// All multiprocessors of a GPU; two of the emulator's.
fn multiprocessors(gpu: &Gpu) -> u32 {
    let all = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    if gpu.emulator.is_some() { all.min(2) } else { all }
}

/// Few where every instruction is emulated.
fn sized<T>(gpu: &Gpu, real: T, emulated: T) -> T {
    if gpu.emulator.is_some() { emulated } else { real }
}

fn free(at: u64) {
    // SAFETY: it was allocated, and what used it is done.
    ok(unsafe { sys::cuMemFree_v2(at) });
}

/// The most cycles between the two readings of a warp, and from a block's first to its last.
fn cycles(clocks: &[u64], warps: usize) -> u64 {
    let block = |of: &[u64]| {
        let start = of.iter().step_by(2).min().unwrap();
        let stop = of.iter().skip(1).step_by(2).max().unwrap();
        stop - start
    };
    clocks.chunks(2 * warps).map(block).max().unwrap()
}

/// Cycles per instruction and warp of a kernel, the least of some tries; and what its threads gave.
struct Timed {
    cycles: f64,
    out: Vec<u32>,
}

struct Probe<'a> {
    kernel: &'a str,
    warps: u32,
    blocks: u32,
    smem: u32,
    turns: u64,
    /// Instructions per warp and turn.
    steps: u64,
}

impl Probe<'_> {
    fn time<P>(&self, gpu: &Gpu, input: u64, params: impl Fn(Params) -> P) -> Timed {
        let Self { kernel, warps, blocks, smem, turns, steps } = *self;
        let all = (blocks * warps) as usize;
        let (out, clocks) = (alloc(all * 32 * 4), alloc(all * 16));
        let mut best = u64::MAX;
        for _ in 0..sized(gpu, TRIES, 1) {
            let params = params(Params { input, out, clocks, turns });
            let result = gpu.run(kernel, [blocks, 1, 1], 32 * warps, smem, &params);
            assert_eq!(result, CUDA_SUCCESS, "{kernel}");
            assert_eq!(gpu.reports(), Vec::<String>::new(), "{kernel}");
            best = best.min(cycles(&download(clocks, 2 * all), warps as usize));
        }
        let out_words = download(out, all * 32);
        free(out);
        free(clocks);
        // The emulator's clock counts its readings.
        assert!(best > 0 && best < u64::MAX / 2, "{kernel}: {best} cycles");
        Timed { cycles: best as f64 / (turns * steps) as f64, out: out_words }
    }
}

fn row(name: &str, chains: u32, warps: u32, blocks: u32, cycles: f64) {
    record(&format!(
        r#""name": "{name}", "chains": {chains}, "warps": {warps}, "blocks": {blocks}, "cycles": {cycles:.4}"#
    ));
}

/// What a register has after so many steps from `x`, where that can be said; `given`: lanes' words.
fn expected(name: &str, given: &[u32], lane: usize, steps: u64) -> Option<u32> {
    let x = given[lane];
    let pairs = |narrow: &dyn Fn(f32) -> u16| {
        let half = |x: u32| u32::from(narrow(f32::from_bits(x)));
        (0..steps).fold(x, |at, _| half(at) | half(x) << 16)
    };
    match name {
        "f2fp_bf16" => Some(pairs(&to_bf16)),
        "f2fp_f16" => Some(pairs(&|x| f16::from_f32(x).to_bits())),
        // An even number of exchanges, and of transpositions.
        "shfl" | "movm" => Some(x),
        "ffma" => {
            let y = f32::from_bits(x);
            Some((0..steps).fold(y, |at, _| at.mul_add(y, y)).to_bits())
        }
        // Every number of a product is 16 times 1 times 1.
        "hmma_bf16" | "hmma_f16" => Some((16.0 * steps as f32).to_bits()),
        _ => None,
    }
}

#[test]
fn instructions() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let capability = capability();
    let turns = sized(&gpu, 128, 1);
    let warps: &[u32] = sized(&gpu, &[1, 2, 4, 8, 16], &[1, 2]);
    let mut rng = Rng(3);
    // From 0.25 to 0.75: a chain of products and sums stays finite.
    let numbers: Vec<u32> = (0..512).map(|_| (rng.unit().abs() / 2.0 + 0.25).to_bits()).collect();
    let mut compared = 0;
    for (name, oldest) in [
        ("f2fp_bf16", 80),
        ("f2fp_f16", 80),
        ("f2fp_from_e4m3", 89),
        ("hmma_bf16", 80),
        ("hmma_f16", 80),
        ("ldsm", 80),
        ("ldsm_trans", 80),
        ("movm", 80),
        ("shfl", 80),
        ("ex2", 80),
        ("ffma", 80),
        ("hfma2_bf16", 80),
        ("bar", 80),
    ] {
        // The emulator's functions are there for every device.
        if capability < oldest && gpu.emulator.is_none() {
            println!("{name}: skipped, no instruction of {capability}");
            continue;
        }
        let given = match name {
            "hmma_bf16" => vec![0x3f80_3f80; 512],
            "hmma_f16" => vec![0x3c00_3c00; 512],
            _ => numbers.clone(),
        };
        let input = upload(&given);
        for chains in [1, 8] {
            if name == "bar" && chains > 1 {
                continue;
            }
            for &warps in warps {
                let kernel = format!("rates_{name}_{chains}");
                let probe =
                    Probe { kernel: &kernel, warps, blocks: 1, smem: 1024, turns, steps: STEPS };
                let timed = probe.time(&gpu, input, |params| params);
                for (lane, got) in timed.out.iter().enumerate() {
                    if let Some(want) =
                        expected(name, &given, lane, turns * STEPS / u64::from(chains))
                    {
                        assert_eq!(*got, want, "{kernel}, {warps} warps, thread {lane}");
                        compared += 1;
                    }
                }
                if name.starts_with("ldsm") {
                    // Where the thread has loaded from, again and again.
                    let step = |lane: usize| timed.out[lane] - timed.out[0];
                    assert!((0..32).all(|lane| step(lane) == 16 * lane as u32), "{kernel}");
                    compared += 32;
                }
                row(name, chains, warps, 1, timed.cycles);
            }
        }
        free(input);
    }
    println!("{compared} registers compared");
    clock(&gpu);
}

/// Cycles of the multiprocessor a second, while one warp works.
fn clock(gpu: &Gpu) {
    let turns = sized(gpu, 50_000, 1);
    let (input, out, clocks) = (upload(&[0x3f00_0000_u32; 32]), alloc(128), alloc(16));
    let params = Params { input, out, clocks, turns };
    let stream = std::ptr::null_mut();
    let launch = Launch {
        kernel: "rates_ffma_1",
        grid: [1; 3],
        threads: 32,
        smem: 0,
        stream,
        dependent: false,
    };
    let seconds = Events::new().time(1, stream, || {
        assert_eq!(gpu.enqueue(&launch, &params), CUDA_SUCCESS);
    });
    let cycles = cycles(&download(clocks, 2), 1);
    figure("clock", cycles as f64 / seconds.max(1e-9) / 1e6, "MHz");
    [input, out, clocks].into_iter().for_each(free);
}

/// Copies by threads and by the copy engine: until they are issued, and until they have landed.
#[test]
fn copies() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let turns = sized(&gpu, 64, 2);
    let all = multiprocessors(&gpu);
    let warps: &[u32] = sized(&gpu, &[1, 4, 8, 16], &[1, 2]);
    // As much as all blocks read at once: it stays in the L2 cache.
    let bytes = (all as usize * 8 * BOX).max(all as usize * 16 * 512 * 8);
    let words: Vec<u32> = (0..bytes as u32 / 4).map(|i| i.wrapping_mul(0x9e37_79b9) | 1).collect();
    let input = upload(&words);
    // Without a copy: what the two readings of the clock take, which is in all figures.
    for (name, chains) in [("ldgsts", 0), ("ldgsts", 1), ("ldgsts", 8), ("ldgsts_landed", 8)] {
        for &warps in warps {
            for blocks in [1, all] {
                let kernel = format!("rates_{name}_{chains}");
                let smem = warps * 512 * chains;
                let steps = u64::from(chains.max(1));
                let timed = Probe { kernel: &kernel, warps, blocks, smem, turns, steps }.time(
                    &gpu,
                    input,
                    |params| params,
                );
                for (thread, got) in timed.out.iter().enumerate() {
                    let (warp, lane, n) = (thread / 32, thread % 32, chains as usize);
                    let of = |i: usize| words[((warp * n + i) * 512 + 16 * lane) / 4];
                    assert_eq!(*got, (0..n).fold(0, |all, i| all | of(i)), "{kernel}, {thread}");
                }
                row(name, chains, warps, blocks, timed.cycles);
            }
        }
    }
    if capability() < 90 && gpu.emulator.is_none() {
        println!("the copy engine: skipped, there is none before 9.0");
        return free(input);
    }
    let map = TensorMap::of_16_bits(input, [64, 1, 512, u64::from(all)], [64, 1, 64, 1]);
    for name in ["tma", "bulk"] {
        for (landed, chains) in [("", 1), ("", 8), ("_landed", 8)] {
            for blocks in [1, all] {
                let kernel = format!("rates_{name}{landed}_{chains}");
                let smem = chains * BOX as u32 + 8;
                let steps = u64::from(chains);
                let timed = Probe { kernel: &kernel, warps: 1, blocks, smem, turns, steps }.time(
                    &gpu,
                    input,
                    |params| BulkParams { map, params },
                );
                for (thread, got) in timed.out.iter().enumerate() {
                    // A block of the tensor has as many rows as eight boxes, whatever is asked for.
                    let boxes = if name == "tma" { 8 } else { chains as usize };
                    let want = words[thread / 32 * boxes * BOX / 4 + thread % 32];
                    assert_eq!(*got, want, "{kernel}, thread {thread}");
                }
                row(&format!("{name}{landed}"), chains, 1, blocks, timed.cycles);
            }
        }
    }
    free(input);
}

/// A ring through all of `bytes` in random order, a pointer in each `stride`.
fn ring(bytes: usize, stride: usize) -> (u64, Vec<u64>) {
    let base = alloc(bytes);
    let n = bytes / stride;
    let mut order: Vec<usize> = (0..n).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..n).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(last, (state % (last as u64 + 1)) as usize);
    }
    // It starts where the memory does.
    let zero = order.iter().position(|at| *at == 0).unwrap();
    order.rotate_left(zero);
    let mut words = vec![0_u64; bytes / 8];
    for (i, at) in order.iter().enumerate() {
        words[at * stride / 8] = base + (order[(i + 1) % n] * stride) as u64;
    }
    (base, words)
}

fn write(to: u64, words: &[u64]) {
    let bytes = size_of_val(words);
    let null = std::ptr::null_mut();
    // SAFETY: the callers' memory has as many bytes.
    ok(unsafe { sys::cuMemcpyHtoDAsync_v2(to, words.as_ptr().cast(), bytes, null) });
}

/// Latencies of the L2 cache and of what is behind it; how fast all of it is read.
#[test]
fn memory() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let l2 = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE) as usize;
    let (small, large) = sized(&gpu, (2 << 20, (8 * l2).max(256 << 20)), (8 << 10, 16 << 10));
    for (name, bytes, stride) in [("latency of L2", small, 128), ("latency of memory", large, 512)]
    {
        let (base, words) = ring(bytes, stride);
        write(base, &words);
        // The ring's end was written last, and lies in the L2 cache: something else takes its place.
        free(upload(&vec![0_u8; sized(&gpu, 4 * l2, 64)]));
        let n = (bytes / stride) as u64;
        // What fits the cache is gone through twice; what does not, in part: no line a second time.
        let turns = sized(&gpu, if bytes == small { 2 * n / STEPS } else { 200 }, 1);
        let probe =
            Probe { kernel: "rates_pointers", warps: 1, blocks: 1, smem: 0, turns, steps: STEPS };
        let steps = (turns * STEPS) % n;
        let after = |from| (0..steps).fold(from, |at, _| words[(at - base) as usize / 8]);
        // A try goes on where the one before has ended: what that one read is in the cache.
        let (start, next) = (Cell::new(base), Cell::new(base));
        let timed = probe.time(&gpu, base, |params| {
            start.set(next.get());
            next.set(after(start.get()));
            Params { input: start.get(), ..params }
        });
        assert_eq!(timed.out[0], next.get().wrapping_sub(start.get()) as u32, "{name}");
        figure(name, timed.cycles, "cycles");
        free(base);
    }
    let bytes = sized(&gpu, (16 * l2).max(1 << 30), 64 << 10);
    let words: Vec<u64> =
        (0..bytes.min(4 << 20) as u64 / 8).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    let input = alloc(bytes);
    for at in (0..bytes).step_by(size_of_val(&words[..])) {
        write(input + at as u64, &words);
    }
    let blocks = 8 * multiprocessors(&gpu);
    let out = alloc(blocks as usize * 256 * 4);
    let params = Params { input, out, clocks: 0, turns: bytes as u64 / 16 };
    let launch = Launch {
        kernel: "rates_reading",
        grid: [blocks, 1, 1],
        threads: 256,
        smem: 0,
        stream: std::ptr::null_mut(),
        dependent: false,
    };
    let events = Events::new();
    let seconds = events.time(sized(&gpu, TRIES, 1), std::ptr::null_mut(), || {
        assert_eq!(gpu.enqueue(&launch, &params), CUDA_SUCCESS);
    });
    assert_eq!(gpu.reports(), Vec::<String>::new());
    let all = |words: &mut dyn Iterator<Item = u32>| words.fold(0, |all, word| all ^ word);
    let halves = |word: &u64| [*word as u32, (*word >> 32) as u32];
    let copies = (bytes / size_of_val(&words[..])) as u32;
    let once = all(&mut words.iter().flat_map(halves));
    let want = if copies.is_multiple_of(2) { 0 } else { once };
    let got = all(&mut download::<u32>(out, blocks as usize * 256).into_iter());
    assert_eq!(got, want, "all of it was read");
    figure("reading of memory", bytes as f64 / seconds.max(1e-9) / 1e9, "GB/s");
    free(input);
    free(out);
}

/// What a launch takes that does nothing: in a row, as a dependent, in a graph; and its call.
#[test]
fn launches() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let n = sized(&gpu, 500, 4);
    let params = Params { input: 0, out: 0, clocks: 0, turns: 0 };
    let stream = common::stream();
    let events = Events::new();
    let tries = sized(&gpu, TRIES, 1);
    let before = gpu.emulator.map_or(0, |emulator| emulator.stats().launches);
    let mut launched = 0;
    for (name, kernel, dependent) in [
        ("empty launch", "rates_empty", false),
        ("dependent launch that waits", "rates_waiting", true),
        ("dependent launch that lets the next begin and waits", "rates_letting", true),
    ] {
        let dependent = dependent && capability() >= 90;
        for blocks in [1, multiprocessors(&gpu)] {
            let launch =
                Launch { kernel, grid: [blocks, 1, 1], threads: 32, smem: 0, stream, dependent };
            let queue =
                || (0..n).for_each(|_| assert_eq!(gpu.enqueue(&launch, &params), CUDA_SUCCESS));
            // The first loads the function.
            queue();
            assert_eq!(common::sync(stream), CUDA_SUCCESS);
            let begin = Instant::now();
            queue();
            let call = begin.elapsed().as_secs_f64();
            assert_eq!(common::sync(stream), CUDA_SUCCESS);
            let each = events.time(tries, stream, queue) / f64::from(n);
            figure(&format!("{name}, {blocks} blocks"), each * 1e6, "us");
            figure(&format!("{name}, {blocks} blocks: its call"), call / f64::from(n) * 1e6, "us");
            let graph = graph(stream, queue);
            // SAFETY: the graph was made for this; the stream is waited for before it is given back.
            let replay = || ok(unsafe { sys::cuGraphLaunch(graph, stream) });
            replay();
            let each = events.time(tries, stream, replay) / f64::from(n);
            figure(&format!("{name}, {blocks} blocks, in a graph of {n}"), each * 1e6, "us");
            // SAFETY: nothing of it is under way.
            ok(unsafe { sys::cuGraphExecDestroy(graph) });
            launched += n as u64 * (3 + 2 * tries as u64);
        }
    }
    assert_eq!(gpu.reports(), Vec::<String>::new());
    if let Some(emulator) = gpu.emulator {
        assert_eq!(emulator.stats().launches - before, launched, "every launch was run");
    }
    // SAFETY: all work in it is done.
    ok(unsafe { sys::cuStreamDestroy_v2(stream) });
}
