//! `wgmma.mma_async`: what a warpgroup multiplies, with operands that descriptors find in shared
//! memory.
//!
//! An instruction's k is always 32 bytes of elements. Shared memory is read in rows of 16 bytes: 2
//! for each m or n where k is the contiguous dimension (K-major), else one for each k and 16 bytes
//! of m or n (MN-major).

#[cfg(test)]
mod tests;

use super::{Element, add_products};
use crate::numbers::canonical;

/// Which dimension of an operand is contiguous in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Major {
    /// k: not transposed
    K,
    /// m of A or n of B: transposed
    Mn,
}

/// A matrix descriptor: an operand in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Where the operand starts.
    pub start: u32,
    /// The leading dimension byte offset.
    pub leading: u32,
    /// The stride dimension byte offset.
    pub stride: u32,
    /// The matrix base offset: 128-byte lines that the swizzle's pattern starts after its alignment.
    pub base_offset: u32,
    /// Bytes of a swizzled line: 32, 64, 128; 16 where nothing is swizzled.
    pub span: u32,
}

impl Descriptor {
    /// The fields of the 64-bit operand.
    pub fn new(bits: u64) -> Descriptor {
        // matrix-descriptor-encode(x) = (x & 0x3ffff) >> 4
        let decode = |shift: u32| ((bits >> shift & 0x3fff) << 4) as u32;
        Descriptor {
            start: decode(0),
            leading: decode(16),
            stride: decode(32),
            base_offset: (bits >> 49 & 7) as u32,
            span: [16, 128, 64, 32][(bits >> 62) as usize],
        }
    }

    /// The shared address of the element at `row` (m of A, n of B) and `k`, by the canonical layouts.
    pub fn offset(&self, major: Major, element_bytes: u32, row: u32, k: u32) -> u32 {
        let linear = match (major, self.span) {
            // ((8,m),(T,2k)) : ((1T,SBO),(1,LBO))
            (Major::K, 16) => {
                let byte = k * element_bytes;
                row % 8 * 16 + row / 8 * self.stride + byte / 16 * self.leading + byte % 16
            }
            // ((8,m),(T,2k)) : ((ST,SBO),(1,T)), of S = span / 16
            (Major::K, span) => row % 8 * span + row / 8 * self.stride + k * element_bytes,
            // ((T,1,m),(8,k)) : ((1,T,SBO),(1T,LBO))
            (Major::Mn, 16) => {
                let byte = row * element_bytes;
                byte % 16 + byte / 16 * self.stride + k % 8 * 16 + k / 8 * self.leading
            }
            // ((T,S,m),(8,k)) : ((1,T,LBO),(ST,SBO))
            (Major::Mn, span) => {
                let byte = row * element_bytes;
                byte % span + byte / span * self.leading + k % 8 * span + k / 8 * self.stride
            }
        };
        self.swizzled(self.start + linear)
    }

    /// The 16-byte units of a 128-byte line change places with the line's number in the pattern, by
    /// the absolute address: a start may lie within a pattern.
    fn swizzled(&self, at: u32) -> u32 {
        let line = (at >> 7).wrapping_sub(self.base_offset);
        at ^ (line & (self.span / 16 - 1)) << 4
    }
}

/// Where A comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Four registers of each thread.
    Registers,
    /// Shared memory.
    Shared(Descriptor),
}

/// One `wgmma.mma_async.sync.aligned.m64nNkK.f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wgmma {
    /// Columns: a multiple of 8 up to 256.
    pub n: usize,
    /// The type of A's elements.
    pub element_a: Element,
    /// The type of B's elements, of the same size.
    pub element_b: Element,
    /// Where A comes from.
    pub a: Operand,
    /// Where B lies.
    pub b: Descriptor,
    /// imm-trans-a: A is M-major. For 16-bit types in shared memory.
    pub transpose_a: bool,
    /// imm-trans-b: B is N-major. For 16-bit types.
    pub transpose_b: bool,
    /// imm-scale-a is -1.
    pub negate_a: bool,
    /// imm-scale-b is -1.
    pub negate_b: bool,
    /// D = A * B + D; else D = A * B.
    pub scale_d: bool,
}

/// An operand in shared memory: the descriptor, its major dimension, rows, and element.
#[derive(Clone, Copy)]
struct Shared {
    at: Descriptor,
    major: Major,
    rows: usize,
    element: Element,
}

impl Shared {
    /// The 16-byte rows that hold the operand: address, and the row and k of the first element.
    fn units(self) -> impl Iterator<Item = (u32, usize, usize)> {
        let bytes = self.element.bytes();
        let (per, depth) = (16 / bytes, 32 / bytes);
        let count = self.rows * 2;
        (0..count).map(move |i| {
            let (row, k) = match self.major {
                Major::K => (i / 2, i % 2 * per),
                Major::Mn => (i / depth * per, i % depth),
            };
            (self.at.offset(self.major, bytes as u32, row as u32, k as u32), row, k)
        })
    }

    /// Its elements by k, or the first address that lies outside `shared`.
    fn load<const ROWS: usize>(
        self,
        shared: &[u8],
        base: u32,
        negate: bool,
    ) -> Result<Vec<[f64; ROWS]>, u32> {
        let mut to = vec![[0.0; ROWS]; 32 / self.element.bytes()];
        let per = 4 / self.element.bytes();
        let mut values = [[0.0; 4]; 4];
        for (at, row, k) in self.units() {
            let from = at.checked_sub(base).ok_or(at)? as usize;
            let unit = shared.get(from..from + 16).ok_or(at)?;
            let words = std::array::from_fn(|i| {
                u32::from_le_bytes([unit[4 * i], unit[4 * i + 1], unit[4 * i + 2], unit[4 * i + 3]])
            });
            self.element.unpack(&words, &mut values);
            for i in 0..4 * per {
                let value = values[i % per][i / per];
                let (row, k) = match self.major {
                    Major::K => (row, k + i),
                    Major::Mn => (row + i, k),
                };
                to[k][row] = if negate { -value } else { value };
            }
        }
        Ok(to)
    }
}

impl Wgmma {
    fn shared_a(&self) -> Option<Shared> {
        let major = if self.transpose_a { Major::Mn } else { Major::K };
        match self.a {
            Operand::Registers => None,
            Operand::Shared(at) => Some(Shared { at, major, rows: 64, element: self.element_a }),
        }
    }
    fn shared_b(&self) -> Shared {
        let major = if self.transpose_b { Major::Mn } else { Major::K };
        Shared { at: self.b, major, rows: self.n, element: self.element_b }
    }
}

/// A's elements by k, from the fragments: those of `mma` for the 16 rows of each warp.
fn from_registers(registers: &[[u32; 128]; 4], element: Element, negate: bool) -> Vec<[f64; 64]> {
    let per = 4 / element.bytes();
    let mut to = vec![[0.0; 64]; 8 * per];
    let mut values = [[0.0; 128]; 4];
    for (register, from) in registers.iter().enumerate() {
        element.unpack(from, &mut values);
        for (j, values) in values.iter().take(per).enumerate() {
            for (thread, value) in values.iter().enumerate() {
                let row = thread / 32 * 16 + thread % 32 / 4 + register % 2 * 8;
                let k = (register / 2 * 4 + thread % 4) * per + j;
                to[k][row] = if negate { -value } else { *value };
            }
        }
    }
    to
}

/// The product of one warpgroup. `d` has n / 2 registers of 128 threads, `shared` is the block's
/// memory from the address `shared_base` on. Fails with the first address that is outside of it.
pub fn wgmma(
    op: &Wgmma,
    a_registers: Option<&[[u32; 128]; 4]>,
    d: &mut [[f32; 128]],
    shared: &[u8],
    shared_base: u32,
) -> Result<(), u32> {
    assert!(op.n.is_multiple_of(8) && (8..=256).contains(&op.n), "wgmma of n = {}", op.n);
    assert_eq!(d.len(), op.n / 2, "registers of d for n = {}", op.n);
    assert_eq!(op.element_a.bytes(), op.element_b.bytes(), "bytes of the elements of A and B");
    let a = match (op.shared_a(), a_registers) {
        (Some(a), _) => a.load::<64>(shared, shared_base, op.negate_a)?,
        (None, Some(registers)) => from_registers(registers, op.element_a, op.negate_a),
        (None, None) => panic!("wgmma with A in registers needs them"),
    };
    let b = op.shared_b().load::<256>(shared, shared_base, op.negate_b)?;
    for (block, d) in d.chunks_exact_mut(4).enumerate() {
        // 4 rows of 8 columns: a register holds every second column of the even eights of rows, or
        // of the odd ones.
        for first in (0..64).step_by(4) {
            let place = |row: usize, column: usize| {
                let row = first + row;
                let thread = row / 16 * 32 + row % 8 * 4 + column / 2;
                (row / 8 % 2 * 2 + column % 2, thread)
            };
            let mut sums = [[0.0; 8]; 4];
            if op.scale_d {
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (column, sum) in sums.iter_mut().enumerate() {
                        let (register, thread) = place(row, column);
                        *sum = f64::from(d[register][thread]);
                    }
                }
            }
            add_products(&mut sums, &a, first, &b, block * 8);
            for (row, sums) in sums.iter().enumerate() {
                for (column, sum) in sums.iter().enumerate() {
                    let (register, thread) = place(row, column);
                    d[register][thread] = canonical(*sum as f32);
                }
            }
        }
    }
    Ok(())
}

/// What it reads of shared memory, as addresses and bytes: rows of 16 bytes, A's before B's.
pub fn wgmma_reads(op: &Wgmma) -> impl Iterator<Item = (u32, u32)> + use<> {
    let a = op.shared_a().into_iter().flat_map(Shared::units);
    a.chain(op.shared_b().units()).map(|(at, ..)| (at, 16))
}
