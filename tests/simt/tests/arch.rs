//! Every function of `csrc/arch` against its plain definition. The same test runs on a GPU
//! (`INFLIGHT_TEST_DRIVER=real`, `INFLIGHT_ARCH_IMAGE`: what nvcc made of `kernels/arch_micro.cu`),
//! and `INFLIGHT_ARCH_RECORD` names a file to write all outputs to.

mod common;

use std::io::Write;

use common::{CUDA_SUCCESS, Gpu, Rng, alloc, download, from_bf16, gpu, to_bf16, upload};
use half::f16;
use simt::Mode;

#[repr(C)]
struct Params {
    input: u64,
    out: u64,
}

fn outputs(gpu: &Gpu, kernel: &str, threads: u32, input: &[u32], n: usize) -> Vec<u32> {
    let out = upload(&vec![0u32; n]);
    let params = Params { input: upload(input), out };
    assert_eq!(gpu.run(kernel, [1, 1, 1], threads, 4096, &params), CUDA_SUCCESS, "{kernel}");
    assert_eq!(gpu.reports(), Vec::<String>::new(), "{kernel}");
    let got = download(out, n);
    if let Some(path) = std::env::var_os("INFLIGHT_ARCH_RECORD") {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        let words: Vec<String> = got.iter().map(|w| format!("{w:08x}")).collect();
        writeln!(file, "{kernel} {}", words.join(" ")).unwrap();
    }
    got
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
    println!("copies and barriers: {} words", 512 + 128);
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

/// 16 x 16 times 16 x 8 plus 16 x 8, from and to fragments as PTX has them.
#[test]
fn tensor_products() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let decode_f16 = |x: u16| f16::from_bits(x).to_f32();
    for (kernel, decode, encode) in [
        ("arch_mma_bf16", &from_bf16 as &dyn Fn(u16) -> f32, &to_bf16 as &dyn Fn(f32) -> u16),
        ("arch_mma_f16", &decode_f16, &|x| f16::from_f32(x).to_bits()),
    ] {
        let mut rng = Rng(3);
        let mut input: Vec<u32> = (0..256)
            .map(|_| u32::from(encode(rng.unit())) | u32::from(encode(rng.unit())) << 16)
            .collect();
        input.extend((0..128).map(|_| rng.unit().to_bits()));
        let got = outputs(&gpu, kernel, 32, &input, 128);
        let half = |word: u32, i: usize| f64::from(decode((word >> (16 * i)) as u16));
        let (mut a, mut b) = ([[0.0; 16]; 16], [[0.0; 8]; 16]);
        for lane in 0..32 {
            let (row, column) = (lane / 4, lane % 4 * 2);
            for i in 0..2 {
                for r in 0..4 {
                    a[row + r % 2 * 8][column + r / 2 * 8 + i] = half(input[4 * lane + r], i);
                }
                for r in 0..2 {
                    b[column + r * 8 + i][row] = half(input[128 + 2 * lane + r], i);
                }
            }
        }
        let mut worst: f64 = 0.0;
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
                let sum: f64 = (0..16).map(|k| a[row][k] * b[k][column]).sum();
                let want = sum + f64::from(f32::from_bits(input[256 + 4 * lane + i]));
                worst = worst.max((f64::from(f32::from_bits(got[4 * lane + i])) - want).abs());
            }
        }
        // f32 sums of 16 products below 1; tensor cores truncate, which is a little worse.
        assert!(worst < 1e-5, "{kernel}: {worst}");
        println!("{kernel}: 128 sums, largest error {worst:.1e}");
    }
}

#[test]
fn shuffles() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let input = words(4, 32);
    let got = outputs(&gpu, "arch_shuffles", 32, &input, 224);
    let votes = input.iter().enumerate().fold(0, |v, (i, x)| v | (x & 1) << i);
    for t in 0..32 {
        let want = [input[5], input[31], 9, input[9], input[t ^ 3], input[t ^ 16], votes];
        for (i, want) in want.into_iter().enumerate() {
            assert_eq!(got[32 * i + t], want, "lane {t}, {i}");
        }
    }
    println!("shuffles: 224 words");
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
