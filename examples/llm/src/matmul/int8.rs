//! Integer weights times activations of 8 bits.

use std::ops::Range;

use super::input::Block;
use super::kernels::Kernels;
use super::pack::{BLOCK, LANES, Panel, Part};
use super::store;
use super::threads::Columns;

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
        for panel in panels.clone() {
            let rows = panel * LANES..part.rows.min((panel + 1) * LANES);
            let rows = first_row + rows.start..first_row + rows.end;
            let w = part.panel(panel);
            for (tile, x) in x.chunks(TILE * blocks).enumerate() {
                let token = chunk * resident + tile * TILE;
                let rows = rows.clone();
                match x.len() / blocks {
                    1 => store(columns, token, rows, &tokens::<1>(kernels, w, x)),
                    2 => store(columns, token, rows, &tokens::<2>(kernels, w, x)),
                    3 => store(columns, token, rows, &tokens::<3>(kernels, w, x)),
                    _ => store(columns, token, rows, &tokens::<TILE>(kernels, w, x)),
                }
            }
        }
    }
}

fn tokens<const T: usize>(kernels: impl Kernels, w: Panel<'_>, x: &[Block]) -> [[f32; LANES]; T] {
    let mut out = [[0.0; LANES]; T];
    match w {
        Panel::Q4(w) => kernels.q4(w, x, &mut out),
        Panel::Q8(w) => kernels.q8(w, x, &mut out),
        Panel::F32(_) | Panel::F16(_) | Panel::BF16(_) => unreachable!("not integers"),
    }
    out
}
