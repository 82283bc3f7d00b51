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
                let (w, token) = (part.panel(panel), chunk * resident);
                match (x.len() / cols, w) {
                    (1, w) => few::<1>(kernels, w, scratch, x, token, rows, columns),
                    (2, w) => few::<2>(kernels, w, scratch, x, token, rows, columns),
                    (_, Panel::F32(w)) => tiles(kernels, w, x, token, rows, columns),
                    (_, w) => {
                        kernels.expand(w, scratch);
                        tiles(kernels, scratch, x, token, rows, columns);
                    }
                }
            }
        }
    });
}

/// A panel times so few tokens that dequantised weights need no memory.
fn few<const T: usize>(
    kernels: impl Kernels,
    w: Panel<'_>,
    scratch: &mut [[f32; LANES]],
    x: &[f32],
    token: usize,
    rows: Range<usize>,
    columns: &mut Columns<'_>,
) {
    let mut out = [[0.0; LANES]; T];
    kernels.few(w, scratch, x, &mut out);
    store(columns, token, rows, &out);
}

fn tiles(
    kernels: impl Kernels,
    w: &[[f32; LANES]],
    x: &[f32],
    token: usize,
    rows: Range<usize>,
    columns: &mut Columns<'_>,
) {
    for (at, x) in x.chunks(TILE * w.len()).enumerate() {
        tile(kernels, w, x, token + at * TILE, rows.clone(), columns);
    }
}

/// Small tiles run several strands at once, so that no sum waits for the one before.
fn tile(
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
