//! Operands are laid out by the CuTe layouts as the ISA prints them, evaluated as such; products are
//! plain ones.

use super::*;
use crate::tensor::tests::{code, small};
use crate::testing::Random;

/// A layout of CuTe: the modes of one coordinate as (extent, stride), the first the fastest.
fn at(modes: &[(u32, u32)], mut coordinate: u32) -> u32 {
    let mut offset = 0;
    for (i, &(extent, stride)) in modes.iter().enumerate() {
        // The last mode takes whatever is left.
        let here = if i + 1 == modes.len() { coordinate } else { coordinate % extent };
        offset += here * stride;
        coordinate /= extent;
    }
    offset
}

/// `Swizzle<B, 4, 3>` of an address in bytes: bits 4.. get those three above.
fn swizzle(bits: u32, address: u32) -> u32 {
    let mut to = address;
    for bit in 0..bits {
        if address >> (7 + bit) & 1 == 1 {
            to ^= 1 << (4 + bit);
        }
    }
    to
}

/// The modes of m or n, and those of k.
type Layout = (Vec<(u32, u32)>, Vec<(u32, u32)>);

/// The canonical layout of the ISA's table, in elements.
fn canonical_layout(major: Major, mode: u32, t: u32, lbo: u32, sbo: u32) -> Layout {
    match (major, mode) {
        (Major::Mn, 0) => (vec![(t, 1), (1, t), (99, sbo)], vec![(8, t), (99, lbo)]),
        (Major::Mn, 1) => (vec![(t, 1), (2, t), (99, lbo)], vec![(8, 2 * t), (99, sbo)]),
        (Major::Mn, 2) => (vec![(t, 1), (4, t), (99, lbo)], vec![(8, 4 * t), (99, sbo)]),
        (Major::Mn, _) => (vec![(t, 1), (8, t), (99, lbo)], vec![(8, 8 * t), (99, sbo)]),
        (Major::K, 0) => (vec![(8, t), (99, sbo)], vec![(t, 1), (99, lbo)]),
        (Major::K, 1) => (vec![(8, 2 * t), (99, sbo)], vec![(t, 1), (99, t)]),
        (Major::K, 2) => (vec![(8, 4 * t), (99, sbo)], vec![(t, 1), (99, t)]),
        (Major::K, _) => (vec![(8, 8 * t), (99, sbo)], vec![(t, 1), (99, t)]),
    }
}

/// The descriptor's bits, by the table of its fields.
fn encode(start: u32, leading: u32, stride: u32, base_offset: u64, mode: u32) -> u64 {
    let encode = |x: u32| u64::from((x & 0x3ffff) >> 4);
    let swizzle = [0, 3, 2, 1][mode as usize];
    encode(start) | encode(leading) << 16 | encode(stride) << 32 | base_offset << 49 | swizzle << 62
}

#[test]
fn fields_are_taken_apart() {
    let got = Descriptor::new(encode(0x2_3450, 0x410, 0x3_fff0, 5, 2));
    let want =
        Descriptor { start: 0x2_3450, leading: 0x410, stride: 0x3_fff0, base_offset: 5, span: 64 };
    assert_eq!(got, want);
    assert_eq!(
        [0, 1, 2, 3].map(|mode| Descriptor::new(encode(0, 0, 0, 0, mode)).span),
        [16, 32, 64, 128]
    );
}

/// The examples that the ISA works out: the exact layouts, in elements.
#[test]
fn examples_of_the_isa() {
    type Modes = &'static [(u32, u32)];
    // Major, element bytes, swizzle bits, layouts of mn and of k, LBO and SBO in elements.
    let examples: [(Major, u32, u32, Modes, Modes, u32, u32); 5] = [
        (Major::K, 4, 0, &[(8, 4), (2, 32)], &[(4, 1), (4, 64)], 64, 32),
        (Major::K, 4, 1, &[(8, 8), (2, 64)], &[(4, 1), (4, 4)], 0, 64),
        (Major::Mn, 2, 0, &[(8, 1), (1, 8), (2, 64)], &[(8, 8), (2, 128)], 128, 64),
        (Major::Mn, 2, 1, &[(8, 1), (2, 8), (2, 128)], &[(8, 16), (2, 256)], 128, 256),
        (Major::Mn, 2, 2, &[(8, 1), (4, 8), (2, 256)], &[(8, 32), (2, 512)], 256, 512),
    ];
    for (major, bytes, mode, mn, k, lbo, sbo) in examples {
        let descriptor = Descriptor::new(encode(0x4000, lbo * bytes, sbo * bytes, 0, mode));
        let extent = |modes: Modes| modes.iter().map(|mode| mode.0).product::<u32>();
        // K-major without swizzling is two units deep; the example's layout is of two instructions.
        let depth = extent(k).min(32 / bytes);
        for (row, column) in (0..extent(mn)).flat_map(|r| (0..depth).map(move |c| (r, c))) {
            let exact = 0x4000 + (at(mn, row) + at(k, column)) * bytes;
            let got = descriptor.offset(major, bytes, row, column);
            assert_eq!(got, swizzle(mode, exact), "{major:?} swizzle {mode}: {row}, {column}");
        }
    }
}

/// An operand in shared memory: random tables written by the canonical layout.
struct Laid {
    bits: u64,
    values: Vec<f32>,
    depth: usize,
}

impl Laid {
    /// Writes `rows` by 32 bytes of k at or after `start`, which it moves on.
    fn new(
        random: &mut Random,
        (shared, start): (&mut [u8], &mut u32),
        (rows, element): (usize, Element),
        (major, mode): (Major, u32),
    ) -> Laid {
        let bytes = element.bytes() as u32;
        let (t, depth) = (16 / bytes, 32 / bytes as usize);
        let span = if mode == 0 { 16 } else { 16 << mode };
        let pattern = 8 * span; // bytes of one swizzle atom
        let eights = (rows as u32).div_ceil(8);
        // Sometimes the strides leave gaps. Atoms keep to whole patterns.
        let gap = random.next() as u32 % 2 * pattern;
        let (lbo, sbo) = match (major, mode) {
            (Major::K, 0) => (eights * 128 + gap, 128),
            (Major::K, _) => (16, pattern + gap),
            (Major::Mn, 0) => (128 + gap, depth as u32 / 8 * (128 + gap)),
            (Major::Mn, _) => (depth as u32 / 8 * pattern + gap, pattern),
        };
        let place = start.next_multiple_of(1024);
        // K-major lines of 128 or 64 bytes hold more k than one instruction takes: start further in.
        let inside = match (major, span) {
            (Major::K, 64 | 128) => random.next() as u32 % (span / 32) * 32,
            _ => 0,
        };
        let (of_row, of_k) = canonical_layout(major, mode, t, lbo / bytes, sbo / bytes);
        let values: Vec<f32> = (0..rows * depth).map(|_| small(random)).collect();
        let mut last = place;
        for (row, k) in (0..rows).flat_map(|row| (0..depth).map(move |k| (row, k))) {
            let linear = (at(&of_row, row as u32) + at(&of_k, k as u32)) * bytes;
            // The pattern starts at `place`, which is aligned: the absolute address swizzles.
            let address = swizzle(mode, place + inside + linear);
            let code = code(element, values[row * depth + k]).to_le_bytes();
            let to = address as usize - BASE as usize;
            shared[to..to + bytes as usize].copy_from_slice(&code[..bytes as usize]);
            last = last.max(address + bytes);
        }
        *start = last.next_multiple_of(1024);
        Laid { bits: encode(place + inside, lbo, sbo, 0, mode), values, depth }
    }

    fn at(&self, row: usize, k: usize) -> f32 {
        self.values[row * self.depth + k]
    }
}

const BASE: u32 = 1024;

/// Element `register`, `thread` of an accumulator, by the figure: warp w has rows 16w to 16w + 15.
fn place_d(register: usize, thread: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    let (block, i) = (register / 4, register % 4);
    let row = 16 * warp + (lane >> 2) + if i < 2 { 0 } else { 8 };
    (row, 8 * block + (lane % 4) * 2 + (i & 1))
}

/// A in registers, by the figures of m64nNk16, k8 and k32.
fn registers_of(a: impl Fn(usize, usize) -> f32, element: Element) -> [[u32; 128]; 4] {
    let per = 4 / element.bytes();
    let element_at = |thread: usize, i: usize| {
        let (group, quarter) = ((thread % 32) >> 2, thread % 4);
        let (upper, column) = match per {
            1 => (i == 1 || i == 3, quarter + if i < 2 { 0 } else { 4 }),
            2 => {
                let upper = !matches!(i, 0 | 1 | 4 | 5);
                (upper, quarter * 2 + (i & 1) + if i < 4 { 0 } else { 8 })
            }
            _ => {
                let upper = !(i < 4 || (8..12).contains(&i));
                (upper, quarter * 4 + (i & 3) + if i < 8 { 0 } else { 16 })
            }
        };
        let row = thread / 32 * 16 + group + if upper { 8 } else { 0 };
        code(element, a(row, column))
    };
    std::array::from_fn(|register| {
        std::array::from_fn(|thread| {
            let of = |j| element_at(thread, register * per + j) << (j * 32 / per);
            (0..per).map(of).sum()
        })
    })
}

/// One product of random operands against the plain one.
fn check(
    random: &mut Random,
    n: usize,
    (element_a, element_b): (Element, Element),
    a_layout: Option<(Major, u32)>,
    b_layout: (Major, u32),
) {
    let mut shared = vec![0xff; 200 << 10]; // NaN where nothing was written
    let mut start = BASE;
    let b = Laid::new(random, (&mut shared, &mut start), (n, element_b), b_layout);
    let a_laid = a_layout
        .map(|layout| Laid::new(random, (&mut shared, &mut start), (64, element_a), layout));
    let depth = 32 / element_a.bytes();
    let a_values: Vec<f32> = (0..64 * depth).map(|_| small(random)).collect();
    let a_at = |row: usize, k: usize| match &a_laid {
        Some(laid) => laid.at(row, k),
        None => a_values[row * depth + k],
    };
    let registers = registers_of(a_at, element_a);
    let coin = |random: &mut Random| random.next() & 1 == 1;
    let op = Wgmma {
        n,
        element_a,
        element_b,
        a: a_laid.as_ref().map_or(Operand::Registers, |a| Operand::Shared(Descriptor::new(a.bits))),
        b: Descriptor::new(b.bits),
        transpose_a: a_layout.is_some_and(|layout| layout.0 == Major::Mn),
        transpose_b: b_layout.0 == Major::Mn,
        negate_a: coin(random),
        negate_b: coin(random),
        scale_d: coin(random),
    };
    let before: Vec<[f32; 128]> = (0..n / 2).map(|_| [(); 128].map(|()| small(random))).collect();
    for warp in 0..4 {
        let of_warp = |registers: &[u32; 128]| -> Lanes {
            std::array::from_fn(|lane| registers[warp * 32 + lane])
        };
        let a = registers.each_ref().map(of_warp);
        let d_before: Vec<[f32; 32]> =
            before.iter().map(|d| std::array::from_fn(|lane| d[warp * 32 + lane])).collect();
        let run = |shared: &[u8]| {
            let mut d = d_before.clone();
            wgmma_rows(&op, warp as u32, Some(&a), &mut d, shared, BASE).map(|()| d)
        };
        let d = run(&shared).unwrap();
        for (register, lane) in (0..n / 2).flat_map(|r| (0..32).map(move |lane| (r, lane))) {
            let (row, column) = place_d(register, warp * 32 + lane);
            let product: f32 = (0..depth).map(|k| a_at(row, k) * b.at(column, k)).sum();
            let signed = if op.negate_a != op.negate_b { -product } else { product };
            let want = if op.scale_d { signed + d_before[register][lane] } else { signed };
            assert_eq!(
                d[register][lane], want,
                "{op:?} {a_layout:?} {b_layout:?}: {row}, {column}"
            );
        }
        // Just the bytes that are read matter.
        let mut kept = vec![0xff; shared.len()];
        for (address, bytes) in op.reads(warp as u32) {
            let range = (address - BASE) as usize..(address - BASE + bytes) as usize;
            kept[range.clone()].copy_from_slice(&shared[range]);
        }
        assert_eq!(run(&kept).unwrap(), d);
        let rows = n + if a_laid.is_some() { 16 } else { 0 };
        assert_eq!(op.reads(warp as u32).count(), 2 * rows);
        let last = op.reads(warp as u32).map(|(address, bytes)| address + bytes).max().unwrap();
        assert_eq!(run(&shared[..(last - BASE) as usize]).unwrap(), d);
        assert_eq!(run(&shared[..(last - BASE) as usize - 1]), Err(last - 16));
    }
}

const LAYOUTS: [(Major, u32); 8] = [
    (Major::K, 0),
    (Major::K, 1),
    (Major::K, 2),
    (Major::K, 3),
    (Major::Mn, 0),
    (Major::Mn, 1),
    (Major::Mn, 2),
    (Major::Mn, 3),
];

#[test]
fn products_of_16_bits_in_all_layouts() {
    let mut random = Random::new(7);
    for element in [Element::F16, Element::Bf16] {
        for b in LAYOUTS {
            for a in LAYOUTS {
                check(&mut random, 64, (element, element), Some(a), b);
            }
            check(&mut random, 128, (element, element), None, b);
        }
    }
}

#[test]
fn products_of_all_types_and_widths() {
    let mut random = Random::new(8);
    let k_major = &LAYOUTS[..4];
    let pairs = [
        (Element::Tf32, Element::Tf32),
        (Element::E4m3, Element::E4m3),
        (Element::E4m3, Element::E5m2),
        (Element::E5m2, Element::E4m3),
        (Element::E5m2, Element::E5m2),
    ];
    for pair in pairs {
        for b in k_major {
            check(&mut random, 40, pair, None, *b);
            let a = k_major[random.next() as usize % 4];
            check(&mut random, 16, pair, Some(a), *b);
        }
    }
    for n in (8..=256).step_by(8) {
        let layout = LAYOUTS[n / 8 % 4];
        check(&mut random, n, (Element::Bf16, Element::Bf16), None, layout);
    }
    // Swizzled N-major operands are whole lines wide.
    check(&mut random, 256, (Element::F16, Element::F16), None, (Major::Mn, 3));
    check(&mut random, 192, (Element::F16, Element::F16), None, (Major::Mn, 3));
}

/// A pattern that starts on another line than its alignment says so in the base offset.
#[test]
fn base_offsets_move_the_pattern() {
    for (mode, lines) in [(1, 2), (2, 4), (3, 8)] {
        for first in 0..lines {
            let pattern = 0x4000 + first * 128;
            let offset = u64::from(pattern >> 7 & 7);
            let descriptor = Descriptor::new(encode(pattern, 16, 1024, offset, mode));
            for row in 0..8 {
                for k in [0, 8] {
                    let linear = row * (16 << mode) + k * 2;
                    let want = pattern + swizzle(mode, linear);
                    assert_eq!(descriptor.offset(Major::K, 2, row, k), want);
                }
            }
        }
    }
}

#[test]
fn what_lies_outside_is_said() {
    let bits = encode(BASE + 2048, 128, 256, 0, 0);
    let op = Wgmma {
        n: 8,
        element_a: Element::F16,
        element_b: Element::F16,
        a: Operand::Registers,
        b: Descriptor::new(bits),
        transpose_a: false,
        transpose_b: false,
        negate_a: false,
        negate_b: false,
        scale_d: false,
    };
    let run = |op: &Wgmma, bytes: usize| {
        wgmma_rows(op, 3, Some(&[[0; 32]; 4]), &mut [[0.0; 32]; 4], &vec![0; bytes], BASE)
    };
    assert_eq!(run(&op, 2048 + 256), Ok(()));
    assert_eq!(run(&op, 2048 + 240), Err(BASE + 2048 + 240));
    assert_eq!(run(&op, 2048), Err(BASE + 2048));
    let below = Wgmma { b: Descriptor::new(encode(16, 128, 256, 0, 0)), ..op };
    assert_eq!(run(&below, 4096), Err(16));
}
