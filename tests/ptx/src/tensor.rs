//! What a warp does with matrices: `mma.sync`, `ldmatrix`, `stmatrix`, `movmatrix`, and its part of a
//! warpgroup's `wgmma`.
//!
//! Products are exact, and sums are made in f64, in order of k after the accumulator, and rounded to
//! f32 once at the end. The ISA leaves order and rounding open ("at least single
//! precision"). Real tensor cores align the products of a few k to the largest of them and cut off
//! what lies below its last digits: a kernel's results differ from these in their last bits.

#[cfg(test)]
pub(crate) mod tests;

mod wgmma;

pub(crate) use wgmma::{Descriptor, Operand, Wgmma, wgmma_rows};

use crate::numbers::{bf16_to_f32, canonical, e4m3_to_f32, e5m2_to_f32, f16_to_f32};

/// One 32-bit register of the 32 threads of a warp.
pub(crate) type Lanes = [u32; 32];

/// The type of a multiplicand's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    /// `.f16`
    F16,
    /// `.bf16`
    Bf16,
    /// `.tf32`: f32 without its lower 13 bits
    Tf32,
    /// `.e4m3`
    E4m3,
    /// `.e5m2`
    E5m2,
}

impl Element {
    /// How many bytes an element takes.
    #[inline(always)]
    pub(crate) fn bytes(self) -> usize {
        match self {
            Element::F16 | Element::Bf16 => 2,
            Element::Tf32 => 4,
            Element::E4m3 | Element::E5m2 => 1,
        }
    }

    /// Takes the elements of registers apart, low ones first: of `from[i]` it gives `to(j, ..)[i]`.
    #[inline(always)]
    fn unpack<const COUNT: usize>(self, from: &[u32; COUNT], to: impl FnMut(usize, [f64; COUNT])) {
        #[inline(always)]
        fn fill<const COUNT: usize, const PER: usize>(
            from: &[u32; COUNT],
            mut to: impl FnMut(usize, [f64; COUNT]),
            value: impl Fn(u32) -> f32,
        ) {
            for j in 0..PER {
                to(j, from.map(|word| f64::from(value(word >> (j * 32 / PER)))));
            }
        }
        match self {
            Element::F16 => fill::<COUNT, 2>(from, to, |x| f16_to_f32(x as u16)),
            Element::Bf16 => fill::<COUNT, 2>(from, to, |x| bf16_to_f32(x as u16)),
            Element::Tf32 => fill::<COUNT, 1>(from, to, |x| f32::from_bits(x & !0x1fff)),
            Element::E4m3 => fill::<COUNT, 4>(from, to, |x| e4m3_to_f32(x as u8)),
            Element::E5m2 => fill::<COUNT, 4>(from, to, |x| e5m2_to_f32(x as u8)),
        }
    }
}

/// 16 rows of 8 columns.
type Product = [[f64; 8]; 16];

/// The elements of a register, which holds 8 rows (of B: columns) by 4 lanes: `to` gets the k, counted
/// from the register's first one on, and the 8 elements that have it.
#[inline(always)]
fn eights(register: &Lanes, element: Element, mut to: impl FnMut(usize, [f64; 8])) {
    let per = 4 / element.bytes();
    for thread in 0..4 {
        let words = std::array::from_fn(|group| register[4 * group + thread]);
        element.unpack::<8>(&words, |j, values| to(thread * per + j, values));
    }
}

/// `d += a * b` for fragments.
fn multiply(d: &mut Product, a: &[Lanes], b: &[Lanes], element_a: Element, element_b: Element) {
    assert!(a.len() == 2 * b.len() && element_a.bytes() == element_b.bytes(), "mma of odd shapes");
    let per = 16 / element_a.bytes(); // values of k in a register
    // By k: 16 rows of A, 8 columns of B.
    let (mut rows, mut columns) = ([[0.0; 16]; 32], [[0.0; 8]; 32]);
    for (part, (a, b)) in a.chunks_exact(2).zip(b).enumerate() {
        eights(&a[0], element_a, |k, values| rows[part * per + k][..8].copy_from_slice(&values));
        eights(&a[1], element_a, |k, values| rows[part * per + k][8..].copy_from_slice(&values));
        eights(b, element_b, |k, values| columns[part * per + k] = values);
    }
    let depth = per * b.len();
    for (part, d) in d.chunks_exact_mut(4).enumerate() {
        let mut sums = [d[0], d[1], d[2], d[3]];
        add_products(&mut sums, &rows[..depth], part * 4, &columns[..depth]);
        d.copy_from_slice(&sums);
    }
}

/// `sum + a * b`. The product is exact, so that it is all the same whether it is fused.
#[inline(always)]
fn add_product(sum: f64, a: f64, b: f64) -> f64 {
    if cfg!(target_feature = "fma") { a.mul_add(b, sum) } else { sum + a * b }
}

/// Adds to 4 by 8 sums, few enough to stay in registers, the products of 4 rows from `row` on and 8
/// columns, in the order of k.
#[inline(always)]
fn add_products(sums: &mut [[f64; 8]; 4], a: &[[f64; 16]], row: usize, b: &[[f64; 8]]) {
    let mut held = *sums;
    for (a, b) in a.iter().zip(b) {
        let a: [f64; 4] = std::array::from_fn(|i| a[row + i]);
        for (held, a) in held.iter_mut().zip(a) {
            for (sum, b) in held.iter_mut().zip(b) {
                *sum = add_product(*sum, a, *b);
            }
        }
    }
    *sums = held;
}

/// `mma.sync.aligned.m16n8kK.row.col` with f32 accumulators: `a` of 4 registers and `b` of 2 where K
/// elements take 32 bytes (k16 of f16 and bf16, k8 of tf32, k32 of e4m3 and e5m2), else 2 and 1.
pub(crate) fn mma(
    a: &[Lanes],
    b: &[Lanes],
    c: &[Lanes; 4],
    k: usize,
    element_a: Element,
    element_b: Element,
) -> [Lanes; 4] {
    assert_eq!(b.len() * 16, k * element_b.bytes(), "registers of b for k{k}");
    // A register holds every second column of 8 rows, by 4 lanes a row.
    let mut sums: Product = std::array::from_fn(|row| {
        std::array::from_fn(|column| {
            let c = &c[row / 8 * 2 + column % 2];
            f64::from(f32::from_bits(c[row % 8 * 4 + column / 2]))
        })
    });
    multiply(&mut sums, a, b, element_a, element_b);
    std::array::from_fn(|i| {
        std::array::from_fn(|lane| {
            let sum = sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
            canonical(sum as f32).to_bits()
        })
    })
}

/// `ldmatrix.sync.aligned.m8n8.xCOUNT{.trans}.shared.b16`: `rows[i]` are the 16 bytes at lane i's
/// address, of which the first 8 * `count` are read.
pub(crate) fn ldmatrix(rows: &[[u8; 16]; 32], count: usize, transposed: bool) -> [Lanes; 4] {
    let mut to = [[0; 32]; 4];
    for (to, matrix) in to.iter_mut().zip(rows.chunks_exact(8)).take(count) {
        let half = |row: usize, column: usize| {
            let bytes = &matrix[row][2 * column..];
            u32::from(u16::from_le_bytes([bytes[0], bytes[1]]))
        };
        for (lane, to) in to.iter_mut().enumerate() {
            let (fixed, first) = (lane / 4, lane % 4 * 2);
            *to = match transposed {
                false => half(fixed, first) | half(fixed, first + 1) << 16,
                true => half(first, fixed) | half(first + 1, fixed) << 16,
            };
        }
    }
    to
}

/// `stmatrix.sync.aligned.m8n8.xCOUNT{.trans}.shared.b16`: what is stored at the addresses of the
/// first 8 * `count` lanes.
pub(crate) fn stmatrix(values: &[Lanes; 4], count: usize, transposed: bool) -> [[u8; 16]; 32] {
    let mut rows = [[0; 16]; 32];
    for (matrix, values) in rows.chunks_exact_mut(8).zip(values).take(count) {
        for (lane, value) in values.iter().enumerate() {
            let (fixed, first) = (lane / 4, lane % 4 * 2);
            for (i, half) in [*value as u16, (value >> 16) as u16].into_iter().enumerate() {
                let (row, column) =
                    if transposed { (first + i, fixed) } else { (fixed, first + i) };
                matrix[row][2 * column..2 * column + 2].copy_from_slice(&half.to_le_bytes());
            }
        }
    }
    rows
}

/// `movmatrix.sync.aligned.m8n8.trans.b16`
pub(crate) fn movmatrix(x: &Lanes) -> Lanes {
    let half = |row: usize, column: usize| x[row * 4 + column / 2] >> (column % 2 * 16) & 0xffff;
    std::array::from_fn(|lane| {
        let (column, row) = (lane / 4, lane % 4 * 2);
        half(row, column) | half(row + 1, column) << 16
    })
}
