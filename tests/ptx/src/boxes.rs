//! Tiled copies of tensors (`cp.async.bulk.tensor`): which bytes of a box lie where in global and in
//! shared memory.

#[cfg(test)]
mod tests;

/// A tensor map: a tensor in global memory and the box of it that a copy moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Map {
    /// Where the tensor starts.
    pub(crate) base: u64,
    /// Dimensions, 1 to 5. The first is the contiguous one.
    pub(crate) rank: u32,
    /// Bytes of an element.
    pub(crate) element_bytes: u32,
    /// 0 none, 1 of 32 bytes, 2 of 64, 3 of 128.
    pub(crate) swizzle: u32,
    /// Elements in each dimension.
    pub(crate) dim: [u32; 5],
    /// Bytes from one index of a dimension to the next; that of the first is not looked at.
    pub(crate) stride: [u64; 5],
    /// Elements of the box in each dimension.
    pub(crate) box_: [u32; 5],
}

/// 16 bytes of a box or fewer, contiguous in both memories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Bytes from the copy's address in shared memory on, swizzled.
    pub(crate) shared: u32,
    /// The address in global memory; 0 outside the tensor.
    pub(crate) global: u64,
    /// How many bytes.
    pub(crate) bytes: u32,
    /// A chunk outside the tensor is filled with zeros where the box is loaded, and left out where it
    /// is stored.
    pub(crate) inside: bool,
}

impl Map {
    /// Bytes from one line of the box (its first dimension) to the next in shared memory: a swizzled
    /// one is as long as the swizzle, however little of it the box fills.
    fn pitch(&self) -> u32 {
        let line = self.box_[0] * self.element_bytes;
        if self.swizzle == 0 { line } else { line.max(16 << self.swizzle) }
    }
}

/// The 16-byte units of a 128-byte line of shared memory change places with the line's number, by
/// the absolute address.
fn swizzled(swizzle: u32, at: u32) -> u32 {
    at ^ (at >> 7 & ((1 << swizzle) - 1)) << 4
}

/// The bytes that a copy moves, which is what it counts at its mbarrier: the whole box, with what of
/// it is outside the tensor.
pub(crate) fn bytes(map: &Map) -> u32 {
    let sides = map.box_.iter().take(map.rank as usize);
    sides.fold(map.element_bytes, |all, side| all.saturating_mul(*side))
}

/// Whether a box's lines follow each other in shared memory without gaps.
pub(crate) fn is_dense(map: &Map) -> bool {
    map.pitch() == map.box_[0] * map.element_bytes
}

/// The chunks of the box at `coordinates` (one for each dimension, the first first) whose place in
/// shared memory is `dst`, in the order of the tensor's elements. No chunk crosses a multiple of 16
/// bytes of shared memory, nor the tensor's border.
pub(crate) fn chunks(map: &Map, dst: u32, coordinates: &[i32]) -> Vec<Chunk> {
    let rank = map.rank as usize;
    assert!((1..=5).contains(&rank), "a tensor map of rank {rank}");
    assert_eq!(coordinates.len(), rank, "coordinates of a tensor of rank {rank}");
    let line = i64::from(map.box_[0] * map.element_bytes);
    // What of a line is inside, in bytes of the line. (Empty where it ends before it begins.)
    let first = i64::from(coordinates[0]) * i64::from(map.element_bytes);
    let row = i64::from(map.dim[0]) * i64::from(map.element_bytes);
    let (begin, end) = ((-first).clamp(0, line), (row - first).clamp(0, line));
    let lines: u32 = map.box_[1..rank].iter().product();
    let mut chunks = Vec::with_capacity((lines as usize) * (line as usize).div_ceil(16));
    for number in 0..lines {
        let mut global = map.base.wrapping_add(first as u64);
        let mut inside = begin < end;
        let mut left = number;
        for (i, coordinate) in coordinates.iter().enumerate().skip(1) {
            let at = i64::from(*coordinate) + i64::from(left % map.box_[i]);
            left /= map.box_[i];
            inside &= (0..i64::from(map.dim[i])).contains(&at);
            global = global.wrapping_add(map.stride[i].wrapping_mul(at as u64));
        }
        let (begin, end) = if inside { (begin, end) } else { (line, line) };
        let start = number * map.pitch();
        let mut from = 0;
        while from < line {
            let unit = line.min((from / 16 + 1) * 16);
            let within = begin <= from && from < end;
            let border = if from < begin {
                begin
            } else if within {
                end
            } else {
                line
            };
            let to = unit.min(border);
            chunks.push(Chunk {
                shared: swizzled(map.swizzle, dst + start + from as u32) - dst,
                global: if within { global.wrapping_add(from as u64) } else { 0 },
                bytes: (to - from) as u32,
                inside: within,
            });
            from = to;
        }
    }
    chunks
}
