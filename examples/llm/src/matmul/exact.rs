//! Products in f32: a panel is dequantised once, then read by every tile of tokens.

use std::cell::RefCell;
use std::ops::Range;

use super::kernels::Kernels;
use super::pack::{LANES, Panel, Part};
use super::store;
use super::threads::Columns;

/// Tokens of a tile: one strand of each stays in registers, beside a weight and an activation.
const TILE: usize = 12;
/// Bytes of activations that stay in the second-level cache while panels pass by.
const RESIDENT: usize = 192 << 10;

thread_local! {
    /// A dequantised panel.
    static SCRATCH: RefCell<Vec<[f32; LANES]>> = const { RefCell::new(Vec::new()) };
}

/// Panels of a part times all tokens.
pub(super) fn multiply(
    kernels: impl Kernels,
    part: &Part,
    panels: Range<usize>,
    x: &[f32],
    first_row: usize,
    columns: &mut Columns<'_>,
) {
    let cols = part.cols;
    let resident = (RESIDENT / (4 * cols)).max(TILE) / TILE * TILE;
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.resize(cols, [0.0; LANES]);
        for (chunk, x) in x.chunks(resident * cols).enumerate() {
            for panel in panels.clone() {
                let rows = panel * LANES..part.rows.min((panel + 1) * LANES);
                let rows = first_row + rows.start..first_row + rows.end;
                let w = match part.panel(panel) {
                    Panel::F32(w) => w,
                    w => {
                        kernels.expand(w, scratch);
                        &*scratch
                    }
                };
                for (tile, x) in x.chunks(TILE * cols).enumerate() {
                    let token = chunk * resident + tile * TILE;
                    tokens(kernels, w, x, token, rows.clone(), columns);
                }
            }
        }
    });
}

/// One tile. Few tokens run several strands at once, so that no sum waits for the one before.
fn tokens(
    kernels: impl Kernels,
    w: &[[f32; LANES]],
    x: &[f32],
    token: usize,
    rows: Range<usize>,
    columns: &mut Columns<'_>,
) {
    macro_rules! tile {
        ($($tokens:literal x $strands:literal),*) => {
            match x.len() / w.len() {
                $($tokens => {
                    let mut out = [[0.0; LANES]; $tokens];
                    kernels.f32::<$tokens, $strands>(w, x, &mut out);
                    store(columns, token, rows, &out);
                })*
                tokens => unreachable!("a tile of {tokens} tokens"),
            }
        };
    }
    tile!(1 x 4, 2 x 4, 3 x 4, 4 x 2, 5 x 2, 6 x 2, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1, 12 x 1);
}
