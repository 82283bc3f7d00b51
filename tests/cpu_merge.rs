//! Merging against softmax in f64.

#[path = "common/kv.rs"]
mod kv;
#[path = "common/rng.rs"]
mod rng;

use inflight::device::cpu::Isa;
use inflight::kernels::DType;
use inflight::kernels::cpu::{State, merge};
use kv::{Tensor, cpu, cpus, field, finite_number};
use rng::Rng;

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
const NONE: f32 = f32::NEG_INFINITY;

/// A state, and whether it has seen a key.
struct Part {
    o: Tensor,
    lse: Vec<f32>,
}

fn draw(rng: &mut Rng, dtype: DType, shape: [usize; 3], percent_empty: usize) -> Part {
    let rows = shape[0] * shape[1];
    let spread = rng.pick(&[1.0, 30.0, 1e4]);
    let mut lse: Vec<f32> = (0..rows).map(|_| finite_number(rng) * spread).collect();
    let gaps = rng.chance(50);
    let mut o = Tensor::new(rng, dtype, shape, gaps, finite_number);
    for (row, lse) in lse.iter_mut().enumerate() {
        if rng.chance(percent_empty) {
            *lse = rng.pick(&[NONE, f32::INFINITY]);
            // Not read: it may be anything.
            let at = o.at(row / shape[1], row % shape[1], 0);
            kv::encode(dtype, f32::NAN, &mut o.bytes[at..]);
        }
    }
    Part { o, lse }
}

fn states(parts: &[Part]) -> Vec<State<'_>> {
    parts.iter().map(|part| State { o: part.o.view(), lse: &part.lse }).collect()
}

/// How far a number rounded to this type may be from it, relatively.
fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-7,
        DType::F16 => 2_f64.powi(-11),
        _ => 2_f64.powi(-8),
    }
}

#[test]
fn merged_states_are_the_softmax_over_all_keys() {
    let mut rng = Rng::new(1);
    let mut worst = 0.0_f64;
    let mut rows = 0;
    for threads in [1, 2] {
        let cpus = cpus(threads);
        for case in 0..300 {
            let most = if case % 50 == 0 { 600 } else { 5 };
            let (heads, dim) = (rng.pick(&[1, 3, 8]), rng.pick(&[8, 64, 72, 80, 256, 300]));
            let shape = [rng.within(1, most), heads, dim];
            let percent = rng.pick(&[0, 20, 60]);
            let parts: Vec<Part> = (0..rng.within(1, 5))
                .map(|_| {
                    let dtype = rng.pick(&TYPES);
                    draw(&mut rng, dtype, shape, percent)
                })
                .collect();
            let gaps = rng.chance(50);
            let dtype = rng.pick(&TYPES);
            let mut out = Tensor::new(&mut rng, dtype, shape, gaps, |_| 7.0);
            let before = out.bytes.to_vec();
            let mut first: Option<(Vec<u8>, Vec<u32>)> = None;
            for cpu in &cpus {
                out.bytes.copy_from_slice(&before);
                // One more than there are rows stays as it is.
                let mut lse = vec![7.0; shape[0] * heads + 1];
                merge(cpu, &states(&parts), out.view_mut(), Some(&mut lse)).unwrap();
                let got = (out.bytes.to_vec(), lse.iter().map(|x| x.to_bits()).collect());
                assert!(lse[shape[0] * heads] == 7.0);
                match &first {
                    None => {
                        worst = worst.max(check(&parts, &out, &lse));
                        first = Some(got);
                    }
                    Some(first) => assert!(*first == got, "{} has other bits", cpu.isa()),
                }
                out.bytes.copy_from_slice(&before);
                merge(cpu, &states(&parts), out.view_mut(), None).unwrap();
                assert!(out.bytes[..] == first.as_ref().unwrap().0, "without LSE");
            }
            let mut gaps = before;
            for token in 0..shape[0] {
                for head in 0..heads {
                    let (at, len) = (out.at(token, head, 0), dim * dtype.size());
                    gaps[at..at + len].copy_from_slice(&out.bytes[at..at + len]);
                }
            }
            assert!(out.bytes[..] == gaps, "bytes between rows have changed");
            rows += shape[0] * heads;
        }
    }
    println!("{rows} rows, worst error {worst:.2} of what is allowed");
}

/// The worst error, of what is allowed.
fn check(parts: &[Part], out: &Tensor, lse: &[f32]) -> f64 {
    let mut worst = 0.0_f64;
    let heads = out.shape.heads;
    for (row, &lse) in lse.iter().enumerate().take(out.shape.tokens * heads) {
        let (token, head) = (row / heads, row % heads);
        let seen: Vec<&Part> = parts.iter().filter(|part| part.lse[row].is_finite()).collect();
        let most = seen.iter().map(|part| part.lse[row]).fold(NONE, f32::max);
        let weights: Vec<f64> =
            seen.iter().map(|part| (f64::from(part.lse[row]) - f64::from(most)).exp()).collect();
        let sum: f64 = weights.iter().sum();
        if seen.is_empty() {
            assert_eq!(lse, NONE);
        } else if let [one] = seen[..] {
            assert_eq!(lse.to_bits(), one.lse[row].to_bits());
        } else {
            let wanted = f64::from(most) + sum.ln();
            let error = (f64::from(lse) - wanted).abs();
            assert!(error <= 2e-7 * wanted.abs().max(4.0), "LSE {lse}, not {wanted}");
        }
        for i in 0..out.shape.head_dim {
            let got = out.get(token, head, i);
            let mut wanted = 0.0;
            let mut size = 0.0_f64;
            for (part, weight) in seen.iter().zip(&weights) {
                let number = f64::from(part.o.get(token, head, i));
                wanted += weight / sum * number;
                size = size.max(number.abs());
            }
            match seen[..] {
                [] => assert_eq!(got.to_bits(), 0),
                [one] if one.o.dtype == out.dtype => {
                    assert_eq!(got.to_bits(), one.o.get(token, head, i).to_bits());
                }
                _ => {
                    let allowed = rounding(out.dtype) * wanted.abs() + 5e-7 * size + 1e-7;
                    let error = (f64::from(got) - wanted).abs() / allowed;
                    assert!(error <= 1.0, "{got}, not {wanted}");
                    worst = worst.max(error);
                }
            }
        }
    }
    worst
}

#[test]
fn one_state_keeps_its_bits() {
    let mut rng = Rng::new(2);
    let cpu = cpu(1, Isa::best());
    for dtype in TYPES {
        let shape = [5, 3, 72];
        let o = Tensor::new(&mut rng, dtype, shape, false, kv::any_number);
        let lse: Vec<f32> = (0..15).map(|_| finite_number(&mut rng)).collect();
        // With neutral states around it too.
        let none = Tensor::new(&mut rng, DType::F32, shape, false, |_| f32::NAN);
        let neutral = State { o: none.view(), lse: &[NONE; 15] };
        let state = State { o: o.view(), lse: &lse };
        for states in [&[state][..], &[neutral, state], &[state, neutral, neutral]] {
            let mut out = Tensor::new(&mut rng, dtype, shape, false, |_| 7.0);
            let mut out_lse = vec![7.0; 15];
            merge(&cpu, states, out.view_mut(), Some(&mut out_lse)).unwrap();
            let len = 15 * 72 * dtype.size();
            assert!(out.bytes[..len] == o.bytes[..len] && out_lse == lse);
        }
    }
}

#[test]
fn extremes_stay_finite() {
    let cpu = cpu(1, Isa::best());
    let huge = |sign: f32| {
        Tensor::new(&mut Rng::new(1), DType::F32, [1, 1, 8], false, |_| sign * f32::MAX)
    };
    let (plus, minus) = (huge(1.0), huge(-1.0));
    for (a, b) in [(0.0, 0.0), (f32::MAX, f32::MAX), (f32::MIN, f32::MAX), (f32::MIN, f32::MIN)] {
        for (x, y) in [(&plus, &plus), (&plus, &minus), (&minus, &minus)] {
            let mut out = Tensor::new(&mut Rng::new(1), DType::F32, [1, 1, 8], false, |_| 7.0);
            let mut lse = [7.0];
            let states = [State { o: x.view(), lse: &[a] }, State { o: y.view(), lse: &[b] }];
            merge(&cpu, &states, out.view_mut(), Some(&mut lse)).unwrap();
            assert!((0..8).all(|i| out.get(0, 0, i).is_finite()), "{a} {b}");
            assert!(lse[0].is_finite(), "{a} {b}: {}", lse[0]);
        }
    }
}

#[test]
fn what_is_refused_is_named_and_nothing_is_written() {
    let cpu = cpu(1, Isa::best());
    let tensor = |dtype, shape| Tensor::new(&mut Rng::new(1), dtype, shape, false, finite_number);
    let good = tensor(DType::F16, [2, 3, 16]);
    let lse = [0.0; 6];
    let state = State { o: good.view(), lse: &lse };
    let (fewer, narrow, short, fp8) = (
        tensor(DType::F16, [1, 3, 16]),
        tensor(DType::F16, [2, 2, 16]),
        tensor(DType::F16, [2, 3, 8]),
        tensor(DType::Fp8E4m3, [2, 3, 16]),
    );
    let bad = |o: &'static str| match o {
        "tokens" => State { o: fewer.view(), lse: &lse },
        "heads" => State { o: narrow.view(), lse: &lse },
        "dim" => State { o: short.view(), lse: &lse },
        "fp8" => State { o: fp8.view(), lse: &lse },
        _ => State { o: good.view(), lse: &lse[..5] },
    };
    let mut count = 0;
    let mut refused = |name, states: &[State<'_>], mut out: Tensor, lse_len| {
        let (before, mut lse) = (out.bytes.to_vec(), vec![7.0; lse_len]);
        let result = merge(&cpu, states, out.view_mut(), Some(&mut lse));
        assert_eq!(field(result), name);
        assert!(out.bytes[..] == before && lse.iter().all(|&x| x == 7.0), "{name}: written");
        count += 1;
    };
    let out = || tensor(DType::F32, [2, 3, 16]);
    refused("states", &[], out(), 6);
    for what in ["tokens", "heads", "dim", "fp8", "lse"] {
        refused("states", &[bad(what)], out(), 6);
        refused("states", &[state, state, bad(what)], out(), 6);
    }
    refused("lse", &[state], out(), 5);
    refused("o", &[state], tensor(DType::Fp8E4m3, [2, 3, 16]), 6);
    println!("{count} bad calls refused");
}
