//! Latencies and bandwidths of the L2 cache and of what is behind it.
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "calls of the driver in a row")]

use std::cell::Cell;

use cudarc::driver::sys;
use simt::Mode;

use crate::common::{CUDA_SUCCESS, Gpu, Launch, alloc, download, gpu, ok, upload};
use crate::queues::Events;
use crate::{Params, Probe, STEPS, TRIES, Wrong, attribute, figure, free, multiprocessors, sized};

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

fn l2() -> usize {
    attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE) as usize
}

/// Cycles of a load whose address the load before it has given.
#[test]
fn latencies() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let l2 = l2();
    let (small, large) = sized(&gpu, (2 << 20, (8 * l2).max(256 << 20)), (8 << 10, 16 << 10));
    let mut wrong = Wrong::default();
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
        figure(name, timed.cycles, "cycles");
        let want = next.get().wrapping_sub(start.get()) as u32;
        wrong.compare(timed.out[0], want, || name.to_owned());
        free(base);
    }
    wrong.tell();
}

/// Bytes written at once.
const PIECE: usize = 4 << 20;

/// All multiprocessors reading: a part of the L2 cache again and again, and far more than it holds.
#[test]
fn bandwidths() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let mut wrong = Wrong::default();
    // A quarter is in either half of the cache, where it has two.
    let cached = sized(&gpu, (l2() / 4 / PIECE).max(1) * PIECE, 64 << 10);
    let large = sized(&gpu, (16 * l2()).max(1 << 30) / PIECE * PIECE, 64 << 10);
    // Few blocks for the smaller one: each thread has several loads under way.
    reading(&gpu, ("reading of L2", cached), 2, sized(&gpu, 101, 3), &mut wrong);
    reading(&gpu, ("reading of memory", large), 8, 1, &mut wrong);
    wrong.tell();
}

/// `blocks` per multiprocessor; an odd number of passes, of which what two have read cancels out.
fn reading(gpu: &Gpu, (name, bytes): (&str, usize), blocks: u32, passes: u64, wrong: &mut Wrong) {
    let words: Vec<u64> =
        (0..bytes.min(PIECE) as u64 / 8).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    let input = alloc(bytes);
    for at in (0..bytes).step_by(size_of_val(&words[..])) {
        write(input + at as u64, &words);
    }
    let blocks = blocks * multiprocessors(gpu);
    let out = alloc(blocks as usize * 256 * 4);
    let params = Params { input, out, clocks: 0, turns: bytes as u64 / 16, passes };
    let stream = std::ptr::null_mut();
    let launch = Launch {
        kernel: "rates_reading",
        grid: [blocks, 1, 1],
        threads: 256,
        smem: 0,
        stream,
        dependent: false,
    };
    let (tries, n) = sized(gpu, (TRIES, 4), (1, 1));
    let seconds = Events::new().time(tries, n, stream, || {
        assert_eq!(gpu.enqueue(&launch, &params), CUDA_SUCCESS);
    });
    assert_eq!(gpu.reports(), Vec::<String>::new());
    figure(name, (bytes as u64 * passes) as f64 / seconds.max(1e-9) / 1e9, "GB/s");
    let all = |words: &mut dyn Iterator<Item = u32>| words.fold(0, |all, word| all ^ word);
    let halves = |word: &u64| [*word as u32, (*word >> 32) as u32];
    let copies = bytes / size_of_val(&words[..]);
    let once = all(&mut words.iter().flat_map(halves));
    let want = if copies.is_multiple_of(2) { 0 } else { once };
    let got = all(&mut download::<u32>(out, blocks as usize * 256).into_iter());
    wrong.compare(got, want, || format!("{name}: what all of it gives"));
    free(input);
    free(out);
}
