//! Activations of a step, prepared once and read by several products.

use std::borrow::Cow;

use super::Precision;
use super::kernels::{Isa, Kernels};
use super::pack::BLOCK;
use super::threads::Threads;

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

    /// Takes the rows `x`, `[tokens, cols]`.
    pub fn set(&mut self, x: &[f32], cols: usize, precision: Precision, threads: &Threads) {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "{} values of {cols} columns", x.len());
        (self.tokens, self.cols) = (x.len() / cols, cols);
        self.int8 = precision == Precision::Int8;
        if !self.int8 {
            self.floats.clear();
            // In pieces: some C libraries copy more than a few KB with `rep movsb`, which is slow
            // for some alignments.
            x.chunks(256).for_each(|piece| self.floats.extend_from_slice(piece));
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

    pub(super) fn is_int8(&self) -> bool {
        self.int8
    }

    pub(super) fn int8(&self) -> Option<&[Block]> {
        self.int8.then_some(&self.blocks)
    }

    /// The activations as floats, rounded or not: weights that are no integers need them.
    pub(super) fn floats(&self) -> Cow<'_, [f32]> {
        if !self.int8 {
            return Cow::Borrowed(&self.floats);
        }
        let rows = self.blocks.chunks_exact(self.cols.div_ceil(BLOCK));
        Cow::Owned(
            rows.flat_map(|row| {
                row.iter()
                    .flat_map(|block| block.codes.map(|code| f32::from(code) * block.scale))
                    .take(self.cols)
            })
            .collect(),
        )
    }
}
