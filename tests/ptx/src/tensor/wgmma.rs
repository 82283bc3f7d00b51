//! `wgmma.mma_async`: what a warpgroup multiplies, a warp at a time, with operands that descriptors
//! find in shared memory.
//!
//! An instruction's k is always 32 bytes of elements. Shared memory is read in rows of 16 bytes: 2
//! for each m or n where k is the contiguous dimension (K-major), else one for each k and 16 bytes
//! of m or n (MN-major).

#[cfg(test)]
mod tests;

use super::{Element, Lanes, add_products, eights};
use crate::numbers::canonical;

/// Which dimension of an operand is contiguous in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Major {
    /// k: not transposed
    K,
    /// m of A or n of B: transposed
    Mn,
}

/// A matrix descriptor: an operand in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// Where the operand starts.
    pub(crate) start: u32,
    /// The leading dimension byte offset.
    pub(crate) leading: u32,
    /// The stride dimension byte offset.
    pub(crate) stride: u32,
    /// The matrix base offset: 128-byte lines that the swizzle's pattern starts after its alignment.
    pub(crate) base_offset: u32,
    /// Bytes of a swizzled line: 32, 64, 128; 16 where nothing is swizzled.
    pub(crate) span: u32,
}

impl Descriptor {
    /// The fields of the 64-bit operand.
    pub(crate) fn new(bits: u64) -> Descriptor {
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
    pub(crate) fn offset(&self, major: Major, element_bytes: u32, row: u32, k: u32) -> u32 {
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
pub(crate) enum Operand {
    /// Four registers of each thread.
    Registers,
    /// Shared memory.
    Shared(Descriptor),
}

/// One `wgmma.mma_async.sync.aligned.m64nNkK.f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wgmma {
    /// Columns: a multiple of 8 up to 256.
    pub(crate) n: usize,
    /// The type of A's elements.
    pub(crate) element_a: Element,
    /// The type of B's elements, of the same size.
    pub(crate) element_b: Element,
    /// Where A comes from.
    pub(crate) a: Operand,
    /// Where B lies.
    pub(crate) b: Descriptor,
    /// imm-trans-a: A is M-major. For 16-bit types in shared memory.
    pub(crate) transpose_a: bool,
    /// imm-trans-b: B is N-major. For 16-bit types.
    pub(crate) transpose_b: bool,
    /// imm-scale-a is -1.
    pub(crate) negate_a: bool,
    /// imm-scale-b is -1.
    pub(crate) negate_b: bool,
    /// D = A * B + D; else D = A * B.
    pub(crate) scale_d: bool,
}

/// An operand in shared memory: the descriptor, its major dimension, the first of the rows that are
/// looked at, and element.
#[derive(Clone, Copy)]
struct Shared {
    at: Descriptor,
    major: Major,
    first: usize,
    rows: usize,
    element: Element,
}

impl Shared {
    /// The 16-byte rows that hold the operand: address, and the row (from the first one on) and k of
    /// the first element.
    fn units(self) -> impl Iterator<Item = (u32, usize, usize)> {
        let bytes = self.element.bytes();
        let (per, depth) = (16 / bytes, 32 / bytes);
        let count = self.rows * 2;
        (0..count).map(move |i| {
            let (row, k) = match self.major {
                Major::K => (i / 2, i % 2 * per),
                Major::Mn => (i / depth * per, i % depth),
            };
            let at = self.at.offset(self.major, bytes as u32, (self.first + row) as u32, k as u32);
            (at, row, k)
        })
    }

    /// Gives every element with its row and k to `to`.
    ///
    /// # Errors
    /// The first address that lies outside `shared`.
    #[inline(always)]
    fn load(
        self,
        shared: &[u8],
        base: u32,
        negate: bool,
        mut to: impl FnMut(usize, usize, f64),
    ) -> Result<(), u32> {
        let sign = if negate { -1.0 } else { 1.0 };
        let per = 4 / self.element.bytes();
        for (at, row, k) in self.units() {
            let from = at.checked_sub(base).ok_or(at)? as usize;
            let unit = shared.get(from..from + 16).ok_or(at)?;
            let words = std::array::from_fn(|i| {
                u32::from_le_bytes([unit[4 * i], unit[4 * i + 1], unit[4 * i + 2], unit[4 * i + 3]])
            });
            self.element.unpack::<4>(&words, |j, values| {
                for (word, value) in values.into_iter().enumerate() {
                    let i = word * per + j;
                    let (row, k) = match self.major {
                        Major::K => (row, k + i),
                        Major::Mn => (row + i, k),
                    };
                    to(row, k, sign * value);
                }
            });
        }
        Ok(())
    }
}

impl Wgmma {
    /// The 16 rows of A of a warp.
    fn shared_a(&self, warp_in_group: u32) -> Option<Shared> {
        let major = if self.transpose_a { Major::Mn } else { Major::K };
        let first = 16 * warp_in_group as usize;
        match self.a {
            Operand::Registers => None,
            Operand::Shared(at) => {
                Some(Shared { at, major, first, rows: 16, element: self.element_a })
            }
        }
    }
    fn shared_b(&self) -> Shared {
        let major = if self.transpose_b { Major::Mn } else { Major::K };
        Shared { at: self.b, major, first: 0, rows: self.n, element: self.element_b }
    }

    /// What a warp of the four reads of shared memory, as addresses and bytes: rows of 16 bytes, those
    /// of its rows of A before all of B's.
    pub(crate) fn reads(&self, warp_in_group: u32) -> impl Iterator<Item = (u32, u32)> + use<> {
        let a = self.shared_a(warp_in_group).into_iter().flat_map(Shared::units);
        a.chain(self.shared_b().units()).map(|(at, ..)| (at, 16))
    }
}

/// A's elements by k, from a warp's fragments, which are those of `mma`.
fn from_registers(
    registers: &[Lanes; 4],
    element: Element,
    negate: bool,
    to: &mut [[f64; 16]; 32],
) {
    let per = 16 / element.bytes(); // values of k in a register
    let sign = if negate { -1.0 } else { 1.0 };
    for (register, from) in registers.iter().enumerate() {
        eights(from, element, |k, values| {
            let first = register % 2 * 8;
            let to = &mut to[register / 2 * per + k][first..first + 8];
            to.copy_from_slice(&values.map(|value| sign * value));
        });
    }
}

/// The rows 16w to 16w + 15 of the product, which are those of the warp w of the warpgroup. `a` is
/// this warp's registers (where A is in registers), `d` has n / 2 registers, `shared` is the block's
/// memory from the address `shared_base` on.
///
/// # Errors
/// The first address that is outside of shared memory; `d` is then as it was.
pub(crate) fn wgmma_rows(
    op: &Wgmma,
    warp_in_group: u32,
    a: Option<&[Lanes; 4]>,
    d: &mut [[f32; 32]],
    shared: &[u8],
    shared_base: u32,
) -> Result<(), u32> {
    assert!(op.n.is_multiple_of(8) && (8..=256).contains(&op.n), "wgmma of n = {}", op.n);
    assert_eq!(d.len(), op.n / 2, "registers of d for n = {}", op.n);
    assert_eq!(op.element_a.bytes(), op.element_b.bytes(), "bytes of the elements of A and B");
    assert!(warp_in_group < 4, "warp {warp_in_group} of the 4 of a warpgroup");
    let mut rows = [[0.0; 16]; 32];
    match (op.shared_a(warp_in_group), a) {
        (Some(a), _) => {
            a.load(shared, shared_base, op.negate_a, |row, k, value| rows[k][row] = value)?;
        }
        (None, Some(a)) => from_registers(a, op.element_a, op.negate_a, &mut rows),
        (None, None) => panic!("wgmma with A in registers needs them"),
    }
    // By 8 columns, as `d` has them, and by k.
    let mut columns = vec![[[0.0; 8]; 32]; op.n / 8];
    op.shared_b().load(shared, shared_base, op.negate_b, |column, k, value| {
        columns[column / 8][k][column % 8] = value;
    })?;
    let depth = 32 / op.element_a.bytes();
    for (columns, d) in columns.iter().zip(d.chunks_exact_mut(4)) {
        // 4 rows of 8 columns at a time.
        for first in (0..16).step_by(4) {
            let place = |row: usize, column: usize| {
                let row = first + row;
                (row / 8 * 2 + column % 2, row % 8 * 4 + column / 2)
            };
            let mut sums = [[0.0; 8]; 4];
            if op.scale_d {
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (column, sum) in sums.iter_mut().enumerate() {
                        let (register, lane) = place(row, column);
                        *sum = f64::from(d[register][lane]);
                    }
                }
            }
            add_products(&mut sums, &rows[..depth], first, &columns[..depth]);
            for (row, sums) in sums.iter().enumerate() {
                for (column, sum) in sums.iter().enumerate() {
                    let (register, lane) = place(row, column);
                    d[register][lane] = canonical(*sum as f32);
                }
            }
        }
    }
    Ok(())
}
