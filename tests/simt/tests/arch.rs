//! Every function of `csrc/arch` against its plain definition. The same test runs on a GPU
//! (`INFLIGHT_TEST_DRIVER=real`, `INFLIGHT_ARCH_IMAGE`: what nvcc made of `kernels/arch_micro.cu`),
//! and `INFLIGHT_ARCH_RECORD` names a file to write all inputs and outputs to. Such files of GPUs, in
//! `benches/record`, are compared with the emulator.

mod common;
#[path = "arch/edges.rs"]
mod edges;

use common::record::{self, Entry, Product, Rule};
use common::{CUDA_SUCCESS, Gpu, Rng, alloc, download, gpu, to_bf16, upload};
use half::f16;
use simt::Mode;

#[repr(C)]
struct Params {
    input: u64,
    out: u64,
}

/// What a kernel gives; recorded where that is asked for.
fn outputs(gpu: &Gpu, kernel: &str, threads: u32, input: &[u32], n: usize) -> Vec<u32> {
    let got = run(gpu, kernel, threads, input, n);
    let (kernel, input, out) = (kernel.to_owned(), input.to_vec(), got.clone());
    Entry { kernel, threads, input, out }.write();
    got
}

fn run(gpu: &Gpu, kernel: &str, threads: u32, input: &[u32], n: usize) -> Vec<u32> {
    let out = upload(&vec![0u32; n]);
    let params = Params { input: upload(input), out };
    assert_eq!(gpu.run(kernel, [1, 1, 1], threads, 4096, &params), CUDA_SUCCESS, "{kernel}");
    assert_eq!(gpu.reports(), Vec::<String>::new(), "{kernel}");
    download(out, n)
}

fn words(seed: u32, n: usize) -> Vec<u32> {
    let mut rng = Rng(seed);
    (0..n).map(|_| rng.next()).collect()
}

#[test]
fn copies_and_barriers() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let input = words(1, 256);
    let got = outputs(&gpu, "arch_copies", 64, &input, 512);
    for t in 0..64 {
        let other = (t + 1) % 64;
        for i in 0..4 {
            let want = input[4 * other + i];
            assert_eq!(got[4 * t + i], if other % 2 == 0 { want } else { 0 });
            assert_eq!(got[256 + 4 * t + i], want);
        }
    }
    let got = outputs(&gpu, "arch_barriers", 64, &input, 128);
    assert_eq!(got[..32], input[..32]);
    assert_eq!(got[32], 128);
    assert!((0..64).all(|i| got[64 + i] == 2 * i as u32));
    let input = words(6, 384);
    let got = outputs(&gpu, "arch_groups", 32, &input, 128);
    for t in 0..32 {
        let copied = |group: usize, t: usize, i: usize| {
            if (group + t).is_multiple_of(3) { 0 } else { input[4 * (32 * group + t) + i] }
        };
        let want = [copied(0, t, 0), copied(1, t, 1), copied(2, t, 3), copied(0, t ^ 1, 2)];
        assert_eq!([got[t], got[32 + t], got[64 + t], got[96 + t]], want, "thread {t}");
    }
    println!("copies and barriers: {} words", 512 + 128 + 128);
}

#[test]
fn fragments() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let input = words(2, 128);
    // Row i of matrix m is what lane 8 m + i points to.
    let at = |m: usize, row: usize, column: usize| -> u32 {
        input[(m * 8 + row) * 4 + column / 2] >> (16 * (column % 2)) & 0xffff
    };
    let plain = outputs(&gpu, "arch_ldmatrix", 32, &input, 128);
    let trans = outputs(&gpu, "arch_ldmatrix_trans", 32, &input, 128);
    for lane in 0..32 {
        for m in 0..4 {
            let (row, column) = (lane / 4, lane % 4 * 2);
            assert_eq!(plain[4 * lane + m], at(m, row, column) | at(m, row, column + 1) << 16);
            assert_eq!(trans[4 * lane + m], at(m, column, row) | at(m, column + 1, row) << 16);
        }
    }
    println!("fragments: 256 words");
}

/// Numbers below 1, and of sizes so unlike that the small ones are cut off.
fn factors(encode: &dyn Fn(f32) -> u16, spread: i32) -> Vec<u32> {
    let mut rng = Rng(3);
    let mut unit = || {
        let size = 2_f32.powi(-(rng.next() as i32 >> 20 & 31) * spread / 4);
        rng.unit() * size
    };
    let mut input: Vec<u32> =
        (0..256).map(|_| u32::from(encode(unit())) | u32::from(encode(unit())) << 16).collect();
    input.extend((0..128).map(|_| unit().to_bits()));
    input
}

#[test]
fn tensor_products() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    for (kernel, bf16, encode) in [
        ("arch_mma_bf16", true, &to_bf16 as &dyn Fn(f32) -> u16),
        ("arch_mma_f16", false, &|x| f16::from_f32(x).to_bits()),
    ] {
        for spread in [0, 1, 3] {
            let input = factors(encode, spread);
            let got = outputs(&gpu, kernel, 32, &input, 128);
            let mut worst: f64 = 0.0;
            for (product, got) in Product::all(&input, bf16).into_iter().zip(got) {
                let error = (f64::from(f32::from_bits(got)) - product.value).abs();
                worst = worst.max(error / product.bound());
            }
            assert!(worst < 1.0, "{kernel}: {worst} of the bound of truncation");
            println!("{kernel}: 128 sums, largest error {worst:.1e} of the bound");
        }
    }
}

#[test]
fn shuffles() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let input = words(4, 32);
    let got = outputs(&gpu, "arch_shuffles", 32, &input, 224);
    let vote = |bit: usize| input.iter().enumerate().fold(0, |v, (i, x)| v | (x >> bit & 1) << i);
    for t in 0..32 {
        let want = [input[5], input[31], 9, input[9], input[t ^ 3], input[t ^ 16], vote(0)];
        for (i, want) in want.into_iter().enumerate() {
            assert_eq!(got[32 * i + t], want, "lane {t}, {i}");
        }
    }
    let got = outputs(&gpu, "arch_lanes", 32, &input, 32 * 42);
    for t in 0..32 {
        let next = input[(t + 1) % 32];
        let mut want: Vec<u32> = (0..32).map(vote).collect();
        want.extend((0..5).map(|i| input[t ^ (1 << i)]));
        want.extend([input[input[t] as usize & 31], next, !next, u32::MAX, 0]);
        for (i, want) in want.into_iter().enumerate() {
            assert_eq!(got[32 * i + t], want, "lane {t}, {i}");
        }
    }
    println!("shuffles: {} words", 224 + 32 * 42);
}

#[test]
fn loads_and_stores() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let input = words(7, 256);
    let got = outputs(&gpu, "arch_widths", 64, &input, 704);
    for t in 0..64 {
        let v = &input[4 * t..][..4];
        assert_eq!(got[4 * t..][..4], *v);
        assert_eq!(got[256 + 4 * t..][..4], [v[3], v[2], v[1], v[0]]);
        assert_eq!([got[512 + t], got[576 + t], got[640 + t]], v[1..]);
    }
    println!("loads and stores: 704 words");
}

/// The largest relative error, where the definition is not exact.
fn close(got: u32, want: f64, bound: f64) {
    let got = f64::from(f32::from_bits(got));
    let error = (got - want).abs() / want.abs().max(f64::from(f32::MIN_POSITIVE));
    assert!(got == want || error <= bound, "{got} instead of {want}");
}

#[test]
fn numbers() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let mut rng = Rng(5);
    let mut x: Vec<f32> = (0..128).map(|_| rng.unit() * 40.0 + 0.003).collect();
    // Ties, the edges of f16, subnormal results.
    let special = [65519.9, 65520.0, 1.000_488_3, 1.001_464_8, 3e-8, 2.98e-8, 6.1e-5, -1e-7];
    x[..8].copy_from_slice(&special);
    let input: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
    let got = outputs(&gpu, "arch_numbers", 64, &input, 13 * 64);
    let pack = |lo: u16, hi: u16| u32::from(lo) | u32::from(hi) << 16;
    for t in 0..64 {
        let (x, y) = (x[2 * t], x[2 * t + 1]);
        let out = |i: usize| got[64 * i + t];
        if x.abs() < 100.0 {
            close(out(0), f64::from(x).exp2(), 4e-7);
        }
        close(out(1), f64::from(x.abs()).log2(), 4e-6);
        close(out(2), 1.0 / f64::from(x), 2.4e-7);
        assert_eq!(out(3), (x / y).to_bits());
        assert_eq!(out(4), (x * y).to_bits());
        assert_eq!(out(5), (x + y).to_bits());
        assert_eq!(out(6), pack(to_bf16(x), to_bf16(y)));
        let (hx, hy) = (f16::from_f32(x), f16::from_f32(y));
        assert_eq!(out(7), pack(hx.to_bits(), hy.to_bits()), "{x} {y}");
        assert_eq!(out(8), x.to_bits() & 0xffff_0000);
        assert_eq!(out(9), hy.to_f32().to_bits());
        let square = |h: f16| f16::from_f32(h.to_f32() * h.to_f32()).to_bits();
        assert_eq!(out(10), pack(square(hx), square(hy)));
        let product = std::hint::black_box(x * y);
        assert_eq!(out(11), (product + x).to_bits());
        let v = &input[t / 2 * 4..][..4];
        assert_eq!(out(12), v[0] ^ v[1] ^ v[2] ^ v[3]);
    }
    let _ = alloc(4);
    println!("numbers: {} words", got.len());
}

/// What GPUs gave is what comes out here.
#[test]
fn records_of_gpus() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    record::check_committed(|entry| again(&gpu, entry));
}

/// A recorded launch once more; those of 9.0 are another test's.
fn again(gpu: &Gpu, entry: &Entry) -> Option<Vec<u32>> {
    let Entry { kernel, threads, input, out } = entry;
    (!kernel.starts_with("arch_hopper")).then(|| run(gpu, kernel, *threads, input, out.len()))
}

/// A record that is wrong in one word is found to be, at each kind of word there is.
#[test]
fn a_wrong_word_is_found() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    // PTX for 8.0 has no conversions of bytes, and says so in a word: then nothing is compared.
    if let Some(emulator) = gpu.emulator.filter(|emulator| emulator.is_ptx()) {
        emulator.set_device(90, 0);
    }
    let (edge, pair, byte) = (edges::triples(1), edges::pairs(1), edges::bytes());
    let encode = |x: f32| f16::from_f32(x).to_bits();
    let launches = [
        ("arch_copies", 64, words(1, 256)),
        ("arch_barriers", 64, words(1, 256)),
        ("arch_ldmatrix", 32, words(2, 128)),
        ("arch_ldmatrix_trans", 32, words(2, 128)),
        ("arch_mma_bf16", 32, factors(&to_bf16, 1)),
        ("arch_mma_f16", 32, factors(&encode, 0)),
        ("arch_shuffles", 32, words(4, 32)),
        ("arch_lanes", 32, words(4, 32)),
        ("arch_numbers", 64, (0..128).map(|i| (i as f32 + 0.5).to_bits()).collect()),
        ("arch_edges", 64, edge),
        ("arch_pairs", 64, pair),
        ("arch_bytes", 64, byte),
        ("arch_widths", 64, words(7, 256)),
        ("arch_groups", 32, words(6, 384)),
    ];
    let folder = std::env::temp_dir().join(format!("inflight-arch-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("arch.txt");
    let compare = |entry: &Entry, before: &str| {
        std::fs::write(&file, format!("{before}{}\n", entry.line())).unwrap();
        record::compare(&file, |entry| again(&gpu, entry))
    };
    let mut found = 0;
    for (kernel, threads, input) in launches {
        let rules = record::rules(kernel).unwrap();
        let n = rules.last().unwrap().0.end;
        let out = run(&gpu, kernel, threads, &input, n);
        let right = Entry { kernel: kernel.to_owned(), threads, input, out };
        assert_eq!(compare(&right, ""), Ok(n), "{kernel}");
        for (range, rule) in rules {
            let is_plain = |word: &usize| {
                // One whose bits all count: no NaN, infinity or zero among f32, no NaN among halves.
                let (bits, float) = (right.out[*word], f32::from_bits(right.out[*word]));
                let halves = [bits & 0x7fff, bits >> 16 & 0x7fff];
                float.is_normal() && halves.iter().all(|half| *half < 0x7c00)
            };
            let word = range.clone().find(is_plain).unwrap_or(range.start);
            let mut wrong = right.clone();
            let (small, large) = (right.out[word] ^ 1, right.out[word] ^ 0x0040_0000);
            // A word that says that there is nothing to compare is 0.
            wrong.out[word] = if small == 0 { 2 } else { small };
            match rule {
                Rule::Near { .. } | Rule::Product { .. } | Rule::Within(_) => {
                    assert_eq!(compare(&wrong, ""), Ok(n), "{kernel}: a last place, {rule:?}");
                    wrong.out[word] = large;
                }
                _ => {}
            }
            let unlike = compare(&wrong, "")
                .expect_err(&format!("{kernel}, word {word}: {:#x}", right.out[word]));
            let [what] = &unlike[..] else { panic!("{kernel}, word {word}: {unlike:?}") };
            assert!(what.contains(&format!("{kernel}, word {word}: ")), "{what}");
            found += 1;
        }
    }
    // What is no launch at all, and one of another form.
    let entry =
        Entry { kernel: "arch_copies".into(), threads: 64, input: words(1, 256), out: vec![0] };
    assert!(compare(&entry, "arch_copies 64\n").unwrap_err().len() == 2);
    std::fs::remove_dir_all(&folder).unwrap();
    println!("{found} wrong words found");
}

/// What is recorded as infinite is not near to a number, as a part of it would be.
#[test]
fn an_infinity_that_is_lost_is_found() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let input = edges::triples(1);
    let out = run(&gpu, "arch_edges", 64, &input, 12 * 64);
    let recorded = Entry { kernel: "arch_edges".into(), threads: 64, input, out };
    for slot in 0..3 {
        let is_infinite = |word: &usize| f32::from_bits(recorded.out[*word]).is_infinite();
        let word = (64 * slot..64 * (slot + 1)).find(is_infinite).expect("one of the edges");
        let mut got = recorded.out.clone();
        got[word] = 2.0_f32.to_bits();
        assert_eq!(record::differences(&recorded, &got).len(), 1, "slot {slot}");
    }
}
