//! Fragments by the figures of the ISA, one formula for each element; matrices as plain tables.

use super::*;
use crate::numbers::{Round, f32_to_f16};
use crate::testing::Random;

/// Where element `i` of A's fragment lies, as the ISA has it for a shape and element size.
fn place_a(k: usize, bytes: usize, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    match (k, bytes) {
        (16, 2) => {
            let row = if matches!(i, 0 | 1 | 4 | 5) { group } else { group + 8 };
            (row, thread * 2 + (i & 1) + if i < 4 { 0 } else { 8 })
        }
        (8, 2) => (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1)),
        (8, 4) => match i {
            0 => (group, thread),
            1 => (group + 8, thread),
            2 => (group, thread + 4),
            _ => (group + 8, thread + 4),
        },
        (4, 4) => (if i == 0 { group } else { group + 8 }, thread),
        (32, 1) => {
            let row = if i < 4 || (8..12).contains(&i) { group } else { group + 8 };
            (row, thread * 4 + (i & 3) + if i < 8 { 0 } else { 16 })
        }
        (16, 1) => (if i < 4 { group } else { group + 8 }, thread * 4 + (i & 3)),
        _ => panic!("no m16n8k{k} of {bytes} bytes"),
    }
}

/// The same of B's: row (k) and column (n).
fn place_b(k: usize, bytes: usize, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    let row = match (k, bytes) {
        (16, 2) => thread * 2 + (i & 1) + if i < 2 { 0 } else { 8 },
        (8, 2) => thread * 2 + i,
        (8, 4) => {
            if i == 0 {
                thread
            } else {
                thread + 4
            }
        }
        (4, 4) => thread,
        (32, 1) => thread * 4 + (i & 3) + if i < 4 { 0 } else { 16 },
        (16, 1) => thread * 4 + i,
        _ => panic!("no m16n8k{k} of {bytes} bytes"),
    };
    (row, group)
}

fn place_c(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
}

/// Registers that hold `code(row, column)` where `place` says.
fn fragment(
    elements: usize,
    bytes: usize,
    place: impl Fn(usize, usize) -> (usize, usize),
    code: impl Fn(usize, usize) -> u32,
) -> Vec<Lanes> {
    let mut registers = vec![[0; 32]; elements * bytes / 4];
    for i in 0..elements {
        for (lane, register) in registers[i * bytes / 4].iter_mut().enumerate() {
            let (row, column) = place(lane, i);
            *register |= code(row, column) << (i * bytes % 4 * 8);
        }
    }
    registers
}

const SHAPES: [(usize, Element); 8] = [
    (16, Element::F16),
    (16, Element::Bf16),
    (8, Element::F16),
    (8, Element::Bf16),
    (8, Element::Tf32),
    (4, Element::Tf32),
    (32, Element::E4m3),
    (16, Element::E5m2),
];

/// The code of a small integer or a half of one.
pub(super) fn code(element: Element, value: f32) -> u32 {
    use crate::numbers::{f32_to_bf16, f32_to_e4m3, f32_to_e5m2};
    match element {
        Element::F16 => f32_to_f16(value, Round::Nearest).into(),
        Element::Bf16 => f32_to_bf16(value, Round::Nearest).into(),
        Element::Tf32 => value.to_bits(),
        Element::E4m3 => f32_to_e4m3(value).into(),
        Element::E5m2 => f32_to_e5m2(value).into(),
    }
}

/// Values that every type has, and that add up exactly.
pub(super) fn small(random: &mut Random) -> f32 {
    [-3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.75, 2.0, 3.5]
        [(random.next() % 12) as usize]
}

/// Every shape with tables of small values: the plain product.
#[test]
fn products_by_the_fragments_of_the_isa() {
    let mut random = Random::new(6);
    for turn in 0..20 {
        for (k, element) in SHAPES {
            let bytes = element.bytes();
            let other = match element {
                Element::E4m3 if turn % 2 == 1 => Element::E5m2,
                Element::E5m2 if turn % 2 == 1 => Element::E4m3,
                element => element,
            };
            let a: Vec<f32> = (0..16 * k).map(|_| small(&mut random)).collect();
            let b: Vec<f32> = (0..k * 8).map(|_| small(&mut random)).collect();
            let c: Vec<f32> = (0..16 * 8).map(|_| small(&mut random)).collect();
            let a_at = |m: usize, k_: usize| code(element, a[m * k + k_]);
            let b_at = |k_: usize, n: usize| code(other, b[k_ * 8 + n]);
            let from_a = fragment(k / 2, bytes, |l, i| place_a(k, bytes, l, i), a_at);
            let from_b = fragment(k / 4, bytes, |l, i| place_b(k, bytes, l, i), b_at);
            let from_c = fragment(4, 4, place_c, |m, n| c[m * 8 + n].to_bits());
            let want = |m: usize, n: usize| {
                c[m * 8 + n] + (0..k).map(|i| a[m * k + i] * b[i * 8 + n]).sum::<f32>()
            };
            let d = mma(&from_a, &from_b, &from_c.try_into().unwrap(), k, element, other);
            assert_eq!(d.to_vec(), fragment(4, 4, place_c, |m, n| want(m, n).to_bits()));
        }
    }
}

/// A one at each place of A in turn brings out that row of B, and so the other way round.
#[test]
fn each_element_is_where_it_belongs() {
    // Each of 8 by 8 another number, that all types have.
    let value = |row: usize, n: usize| {
        let size = (1.0 + (n % 4) as f32 / 4.0) * (1 << (row % 8)) as f32;
        if n < 4 { size } else { -size }
    };
    for (k, element) in SHAPES {
        let bytes = element.bytes();
        let one = code(element, 1.0);
        for (m, at) in (0..16).flat_map(|m| (0..k).map(move |k| (m, k))) {
            let b_at = |row: usize, n: usize| code(element, value(row, n));
            let a_at = |row: usize, column: usize| if (row, column) == (m, at) { one } else { 0 };
            let a = fragment(k / 2, bytes, |l, i| place_a(k, bytes, l, i), a_at);
            let b = fragment(k / 4, bytes, |l, i| place_b(k, bytes, l, i), b_at);
            let d = mma(&a, &b, &[[0; 32]; 4], k, element, element);
            for (lane, i) in (0..32).flat_map(|l| (0..4).map(move |i| (l, i))) {
                let (r, n) = place_c(lane, i);
                let want = if r == m { value(at, n) } else { 0.0 };
                assert_eq!(f32::from_bits(d[i][lane]), want, "{element:?} k{k}: a[{m}][{at}]");
            }
        }
    }
}

#[test]
fn tf32_loses_its_lower_bits() {
    let a = [[0x3f80_1fff; 32]; 4];
    let b = [[1f32.to_bits(); 32]; 2];
    let d = mma(&a, &b, &[[0; 32]; 4], 8, Element::Tf32, Element::Tf32);
    assert_eq!(d, [[8f32.to_bits(); 32]; 4]);
}

#[test]
fn sums_that_are_no_numbers() {
    let run = |a: f32, b: f32, c: f32| {
        let to = |x| code(Element::Bf16, x);
        // One product in every sum: k = 0 of all rows and columns.
        let a = fragment(8, 2, |l, i| place_a(16, 2, l, i), |_, k| if k == 0 { to(a) } else { 0 });
        let b = fragment(4, 2, |l, i| place_b(16, 2, l, i), |k, _| if k == 0 { to(b) } else { 0 });
        let d = mma(&a, &b, &[[c.to_bits(); 32]; 4], 16, Element::Bf16, Element::Bf16);
        assert!(d.iter().flatten().all(|x| *x == d[0][0]));
        d[0][0]
    };
    let (inf, nan) = (f32::INFINITY, 0x7fff_ffff);
    assert_eq!(run(inf, 0.0, 1.0), nan);
    assert_eq!(run(inf, 1.0, -inf), nan);
    assert_eq!(run(1.0, 1.0, f32::NAN), nan);
    assert_eq!(run(-f32::NAN, 1.0, 1.0), nan);
    assert_eq!(run(inf, -1.0, 1.0), (-inf).to_bits());
    assert_eq!(run(1.0, 1.0, -inf), (-inf).to_bits());
    let large = f32::from_bits(0x7f7f_0000);
    assert_eq!(run(large, large, 0.0), inf.to_bits());
    // 2^24 + 1 is a tie in f32, and goes to even; the sum is made before it is rounded.
    assert_eq!(run(1.0, 1.0, 16_777_216.0), 16_777_216f32.to_bits());
    assert_eq!(run(1.5, 1.0, 16_777_216.0), 16_777_218f32.to_bits());
}

/// The 32 rows as matrices of 16-bit numbers: each has a value of its own.
fn rows() -> [[u8; 16]; 32] {
    std::array::from_fn(|row| {
        std::array::from_fn(|byte| {
            let number = ((row * 8 + byte / 2) as u16 * 257).wrapping_add(3);
            number.to_le_bytes()[byte % 2]
        })
    })
}

#[test]
fn matrices_are_loaded_and_stored_by_the_figures() {
    let rows = rows();
    let number = |matrix: usize, row: usize, column: usize| {
        let row = &rows[matrix * 8 + row];
        u16::from_le_bytes([row[column * 2], row[column * 2 + 1]])
    };
    for count in [1, 2, 4] {
        for transposed in [false, true] {
            let got = ldmatrix(&rows, count, transposed);
            // Figure: row r is held by the lanes 4r to 4r + 3, two elements in each.
            for (matrix, row, column) in (0..4 * 64).map(|i| (i / 64, i / 8 % 8, i % 8)) {
                let register = got[matrix][row * 4 + column / 2];
                let held = if column % 2 == 0 { register & 0xffff } else { register >> 16 };
                let want = match (matrix < count, transposed) {
                    (false, _) => 0,
                    (true, false) => number(matrix, row, column),
                    (true, true) => number(matrix, column, row),
                };
                assert_eq!(held, u32::from(want), "x{count} {transposed}");
            }
            let stored = stmatrix(&got, count, transposed);
            assert_eq!(stored[..8 * count], rows[..8 * count]);
            assert!(stored[8 * count..].iter().flatten().all(|byte| *byte == 0));
        }
    }
    let (plain, turned) = (ldmatrix(&rows, 4, false), ldmatrix(&rows, 4, true));
    assert!((0..4).all(|i| movmatrix(&plain[i]) == turned[i] && movmatrix(&turned[i]) == plain[i]));
}
