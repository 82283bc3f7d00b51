//! Products in f32: panels are dequantised once, then read by every tile of tokens.

use std::cell::RefCell;
use std::ops::Range;

use super::kernels::Kernels;
use super::pack::{LANES, Panel, Part};
use super::threads::Columns;
use super::{pair, pairs, rows_of, store};

/// Tokens of a tile: one strand of each stays in registers, next to a weight and an activation.
const TILE: usize = 12;
/// Bytes of activations that stay in the second-level cache while panels pass by.
const RESIDENT: usize = 192 << 10;

thread_local! {
    /// Two dequantised panels.
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
        scratch.resize(2 * cols, [0.0; LANES]);
        for (chunk, x) in x.chunks(resident * cols).enumerate() {
            for pair in pairs(panels.clone()) {
                let rows = rows_of(part, &pair, first_row);
                let weights = pair.clone().map(|panel| part.panel(panel));
                let token = chunk * resident;
                match x.len() / cols {
                    1 => few::<1>(kernels, weights, scratch, x, token, rows, columns),
                    2 => few::<2>(kernels, weights, scratch, x, token, rows, columns),
                    _ => {
                        let mut w: [&[[f32; LANES]]; 2] = [&[]; 2];
                        let scratch = scratch.chunks_exact_mut(cols);
                        for ((w, panel), scratch) in w.iter_mut().zip(weights).zip(scratch) {
                            *w = expand(kernels, panel, scratch);
                        }
                        tiles(kernels, &w[..pair.len()], x, token, rows, columns);
                    }
                }
            }
        }
    });
}

/// A panel dequantised, in `scratch` unless it is in f32 already.
fn expand<'a>(
    kernels: impl Kernels,
    panel: Panel<'a>,
    scratch: &'a mut [[f32; LANES]],
) -> &'a [[f32; LANES]] {
    match panel {
        Panel::F32(w) => w,
        w => {
            kernels.expand(w, scratch);
            scratch
        }
    }
}

/// Panels times so few tokens that dequantised weights need no memory.
fn few<'a, const T: usize>(
    kernels: impl Kernels,
    panels: impl Iterator<Item = Panel<'a>>,
    scratch: &mut [[f32; LANES]],
    x: &[f32],
    token: usize,
    rows: Range<usize>,
    columns: &mut Columns<'_>,
) {
    let scratch = &mut scratch[..x.len() / T];
    let out = pair::<T, _>(panels, |w, out| kernels.few(w, scratch, x, out));
    store(columns, token, rows, &out);
}

fn tiles(
    kernels: impl Kernels,
    panels: &[&[[f32; LANES]]],
    x: &[f32],
    token: usize,
    rows: Range<usize>,
    columns: &mut Columns<'_>,
) {
    let cols = panels[0].len();
    for (at, x) in x.chunks(TILE * cols).enumerate() {
        tile(kernels, panels, x, token + at * TILE, rows.clone(), columns);
    }
}

/// Small tiles run several strands at once, so that no sum waits for the one before.
fn tile(
    kernels: impl Kernels,
    panels: &[&[[f32; LANES]]],
    x: &[f32],
    token: usize,
    rows: Range<usize>,
    columns: &mut Columns<'_>,
) {
    macro_rules! tile {
        ($($tokens:literal x $strands:literal),*) => {
            match x.len() / panels[0].len() {
                $($tokens => {
                    let out = pair(panels.iter(), |w, out| {
                        kernels.f32::<$tokens, $strands>(w, x, out);
                    });
                    store::<$tokens>(columns, token, rows, &out);
                })*
                tokens => unreachable!("a tile of {tokens} tokens"),
            }
        };
    }
    tile!(1 x 4, 2 x 4, 3 x 4, 4 x 2, 5 x 2, 6 x 2, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1, 12 x 1);
}
