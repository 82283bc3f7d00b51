//! `wgmma`: 64 rows of a warpgroup, 16 of them each warp's, and operands in shared memory by descriptors.
//!
//! From the PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions": shared memory layout, strides,
//! and matrix descriptors. A core matrix is 8 rows of 16 bytes.

use super::{Element, Lanes, canonical};

/// Where an operand lies: 14 bits of the start, the leading and the stride offset in units of 16 bytes,
/// the base offset, and the swizzle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: u32,
}

impl Descriptor {
    pub(crate) fn new(bits: u64) -> Self {
        let field = |at: u32| (bits >> at & 0x3fff) as u32 * 16;
        // 1, 2 and 3 are 128, 64 and 32 bytes.
        let swizzle = [0, 128, 64, 32][(bits >> 62) as usize];
        Self { start: field(0), leading: field(16), stride: field(32), swizzle }
    }

    /// Of an operand that is contiguous along K: rows (of B: columns) in groups of 8, `stride` apart; in a
    /// group, of a row what the swizzle spans is contiguous, `leading` bytes from the next such part.
    /// Without a swizzle a part is 16 bytes, and rows of a core matrix follow on each other.
    fn along_k(&self, row: u32, byte: u32) -> u32 {
        let span = self.swizzle.max(16);
        let (group, within) = (row / 8, row % 8);
        self.swizzled(
            group * self.stride + within * span + byte / span * self.leading + byte % span,
        )
    }

    /// Of an operand that is contiguous along M (N): 8 values of K are a group, `stride` apart (without a
    /// swizzle: `leading`); what the swizzle spans along M is contiguous, `leading` (`stride`) bytes from
    /// the next.
    fn along_rows(&self, byte: u32, k: u32) -> u32 {
        let span = self.swizzle.max(16);
        let (far, near) = if self.swizzle == 0 {
            (self.stride, self.leading)
        } else {
            (self.leading, self.stride)
        };
        self.swizzled(byte / span * far + k / 8 * near + k % 8 * span + byte % span)
    }

    /// Parts of 16 bytes change places within a row of the swizzle, by the number of the row: bits 4.. of
    /// the address by bits 7...
    fn swizzled(&self, offset: u32) -> u32 {
        let at = self.start + offset;
        let mask = (self.swizzle.max(16) - 16) & 0x70;
        at ^ (at >> 3 & mask)
    }
}

/// A: of this warp's registers, or in shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operand {
    Registers,
    Shared(Descriptor),
}

/// A product of 64 rows, n columns, and 32 bytes along K.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wgmma {
    pub(crate) n: usize,
    pub(crate) element_a: Element,
    pub(crate) element_b: Element,
    pub(crate) a: Operand,
    pub(crate) b: Descriptor,
    /// Contiguous along M (N) and not along K.
    pub(crate) transpose_a: bool,
    pub(crate) transpose_b: bool,
    pub(crate) negate_a: bool,
    pub(crate) negate_b: bool,
    /// Added to what was there.
    pub(crate) scale_d: bool,
}

/// Bytes along K.
const K_BYTES: usize = 32;

impl Wgmma {
    fn k(&self) -> usize {
        K_BYTES / self.element_a.bytes()
    }

    /// Where an element lies, of A (row) or B (column).
    fn at(
        descriptor: &Descriptor,
        element: Element,
        transposed: bool,
        row: usize,
        k: usize,
    ) -> u32 {
        let bytes = element.bytes();
        if transposed {
            descriptor.along_rows((row * bytes) as u32, k as u32)
        } else {
            descriptor.along_k(row as u32, (k * bytes) as u32)
        }
    }

    /// The 16 bytes each that a warp reads: its rows of A, and all of B.
    pub(crate) fn reads(&self, warp: u32) -> Vec<(u32, u32)> {
        let mut parts = Vec::new();
        let mut add = |descriptor: &Descriptor,
                       element: Element,
                       transposed,
                       rows: std::ops::Range<usize>| {
            let per = 16 / element.bytes();
            if transposed {
                for k in 0..self.k() {
                    for row in rows.clone().step_by(per) {
                        parts.push((Self::at(descriptor, element, true, row, k), 16));
                    }
                }
            } else {
                for row in rows {
                    for k in (0..self.k()).step_by(per) {
                        parts.push((Self::at(descriptor, element, false, row, k), 16));
                    }
                }
            }
        };
        if let Operand::Shared(a) = &self.a {
            let first = 16 * warp as usize;
            add(a, self.element_a, self.transpose_a, first..first + 16);
        }
        add(&self.b, self.element_b, self.transpose_b, 0..self.n);
        parts
    }
}

/// An element of shared memory, whose first byte has the address `base`.
fn read(shared: &[u8], base: u32, at: u32, element: Element) -> Result<f32, u32> {
    let bytes = element.bytes();
    let first = at.checked_sub(base).ok_or(at)? as usize;
    let found = shared.get(first..first + bytes).ok_or(at)?;
    let word = found.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    Ok(element.decode(word))
}

/// A warp's 16 rows. `a` is its registers, where A is in them; d are n / 2 registers.
///
/// # Errors
/// The address of what lies outside of shared memory.
pub(crate) fn wgmma_rows(
    op: &Wgmma,
    warp: u32,
    a: Option<&[Lanes; 4]>,
    d: &mut [[f32; 32]],
    shared: &[u8],
    base: u32,
) -> Result<(), u32> {
    let k = op.k();
    let sign = |negated: bool| if negated { -1.0 } else { 1.0 };
    let (sign_a, sign_b) = (sign(op.negate_a), sign(op.negate_b));
    let mut rows = [[0.0f64; K_BYTES]; 16];
    match (&op.a, a) {
        (Operand::Registers, Some(registers)) => {
            // As those of mma.
            let per = 4 / op.element_a.bytes();
            for (r, register) in registers.iter().enumerate() {
                for (lane, word) in register.iter().enumerate() {
                    let (row, at) = (lane / 4 + r % 2 * 8, (lane % 4 + r / 2 * 4) * per);
                    for i in 0..per {
                        rows[row][at + i] = f64::from(super::part(*word, i, op.element_a)) * sign_a;
                    }
                }
            }
        }
        (Operand::Shared(descriptor), _) => {
            for (row, values) in rows.iter_mut().enumerate() {
                for (i, value) in values.iter_mut().enumerate().take(k) {
                    let row = 16 * warp as usize + row;
                    let at = Wgmma::at(descriptor, op.element_a, op.transpose_a, row, i);
                    *value = f64::from(read(shared, base, at, op.element_a)?) * sign_a;
                }
            }
        }
        (Operand::Registers, None) => return Err(0),
    }
    let mut columns = [0.0f64; K_BYTES];
    for n in 0..op.n {
        for (i, value) in columns.iter_mut().enumerate().take(k) {
            let at = Wgmma::at(&op.b, op.element_b, op.transpose_b, n, i);
            *value = f64::from(read(shared, base, at, op.element_b)?) * sign_b;
        }
        for (row, values) in rows.iter().enumerate() {
            // Register 4 (n / 8) + 2 (row / 8) + n % 2 of lane 4 (row % 8) + n % 8 / 2.
            let register = n / 8 * 4 + row / 8 * 2 + n % 2;
            let to = &mut d[register][row % 8 * 4 + n % 8 / 2];
            let before = if op.scale_d { f64::from(*to) } else { 0.0 };
            let sum: f64 = values[..k].iter().zip(&columns).map(|(x, y)| x * y).sum();
            *to = canonical((before + sum) as f32);
        }
    }
    Ok(())
}
