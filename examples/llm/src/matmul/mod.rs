//! Matrix products of a step: the rows of all its tokens times the weights of a layer.
//!
//! A product reads each weight once for the whole batch. Weights are laid out anew when they are
//! loaded (`pack`): eight output rows side by side, one to a SIMD lane, so that a sum over
//! columns stays in its lane and a loaded weight serves every token of a tile.
//!
//! Each (token, row) is summed in one fixed order, whatever the number of threads and whoever
//! shares the batch: a token's results are the same bits alone and among others.

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

pub use input::Input;
pub use threads::{Columns, Threads, parts};

use std::ops::Range;

use candle_core::quantized::QTensor;
use candle_core::{Result, bail};

use kernels::{Isa, Kernels};
use pack::{LANES, Part};

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
    /// Q4_0, Q4_1, Q8_0, F32, F16 and BF16 stay in their size; other types become f32.
    pub fn new(tensors: &[&QTensor]) -> Result<Self> {
        let parts = tensors.iter().map(|tensor| Part::new(tensor)).collect::<Result<Vec<_>>>()?;
        let Some(cols) = parts.first().map(|part| part.cols) else {
            bail!("a matrix has at least one part");
        };
        if let Some(part) = parts.iter().find(|part| part.cols != cols) {
            bail!("parts of one matrix have {cols} and {} columns", part.cols);
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        Ok(Self { parts, rows, cols, isa: Isa::detect() })
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
        let panels = self.parts.iter().map(Part::panels).sum();
        let count = threads.count();
        let cuts: Vec<usize> = (0..=count)
            .map(|thread| match thread {
                t if t == count => self.rows,
                t => self.first_row(parts(panels, count, t).start),
            })
            .collect();
        let floats = self.parts.iter().any(|part| !part.is_integer()) || !x.is_int8();
        let floats = floats.then(|| x.floats());
        threads.run_columns(y, self.rows, &cuts, |thread, columns| {
            let range = parts(panels, count, thread);
            self.walk(range, |part, panels, first_row| match (part.is_integer(), x.int8()) {
                (true, Some(x)) => int8::multiply(kernels, part, panels, x, first_row, columns),
                _ => {
                    let x = floats.as_deref().expect("made above for every other case");
                    exact::multiply(kernels, part, panels, x, first_row, columns);
                }
            });
        });
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

/// Results of a tile, `[token][lane]`, to their place; the last panel may have fewer rows.
fn store<const T: usize>(
    columns: &mut Columns<'_>,
    first_token: usize,
    rows: Range<usize>,
    out: &[[f32; LANES]; T],
) {
    for (token, lanes) in out.iter().enumerate() {
        columns.write(first_token + token, rows.start, &lanes[..rows.len()]);
    }
}
