//! Matrix of bfloat16 times rows of activations that are rounded to bfloat16, where the processor multiplies two of a lane
//! at once.
//!
//! One output element is a dot product over sixteen lanes, which take units of 32 columns in their order: lane i adds the
//! product of element 2i + 1 of the unit, then that of element 2i, and the lanes are summed by a fixed tree. A lone row and
//! many compute exactly this.
//!
//! An activation has eight bits of fraction so, as the ones with which such models are made and mostly run. What it costs is
//! held against the slow pass in the engine's tests. It takes half the multiplications of `floats`, and nothing is decoded:
//! weights are multiplied as they lie in the file.

#![allow(clippy::needless_range_loop, reason = "the arrays of a tile are walked side by side")]

use std::cell::RefCell;
use std::ops::Range;

use super::floats::{Block, GRAIN_ELEMENTS, PANEL_ROWS, ROW_SUMS, Sums, finish_on};
use super::{AHEAD, Activations, GRAIN_OPERATIONS, put};
use crate::format::{Bf16, Rows, UNIT_LEN};
use crate::pool::{SharedSlice, WorkerPool};
use crate::simd::{Aligned, BYTES, Isa, LANES, PairDots, Pairs, Simd, instantiate_pairs};

/// Columns that are multiplied before the next ones are read.
const BLOCK_COLS: usize = 512;

/// Units of a block of columns of one row.
const BLOCK_UNITS: usize = BLOCK_COLS / UNIT_LEN;

/// Rows of weights, and of activations, that are multiplied in registers: 24 sums, six activations, a weight.
const TILE_W: usize = 4;
const TILE_X: usize = 6;

/// Rows of activations of which a block of columns stays in the first cache, 24 KiB, while all rows of a panel pass. With
/// longer blocks they and the weights asked for ahead push each other out.
const NEAR_ROWS: usize = 4 * TILE_X;

/// Rows of activations whose sums are kept: with a block of their columns 288 KiB, for the second cache.
const BLOCK_ROWS: usize = 4 * NEAR_ROWS;

/// `out[r, o] = weight[o] · x[r]`, with `weight.bytes` all rows of the matrix; `scratch` takes over `x`.
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
pub fn matmul_pairs(
    pool: &WorkerPool,
    isa: Isa,
    out: &mut [f32],
    out_len: usize,
    scratch: &mut Activations,
    x: &[f32],
    rows: usize,
    weight: Rows<'_, Bf16>,
) {
    assert!(out.len() >= rows * out_len && x.len() >= rows * weight.cols, "activations are too short for the matmul");
    if rows == 0 {
        return;
    }
    let packed = &mut scratch.pairs;
    packed.resize(weight.cols.div_ceil(BLOCK_COLS) * rows * BLOCK_UNITS, Aligned([0; BYTES]));
    let shared = SharedSlice::new(packed);
    pool.run(rows, (GRAIN_ELEMENTS / weight.cols.max(1)).max(1), |range| {
        pack_on(isa, &shared, x, rows, weight.cols, range);
    });
    let x = &packed[..];
    let out = SharedSlice::new(&mut out[..rows * out_len]);
    let grain = (GRAIN_OPERATIONS / (rows * weight.cols).max(1)).next_multiple_of(PANEL_ROWS);
    pool.run(out_len, grain, |range| {
        if rows == 1 {
            lone_on(isa, &out, x, weight, range);
        } else {
            SUMS.with_borrow_mut(|sums| paneled(isa, &out, out_len, x, rows, weight, range, sums));
        }
    });
}

instantiate_pairs!(fn pack_on = pack(
    packed: &SharedSlice<'_, Pairs>, x: &[f32], rows: usize, cols: usize, range: Range<usize>,
));

/// Rows of activations as `[blocks of columns, rows, BLOCK_UNITS]`, so that what is multiplied together lies together. The
/// last unit is filled up with zeros.
#[inline(always)]
#[allow(unsafe_code, reason = "threads share what is filled")]
fn pack<D: PairDots>(
    dots: D,
    packed: &SharedSlice<'_, Pairs>,
    x: &[f32],
    rows: usize,
    cols: usize,
    range: Range<usize>,
) {
    for row in range {
        for (block, x) in x[row * cols..][..cols].chunks(BLOCK_COLS).enumerate() {
            let at = (block * rows + row) * BLOCK_UNITS;
            // SAFETY: the place belongs to one row, and the pool gives each row to one thread.
            let to = unsafe { packed.part(at..at + BLOCK_UNITS) };
            let (units, rest) = x.as_chunks::<UNIT_LEN>();
            for (to, unit) in to.iter_mut().zip(units) {
                dots.round_to_pairs(unit, to);
            }
            if !rest.is_empty() {
                let mut filled = [0.0; UNIT_LEN];
                filled[..rest.len()].copy_from_slice(rest);
                dots.round_to_pairs(&filled, &mut to[units.len()]);
            }
        }
    }
}

instantiate_pairs!(fn lone_on = lone(
    out: &SharedSlice<'_>, x: &[Pairs], weight: Rows<'_, Bf16>, range: Range<usize>,
));

/// A lone row of activations: one row of weights after the other, as in `floats`. Blocks of its columns lie one after the
/// other.
#[inline(always)]
fn lone<D: PairDots>(dots: D, out: &SharedSlice<'_>, x: &[Pairs], weight: Rows<'_, Bf16>, range: Range<usize>) {
    let simd = dots.simd();
    for o in range {
        let (units, rest) = weight.row(o).as_chunks();
        let mut sum = simd.splat(0.0);
        for (unit, x) in units.iter().zip(x) {
            simd.prefetch(unit, AHEAD);
            sum = dots.dot_pairs(sum, dots.load_pairs(unit), dots.load_pairs(x));
        }
        if !rest.is_empty() {
            sum = dots.dot_pairs(sum, dots.load_pairs(&filled_up(rest)), dots.load_pairs(&x[units.len()]));
        }
        put(out, o, simd.sum(sum));
    }
}

/// The rest of a row, and zeros.
#[inline(always)]
fn filled_up(rest: &[u8]) -> [u8; BYTES] {
    let mut filled = [0; BYTES];
    filled[..rest.len()].copy_from_slice(rest);
    filled
}

thread_local! {
    /// Lanes of the outputs, `[BLOCK_ROWS, PANEL_ROWS / 16]`.
    static SUMS: RefCell<Vec<Sums>> = RefCell::default();
}

/// Many rows: the sums of a panel of weight rows, block by block of the columns.
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn paneled(
    isa: Isa,
    out: &SharedSlice<'_>,
    out_len: usize,
    x: &[Pairs],
    rows: usize,
    weight: Rows<'_, Bf16>,
    range: Range<usize>,
    sums: &mut Vec<Sums>,
) {
    sums.resize(BLOCK_ROWS * ROW_SUMS, Aligned([[0.0; LANES]; LANES]));
    // Blocks of rows are about as long as each other.
    let block_rows = rows.div_ceil(rows.div_ceil(BLOCK_ROWS)).next_multiple_of(NEAR_ROWS);
    for o in range.clone().step_by(PANEL_ROWS) {
        let count = (range.end - o).min(PANEL_ROWS);
        for first in (0..rows).step_by(block_rows) {
            let block_rows = (rows - first).min(block_rows);
            for col in (0..weight.cols).step_by(BLOCK_COLS) {
                let x = &x[(col / BLOCK_COLS * rows + first) * BLOCK_UNITS..][..block_rows * BLOCK_UNITS];
                multiply_on(isa, Block::of(weight, o, count, col, BLOCK_COLS), x, block_rows, sums);
            }
            finish_on(isa, out, out_len, first, block_rows, o, count, sums);
        }
    }
}

instantiate_pairs!(fn multiply_on = multiply(block: Block<'_>, x: &[Pairs], rows: usize, sums: &mut [Sums]));

/// A block of columns of the weights times those of all rows of activations, added to the sums.
#[inline(always)]
fn multiply<D: PairDots>(dots: D, block: Block<'_>, x: &[Pairs], rows: usize, sums: &mut [Sums]) {
    // As few parts as can be, about as large as each other, and so are their tiles.
    let near_rows = rows.div_ceil(rows.div_ceil(NEAR_ROWS));
    for near in (0..rows).step_by(near_rows) {
        let end = (near + near_rows).min(rows);
        let step = (end - near).div_ceil((end - near).div_ceil(TILE_X));
        for i in (0..block.count).step_by(TILE_W) {
            for r in (near..end).step_by(step) {
                match step.min(end - r) {
                    1 => tile::<D, TILE_W, 1>(dots, block, x, i, r, sums),
                    2 => tile::<D, TILE_W, 2>(dots, block, x, i, r, sums),
                    3 => tile::<D, TILE_W, 3>(dots, block, x, i, r, sums),
                    4 => tile::<D, TILE_W, 4>(dots, block, x, i, r, sums),
                    5 => tile::<D, TILE_W, 5>(dots, block, x, i, r, sums),
                    _ => tile::<D, TILE_W, TILE_X>(dots, block, x, i, r, sums),
                }
            }
        }
    }
}

/// `W` weight rows from `i` on times `X` activation rows from `r` on. Of weight rows that there are not, the last one
/// stands in: nobody reads those sums.
#[inline(always)]
fn tile<D: PairDots, const W: usize, const X: usize>(
    dots: D,
    block: Block<'_>,
    x: &[Pairs],
    i: usize,
    r: usize,
    sums: &mut [Sums],
) {
    let simd = dots.simd();
    let w_rows = block.rows::<W>(i);
    let units = block.len / BYTES;
    let mut w_units = [&[[0; BYTES]][..0]; W];
    for (w_units, row) in w_units.iter_mut().zip(&w_rows) {
        *w_units = &row.as_chunks().0[..units];
    }
    let rest = block.len > units * BYTES;
    let mut x_rows = [&x[..0]; X];
    for (m, row) in x_rows.iter_mut().enumerate() {
        *row = &x[(r + m) * BLOCK_UNITS..][..units + usize::from(rest)];
    }
    let mut lanes = [[simd.splat(0.0); X]; W];
    if !block.first {
        for (n, lanes) in lanes.iter_mut().enumerate() {
            for (m, lane) in lanes.iter_mut().enumerate() {
                *lane = simd.load(&sums[(r + m) * ROW_SUMS + (i + n) / LANES][(i + n) % LANES]);
            }
        }
    }
    let ahead = block.ahead(i, TILE_W);
    for u in 0..units {
        let mut weights = [&[0; BYTES]; W];
        for n in 0..W {
            weights[n] = &w_units[n][u];
            simd.prefetch(weights[n], ahead);
        }
        add_unit(dots, &weights, &x_rows, u, &mut lanes);
    }
    if rest {
        let mut filled = [[0; BYTES]; W];
        for (filled, row) in filled.iter_mut().zip(&w_rows) {
            *filled = filled_up(&row[units * BYTES..]);
        }
        add_unit(dots, &filled.each_ref(), &x_rows, units, &mut lanes);
    }
    for (n, lanes) in lanes.into_iter().enumerate() {
        for (m, lane) in lanes.into_iter().enumerate() {
            simd.store(lane, &mut sums[(r + m) * ROW_SUMS + (i + n) / LANES][(i + n) % LANES]);
        }
    }
}

/// Unit `u` of the activations times that of the weights.
#[inline(always)]
fn add_unit<D: PairDots, const W: usize, const X: usize>(
    dots: D,
    weights: &[&[u8; BYTES]; W],
    x_rows: &[&[Pairs]; X],
    u: usize,
    lanes: &mut [[<D::Simd as Simd>::F; X]; W],
) {
    let mut xs = [dots.load_pairs(weights[0]); X];
    for m in 0..X {
        xs[m] = dots.load_pairs(&x_rows[m][u]);
    }
    for n in 0..W {
        let w = dots.load_pairs(weights[n]);
        for m in 0..X {
            lanes[n][m] = dots.dot_pairs(lanes[n][m], w, xs[m]);
        }
    }
}
