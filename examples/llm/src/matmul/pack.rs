//! Layout of the weights: panels of eight rows, column by column.
//!
//! | type | of a panel | bytes a weight |
//! |---|---|---|
//! | Q4_0, Q4_1 | a block of 32 columns: four lines of 32 bytes; byte `4 * lane + j` of line `g` holds column `4 * g + j` (low half) and 16 more (high half) | 0.625 |
//! | Q8_0 | a block: eight lines; byte `4 * lane + j` of line `g` holds column `4 * g + j` | 1.0625 |
//! | F32, F16, BF16 | a column: eight values, one a lane | 4, 2, 2 |
//!
//! So a 32-bit lane holds four columns of one row: what `vpmaddubsw` and `vpmaddwd` sum up.
//! Scales (and minima) are apart, eight to a block. Q4_0 is Q4_1 with a minimum of -8 scales.
//!
//! Other types become F32, or Q8_0 where activations are rounded to 8 bits as well.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, bail};
use half::{bf16, f16};

use super::Precision;
use super::arena::{Arena, Array};

/// Rows of a panel.
pub(super) const LANES: usize = 8;
/// Columns that share a scale.
pub(super) const BLOCK: usize = 32;

/// A block of a panel in 4 bits. Aligned so that a line is read from one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Nibbles(pub [u8; LANES * BLOCK / 2]);

/// A block of a panel in 8 bits.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Bytes(pub [i8; LANES * BLOCK]);

enum Packed {
    Q4 { codes: Array<Nibbles>, scales: Array<[f16; LANES]>, minima: Array<[f16; LANES]> },
    Q8 { codes: Array<Bytes>, scales: Array<[f16; LANES]> },
    F32(Array<[f32; LANES]>),
    F16(Array<[f16; LANES]>),
    BF16(Array<[bf16; LANES]>),
}

/// The rows of one tensor.
pub(super) struct Part {
    pub rows: usize,
    pub cols: usize,
    packed: Packed,
}

/// Eight rows: a slice of each array has one item a block, or a column for floats.
#[derive(Clone, Copy)]
pub(super) enum Panel<'a> {
    Q4(Q4<'a>),
    Q8(Q8<'a>),
    F32(&'a [[f32; LANES]]),
    F16(&'a [[f16; LANES]]),
    BF16(&'a [[bf16; LANES]]),
}

#[derive(Clone, Copy)]
pub(super) struct Q4<'a> {
    pub codes: &'a [Nibbles],
    pub scales: &'a [[f16; LANES]],
    pub minima: &'a [[f16; LANES]],
}

#[derive(Clone, Copy)]
pub(super) struct Q8<'a> {
    pub codes: &'a [Bytes],
    pub scales: &'a [[f16; LANES]],
}

impl Part {
    pub fn new(tensor: &QTensor, precision: Precision, arena: &mut Arena) -> Result<Self> {
        let (rows, cols) = tensor.shape().dims2()?;
        if rows == 0 || cols == 0 {
            bail!("a matrix of {rows} rows and {cols} columns");
        }
        let data = tensor.data()?;
        let packed = match tensor.dtype() {
            GgmlDType::Q4_0 if q4_0_fits(&data) => q4(&data, rows, cols, false, arena)?,
            GgmlDType::Q4_1 => q4(&data, rows, cols, true, arena)?,
            GgmlDType::Q8_0 => q8(&data, rows, cols, arena)?,
            GgmlDType::F32 => Packed::F32(floats(arena, rows, cols, |at| {
                f32::from_le_bytes(data[4 * at..][..4].try_into().expect("4 bytes"))
            })?),
            GgmlDType::F16 => Packed::F16(floats(arena, rows, cols, |at| half(&data, 2 * at))?),
            GgmlDType::BF16 => Packed::BF16(floats(arena, rows, cols, |at| {
                bf16::from_bits(u16::from_le_bytes([data[2 * at], data[2 * at + 1]]))
            })?),
            _ => {
                let values = tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
                let wanted = precision == Precision::Int8 && cols.is_multiple_of(BLOCK);
                match wanted.then(|| to_q8(&values)).flatten() {
                    Some(blocks) => q8(&blocks, rows, cols, arena)?,
                    None => Packed::F32(floats(arena, rows, cols, |at| values[at])?),
                }
            }
        };
        Ok(Self { rows, cols, packed })
    }

    pub fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Whether the weights are integers times a scale.
    pub fn is_integer(&self) -> bool {
        matches!(self.packed, Packed::Q4 { .. } | Packed::Q8 { .. })
    }

    pub fn bytes(&self) -> usize {
        match &self.packed {
            Packed::Q4 { codes, scales, minima } => {
                size_of_val(&codes[..]) + size_of_val(&scales[..]) + size_of_val(&minima[..])
            }
            Packed::Q8 { codes, scales } => size_of_val(&codes[..]) + size_of_val(&scales[..]),
            Packed::F32(values) => size_of_val(&values[..]),
            Packed::F16(values) => size_of_val(&values[..]),
            Packed::BF16(values) => size_of_val(&values[..]),
        }
    }

    pub fn panel(&self, panel: usize) -> Panel<'_> {
        let blocks = panel * (self.cols / BLOCK)..(panel + 1) * (self.cols / BLOCK);
        let cols = panel * self.cols..(panel + 1) * self.cols;
        match &self.packed {
            Packed::Q4 { codes, scales, minima } => Panel::Q4(Q4 {
                codes: &codes[blocks.clone()],
                scales: &scales[blocks.clone()],
                minima: &minima[blocks],
            }),
            Packed::Q8 { codes, scales } => {
                Panel::Q8(Q8 { codes: &codes[blocks.clone()], scales: &scales[blocks] })
            }
            Packed::F32(values) => Panel::F32(&values[cols]),
            Packed::F16(values) => Panel::F16(&values[cols]),
            Packed::BF16(values) => Panel::BF16(&values[cols]),
        }
    }

    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let lane = row % LANES;
        let panel = self.panel(row / LANES);
        for (col, out) in out.iter_mut().enumerate() {
            let (block, within) = (col / BLOCK, col % BLOCK);
            *out = match panel {
                Panel::Q4(w) => {
                    let both = w.codes[block].0[byte(lane, within % 16)];
                    let code = if within < 16 { both & 15 } else { both >> 4 };
                    // The product is exact in f32: 11 + 4 bits.
                    w.scales[block][lane].to_f32() * f32::from(code)
                        + w.minima[block][lane].to_f32()
                }
                Panel::Q8(w) => {
                    let code = w.codes[block].0[byte(lane, within)];
                    w.scales[block][lane].to_f32() * f32::from(code)
                }
                Panel::F32(w) => w[col][lane],
                Panel::F16(w) => w[col][lane].to_f32(),
                Panel::BF16(w) => w[col][lane].to_f32(),
            };
        }
    }
}

/// Where a column of a lane stands in its block.
fn byte(lane: usize, col: usize) -> usize {
    col / 4 * (4 * LANES) + 4 * lane + col % 4
}

fn half(data: &[u8], at: usize) -> f16 {
    f16::from_bits(u16::from_le_bytes([data[at], data[at + 1]]))
}

/// Bytes of GGUF's blocks: f16 scale, f16 minimum (Q4_1 only), codes.
const Q4_0: usize = 2 + BLOCK / 2;
const Q4_1: usize = 4 + BLOCK / 2;
const Q8_0: usize = 2 + BLOCK;

/// Whether -8 scales are a f16, as they are in any model that was trained.
fn q4_0_fits(data: &[u8]) -> bool {
    data.chunks_exact(Q4_0).all(|block| minimum(half(block, 0)).is_finite())
}

/// Exact: a power of two, and subnormal numbers only gain bits.
fn minimum(scale: f16) -> f16 {
    f16::from_f32(-8.0 * scale.to_f32())
}

fn q4(
    data: &[u8],
    rows: usize,
    cols: usize,
    has_minimum: bool,
    arena: &mut Arena,
) -> Result<Packed> {
    let (blocks, size) = (cols / BLOCK, if has_minimum { Q4_1 } else { Q4_0 });
    let count = rows.div_ceil(LANES) * blocks;
    let mut codes = vec![Nibbles([0; LANES * BLOCK / 2]); count];
    let mut scales = vec![[f16::ZERO; LANES]; count];
    let mut minima = vec![[f16::ZERO; LANES]; count];
    for (at, source) in data.chunks_exact(size).enumerate() {
        let (row, block) = (at / blocks, at % blocks);
        let (to, lane) = (row / LANES * blocks + block, row % LANES);
        scales[to][lane] = half(source, 0);
        minima[to][lane] = if has_minimum { half(source, 2) } else { minimum(half(source, 0)) };
        for (col, &both) in source[size - BLOCK / 2..].iter().enumerate() {
            codes[to].0[byte(lane, col)] = both;
        }
    }
    Ok(Packed::Q4 {
        codes: place(arena, &codes)?,
        scales: place(arena, &scales)?,
        minima: place(arena, &minima)?,
    })
}

fn q8(data: &[u8], rows: usize, cols: usize, arena: &mut Arena) -> Result<Packed> {
    let blocks = cols / BLOCK;
    let count = rows.div_ceil(LANES) * blocks;
    let mut codes = vec![Bytes([0; LANES * BLOCK]); count];
    let mut scales = vec![[f16::ZERO; LANES]; count];
    for (at, source) in data.chunks_exact(Q8_0).enumerate() {
        let (row, block) = (at / blocks, at % blocks);
        let (to, lane) = (row / LANES * blocks + block, row % LANES);
        scales[to][lane] = half(source, 0);
        for (col, &code) in source[2..].iter().enumerate() {
            codes[to].0[byte(lane, col)] = code as i8;
        }
    }
    Ok(Packed::Q8 { codes: place(arena, &codes)?, scales: place(arena, &scales)? })
}

/// Blocks of Q8_0, each code to half a 254th of the block's largest weight, which is finer than
/// any type that is not kept as it is. `None` where a scale is no f16.
pub(super) fn to_q8(values: &[f32]) -> Option<Vec<u8>> {
    let mut data = Vec::with_capacity(values.len() / BLOCK * Q8_0);
    for block in values.chunks(BLOCK) {
        let largest = block.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let scale = f16::from_f32(largest / 127.0);
        if !scale.is_finite() || (scale == f16::ZERO && largest > 0.0) {
            return None;
        }
        data.extend(scale.to_bits().to_le_bytes());
        let inverse = if largest > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
        data.extend(block.iter().map(|value| (value * inverse).round() as i8 as u8));
    }
    Some(data)
}

fn floats<T: Copy + Default>(
    arena: &mut Arena,
    rows: usize,
    cols: usize,
    value: impl Fn(usize) -> T,
) -> Result<Array<[T; LANES]>> {
    let mut out = vec![[T::default(); LANES]; rows.div_ceil(LANES) * cols];
    for row in 0..rows {
        for col in 0..cols {
            out[row / LANES * cols + col][row % LANES] = value(row * cols + col);
        }
    }
    place(arena, &out)
}

fn place<T: Copy>(arena: &mut Arena, values: &[T]) -> Result<Array<T>> {
    arena.place(values).map_err(candle_core::Error::wrap)
}
