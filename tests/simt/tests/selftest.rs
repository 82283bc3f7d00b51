//! Guards the guard: mistakes put into kernels are reported, kernels without one are not.

mod common;

use common::{
    CUDA_SUCCESS, CUresult, Gpu, Launch, Rng, TensorMap, alloc, download, from_bf16, gpu, ok,
    stream, sync, to_bf16, upload,
};
use cudarc::driver::sys::CUstream;
use simt::Mode;

#[repr(C)]
struct Decode {
    q: u64,
    k: u64,
    v: u64,
    o: u64,
    table: u64,
    kv_len: u64,
    q_heads: i32,
    kv_heads: i32,
    max_pages: i32,
    scale_log2: f32,
}

const DIM: usize = 128;
const PAGE: usize = 16;

fn bf16s(rng: &mut Rng, n: usize, scale: f32) -> Vec<u16> {
    (0..n).map(|_| to_bf16(rng.unit() * scale)).collect()
}

/// Softmax of scores times values, in f64.
fn attention(q: &[u16], keys: &[&[u16]], values: &[&[u16]]) -> Vec<f64> {
    let dot = |a: &[u16], b: &[u16]| -> f64 {
        a.iter().zip(b).map(|(&x, &y)| f64::from(from_bf16(x)) * f64::from(from_bf16(y))).sum()
    };
    let scores: Vec<f64> = keys.iter().map(|k| dot(q, k) / (DIM as f64).sqrt()).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..DIM)
        .map(|d| {
            let a: f64 =
                weights.iter().zip(values).map(|(w, v)| w * f64::from(from_bf16(v[d]))).sum();
            a / sum
        })
        .collect()
}

fn worst(got: &[f32], want: &[f64]) -> f64 {
    got.iter()
        .zip(want)
        .map(|(&g, &w)| if g.is_nan() { f64::INFINITY } else { (f64::from(g) - w).abs() })
        .fold(0.0, f64::max)
}

/// Runs a decode kernel: the launch's result and the largest error.
fn decode(gpu: &Gpu, kernel: &str) -> (CUresult, f64) {
    let (batch, q_heads, kv_heads, len) = (2, 4, 1, 200);
    let pages = usize::div_ceil(len, PAGE);
    let mut rng = Rng(1);
    let q = bf16s(&mut rng, batch * q_heads * DIM, 2.0);
    let cache = (batch * pages + 1) * PAGE * kv_heads * DIM;
    let k = bf16s(&mut rng, cache, 1.0);
    let v = bf16s(&mut rng, cache, 1.0);
    let table: Vec<i32> =
        (0..batch * pages).map(|i| (1 + i * 7 % (batch * pages)) as i32).collect();
    let lens: Vec<i32> = (0..batch).map(|b| (len - b * 13) as i32).collect();
    let o = alloc(q.len() * 4);
    let params = Decode {
        q: upload(&q),
        k: upload(&k),
        v: upload(&v),
        o,
        table: upload(&table),
        kv_len: upload(&lens),
        q_heads: q_heads as i32,
        kv_heads: kv_heads as i32,
        max_pages: pages as i32,
        scale_log2: std::f32::consts::LOG2_E / (DIM as f32).sqrt(),
    };
    let smem = 16 * DIM * 2 + 4 * 64 * DIM * 2;
    let result = gpu.run(kernel, [kv_heads as u32, batch as u32, 1], 128, smem as u32, &params);
    if result != CUDA_SUCCESS {
        return (result, f64::INFINITY);
    }
    let got: Vec<f32> = download(o, q.len());
    let mut error: f64 = 0.0;
    for b in 0..batch {
        let row = |x: &'_ [u16], t: usize| -> std::ops::Range<usize> {
            let _ = x;
            let at = (table[b * pages + t / PAGE] as usize * PAGE + t % PAGE) * DIM;
            at..at + DIM
        };
        let keys: Vec<&[u16]> = (0..lens[b] as usize).map(|t| &k[row(&k, t)]).collect();
        let values: Vec<&[u16]> = (0..lens[b] as usize).map(|t| &v[row(&v, t)]).collect();
        for h in 0..q_heads {
            let at = (b * q_heads + h) * DIM;
            let want = attention(&q[at..at + DIM], &keys, &values);
            error = error.max(worst(&got[at..at + DIM], &want));
        }
    }
    (result, error)
}

#[repr(C, align(128))]
struct Prefill {
    k: TensorMap,
    v: TensorMap,
    q: u64,
    o: u64,
    len: i32,
    q_heads: i32,
    kv_heads: i32,
    scale_log2: f32,
}

fn tensor_map(base: u64, kv_heads: usize, len: usize) -> TensorMap {
    TensorMap::of_16_bits(base, [DIM as u64, kv_heads as u64, len as u64, 1], [64, 1, 64, 1])
}

fn prefill(gpu: &Gpu, kernel: &str) -> (CUresult, f64) {
    on_hopper(gpu);
    let (q_heads, kv_heads, len) = (2, 1, 200);
    let mut rng = Rng(2);
    let q = bf16s(&mut rng, len * q_heads * DIM, 2.0);
    let k = bf16s(&mut rng, len * kv_heads * DIM, 1.0);
    let v = bf16s(&mut rng, len * kv_heads * DIM, 1.0);
    let o = alloc(q.len() * 4);
    let params = Prefill {
        k: tensor_map(upload(&k), kv_heads, len),
        v: tensor_map(upload(&v), kv_heads, len),
        q: upload(&q),
        o,
        len: len as i32,
        q_heads: q_heads as i32,
        kv_heads: kv_heads as i32,
        scale_log2: std::f32::consts::LOG2_E / (DIM as f32).sqrt(),
    };
    let smem = 2 * 8192 + 4 * 16384 + 64;
    let grid = [len.div_ceil(64) as u32, q_heads as u32, 1];
    let result = gpu.run(kernel, grid, 256, smem, &params);
    if result != CUDA_SUCCESS {
        return (result, f64::INFINITY);
    }
    let got: Vec<f32> = download(o, q.len());
    let mut error: f64 = 0.0;
    let rows = |x: &'_ [u16], n: usize| -> Vec<Vec<u16>> {
        (0..n).map(|t| x[t * DIM..(t + 1) * DIM].to_vec()).collect()
    };
    let (keys, values) = (rows(&k, len), rows(&v, len));
    let keys: Vec<&[u16]> = keys.iter().map(Vec::as_slice).collect();
    let values: Vec<&[u16]> = values.iter().map(Vec::as_slice).collect();
    for i in 0..len {
        for h in 0..q_heads {
            let at = (i * q_heads + h) * DIM;
            let want = attention(&q[at..at + DIM], &keys[..=i], &values[..=i]);
            error = error.max(worst(&got[at..at + DIM], &want));
        }
    }
    (result, error)
}

/// Where kernels are PTX, those of Hopper are for Hopper alone.
fn on_hopper(gpu: &Gpu) {
    if let Some(emulator) = gpu.emulator.filter(|emulator| emulator.is_ptx()) {
        emulator.set_device(90, 0);
    }
}

fn expect(reports: &[String], parts: &[&str], what: &str) {
    let found = reports.iter().find(|r| parts.iter().all(|p| r.contains(p)));
    let first = reports.iter().map(|r| r.lines().next().unwrap_or("")).collect::<Vec<_>>();
    match found {
        Some(report) => println!("{what}: {} reports, {report}", reports.len()),
        None => panic!("{what}: no report with {parts:?} among {first:#?}"),
    }
}

#[test]
fn clean_attention_is_right_and_not_reported() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let emulator = gpu.emulator.unwrap();
    for seed in 0..3 {
        emulator.set_seed(seed);
        for (result, error, bound) in [
            {
                let (r, e) = decode(&gpu, "selftest_decode");
                (r, e, 2e-2)
            },
            {
                let (r, e) = prefill(&gpu, "selftest_hopper");
                (r, e, 3e-2)
            },
        ] {
            assert_eq!(gpu.reports(), Vec::<String>::new(), "seed {seed}");
            assert_eq!(result, CUDA_SUCCESS);
            assert!(error < bound, "seed {seed}: {error}");
            println!("seed {seed}: largest error {error:.2e}");
        }
    }
    println!("{:?}", emulator.stats());
}

#[test]
fn mistakes_in_decode_are_reported() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    for (kernel, parts) in [
        (
            "selftest_decode_no_barrier_after_wait",
            &["race, read after write", "selftest_decode.cu"][..],
        ),
        (
            "selftest_decode_no_barrier_before_reuse",
            &["race, write after read", "selftest_decode.cu"],
        ),
        ("selftest_decode_no_barrier_in_merge", &["race, read after write", "selftest_decode.cu"]),
        ("selftest_decode_bad_page", &["out of bounds: read", "selftest_decode.cu"]),
    ] {
        decode(&gpu, kernel);
        expect(&gpu.reports(), parts, kernel);
        gpu.emulator.unwrap().reset();
    }
}

#[test]
fn mistakes_with_the_async_proxy_are_reported() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    for (kernel, parts) in [
        ("selftest_hopper_no_fence", &["missing fence.proxy.async", "selftest_hopper.cu"][..]),
        ("selftest_hopper_early_release", &["race, write after read", "async operation"]),
        ("selftest_hopper_parity", &["deadlock", "mbarrier.try_wait"]),
        ("selftest_hopper_tx_count", &["deadlock", "mbarrier.try_wait"]),
    ] {
        prefill(&gpu, kernel);
        expect(&gpu.reports(), parts, kernel);
        gpu.emulator.unwrap().reset();
    }
    // Accumulators read early are registers: no access to see, but the numbers are wrong.
    let (_, error) = prefill(&gpu, "selftest_hopper_no_wait");
    assert!(error > 0.1, "{error}");
    println!("selftest_hopper_no_wait: error {error:.2}");
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Small {
    input: u64,
    out: u64,
    counter: u64,
    n: u32,
    wild: u32,
}

#[test]
fn small_kernels() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let emulator = gpu.emulator.unwrap();
    // Kernel, blocks, threads, bytes of shared memory; what is to be in a report, or nothing.
    let cases: &[(&str, u32, u32, u32, &[&str])] = &[
        ("selftest_merge", 5, 64, 16, &[]),
        ("selftest_merge_no_atomic", 5, 64, 16, &["race between blocks, read after write"]),
        ("selftest_merge_no_barrier", 5, 64, 16, &["race between blocks, read after write"]),
        ("selftest_merge_too_early", 5, 64, 16, &["race between blocks, write after read"]),
        ("selftest_overwritten", 1, 64, 512, &["access while an async copy is under way"]),
        ("selftest_copy_exchange", 1, 32, 512, &[]),
        ("selftest_copy_exchange_unordered", 1, 32, 512, &["race, read after write"]),
        ("selftest_merge_relaxed", 5, 64, 16, &["race between blocks, read after write"]),
        ("selftest_merge_acquire", 5, 64, 16, &["race between blocks, read after write"]),
        ("selftest_merge_release", 5, 64, 16, &["race between blocks, read after write"]),
        ("selftest_read_const", 1, 64, 0, &[]),
        ("selftest_read_const_written", 1, 64, 0, &["read as constant of what the launch writes"]),
        ("selftest_dependent", 1, 64, 0, &[]),
        ("selftest_dependent_no_wait", 1, 64, 0, &["write before the wait for the kernel before"]),
        ("selftest_bytes", 2, 64, 64, &[]),
        ("selftest_bytes_race", 1, 64, 0, &["race, write after write", "1 bytes"]),
        ("selftest_blocks_race", 2, 64, 0, &["race between blocks, write after write"]),
        ("selftest_copy", 1, 64, 0, &[]),
        ("selftest_shared_uninit", 1, 64, 256, &["uninitialised read: shared memory"]),
        ("selftest_shared_outside", 1, 64, 256, &["out of bounds: shared memory"]),
        ("selftest_wild_pointer", 1, 64, 0, &["out of bounds: write of 4 bytes"]),
        ("selftest_deadlock", 1, 64, 0, &["deadlock", "waits in bar.sync"]),
        ("selftest_divergent", 1, 64, 0, &["divergent warp collective"]),
        ("selftest_warp_exchange", 1, 32, 128, &[]),
        ("selftest_warp_exchange_unordered", 1, 32, 128, &["race, read after write"]),
        ("selftest_copy_by_mbarrier", 1, 64, 520, &[]),
        ("selftest_copy_by_mbarrier_no_wait", 1, 64, 520, &["race, read after write"]),
        ("selftest_matrix_round_trip", 1, 32, 512, &[]),
        ("selftest_named_barriers", 1, 64, 128, &[]),
        ("selftest_named_barriers_no_wait", 1, 64, 128, &["race, read after write"]),
    ];
    let mut runs = 0;
    for &(kernel, blocks, threads, smem, parts) in cases {
        for seed in [0, 1, 2, 77] {
            emulator.reset();
            emulator.set_seed(seed);
            on_hopper(&gpu);
            let dependent = kernel.starts_with("selftest_dependent");
            emulator.set_dependent(dependent);
            let input: Vec<u32> = (0..4096).collect();
            let params = Small {
                input: upload(&input),
                out: upload(&vec![0u32; 1024]),
                counter: upload(&[0u32]),
                n: 64.max(smem - if kernel.ends_with("outside") { 32 } else { smem }),
                wild: 1 << 20,
            };
            let (grid, stream) = ([blocks, 1, 1], std::ptr::null_mut());
            // Before 9.0 every launch is made one above, and what a launch asks for is nothing.
            let launch = Launch { kernel, grid, threads, smem, stream, dependent };
            let result = match gpu.enqueue(&launch, &params) {
                CUDA_SUCCESS => sync(stream),
                error => error,
            };
            let reports = gpu.reports();
            runs += 1;
            if parts.is_empty() {
                assert_eq!(reports, Vec::<String>::new(), "{kernel}, seed {seed}");
                assert_eq!(result, CUDA_SUCCESS);
            } else if seed == 0 && !(emulator.is_ptx() && kernel.ends_with("_no_wait")) {
                expect(&reports, parts, kernel);
            } else {
                // In another order the same mistake may be met from its other side.
                assert!(!reports.is_empty(), "{kernel}, seed {seed}");
            }
            if kernel == "selftest_matrix_round_trip" {
                let got: Vec<u32> = download(params.out, 128);
                assert_eq!(got, (0..128).collect::<Vec<u32>>());
            }
            if kernel == "selftest_merge" {
                assert_eq!(download::<f32>(params.out, 64), vec![15.0; 64]);
            }
        }
    }
    println!("{} kernels, {runs} runs", cases.len());
}

/// What the contract of dependent launches allows, and what it does not; the first kernel writes
/// what the second one copies.
#[test]
fn dependents_keep_to_the_contract() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let emulator = gpu.emulator.unwrap();
    let written = "read before the wait for the kernel before, of what was written";
    let read = "write of what a dependent kernel has read before its wait";
    let stored = "write before the wait for the kernel before";
    let constant = "read as constant of what a kernel before writes";
    let no_wait = "a block ends without the wait for the kernel before";
    let cases: &[(&str, &str, &[&str])] = &[
        ("80;90", "selftest_dependent_copy", &[]),
        ("80;90", "selftest_dependent_table", &[]),
        ("80;90", "selftest_dependent_lets_next", &[]),
        ("80;90", "selftest_dependent_reads_const", &[constant, "selftest_memory.cu"]),
        ("80;90", "selftest_dependent_reads_early", &[read, "selftest_memory.cu"]),
        ("80;90", "selftest_dependent_asks_early", &[read, "selftest_memory.cu"]),
        ("80;90", "selftest_dependent_stores_early", &[stored, "selftest_memory.cu"]),
        ("80;90", "selftest_dependent_adds_early", &[stored, "selftest_memory.cu"]),
        ("80;90", "selftest_dependent_ends_early", &[no_wait, "block 1,0,0"]),
        // Of what does not wait everything is too early.
        ("80", "selftest_dependent_copy", &[no_wait]),
        ("80", "selftest_dependent_copy", &[stored]),
        ("80", "selftest_dependent_copy", &[read]),
    ];
    for &(archs, kernel, parts) in cases {
        // With another order of blocks; queued both, or the first one done when the other comes.
        for (seed, done_before) in [(0, false), (1, false), (0, true)] {
            emulator.reset();
            emulator.set_device(90, 0);
            emulator.set_archs(archs);
            emulator.set_seed(seed);
            let table: Vec<u32> = (0..128).rev().collect();
            let [input, middle, out] = [7, 0, 1].map(|word: u32| upload(&[word; 128]));
            let params = Small { input, out: middle, counter: upload(&table), n: 128, wild: 0 };
            let stream = stream();
            ok(gpu.enqueue(&two_blocks("selftest_copy", stream, false), &params));
            if done_before {
                ok(sync(stream));
            }
            let params = Small { input: middle, out, n: 1, ..params };
            ok(gpu.enqueue(&two_blocks(kernel, stream, true), &params));
            ok(sync(stream));
            let reports = gpu.reports();
            let what = format!("{kernel}, seed {seed}, done before: {done_before}");
            if parts.is_empty() {
                assert_eq!(reports, Vec::<String>::new(), "{what}");
                assert_eq!(download::<u32>(out, 128), [7; 128], "{what}");
            } else if done_before && parts[0] == read {
                // It was written before, and by a kernel that was not waited for.
                expect(&reports, &[&[written], &parts[1..]].concat(), &what);
            } else {
                // In another order another block is the first one.
                expect(&reports, if seed == 0 { parts } else { &parts[..1] }, &what);
            }
        }
    }
}

fn two_blocks(kernel: &str, stream: CUstream, dependent: bool) -> Launch<'_> {
    Launch { kernel, grid: [2, 1, 1], threads: 64, smem: 256, stream, dependent }
}

/// What a dependent does wrong before its wait ends the context, its suspended blocks with it, and
/// the launch before it.
#[test]
fn a_fault_before_the_wait_loses_the_context() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let emulator = gpu.emulator.expect("only it has modes");
    for kernel in ["selftest_dependent_faults_early", "selftest_dependent_copy"] {
        emulator.reset();
        emulator.set_device(90, 0);
        let [input, middle, out] = [7, 0, 1].map(|word: u32| upload(&[word; 128]));
        let stream = stream();
        let params = Small { input, out: middle, counter: 0, n: 128, wild: 1 << 20 };
        ok(gpu.enqueue(&two_blocks("selftest_copy", stream, false), &params));
        let params = Small { input: middle, out, ..params };
        ok(gpu.enqueue(&two_blocks(kernel, stream, true), &params));
        let result = sync(stream);
        if kernel == "selftest_dependent_copy" {
            assert_eq!(result, CUDA_SUCCESS);
            assert_eq!(download::<u32>(out, 128), [7; 128]);
            assert_eq!(gpu.reports(), Vec::<String>::new());
        } else {
            assert_eq!(result, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            expect(&gpu.reports(), &["out of bounds: read of 4 bytes"], kernel);
        }
    }
    emulator.reset();
}

#[test]
fn device_memory_is_checked() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let out = alloc(64 * 4);
    let fresh = alloc(64 * 4);
    let params = Small { input: fresh, out, counter: 0, n: 64, wild: 0 };
    assert_eq!(gpu.run("selftest_copy", [1, 1, 1], 64, 0, &params), CUDA_SUCCESS);
    expect(&gpu.reports(), &["uninitialised read: device memory", "selftest_memory.cu"], "fresh");

    let short = upload(&[1u32; 63]);
    let params = Small { input: short, out, counter: 0, n: 64, wild: 0 };
    let result = gpu.run("selftest_copy", [1, 1, 1], 64, 0, &params);
    assert_eq!(result, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    expect(&gpu.reports(), &["out of bounds: read of 4 bytes", "252 bytes from"], "short");
    // The context is lost for good.
    let mut at = 0;
    // SAFETY: the pointer is to a local.
    let result = unsafe { cudarc::driver::sys::cuMemAlloc_v2(&raw mut at, 16) };
    assert_eq!(result, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);

    gpu.emulator.unwrap().reset();
    let host = [0u32; 64];
    let params = Small { input: host.as_ptr() as u64, out: alloc(256), counter: 0, n: 64, wild: 0 };
    gpu.run("selftest_copy", [1, 1, 1], 64, 0, &params);
    expect(&gpu.reports(), &["out of bounds: read", "an address of the host"], "host pointer");
}

#[test]
fn bank_conflicts_are_counted_by_line() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let emulator = gpu.emulator.unwrap();
    for (kernel, smem, extra) in [("selftest_banks_1", 256, 0), ("selftest_banks_32", 8192, 62)] {
        emulator.reset();
        let params = Small { input: 0, out: alloc(256), counter: 0, n: 0, wild: 0 };
        assert_eq!(gpu.run(kernel, [1, 1, 1], 64, smem, &params), CUDA_SUCCESS);
        let lines = emulator.bank_conflicts();
        println!("{kernel}: {lines:?}");
        assert_eq!(lines.len(), 1);
        assert_eq!((lines[0].phases, lines[0].extra), (2, extra));
        assert!(lines[0].place.starts_with("selftest_memory.cu:"));
    }
}
