//! Numbers at the edges of their types, and what comes of them.

use half::{bf16, f16};
use simt::Mode;

use crate::common::record::{self, Entry};
use crate::common::{Rng, gpu};
use crate::outputs;

/// f32 words: zeros, infinities, NaN, subnormal ones, ties of the narrower types and their limits.
const FLOATS: [u32; 40] = [
    0x0000_0000,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc1_2345,
    0x7f80_0001,
    0x0000_0001,
    0x807f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7e80_0000,
    0x0040_0000,
    // bf16: ties to even and to odd, and what is rounded to infinity.
    0x3f80_8000,
    0x3f81_8000,
    0x3f80_8001,
    0x7f7f_8000,
    0xbf80_7fff,
    // f16: ties, 65519.9 and 65520, the least normal number, ties among subnormal ones and below.
    0x3f80_1000,
    0x3f80_3000,
    0x477f_efff,
    0x477f_f000,
    0x3880_0000,
    0x387f_ffff,
    0x3300_0000,
    0x3300_0001,
    0x3340_0000,
    0xb380_0000,
    // e4m3: 448, 464 and 465, ties at 17, 2^-10 and 3 2^-10.
    0x43e0_0000,
    0x43e8_0000,
    0x43e8_8000,
    0x4188_0000,
    0x3a80_0000,
    0x3b40_0000,
    // 2^x: beyond the largest, below the least normal one, and of no result at all.
    0x4300_0000,
    0xc2fd_0000,
    0xc316_0000,
];

/// f16 and bf16 among them.
const HALVES: [u16; 20] = [
    0x0000, 0x8000, 0x3c00, 0xbc00, 0x7c00, 0xfc00, 0x7e00, 0x0001, 0x83ff, 0x0400, 0x7bff, 0x3c01,
    0x3555, 0x3f80, 0x7f80, 0xff80, 0x7fc0, 0x0080, 0x7f7f, 0x3f81,
];

fn floats(rng: &mut Rng) -> u32 {
    let any = rng.next();
    match any >> 29 {
        // Whatever the bits say; or numbers of one size, whose sums and products are rounded.
        0 => rng.next(),
        1 | 2 => (rng.unit() * 3.0).to_bits(),
        _ => FLOATS[(any >> 8) as usize % FLOATS.len()],
    }
}

/// Three f32 per thread; every one of [`FLOATS`] is a first one.
pub(crate) fn triples(seed: u32) -> Vec<u32> {
    let mut rng = Rng(seed);
    let first = |t: usize, rng: &mut Rng| *FLOATS.get(t).unwrap_or(&floats(rng));
    (0..64).flat_map(|t| [first(t, &mut rng), floats(&mut rng), floats(&mut rng)]).collect()
}

/// Three pairs of halves per thread.
pub(crate) fn pairs(seed: u32) -> Vec<u32> {
    let mut rng = Rng(seed);
    let half = |rng: &mut Rng| {
        let any = rng.next();
        let special = HALVES[(any >> 8) as usize % HALVES.len()];
        u32::from(if any >> 30 == 0 { special } else { (rng.next() >> 16) as u16 })
    };
    (0..192).map(|_| half(&mut rng) | half(&mut rng) << 16).collect()
}

/// Two f32 and four of the 256 bytes per thread.
pub(crate) fn bytes() -> Vec<u32> {
    let mut rng = Rng(9);
    let four = |t: u32| u32::from_le_bytes([0, 1, 2, 3].map(|i| (4 * t + i) as u8));
    (0..64).flat_map(|t| [FLOATS[t as usize % 40], floats(&mut rng), four(t)]).collect()
}

/// `x`, with `bits` behind the first and no exponent below `least`, ties to even; `x` has been
/// rounded at most to an odd last place.
fn rounded(x: f64, bits: i32, least: i32) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let exponent = ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(least);
    let unit = 2_f64.powi(exponent - bits);
    (x / unit).round_ties_even() * unit
}

/// A sum that keeps, in its last place, that it was not exact.
fn odd_sum(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let of_b = sum - a;
    let rest = (a - (sum - of_b)) + (b - of_b);
    if !sum.is_finite() || rest == 0.0 || sum.to_bits() & 1 == 1 {
        return sum;
    }
    let away = (rest > 0.0) == (sum > 0.0);
    f64::from_bits(if away { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
}

fn to_f16(x: f64) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let near = rounded(x, 10, -14);
    let sign = u16::from(x.is_sign_negative()) << 15;
    if near.abs() > 65504.0 { sign | 0x7c00 } else { f16::from_f64(near).to_bits() }
}

fn to_bf16(x: f64) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let near = rounded(x, 7, -126);
    let sign = u16::from(x.is_sign_negative()) << 15;
    if near.abs() > f64::from(bf16::MAX.to_f32()) {
        sign | 0x7f80
    } else {
        bf16::from_f64(near).to_bits()
    }
}

fn to_e4m3(x: f32) -> u32 {
    let sign = u32::from(x.is_sign_negative()) << 7;
    let size = rounded(f64::from(x.abs()), 3, -6).min(448.0);
    let of = |byte: &u32| e4m3(*byte) == size;
    sign | if x.is_nan() { 0x7f } else { (0..0x7f).find(of).expect("rounded") }
}

fn e4m3(byte: u32) -> f64 {
    let (exponent, steps) = ((byte >> 3 & 15) as i32, f64::from(byte & 7));
    let size =
        if exponent == 0 { steps / 512.0 } else { (8.0 + steps) * 2_f64.powi(exponent - 10) };
    let size = if byte & 0x7f == 0x7f { f64::NAN } else { size };
    if byte & 0x80 == 0 { size } else { -size }
}

/// What all of it is to be, for the rules that records are held to.
fn expect(kernel: &str, input: &[u32], want: Vec<u32>, got: &[u32]) {
    let (kernel, input) = (kernel.to_owned(), input.to_vec());
    let unlike = record::differences(&Entry { kernel, threads: 64, input, out: want }, got);
    assert_eq!(unlike, Vec::<String>::new());
}

/// Slots of 64 words, by what each of `N` is of three words.
fn slots<const N: usize>(input: &[u32], of: impl Fn([u32; 3]) -> [u32; N]) -> Vec<u32> {
    let each: Vec<[u32; N]> =
        input.chunks(3).map(|three| of([three[0], three[1], three[2]])).collect();
    (0..N).flat_map(|slot| each.iter().map(move |words| words[slot])).collect()
}

fn packed(lo: u16, hi: u16) -> u32 {
    u32::from(lo) | u32::from(hi) << 16
}

#[test]
fn edges() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    // GPUs give this one, whatever it comes from.
    let canonical = |x: f32| if x.is_nan() { 0x7fff_ffff } else { x.to_bits() };
    let flush = |x: f32| if x.is_subnormal() { 0.0_f32.copysign(x) } else { x };
    for seed in 1..6 {
        let input = triples(seed);
        let want = slots(&input, |words| {
            let [x, y, z] = words.map(f32::from_bits);
            let wide = f64::from(flush(x));
            let half = |shift: u32| f16::from_bits((words[0] >> shift) as u16).to_f32().to_bits();
            [
                flush(wide.exp2() as f32).to_bits(),
                (wide.log2() as f32).to_bits(),
                flush((1.0 / wide) as f32).to_bits(),
                canonical(x / y),
                canonical(x * y),
                canonical(x + y),
                canonical(x.mul_add(y, z)),
                packed(to_bf16(f64::from(x)), to_bf16(f64::from(y))),
                packed(to_f16(f64::from(x)), to_f16(f64::from(y))),
                words[0] & 0xffff_0000,
                half(16),
                half(0),
            ]
        });
        expect("arch_edges", &input, want, &outputs(&gpu, "arch_edges", 64, &input, 12 * 64));
    }
    println!("edges: {} words", 5 * 12 * 64);
}

#[test]
fn halves() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    for seed in 1..6 {
        let input = pairs(seed);
        let want = slots(&input, |[a, b, c]| {
            let both = |of: &dyn Fn(u16, u16, u16) -> u16| {
                let at =
                    |shift: u32| of((a >> shift) as u16, (b >> shift) as u16, (c >> shift) as u16);
                packed(at(0), at(16))
            };
            let f = |x: u16| f64::from(f16::from_bits(x).to_f32());
            let bf = |x: u16| f64::from(bf16::from_bits(x).to_f32());
            let eight = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
            let chosen = |which: u32| {
                u32::from_le_bytes([0, 4, 8, 12].map(|i| eight[(which >> i & 7) as usize]))
            };
            [
                both(&|a, b, _| to_f16(f(a) * f(b))),
                both(&|a, b, c| to_f16(odd_sum(f(a) * f(b), f(c)))),
                both(&|a, b, c| to_bf16(odd_sum(bf(a) * bf(b), bf(c)))),
                chosen(c),
                chosen(0x5410),
                a.wrapping_add(b),
            ]
        });
        expect("arch_pairs", &input, want, &outputs(&gpu, "arch_pairs", 64, &input, 6 * 64));
    }
    println!("halves: {} words", 5 * 6 * 64);
}

#[test]
fn e4m3_conversions() {
    let Some(gpu) = gpu(Mode::asked(Mode::Checking)) else { return };
    let input = bytes();
    let got = outputs(&gpu, "arch_bytes", 64, &input, 193);
    if got[192] == 0 {
        return println!("skipped: this GPU has no conversions of e4m3");
    }
    let mut want = slots(&input, |[x, y, four]| {
        let half = |i: u32| to_f16(e4m3(four >> (8 * i) & 0xff));
        let [first, second] = [x, y].map(|x| to_e4m3(f32::from_bits(x)));
        [first | second << 8, packed(half(0), half(1)), packed(half(2), half(3))]
    });
    want.push(1);
    expect("arch_bytes", &input, want, &got);
    println!("e4m3: {} words", got.len());
}
