//! Every function of `kernels/hopper_ops.cuh` against its plain definition, as `arch.rs` has those of
//! `csrc/arch`: on a GPU of 9.0 with what nvcc made of `kernels/arch_hopper.cu`.

mod common;

use common::record::{self, Entry, Rule};
use common::{CUDA_SUCCESS, Gpu, Rng, TensorMap, download, from_bf16, gpu, to_bf16, upload};
use cudarc::driver::sys;
use simt::Mode;

#[repr(C)]
struct Params {
    map: TensorMap,
    input: u64,
    out: u64,
}

/// Numbers of 16 bits in a box of 64 x 64.
const BOX: usize = 4096;

/// The emulator, or a GPU of 9.0.
fn hopper() -> Option<Gpu> {
    let gpu = gpu(Mode::asked(Mode::Checking))?;
    if let Some(emulator) = gpu.emulator {
        // PTX for 8.0 has none of them.
        emulator.set_device(90, 0);
    }
    let mut major = 0;
    let which = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
    // SAFETY: the pointer is to a local; device 0 is what `gpu` has made current.
    common::ok(unsafe { sys::cuDeviceGetAttribute(&raw mut major, which, 0) });
    if gpu.emulator.is_none() && major != 9 {
        println!("skipped: these are instructions of 9.0, and the GPU has {major}");
        return None;
    }
    Some(gpu)
}

fn run(gpu: &Gpu, kernel: &str, threads: u32, input: &[u32], n: usize) -> Vec<u32> {
    let (input, out) = (upload(input), upload(&vec![0u32; n]));
    // Of the first of 128 x 64 numbers; kernels without a copy by boxes have no use for it.
    let map = TensorMap::of_16_bits(input, [128, 1, 64, 1], [64, 1, 64, 1]);
    let smem = 5 * 8192;
    let params = Params { map, input, out };
    assert_eq!(gpu.run(kernel, [1, 1, 1], threads, smem, &params), CUDA_SUCCESS, "{kernel}");
    assert_eq!(gpu.reports(), Vec::<String>::new(), "{kernel}");
    download(out, n)
}

fn outputs(gpu: &Gpu, kernel: &str, threads: u32, input: &[u32], n: usize) -> Vec<u32> {
    let got = run(gpu, kernel, threads, input, n);
    let (kernel, input, out) = (kernel.to_owned(), input.to_vec(), got.clone());
    Entry { kernel, threads, input, out }.write();
    got
}

fn words(seed: u32, n: usize) -> Vec<u32> {
    let mut rng = Rng(seed);
    (0..n).map(|_| rng.next()).collect()
}

/// Pairs of bf16 from -1 to 1.
fn factors(n: usize) -> Vec<u32> {
    let mut rng = Rng(8);
    let mut half = || u32::from(to_bf16(rng.unit()));
    (0..n).map(|_| half() | half() << 16).collect()
}

/// Where 16 bytes of a row of 128 lie: `unit` is theirs, of 8.
fn swizzled(row: usize, unit: usize) -> usize {
    row * 8 + (unit ^ (row & 7))
}

#[test]
fn copies_behind_barriers() {
    let Some(gpu) = hopper() else { return };
    let input = words(1, 4096);
    let got = outputs(&gpu, "arch_hopper_copies", 128, &input, 2048);
    for turn in 0..2 {
        let mut tile = vec![0; BOX / 2];
        for (row, unit, i) in
            (0..64).flat_map(|r| (0..8).flat_map(move |u| (0..4).map(move |i| (r, u, i))))
        {
            // A row of the tensor is 64 words, half of them this box's.
            tile[4 * swizzled(row, unit) + i] = input[64 * row + 32 * turn + 4 * unit + i];
        }
        let of = &got[1024 * turn..];
        assert_eq!(of[..512], tile[..512], "turn {turn}");
        for (t, i) in (0..128).flat_map(|t| (0..4).map(move |i| (t, i))) {
            assert_eq!(of[512 + 128 * i + t], input[4 * (128 * turn + (t ^ 37)) + i], "thread {t}");
        }
    }
    println!("copies behind barriers: {} words", got.len());
}

#[test]
fn stored_matrices() {
    let Some(gpu) = hopper() else { return };
    let input = words(2, 128);
    let got = outputs(&gpu, "arch_hopper_matrices", 32, &input, 128);
    // Lane 8 m + i points to row i of matrix m, whose numbers four lanes have, two each.
    for (m, row, i) in (0..4).flat_map(|m| (0..8).flat_map(move |r| (0..4).map(move |i| (m, r, i))))
    {
        assert_eq!(
            got[4 * (8 * m + row) + i],
            input[4 * (4 * row + i) + m],
            "matrix {m}, row {row}"
        );
    }
    println!("stored matrices: {} words", got.len());
}

#[test]
fn sums_by_atomics() {
    let Some(gpu) = hopper() else { return };
    let input = words(3, 192);
    let got = outputs(&gpu, "arch_hopper_atomics", 64, &input, 387);
    for (i, got_before) in got[..192].iter().enumerate() {
        assert_eq!(*got_before, input[i], "word {i}: the first sum");
        assert_eq!(got[192 + i], input[i].wrapping_add(input[(i + 64) % 192]), "word {i}: both");
    }
    for (order, words) in input.chunks(64).enumerate() {
        let sum = words.iter().fold(0_u32, |sum, word| sum.wrapping_add(*word));
        assert_eq!(got[384 + order], sum, "order {order}: of all threads");
    }
    println!("sums by atomics: {} words", got.len());
}

#[test]
fn products_of_a_warpgroup() {
    let Some(gpu) = hopper() else { return };
    let input = factors(4096);
    let got = outputs(&gpu, "arch_hopper_products", 384, &input, 2 * 96 * 128);
    let number = |at: usize| {
        let word = input[at / 2 % 4096];
        f64::from(from_bf16((word >> (16 * (at % 2))) as u16))
    };
    // Box `n` of shared memory: a row is 64 numbers, in units of 8.
    let tile = |n: usize, row: usize, column: usize| {
        number(n * BOX + 8 * swizzled(row, column / 8) + column % 8)
    };
    let mut want = vec![0_u32; 96 * 128];
    for t in 0..128 {
        let (warp, lane) = (t / 32, t % 32);
        // The same places of a row hold A's fragment and the sums.
        let place =
            |i: usize| (16 * warp + lane / 4 + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2 + i % 2);
        for i in 0..32 {
            let (row, column) = place(i);
            let sum: f64 = (0..32).map(|k| tile(0, row, k) * tile(1, column, k)).sum();
            want[128 * i + t] = (sum as f32).to_bits();
        }
        for i in 0..64 {
            let (row, column) = place(i);
            let a = |k: usize| {
                // Word r of the lane that has (row, k): rows by r % 2, columns of 8 by r / 2.
                let of = 32 * warp + row % 8 * 4 + k % 8 / 2;
                let word = input[4 * of + row % 16 / 8 + k / 8 * 2];
                f64::from(from_bf16((word >> (16 * (k % 2))) as u16))
            };
            let b = |k: usize| tile(2 + column / 64, k, column % 64);
            // To it that of two boxes as rows of 64: A's first, and B's 128 columns.
            let of_boxes = |k: usize| tile(0, row, k) * tile(2 + column / 64, column % 64, k);
            let sum: f64 = (0..16).map(|k| a(k) * b(k) + of_boxes(k)).sum();
            want[128 * (32 + i) + t] = (sum as f32).to_bits();
        }
    }
    // Two warpgroups do the same.
    want.extend_from_within(..);
    let (kernel, threads) = ("arch_hopper_products".to_owned(), 384);
    let unlike = record::differences(&Entry { kernel, threads, input, out: want }, &got);
    assert_eq!(unlike, Vec::<String>::new());
    println!("products of a warpgroup: {} sums", got.len());
}

/// What GPUs gave is what comes out here.
#[test]
fn records_of_gpus() {
    let Some(gpu) = hopper() else { return };
    record::check_committed(|entry| again(&gpu, entry));
}

fn again(gpu: &Gpu, entry: &Entry) -> Option<Vec<u32>> {
    let Entry { kernel, threads, input, out } = entry;
    kernel.starts_with("arch_hopper").then(|| run(gpu, kernel, *threads, input, out.len()))
}

/// A record that is wrong in one word is found to be.
#[test]
fn a_wrong_word_is_found() {
    let Some(gpu) = hopper() else { return };
    for (kernel, threads, input) in [
        ("arch_hopper_copies", 128, words(1, 4096)),
        ("arch_hopper_matrices", 32, words(2, 128)),
        ("arch_hopper_atomics", 64, words(3, 192)),
        ("arch_hopper_products", 384, factors(4096)),
    ] {
        let rules = record::rules(kernel).unwrap();
        let (range, rule) = rules.last().unwrap();
        let out = run(&gpu, kernel, threads, &input, range.end);
        let right = Entry { kernel: kernel.to_owned(), threads, input, out };
        assert_eq!(record::differences(&right, &right.out), Vec::<String>::new());
        let mut wrong = right.clone();
        wrong.out[70] = match rule {
            Rule::Within(bound) => (f32::from_bits(wrong.out[70]) + 2.0 * *bound as f32).to_bits(),
            _ => wrong.out[70] ^ 1,
        };
        let unlike = record::differences(&wrong, &again(&gpu, &wrong).unwrap());
        let [what] = &unlike[..] else { panic!("{kernel}: {unlike:?}") };
        assert!(what.contains(&format!("{kernel}, word 70: ")), "{what}");
    }
}
