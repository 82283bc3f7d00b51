//! Integer weights times activations of 8 bits.

use std::ops::Range;

use super::input::Block;
use super::kernels::Kernels;
use super::pack::{BLOCK, Panel, Part};
use super::threads::Columns;
use super::{PAIR, pair, pairs, rows_of, store};

/// Tokens of a tile: their sums, integer and float, stay in registers.
const TILE: usize = 4;
/// Bytes of activations that stay in the second-level cache while panels pass by.
const RESIDENT: usize = 192 << 10;

/// Panels of a part times all tokens.
pub(super) fn multiply(
    kernels: impl Kernels,
    part: &Part,
    panels: Range<usize>,
    x: &[Block],
    first_row: usize,
    columns: &mut Columns<'_>,
) {
    let blocks = part.cols / BLOCK;
    let resident = (RESIDENT / (blocks * size_of::<Block>())).max(TILE) / TILE * TILE;
    for (chunk, x) in x.chunks(resident * blocks).enumerate() {
        for pair in pairs(panels.clone()) {
            let rows = rows_of(part, &pair, first_row);
            for (tile, x) in x.chunks(TILE * blocks).enumerate() {
                let token = chunk * resident + tile * TILE;
                let (pair, rows) = (pair.clone(), rows.clone());
                match x.len() / blocks {
                    1 => store(columns, token, rows, &tokens::<1>(kernels, part, pair, x)),
                    2 => store(columns, token, rows, &tokens::<2>(kernels, part, pair, x)),
                    3 => store(columns, token, rows, &tokens::<3>(kernels, part, pair, x)),
                    _ => store(columns, token, rows, &tokens::<TILE>(kernels, part, pair, x)),
                }
            }
        }
    }
}

fn tokens<const T: usize>(
    kernels: impl Kernels,
    part: &Part,
    panels: Range<usize>,
    x: &[Block],
) -> [[f32; PAIR]; T] {
    pair(panels, |panel, out| match part.panel(panel) {
        Panel::Q4(w) => kernels.q4(w, x, out),
        Panel::Q8(w) => kernels.q8(w, x, out),
        Panel::F32(_) | Panel::F16(_) | Panel::BF16(_) => unreachable!("not integers"),
    })
}
