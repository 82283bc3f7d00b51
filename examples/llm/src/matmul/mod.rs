//! Matrix products of a step: the rows of all its tokens times the weights of a layer.
//!
//! A product reads each weight once for the whole batch. Weights are laid out anew when they are
//! loaded (`pack`): eight output rows side by side, one to a SIMD lane, so that a sum over
//! columns stays in its lane and a loaded weight serves every token of a tile.
//!
//! Each (token, row) is summed in one fixed order, whatever the number of threads and whatever
//! shares the batch: a token's results are the same bits alone and among others.

mod arena;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod exact;
mod input;
mod int8;
mod kernels;
mod pack;
mod portable;
#[cfg(test)]
mod tests;
mod threads;

pub use arena::Arena;
pub use input::Input;
pub use threads::{Columns, Threads, parts};

use std::ops::Range;

use candle_core::quantized::QTensor;
use candle_core::{Result, bail};

use kernels::{Isa, Kernels};
use pack::{LANES, Part};

/// Bytes of weights that a thread takes at once.
const SHARE: usize = 64 << 10;
/// More tokens keep a thread busy for long enough with any share.
const MANY: usize = 32;

/// How activations enter a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As they are: weights dequantised exactly, products and sums in f32.
    F32,
    /// Rounded to 8 bits in blocks of 32, as llama.cpp does; sums within a block are integers.
    Int8,
}

/// Weights `[rows, cols]`, laid out for products with many tokens.
pub struct Matrix {
    parts: Vec<Part>,
    rows: usize,
    cols: usize,
    isa: Isa,
}

impl Matrix {
    /// The rows of all parts, one below the other: q, k and v are one product.
    ///
    /// Q4_0, Q4_1, Q8_0, F32, F16 and BF16 stay in their size; other types become blocks of 8 bits
    /// for [`Precision::Int8`], f32 else.
    pub fn new(tensors: &[&QTensor], precision: Precision, arena: &mut Arena) -> Result<Self> {
        let part = |tensor: &&QTensor| Part::new(tensor, precision, arena);
        let parts = tensors.iter().map(part).collect::<Result<Vec<_>>>()?;
        let Some(cols) = parts.first().map(|part| part.cols) else {
            bail!("a matrix has at least one part");
        };
        if let Some(part) = parts.iter().find(|part| part.cols != cols) {
            bail!("parts of one matrix have {cols} and {} columns", part.cols);
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        Ok(Self { parts, rows, cols, isa: Isa::detect() })
    }

    /// Whether some weights are integers times a scale, and whether some are not.
    fn kinds(&self) -> (bool, bool) {
        let is = |integer| self.parts.iter().any(|part| part.is_integer() == integer);
        (is(true), is(false))
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(Part::bytes).sum()
    }

    /// One row, dequantised exactly: an embedding.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols);
        let mut row = row;
        for part in &self.parts {
            if row < part.rows {
                return part.read_row(row, out);
            }
            row -= part.rows;
        }
    }

    /// `y[token, row]` = sum over columns of `x[token, col] * w[row, col]`.
    pub fn multiply(&self, threads: &Threads, x: &Input, y: &mut [f32]) {
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(kernels) => self.multiply_with(kernels, threads, x, y),
            Isa::Portable(kernels) => self.multiply_with(kernels, threads, x, y),
        }
    }

    fn multiply_with(&self, kernels: impl Kernels, threads: &Threads, x: &Input, y: &mut [f32]) {
        assert_eq!(x.cols(), self.cols, "columns of the input and of the weights");
        assert_eq!(y.len(), x.tokens() * self.rows, "outputs are [tokens, rows]");
        let panels: usize = self.parts.iter().map(Part::panels).sum();
        let share = self.share(panels, x.tokens(), threads.count());
        let cuts: Vec<usize> = (0..panels)
            .step_by(share)
            .map(|panel| self.first_row(panel))
            .chain([self.rows])
            .collect();
        threads.run_columns(y, self.rows, &cuts, |at, columns| {
            let range = at * share..panels.min((at + 1) * share);
            self.walk(range, |part, panels, first_row| match (part.is_integer(), x.int8()) {
                (true, Some(x)) => int8::multiply(kernels, part, panels, x, first_row, columns),
                _ => exact::multiply(kernels, part, panels, x.floats(), first_row, columns),
            });
        });
    }

    /// Panels that a thread takes at once, an even number: two make a cache line of outputs.
    ///
    /// Small shares, so that no thread waits long for one that lost its core; with many tokens
    /// larger ones, since each passes over all activations.
    fn share(&self, panels: usize, tokens: usize, threads: usize) -> usize {
        let small = SHARE * panels / self.bytes();
        let large = if tokens > MANY { panels / (8 * threads) } else { 0 };
        small.max(large).max(1).next_multiple_of(2)
    }

    /// The output row at which a panel starts, panels counted through all parts.
    fn first_row(&self, panel: usize) -> usize {
        let (mut panel, mut row) = (panel, 0);
        for part in &self.parts {
            if panel < part.panels() {
                return row + panel * LANES;
            }
            panel -= part.panels();
            row += part.rows;
        }
        row
    }

    /// Each part's share of a range of panels, with the output row at which the part starts.
    fn walk(&self, range: Range<usize>, mut visit: impl FnMut(&Part, Range<usize>, usize)) {
        let (mut panel, mut row) = (0, 0);
        for part in &self.parts {
            let clip = |at: usize| at.clamp(panel, panel + part.panels()) - panel;
            let share = clip(range.start)..clip(range.end);
            if !share.is_empty() {
                visit(part, share, row);
            }
            panel += part.panels();
            row += part.rows;
        }
    }
}

/// Rows of two panels, which a tile covers: a cache line of its outputs is written at once. Tokens
/// whose outputs are a power of two apart share a set of the cache, which would not keep half a line
/// of each until the next panel.
const PAIR: usize = 2 * LANES;

/// A range of panels in pairs; the last one may be alone.
fn pairs(panels: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    panels.clone().step_by(2).map(move |first| first..panels.end.min(first + 2))
}

/// Output rows of some panels of a part; the last panel may have fewer rows.
fn rows_of(part: &Part, panels: &Range<usize>, first_row: usize) -> Range<usize> {
    first_row + panels.start * LANES..first_row + part.rows.min(panels.end * LANES)
}

/// A tile of a pair of panels, of which `tile` computes one.
fn pair<const T: usize, W>(
    panels: impl Iterator<Item = W>,
    mut tile: impl FnMut(W, &mut [[f32; LANES]; T]),
) -> [[f32; PAIR]; T] {
    let mut out = [[0.0; PAIR]; T];
    for (at, panel) in panels.enumerate() {
        let mut half = [[0.0; LANES]; T];
        tile(panel, &mut half);
        for (out, half) in out.iter_mut().zip(half) {
            out[at * LANES..][..LANES].copy_from_slice(&half);
        }
    }
    out
}

/// Results of a tile, `[token][lane]`, to their place.
fn store<const T: usize>(
    columns: &mut Columns<'_>,
    first_token: usize,
    rows: Range<usize>,
    out: &[[f32; PAIR]; T],
) {
    for (token, lanes) in out.iter().enumerate() {
        columns.write(first_token + token, rows.start, &lanes[..rows.len()]);
    }
}
