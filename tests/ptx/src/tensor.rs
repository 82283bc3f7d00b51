//! Matrices in registers, as the PTX ISA's figures have them: `mma`, `ldmatrix`, `stmatrix`,
//! `movmatrix`, and `wgmma` in a module of its own.
//!
//! Products are exact and sums are of f32, eight products at a time from f64: closer than tensor cores,
//! which cut off what they align.

mod wgmma;

pub(crate) use wgmma::{Descriptor, Operand, Wgmma, wgmma_rows};

use crate::numbers::{bf16_to_f32, e4m3_to_f16, e5m2_to_f16, f16_to_f32};

/// A register of all lanes.
pub(crate) type Lanes = [u32; 32];

/// What a matrix is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
}

impl Element {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Tf32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::E4m3 | Self::E5m2 => 1,
        }
    }

    /// The number that the lowest bits are.
    #[inline]
    pub(crate) fn decode(self, bits: u32) -> f32 {
        match self {
            Self::F16 => f16_to_f32(bits as u16),
            Self::Bf16 => bf16_to_f32(bits as u16),
            // The 13 lowest bits are not looked at.
            Self::Tf32 => f32::from_bits(bits & !0x1fff),
            Self::E4m3 => f16_to_f32(e4m3_to_f16(bits as u8)),
            Self::E5m2 => f16_to_f32(e5m2_to_f16(bits as u8)),
        }
    }
}

/// The element `i` of those in a register.
#[inline]
fn part(word: u32, i: usize, element: Element) -> f32 {
    element.decode(word.checked_shr((8 * element.bytes() * i) as u32).unwrap_or(0))
}

/// What is no number is the one NaN that arithmetic gives.
fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(0x7fff_ffff) } else { x }
}

/// `mma.sync.aligned.m16n8kK.row.col.f32`: A is 16 x K, B is K x 8, C and D are 16 x 8. Of any type a
/// lane's registers hold parts of 4 bytes of rows of A (columns of B): lane / 4 is the row, lane % 4 the
/// part; registers 1 and 3 are 8 rows further down, 2 and 3 (of B: 1) 16 bytes further on.
pub(crate) fn mma(
    a: &[Lanes],
    b: &[Lanes],
    c: &[Lanes; 4],
    k: usize,
    kind_a: Element,
    kind_b: Element,
) -> [Lanes; 4] {
    let per = 4 / kind_a.bytes();
    let mut rows = [[0.0f32; 32]; 16];
    for (r, register) in a.iter().enumerate() {
        for (lane, word) in register.iter().enumerate() {
            let (row, at) = (lane / 4 + r % 2 * 8, (lane % 4 + r / 2 * 4) * per);
            for i in 0..per {
                rows[row][at + i] = part(*word, i, kind_a);
            }
        }
    }
    // By k, so that the sums of a row go along.
    let mut columns = [[0.0f32; 8]; 32];
    for (r, register) in b.iter().enumerate() {
        for (lane, word) in register.iter().enumerate() {
            let (column, at) = (lane / 4, (lane % 4 + r * 4) * per);
            for i in 0..per {
                columns[at + i][column] = part(*word, i, kind_b);
            }
        }
    }
    let mut sums = [[0.0f32; 8]; 16];
    for (lane, _) in c[0].iter().enumerate() {
        for (r, register) in c.iter().enumerate() {
            sums[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2] = f32::from_bits(register[lane]);
        }
    }
    for (row, sums) in rows.iter().zip(&mut sums) {
        let mut exact = sums.map(f64::from);
        for (x, column) in row[..k].iter().zip(&columns) {
            for (sum, y) in exact.iter_mut().zip(column) {
                *sum += f64::from(*x) * f64::from(*y);
            }
        }
        *sums = exact.map(|sum| canonical(sum as f32));
    }
    std::array::from_fn(|r| {
        std::array::from_fn(|lane| sums[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2].to_bits())
    })
}

/// `ldmatrix.m8n8.b16`: row i of matrix m is what lane 8 m + i points to. A lane gets two neighbours of row
/// lane / 4, at lane % 4; transposed, of the column.
pub(crate) fn ldmatrix(rows: &[[u8; 16]; 32], count: usize, transposed: bool) -> [Lanes; 4] {
    let at = |matrix: usize, row: usize, column: usize| {
        let row = &rows[8 * matrix + row];
        u32::from(u16::from_le_bytes([row[2 * column], row[2 * column + 1]]))
    };
    let mut loaded = [[0; 32]; 4];
    for (matrix, register) in loaded.iter_mut().enumerate().take(count) {
        for (lane, word) in register.iter_mut().enumerate() {
            let (row, column) = (lane / 4, lane % 4 * 2);
            *word = if transposed {
                at(matrix, column, row) | at(matrix, column + 1, row) << 16
            } else {
                at(matrix, row, column) | at(matrix, row, column + 1) << 16
            };
        }
    }
    loaded
}

/// The other way round.
pub(crate) fn stmatrix(values: &[Lanes; 4], count: usize, transposed: bool) -> [[u8; 16]; 32] {
    let mut rows = [[0; 16]; 32];
    for (matrix, register) in values.iter().enumerate().take(count) {
        for (lane, word) in register.iter().enumerate() {
            for i in 0..2 {
                let (across, along) = (lane / 4, lane % 4 * 2 + i);
                let (row, column) = if transposed { (along, across) } else { (across, along) };
                let bytes = ((word >> (16 * i)) as u16).to_le_bytes();
                rows[8 * matrix + row][2 * column..2 * column + 2].copy_from_slice(&bytes);
            }
        }
    }
    rows
}

/// `movmatrix.m8n8.trans.b16`
pub(crate) fn movmatrix(x: &Lanes) -> Lanes {
    let at = |row: usize, column: usize| x[row * 4 + column / 2] >> (16 * (column % 2)) & 0xffff;
    std::array::from_fn(|lane| {
        let (row, column) = (lane / 4, lane % 4 * 2);
        at(column, row) | at(column + 1, row) << 16
    })
}
