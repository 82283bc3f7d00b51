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

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, bail};
use half::{bf16, f16};

/// Rows of a panel.
pub(super) const LANES: usize = 8;
/// Columns that share a scale.
pub(super) const BLOCK: usize = 32;

/// A block of a panel in 4 bits. Aligned so that a line is read from one cache line.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Nibbles(pub [u8; LANES * BLOCK / 2]);

/// A block of a panel in 8 bits.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Bytes(pub [i8; LANES * BLOCK]);

enum Packed {
    Q4 { codes: Vec<Nibbles>, scales: Vec<[f16; LANES]>, minima: Vec<[f16; LANES]> },
    Q8 { codes: Vec<Bytes>, scales: Vec<[f16; LANES]> },
    F32(Vec<[f32; LANES]>),
    F16(Vec<[f16; LANES]>),
    BF16(Vec<[bf16; LANES]>),
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
    pub fn new(tensor: &QTensor) -> Result<Self> {
        let (rows, cols) = tensor.shape().dims2()?;
        if rows == 0 || cols == 0 {
            bail!("a matrix of {rows} rows and {cols} columns");
        }
        let data = tensor.data()?;
        let packed = match tensor.dtype() {
            GgmlDType::Q4_0 if q4_0_fits(&data) => q4(&data, rows, cols, false),
            GgmlDType::Q4_1 => q4(&data, rows, cols, true),
            GgmlDType::Q8_0 => q8(&data, rows, cols),
            GgmlDType::F32 => Packed::F32(floats(rows, cols, |at| {
                f32::from_le_bytes(data[4 * at..][..4].try_into().expect("4 bytes"))
            })),
            GgmlDType::F16 => Packed::F16(floats(rows, cols, |at| half(&data, 2 * at))),
            GgmlDType::BF16 => Packed::BF16(floats(rows, cols, |at| {
                bf16::from_bits(u16::from_le_bytes([data[2 * at], data[2 * at + 1]]))
            })),
            _ => {
                let values = tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
                Packed::F32(floats(rows, cols, |at| values[at]))
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
                    let byte = w.codes[block].0[place(lane, within % 16)];
                    let code = if within < 16 { byte & 15 } else { byte >> 4 };
                    // The product is exact in f32: 11 + 4 bits.
                    w.scales[block][lane].to_f32() * f32::from(code)
                        + w.minima[block][lane].to_f32()
                }
                Panel::Q8(w) => {
                    let code = w.codes[block].0[place(lane, within)];
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
fn place(lane: usize, col: usize) -> usize {
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

fn q4(data: &[u8], rows: usize, cols: usize, has_minimum: bool) -> Packed {
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
        for (col, &byte) in source[size - BLOCK / 2..].iter().enumerate() {
            codes[to].0[place(lane, col)] = byte;
        }
    }
    Packed::Q4 { codes, scales, minima }
}

fn q8(data: &[u8], rows: usize, cols: usize) -> Packed {
    let blocks = cols / BLOCK;
    let count = rows.div_ceil(LANES) * blocks;
    let mut codes = vec![Bytes([0; LANES * BLOCK]); count];
    let mut scales = vec![[f16::ZERO; LANES]; count];
    for (at, source) in data.chunks_exact(Q8_0).enumerate() {
        let (row, block) = (at / blocks, at % blocks);
        let (to, lane) = (row / LANES * blocks + block, row % LANES);
        scales[to][lane] = half(source, 0);
        for (col, &byte) in source[2..].iter().enumerate() {
            codes[to].0[place(lane, col)] = byte as i8;
        }
    }
    Packed::Q8 { codes, scales }
}

fn floats<T: Copy + Default>(
    rows: usize,
    cols: usize,
    value: impl Fn(usize) -> T,
) -> Vec<[T; LANES]> {
    let mut out = vec![[T::default(); LANES]; rows.div_ceil(LANES) * cols];
    for row in 0..rows {
        for col in 0..cols {
            out[row / LANES * cols + col][row % LANES] = value(row * cols + col);
        }
    }
    out
}
