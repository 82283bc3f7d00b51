//! Numbers to numbers.

use super::super::{MAX_LANES, Simd};
use super::{Random, SPECIAL, lanes, same, vector};

/// All pairs of special numbers, and pairs of any.
fn pairs() -> Vec<[f32; 2]> {
    let mut all: Vec<_> = SPECIAL.iter().flat_map(|&a| SPECIAL.map(|b| [a, b])).collect();
    let mut random = Random(5);
    all.extend((0..20_000).map(|_| [random.bits(), random.bits()].map(f32::from_bits)));
    all.extend((0..20_000).map(|_| [random.number(), random.number()]));
    all
}

/// `LANES` pairs from `at` on, around the end.
fn columns(pairs: &[[f32; 2]], at: usize) -> [[f32; MAX_LANES]; 2] {
    let get = |i: usize| pairs[(at + i) % pairs.len()];
    [std::array::from_fn(|i| get(i)[0]), std::array::from_fn(|i| get(i)[1])]
}

#[inline(always)]
pub(super) fn basic<S: Simd>(s: S) -> usize {
    let (pairs, mut random, mut count) = (pairs(), Random(6), 0);
    let mut fused = 0;
    for at in (0..pairs.len()).step_by(S::LANES) {
        let [a, b] = columns(&pairs, at);
        let c: [f32; MAX_LANES] = std::array::from_fn(|i| match at / S::LANES % 3 {
            0 => SPECIAL[(at + i) % SPECIAL.len()],
            // The product's rounding shows.
            1 => -a[i] * b[i],
            _ => random.number(),
        });
        let (va, vb, vc) = (vector(s, &a), vector(s, &b), vector(s, &c));
        let found = [s.add(va, vb), s.mul(va, vb), s.div(va, vb), s.abs(va), s.fma(va, vb, vc)];
        let found = found.map(|v| lanes(s, v));
        for i in 0..S::LANES {
            let wanted = [a[i] + b[i], a[i] * b[i], a[i] / b[i]];
            for (op, wanted) in wanted.into_iter().enumerate() {
                let x = found[op][i];
                assert!(same(x, wanted), "operation {op} of {} and {}: {x}", a[i], b[i]);
            }
            assert_eq!(found[3][i].to_bits(), a[i].to_bits() & 0x7fff_ffff);
            // Rounded once, or twice where there is no instruction.
            let (once, twice) = (a[i].mul_add(b[i], c[i]), a[i] * b[i] + c[i]);
            let x = found[4][i];
            assert!(same(x, once) || same(x, twice), "{} * {} + {}: {x}", a[i], b[i], c[i]);
            fused += usize::from(!same(x, twice));
            count += 5;
        }
    }
    println!("{fused} sums of products are rounded once");
    count
}

/// By bits: what is chosen stays as it is, NaN and the sign of zero included.
#[inline(always)]
pub(super) fn choices<S: Simd>(s: S) -> usize {
    let (pairs, mut random, mut count) = (pairs(), Random(7), 0);
    for at in 0..pairs.len() {
        let [a, b] = columns(&pairs, at);
        let x: [f32; MAX_LANES] = std::array::from_fn(|_| f32::from_bits(random.bits()));
        let y: [f32; MAX_LANES] = std::array::from_fn(|_| f32::from_bits(random.bits()));
        let (va, vb, vx, vy) = (vector(s, &a), vector(s, &b), vector(s, &x), vector(s, &y));
        let found = [s.max(va, vb), s.min(va, vb), s.where_less(va, vb, vx, vy)];
        let found = found.map(|v| lanes(s, v));
        for i in 0..S::LANES {
            let wanted = [
                if a[i] > b[i] { a[i] } else { b[i] },
                if a[i] < b[i] { a[i] } else { b[i] },
                if a[i] < b[i] { x[i] } else { y[i] },
            ];
            for (op, wanted) in wanted.into_iter().enumerate() {
                let x = found[op][i];
                let what = format_args!("choice {op} of {} and {}: {x}", a[i], b[i]);
                assert!(x.to_bits() == wanted.to_bits(), "{what}, not {wanted}");
                count += 1;
            }
        }
    }
    count
}

/// The distance in units of f32's last place at `wanted`.
fn ulps(found: f32, wanted: f64) -> f64 {
    let unit = 2_f64.powi(wanted.abs().log2().floor().max(-126.0) as i32 - 23);
    (f64::from(found) - wanted).abs() / unit
}

#[inline(always)]
pub(super) fn exp2<S: Simd>(s: S) -> usize {
    const STEPS: i32 = 1 << 11;
    let mut all: Vec<f32> = (-127 * STEPS..=127 * STEPS).map(|i| i as f32 / STEPS as f32).collect();
    let mut random = Random(8);
    // All of the range, and close to 0.
    all.extend((0..100_000).map(|_| random.number() * 127.0));
    all.extend((0..10_000).map(|_| random.number() * 1e-3));
    for edge in (-128..=127).flat_map(|n| [n as f32, n as f32 + 0.5]) {
        all.extend([edge.next_down(), edge, edge.next_up()].map(|x| x.min(127.0)));
    }
    all.extend([f32::NEG_INFINITY, f32::MIN, -1e4, -150.0, -1e-45, -0.0, 0.0, 1e-45, f32::NAN]);
    all.resize(all.len().next_multiple_of(MAX_LANES), f32::NAN);
    let (mut worst, mut at) = (0.0_f64, f32::NAN);
    for some in all.chunks_exact(S::LANES) {
        let found = lanes(s, s.exp2(vector(s, some)));
        for (&x, &y) in some.iter().zip(&found) {
            if x.is_nan() {
                assert!(y.is_nan(), "2^NaN is {y}");
            } else if x < -126.0 {
                assert_eq!(y.to_bits(), 0, "2^{x} is {y}");
            } else if x == x.round() {
                assert_eq!(f64::from(y), 2_f64.powi(x as i32), "2^{x}");
            } else {
                let error = ulps(y, f64::from(x).exp2());
                if error > worst {
                    (worst, at) = (error, x);
                }
            }
        }
    }
    println!("2^x: off by {worst:.3} ulp at most, at {at}");
    assert!(worst < 2.0, "2^{at} is off by {worst} ulp");
    all.len()
}

/// A number in each lane that no other sum of lanes gives, and any.
#[inline(always)]
pub(super) fn sums<S: Simd>(s: S) -> usize {
    let (mut random, mut count) = (Random(9), 0);
    for turn in 0..2000 {
        let rows: [[f32; MAX_LANES]; 8] = std::array::from_fn(|row| {
            std::array::from_fn(|lane| match turn {
                0 => (row + 1) as f32 * 2_f32.powi(lane as i32),
                1 => f32::from_bits(0x8000_0000),
                _ => random.number() * 2_f32.powi((random.bits() % 20) as i32),
            })
        });
        // A macro's work: closures are not compiled with the caller's features.
        let v = [
            vector(s, &rows[0]),
            vector(s, &rows[1]),
            vector(s, &rows[2]),
            vector(s, &rows[3]),
            vector(s, &rows[4]),
            vector(s, &rows[5]),
            vector(s, &rows[6]),
            vector(s, &rows[7]),
        ];
        let eight = s.sum8(v);
        for (row, numbers) in rows.iter().enumerate() {
            let numbers = &numbers[..S::LANES];
            let wanted: f64 = numbers.iter().copied().map(f64::from).sum();
            let size: f64 = numbers.iter().map(|x| f64::from(x.abs())).sum();
            // Each number passes log2(LANES) additions.
            let bound = if turn < 2 { 0.0 } else { 4.0 * 2_f64.powi(-24) * size };
            for found in [s.sum(v[row]), eight[row]] {
                let error = (f64::from(found) - wanted).abs();
                assert!(error <= bound, "row {row}: {found}, not {wanted}");
                count += 1;
            }
        }
    }
    // What is not finite is not lost, wherever it is.
    for lane in 0..S::LANES {
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut numbers = [1.0; MAX_LANES];
            numbers[lane] = x;
            let (v, ones) = (vector(s, &numbers), s.splat(1.0));
            assert!(same(s.sum(v), x));
            let eight = s.sum8([ones, v, ones, ones, ones, ones, v, ones]);
            let wanted = S::LANES as f32;
            for (row, &found) in eight.iter().enumerate() {
                assert!(same(found, if matches!(row, 1 | 6) { x } else { wanted }), "row {row}");
            }
            count += 9;
        }
    }
    count
}

#[inline(always)]
pub(super) fn largest<S: Simd>(s: S) -> usize {
    let (mut random, mut count) = (Random(10), 0);
    for turn in 0..1000 * S::LANES {
        let mut numbers: [f32; MAX_LANES] = std::array::from_fn(|_| match turn % 4 {
            0 => f32::NEG_INFINITY,
            1 => -1e30,
            _ => -1.5 - random.number(),
        });
        let most = [-1e20, -0.25, 3.0, f32::INFINITY][turn / 4 % 4];
        numbers[turn % S::LANES] = most.max(-1e20);
        let wanted = numbers[..S::LANES].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(s.max_lane(vector(s, &numbers)), wanted);
        count += 1;
    }
    assert_eq!(s.max_lane(s.splat(f32::NEG_INFINITY)), f32::NEG_INFINITY);
    count + 1
}
