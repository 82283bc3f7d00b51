//! The clock of a multiprocessor: while one warp works, and while all tensor cores do.

use simt::Mode;

use crate::common::{CUDA_SUCCESS, Gpu, Launch, Rng, alloc, download, gpu, to_bf16, upload};
use crate::queues::Events;
use crate::{Params, Probe, Wrong, capability, cycles, figure, free, multiprocessors, sized};

/// Seconds of a launch; some of them in a row, in which the GPU comes to the clock that it can keep.
const LONG: f64 = 0.3;
const IN_A_ROW: usize = 4;
/// Products of a warpgroup per turn, and floating-point operations of one.
const PER_TURN: u64 = 16;
const WGMMA: u64 = 2 * 64 * 128 * 16;
/// Instructions of a warp per turn, and operations of one.
const STEPS: u64 = crate::STEPS;
const HMMA: u64 = 2 * 16 * 8 * 16;

struct Load<'a> {
    kernel: &'a str,
    warps: u32,
    smem: u32,
    /// Of a block's warps, per turn.
    operations: u64,
}

impl Load<'_> {
    /// Cycles of each launch by its time, and operations; what a block gave all have to have given.
    fn measure(&self, gpu: &Gpu, name: &str, blocks: u32, wrong: &mut Wrong) {
        let Self { kernel, warps, smem, operations } = *self;
        let threads = (32 * warps) as usize;
        let mut rng = Rng(7);
        // Of tensor cores' power much depends on the numbers.
        let mut half = || u32::from(to_bf16(rng.unit()));
        let given: Vec<u32> = (0..threads).map(|_| half() | half() << 16).collect();
        let input = upload(&given.repeat(blocks as usize));
        let (out, clocks) =
            (alloc(4 * threads * blocks as usize), alloc(16 * (warps * blocks) as usize));
        let (events, stream) = (Events::new(), std::ptr::null_mut());
        let grid = [blocks, 1, 1];
        let launch = Launch { kernel, grid, threads: 32 * warps, smem, stream, dependent: false };
        let take = |turns: u64| {
            let params = Params { input, out, clocks, turns, passes: 1 };
            let seconds = events.once(stream, || {
                assert_eq!(gpu.enqueue(&launch, &params), CUDA_SUCCESS, "{kernel}");
            });
            let taken = cycles(&download(clocks, 2 * (warps * blocks) as usize), warps as usize);
            (seconds.max(1e-9), taken as f64)
        };
        let few = sized(gpu, 1000, 1);
        // The first loads the function.
        take(few);
        let turns = sized(gpu, (few as f64 * LONG / take(few).0).ceil() as u64, 1);
        for nth in 1..=sized(gpu, IN_A_ROW, 1) {
            let (seconds, taken) = take(turns);
            let name = format!("{name}, {blocks} blocks, launch {nth} of {LONG} s");
            figure(&format!("clock under {name}"), taken / seconds / 1e6, "MHz");
            let rate = (turns * u64::from(blocks) * operations) as f64 / seconds;
            figure(&name, rate / 1e12, "TFLOP/s");
        }
        assert_eq!(gpu.reports(), Vec::<String>::new(), "{kernel}");
        let gave: Vec<u32> = download(out, threads * blocks as usize);
        for (i, got) in gave.iter().enumerate() {
            wrong.compare(*got, gave[i % threads], || format!("{kernel}, thread {i}"));
        }
        [input, out, clocks].into_iter().for_each(free);
    }
}

/// Cycles a second.
#[test]
fn clocks() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let mut wrong = Wrong::default();
    // A chain, two operations of each lane.
    let one = Load { kernel: "rates_ffma_1", warps: 1, smem: 0, operations: 64 * STEPS };
    one.measure(&gpu, "FFMA of one warp", 1, &mut wrong);
    let warps = sized(&gpu, 16, 2);
    let operations = HMMA * STEPS * u64::from(warps);
    let all = Load { kernel: "rates_hmma_bf16_8", warps, smem: 0, operations };
    all.measure(&gpu, "HMMA", multiprocessors(&gpu), &mut wrong);
    wrong.tell();
}

/// Products of warpgroups, alone and next to what softmax does; and the clock under them.
/// `INFLIGHT_ARCH_IMAGE`: of `kernels/rates_hopper.cu`.
#[test]
fn warpgroups() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    if let Some(emulator) = gpu.emulator {
        // PTX for 8.0 has none of them.
        emulator.set_device(90, 0);
    }
    if capability() / 10 != 9 {
        println!("warpgroups: skipped, instructions of 9.0, and the GPU has {}", capability());
        return;
    }
    let mut wrong = Wrong::default();
    let (turns, smem) = (sized(&gpu, 128, 1), 3 * 8192);
    let ones = upload(&[0x3f80_3f80_u32; 256]);
    for name in ["wgmma", "wgmma_ex2", "wgmma_fmul", "wgmma_ex2_fmul"] {
        let kernel = format!("rates_{name}");
        for warps in [4, 8] {
            let probe = Probe { kernel: &kernel, warps, blocks: 1, smem, turns, steps: PER_TURN };
            let out = probe.row(&gpu, (name, 1), ones, |params| params);
            // Exponentials of exponentials are infinite soon; products by 1 are 1.
            let others = if name.contains("ex2") { f32::INFINITY } else { 1.0 };
            let want = ((16 * PER_TURN * turns) as f32).to_bits() ^ others.to_bits();
            for (thread, got) in out.iter().enumerate() {
                wrong.compare(*got, want, || format!("{kernel}, {warps} warps, thread {thread}"));
            }
        }
    }
    free(ones);
    for name in ["wgmma", "wgmma_ex2_fmul"] {
        let kernel = format!("rates_{name}");
        let load = Load { kernel: &kernel, warps: 8, smem, operations: 2 * WGMMA * PER_TURN };
        load.measure(&gpu, name, multiprocessors(&gpu), &mut wrong);
    }
    wrong.tell();
}
