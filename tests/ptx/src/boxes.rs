//! Boxes of tensors, as the PTX ISA's chapter on tensors has them: which bytes of shared memory belong to
//! which of device memory.

/// A tensor map, tiled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map {
    pub(crate) base: u64,
    pub(crate) rank: u32,
    pub(crate) element_bytes: u32,
    /// 0 none, 1 of 32, 2 of 64, 3 of 128 bytes.
    pub(crate) swizzle: u32,
    pub(crate) dim: [u32; 5],
    /// Bytes; that of dimension 0 is an element.
    pub(crate) stride: [u64; 5],
    pub(crate) box_: [u32; 5],
}

/// At most 16 bytes of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// From the copy's start in shared memory.
    pub(crate) shared: u32,
    pub(crate) global: u64,
    pub(crate) bytes: u32,
    /// Of the tensor; else zeros are read, and nothing is written.
    pub(crate) inside: bool,
}

/// Bytes of a box.
pub(crate) fn bytes(map: &Map) -> u32 {
    map.box_[..map.rank as usize].iter().product::<u32>() * map.element_bytes
}

/// The chunks of a box at these coordinates, whose first byte in shared memory has the address `to`.
pub(crate) fn chunks(map: &Map, to: u32, at: &[i32]) -> Vec<Chunk> {
    let row = map.box_[0] * map.element_bytes;
    let mut found = Vec::new();
    for number in 0..bytes(map) / row.max(1) {
        // Of the row in each dimension beyond the first.
        let (mut left, mut inside, mut start) = (number, true, map.base);
        for (i, first) in at.iter().enumerate().skip(1) {
            let position = i64::from(*first) + i64::from(left % map.box_[i]);
            left /= map.box_[i];
            inside &= position >= 0 && position < i64::from(map.dim[i]);
            start = start.wrapping_add((position as u64).wrapping_mul(map.stride[i]));
        }
        for first in (0..row).step_by(16) {
            for (offset, bytes, within) in parts(map, at[0], first, (row - first).min(16)) {
                let shared = swizzled(to + number * row + offset, map.swizzle) - to;
                let element = i64::from(at[0]) * i64::from(map.element_bytes) + i64::from(offset);
                let global = start.wrapping_add(element as u64);
                found.push(Chunk { shared, global, bytes, inside: inside && within });
            }
        }
    }
    found
}

/// Where the tensor's edge lies within 16 bytes of a row, these are parts: offset in the row, bytes, and
/// whether they are inside.
fn parts(map: &Map, first: i32, offset: u32, bytes: u32) -> impl Iterator<Item = (u32, u32, bool)> {
    let size = i64::from(map.element_bytes);
    let start = i64::from(first) * size + i64::from(offset);
    let end = i64::from(map.dim[0]) * size;
    let low = (-start).clamp(0, i64::from(bytes)) as u32;
    let high = (end - start).clamp(i64::from(low), i64::from(bytes)) as u32;
    [(offset, low, false), (offset + low, high - low, true), (offset + high, bytes - high, false)]
        .into_iter()
        .filter(|(_, bytes, _)| *bytes > 0)
}

/// Bits 4 and up of the address change by bits 7 and up: one, two or three of them.
fn swizzled(at: u32, swizzle: u32) -> u32 {
    let bits = [0, 0x10, 0x30, 0x70][swizzle as usize & 3];
    at ^ (at >> 3 & bits)
}
