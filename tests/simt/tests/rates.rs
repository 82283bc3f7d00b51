//! What instructions, copies, memory and launches take on a GPU: `INFLIGHT_TEST_DRIVER=real` and
//! `INFLIGHT_ARCH_IMAGE`, what nvcc made of `kernels/rates.cu`. `INFLIGHT_RATES_RECORD` names a file
//! to write to, a line of JSON per figure. Under the emulator the same runs once, small: there it is
//! looked at whether kernels compute what they are to compute, and nothing is said of time. A figure is
//! written before what the kernel gave is compared, and a wrong word ends a test when all is written.

#![allow(clippy::multiple_unsafe_ops_per_block, reason = "calls of the driver in a row")]

mod common;
#[path = "rates/load.rs"]
mod load;
#[path = "rates/memory.rs"]
mod memory;
#[path = "rates/queues.rs"]
mod queues;

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
    passes: u64,
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

/// What kernels gave that they should not have: told when all figures are written.
#[derive(Default)]
struct Wrong {
    compared: usize,
    found: Vec<String>,
}

impl Wrong {
    fn compare(&mut self, got: u32, want: u32, what: impl Fn() -> String) {
        self.compared += 1;
        if got != want {
            self.found.push(format!("{}: {got:#x}, not {want:#x}", what()));
        }
    }

    fn tell(self) {
        println!("{} words compared", self.compared);
        let some = &self.found[..self.found.len().min(20)];
        assert!(some.is_empty(), "{} are wrong: {some:#?}", self.found.len());
    }
}

#[test]
#[should_panic(expected = "1 are wrong: [\n    \"b: 0x2, not 0x3\"")]
fn a_wrong_word_is_told_at_the_end() {
    let mut wrong = Wrong::default();
    wrong.compare(1, 1, || "a".to_owned());
    wrong.compare(2, 3, || "b".to_owned());
    wrong.compare(4, 4, || "c".to_owned());
    assert_eq!(wrong.compared, 3);
    wrong.tell();
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
    /// Writes what it takes, as a row of `name`, before anything is said of what it gave.
    fn row<P>(
        &self,
        gpu: &Gpu,
        (name, chains): (&str, u32),
        input: u64,
        params: impl Fn(Params) -> P,
    ) -> Vec<u32> {
        let Timed { cycles, out } = self.time(gpu, input, params);
        let Self { warps, blocks, .. } = self;
        record(&format!(
            r#""name": "{name}", "chains": {chains}, "warps": {warps}, "blocks": {blocks}, "cycles": {cycles:.4}"#
        ));
        out
    }

    fn time<P>(&self, gpu: &Gpu, input: u64, params: impl Fn(Params) -> P) -> Timed {
        let Self { kernel, warps, blocks, smem, turns, steps } = *self;
        let all = (blocks * warps) as usize;
        let (out, clocks) = (alloc(all * 32 * 4), alloc(all * 16));
        let mut best = u64::MAX;
        for _ in 0..sized(gpu, TRIES, 1) {
            let params = params(Params { input, out, clocks, turns, passes: 1 });
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
    let mut wrong = Wrong::default();
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
                let out = probe.row(&gpu, (name, chains), input, |params| params);
                let steps = turns * STEPS / u64::from(chains);
                for (lane, got) in out.iter().enumerate() {
                    if let Some(want) = expected(name, &given, lane, steps) {
                        let what = || format!("{kernel}, {warps} warps, thread {lane}");
                        wrong.compare(*got, want, what);
                    }
                }
                if name.starts_with("ldsm") {
                    // Where the thread has loaded from, again and again.
                    for (lane, got) in out[..32].iter().enumerate() {
                        let step = got.wrapping_sub(out[0]);
                        wrong.compare(step, 16 * lane as u32, || format!("{kernel}, lane {lane}"));
                    }
                }
            }
        }
        free(input);
    }
    wrong.tell();
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
    let mut wrong = Wrong::default();
    // Without a copy: what the two readings of the clock take, which is in all figures.
    for (name, chains) in
        [("ldgsts", 0), ("ldgsts", 1), ("ldgsts", 8), ("ldgsts_landed", 1), ("ldgsts_landed", 8)]
    {
        for (&warps, blocks) in warps.iter().flat_map(|warps| [(warps, 1), (warps, all)]) {
            let kernel = format!("rates_{name}_{chains}");
            let smem = warps * 512 * chains;
            let steps = u64::from(chains.max(1));
            let probe = Probe { kernel: &kernel, warps, blocks, smem, turns, steps };
            let out = probe.row(&gpu, (name, chains), input, |params| params);
            for (thread, got) in out.iter().enumerate() {
                let (warp, lane, n) = (thread / 32, thread % 32, chains as usize);
                let of = |i: usize| words[((warp * n + i) * 512 + 16 * lane) / 4];
                let want = (0..n).fold(0, |all, i| all | of(i));
                wrong.compare(*got, want, || format!("{kernel}, thread {thread}"));
            }
        }
    }
    if capability() < 90 && gpu.emulator.is_none() {
        println!("the copy engine: skipped, there is none before 9.0");
        free(input);
        return wrong.tell();
    }
    let map = TensorMap::of_16_bits(input, [64, 1, 512, u64::from(all)], [64, 1, 64, 1]);
    for (name, chains) in [
        ("tma", 0),
        ("tma", 1),
        ("tma", 8),
        ("tma_landed", 1),
        ("tma_landed", 8),
        ("bulk", 1),
        ("bulk", 8),
        ("bulk_landed", 1),
        ("bulk_landed", 8),
    ] {
        for blocks in [1, all] {
            let kernel = format!("rates_{name}_{chains}");
            let smem = chains * BOX as u32 + 8;
            let steps = u64::from(chains.max(1));
            let probe = Probe { kernel: &kernel, warps: 1, blocks, smem, turns, steps };
            let out = probe.row(&gpu, (name, chains), input, |params| BulkParams { map, params });
            for (thread, got) in out.iter().enumerate() {
                // A block of the tensor has as many rows as eight boxes, whatever is asked for.
                let boxes = if name.starts_with("tma") { 8 } else { chains as usize };
                let at = thread / 32 * boxes * BOX / 4 + thread % 32;
                let want = if chains == 0 { 0 } else { words[at] };
                wrong.compare(*got, want, || format!("{kernel}, thread {thread}"));
            }
        }
    }
    free(input);
    wrong.tell();
}

/// What a launch takes that does nothing: in a row, as a dependent, in a graph; and its call.
#[test]
fn launches() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let n = sized(&gpu, 500, 4);
    let params = Params { input: 0, out: 0, clocks: 0, turns: 0, passes: 0 };
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
            let call = begin.elapsed().as_secs_f64() / f64::from(n);
            assert_eq!(common::sync(stream), CUDA_SUCCESS);
            let each = events.time(tries, 1, stream, queue) / f64::from(n);
            // Where the device waits for the host, what a launch takes stands in the graph's row.
            let name = format!("{name}, {blocks} blocks");
            let bound = if call > 0.8 * each { " (bound by the CPU)" } else { "" };
            figure(&format!("{name}, from a stream{bound}"), each * 1e6, "us");
            figure(&format!("{name}: its call"), call * 1e6, "us");
            let graph = graph(stream, queue);
            // SAFETY: the graph was made for this; the stream is waited for before it is given back.
            let replay = || ok(unsafe { sys::cuGraphLaunch(graph, stream) });
            replay();
            let each = events.time(tries, 1, stream, replay) / f64::from(n);
            figure(&format!("{name}, in a graph of {n}"), each * 1e6, "us");
            // SAFETY: nothing of it is under way.
            ok(unsafe { sys::cuGraphExecDestroy(graph) });
            launched += n as u64 * (3 + 4 * tries as u64);
        }
    }
    assert_eq!(gpu.reports(), Vec::<String>::new());
    if let Some(emulator) = gpu.emulator {
        assert_eq!(emulator.stats().launches - before, launched, "every launch was run");
    }
    // SAFETY: all work in it is done.
    ok(unsafe { sys::cuStreamDestroy_v2(stream) });
}
