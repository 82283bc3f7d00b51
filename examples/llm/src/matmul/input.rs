//! Activations of a step, prepared once and read by several products.

use super::kernels::{Isa, Kernels};
use super::pack::BLOCK;
use super::threads::Threads;
use super::{Matrix, Precision};

/// 32 activations in 8 bits: `codes * scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub(super) struct Block {
    /// -127 to 127.
    pub codes: [i8; BLOCK],
    pub scale: f32,
    /// `scale` times the sum of the codes: what the minimum of Q4_1 is multiplied by.
    pub sum: f32,
}

impl Block {
    pub const ZERO: Self = Self { codes: [0; BLOCK], scale: 0.0, sum: 0.0 };
}

/// Rows of tokens. Its buffers are kept from step to step.
#[derive(Default)]
pub struct Input {
    tokens: usize,
    cols: usize,
    int8: bool,
    floats: Vec<f32>,
    blocks: Vec<Block>,
}

/// Fewer activations are rounded faster than another thread is told to help.
const WORTH_THREADS: usize = 8192;

impl Input {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the rows `x`, `[tokens, cols]`, for products with `weights`: rounded for those that are
    /// integers, as they are for others.
    pub fn set(&mut self, x: &[f32], weights: &Matrix, precision: Precision, threads: &Threads) {
        let cols = weights.cols();
        let (integers, others) = weights.kinds();
        assert!(cols > 0 && x.len().is_multiple_of(cols), "{} values of {cols} columns", x.len());
        (self.tokens, self.cols) = (x.len() / cols, cols);
        self.int8 = precision == Precision::Int8 && integers;
        self.floats.clear();
        if !self.int8 || others {
            // In pieces: some C libraries copy more than a few KB with `rep movsb`, which is slow
            // for some alignments.
            x.chunks(256).for_each(|piece| self.floats.extend_from_slice(piece));
        }
        if !self.int8 {
            return;
        }
        let width = cols.div_ceil(BLOCK);
        self.blocks.resize(self.tokens * width, Block::ZERO);
        let round = |first: usize, rows: &mut [Block]| {
            for (out, x) in rows.chunks_exact_mut(width).zip(x[first * cols..].chunks_exact(cols)) {
                match Isa::detect() {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(kernels) => kernels.round(x, out),
                    Isa::Portable(kernels) => kernels.round(x, out),
                }
            }
        };
        if x.len() < WORTH_THREADS {
            round(0, &mut self.blocks);
        } else {
            threads.run_rows(&mut self.blocks, width, round);
        }
    }

    pub fn tokens(&self) -> usize {
        self.tokens
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn int8(&self) -> Option<&[Block]> {
        self.int8.then_some(&self.blocks)
    }

    /// The activations as they are.
    pub(super) fn floats(&self) -> &[f32] {
        assert_eq!(
            self.floats.len(),
            self.tokens * self.cols,
            "the input was set for such weights"
        );
        &self.floats
    }
}
