//! Matrix of floating-point numbers times rows of activations.
//!
//! One output element is a dot product over sixteen lanes: lane i sums the products of columns i, i + 16, i + 32, ... in
//! that order, and the lanes are summed by a fixed tree. Every path below computes exactly this; they differ in how
//! often a weight is decoded and in how many elements are under way at once.
//!
//! Decoding is exact or one rounding (`scale * quant`), and done before the multiplication in all paths.

#![allow(clippy::needless_range_loop, reason = "the arrays of a tile are walked side by side")]

use std::cell::RefCell;
use std::ops::Range;

use super::{AHEAD, GRAIN_OPERATIONS, put};
use crate::format::{Floats, Rows, UNIT_LEN, decode_floats};
use crate::pool::{SharedSlice, WorkerPool};
use crate::simd::{Aligned, Isa, LANES, Simd, instantiate};

/// With more rows than this, a weight is decoded once to memory and not once per tile.
const FUSED_ROWS_MAX: usize = 16;

/// Weight rows that are decoded together.
const PANEL_ROWS: usize = 32;

/// `out[r, o] = weight[o] · x[r]`, with `weight.bytes` all rows of the matrix.
pub fn matmul_floats<F: Floats>(
    pool: &WorkerPool,
    isa: Isa,
    out: &mut [f32],
    out_len: usize,
    x: &[f32],
    rows: usize,
    weight: Rows<'_, F>,
) {
    assert!(out.len() >= rows * out_len && x.len() >= rows * weight.cols, "activations are too short for the matmul");
    if rows == 0 {
        return;
    }
    let out = SharedSlice::new(&mut out[..rows * out_len]);
    let grain = (GRAIN_OPERATIONS / (rows * weight.cols).max(1)).next_multiple_of(PANEL_ROWS);
    pool.run(out_len, grain, |range| {
        if rows <= FUSED_ROWS_MAX {
            fused_on(isa, &out, out_len, x, rows, weight, range);
        } else {
            PANEL.with_borrow_mut(|panel| paneled(isa, &out, out_len, x, rows, weight, range, panel));
        }
    });
}

thread_local! {
    static PANEL: RefCell<Panel> = RefCell::default();
}

instantiate!(fn fused_on = fused<F: Floats>(
    out: &SharedSlice<'_>, out_len: usize, x: &[f32], rows: usize, weight: Rows<'_, F>, range: Range<usize>,
));

/// Few rows: weights are decoded in registers.
#[inline(always)]
fn fused<S: Simd, F: Floats>(
    simd: S,
    out: &SharedSlice<'_>,
    out_len: usize,
    x: &[f32],
    rows: usize,
    weight: Rows<'_, F>,
    range: Range<usize>,
) {
    let mut o = range.start;
    // As few rows at once as keep the FMA units busy: memory likes to be read in order. Narrow vectors are two chains of
    // additions each, of which there must be more.
    while rows == 1 && S::MANY_REGISTERS && o + 2 <= range.end {
        fused_tile::<S, F, 2, 1>(simd, out, out_len, x, 0, weight, o);
        o += 2;
    }
    while rows == 1 && o + 8 <= range.end {
        fused_tile::<S, F, 8, 1>(simd, out, out_len, x, 0, weight, o);
        o += 8;
    }
    while o + 4 <= range.end {
        // What comes after the first four rows of activations finds the weights in the first cache.
        for r in (0..rows).step_by(4) {
            match rows - r {
                1 => fused_tile::<S, F, 4, 1>(simd, out, out_len, x, r, weight, o),
                2 => fused_tile::<S, F, 4, 2>(simd, out, out_len, x, r, weight, o),
                3 => fused_tile::<S, F, 4, 3>(simd, out, out_len, x, r, weight, o),
                _ => fused_tile::<S, F, 4, 4>(simd, out, out_len, x, r, weight, o),
            }
        }
        o += 4;
    }
    while o < range.end {
        for r in 0..rows {
            fused_tile::<S, F, 1, 1>(simd, out, out_len, x, r, weight, o);
        }
        o += 1;
    }
}

/// `W` weight rows from `o` times `X` activation rows from `r`.
#[inline(always)]
fn fused_tile<S: Simd, F: Floats, const W: usize, const X: usize>(
    simd: S,
    out: &SharedSlice<'_>,
    out_len: usize,
    x: &[f32],
    r: usize,
    weight: Rows<'_, F>,
    o: usize,
) {
    let cols = weight.cols;
    let mut w_rows = [&weight.bytes[..0]; W];
    for (i, row) in w_rows.iter_mut().enumerate() {
        *row = weight.row(o + i);
    }
    let mut x_rows = [&x[..0]; X];
    for (i, row) in x_rows.iter_mut().enumerate() {
        *row = &x[(r + i) * cols..][..cols];
    }
    let units = cols / UNIT_LEN / F::BLOCK_UNITS * F::BLOCK_UNITS;
    let mut sums = [[simd.splat(0.0); X]; W];
    for u in 0..units {
        for i in 0..W {
            let block = &w_rows[i][u / F::BLOCK_UNITS * F::BLOCK_BYTES..][..F::BLOCK_BYTES];
            if u.is_multiple_of(F::BLOCK_UNITS) {
                // Beyond a row's end lies the next one, which is being read too: the one after all of these is wanted.
                let at = u / F::BLOCK_UNITS * F::BLOCK_BYTES;
                let ahead = if at + AHEAD < weight.row_bytes { AHEAD } else { AHEAD + (W - 1) * weight.row_bytes };
                for line in 0..F::BLOCK_BYTES.div_ceil(64) {
                    simd.prefetch(block, ahead + 64 * line);
                }
            }
            let w = weight.format.unit(simd, block, u % F::BLOCK_UNITS);
            for j in 0..X {
                sums[i][j] = add_unit(simd, w, &x_rows[j][u * UNIT_LEN..], sums[i][j]);
            }
        }
    }
    if cols > units * UNIT_LEN {
        for i in 0..W {
            let tail = &w_rows[i][units * F::BLOCK_BYTES..];
            let mut bytes = [0u8; 128];
            bytes[..tail.len()].copy_from_slice(tail);
            let w = weight.format.unit(simd, &bytes[..F::BLOCK_BYTES], 0);
            for j in 0..X {
                let mut filled = [0.0; UNIT_LEN];
                filled[..cols - units * UNIT_LEN].copy_from_slice(&x_rows[j][units * UNIT_LEN..]);
                sums[i][j] = add_unit(simd, w, &filled, sums[i][j]);
            }
        }
    }
    for (i, sums) in sums.into_iter().enumerate() {
        for (j, sum) in sums.into_iter().enumerate() {
            put(out, (r + j) * out_len + o + i, simd.sum(sum));
        }
    }
}

#[inline(always)]
fn add_unit<S: Simd>(simd: S, w: [S::F; 2], x: &[f32], sum: S::F) -> S::F {
    let low: &[f32; LANES] = x[..LANES].first_chunk().expect("a slice of sixteen");
    let high: &[f32; LANES] = x[LANES..UNIT_LEN].first_chunk().expect("a slice of sixteen");
    simd.mul_add(w[1], simd.load(high), simd.mul_add(w[0], simd.load(low), sum))
}

/// What a thread keeps for many rows.
#[derive(Default)]
struct Panel {
    /// Decoded weights, `[PANEL_ROWS / 4, BLOCK_COLS / 16, 4]` vectors of sixteen columns: a tile reads them in order.
    weights: Vec<Aligned<[f32; LANES]>>,
    /// One row of them, `[BLOCK_COLS]`.
    row: Vec<f32>,
    /// Lanes of the outputs, `[x tiles, weight tiles]` of four rows by four; what is there belongs to rows `4 j + i`.
    sums: Vec<Tile>,
}

/// Lanes of a tile's outputs: weight row i and activation row j are at `TILE j + i`.
type Tile = Aligned<[[f32; LANES]; TILE * TILE]>;

/// Rows of weights, and of activations, that are multiplied in registers.
const TILE: usize = 4;

/// Vectors of four rows of the panel.
const TILE_VECTORS: usize = TILE * BLOCK_COLS / LANES;

const _: () = assert!(TILE * TILE == LANES, "a tile's outputs are summed together");

/// Columns that are multiplied before the next ones are read: so many of four rows of activations fit into the first cache,
/// and of all of the panel's rows into the second one.
const BLOCK_COLS: usize = 1024;

/// Rows of activations that a panel is decoded for.
const BLOCK_ROWS: usize = 128;

/// Many rows: a panel of weights is decoded to memory and used for all of them. Only the decoding knows the format.
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn paneled<F: Floats>(
    isa: Isa,
    out: &SharedSlice<'_>,
    out_len: usize,
    x: &[f32],
    rows: usize,
    weight: Rows<'_, F>,
    range: Range<usize>,
    panel: &mut Panel,
) {
    panel.weights.resize(PANEL_ROWS * BLOCK_COLS / LANES, Aligned([0.0; LANES]));
    panel.row.resize(BLOCK_COLS, 0.0);
    panel.sums.resize(BLOCK_ROWS / TILE * (PANEL_ROWS / TILE), Aligned([[0.0; LANES]; LANES]));
    let mut o = range.start;
    while o < range.end {
        let count = (range.end - o).min(PANEL_ROWS);
        for first in (0..rows).step_by(BLOCK_ROWS) {
            let rows = (rows - first).min(BLOCK_ROWS);
            let x = &x[first * weight.cols..][..rows * weight.cols];
            for col in (0..weight.cols).step_by(BLOCK_COLS) {
                decode_block_on(isa, weight, o, count, col, panel);
                multiply_on(isa, x, rows, weight.cols, col, count, panel);
            }
            finish_on(isa, out, out_len, first, rows, o, count, panel);
        }
        o += count;
    }
}

instantiate!(fn decode_block_on = decode_block<F: Floats>(
    weight: Rows<'_, F>, o: usize, count: usize, col: usize, panel: &mut Panel,
));

/// Decodes a block of columns from `col` on of `count` weight rows from `o` on.
#[inline(always)]
fn decode_block<S: Simd, F: Floats>(
    simd: S,
    weight: Rows<'_, F>,
    o: usize,
    count: usize,
    col: usize,
    panel: &mut Panel,
) {
    const { assert!(BLOCK_COLS.is_multiple_of(UNIT_LEN * F::BLOCK_UNITS), "a block of columns is whole blocks of weights") };
    let bytes_before = col / UNIT_LEN / F::BLOCK_UNITS * F::BLOCK_BYTES;
    let bytes_max = BLOCK_COLS / UNIT_LEN / F::BLOCK_UNITS * F::BLOCK_BYTES;
    for i in 0..count {
        let row = &weight.row(o + i)[bytes_before..];
        decode_floats(simd, weight.format, &row[..row.len().min(bytes_max)], &mut panel.row);
        let tile = &mut panel.weights[i / TILE * TILE_VECTORS..][..TILE_VECTORS];
        for (to, vector) in tile.iter_mut().skip(i % TILE).step_by(TILE).zip(panel.row.as_chunks::<LANES>().0) {
            **to = *vector;
        }
    }
}

instantiate!(fn multiply_on = multiply(
    x: &[f32], rows: usize, cols: usize, col: usize, count: usize, panel: &mut Panel,
));

/// The panel's `count` weight rows times all rows of activations, from column `col` on as far as the panel goes.
#[inline(always)]
fn multiply<S: Simd>(simd: S, x: &[f32], rows: usize, cols: usize, col: usize, count: usize, panel: &mut Panel) {
    let Panel { weights, sums, .. } = panel;
    for (x_tile, r) in (0..rows).step_by(TILE).enumerate() {
        let x = &x[r * cols..][..(rows - r).min(TILE) * cols];
        for (w_tile, i) in (0..count).step_by(TILE).enumerate() {
            let weights = &weights[w_tile * TILE_VECTORS..][..TILE_VECTORS];
            let sums = &mut sums[x_tile * (PANEL_ROWS / TILE) + w_tile];
            let (w_rows, x_rows) = ((count - i).min(TILE), (rows - r).min(TILE));
            if S::MANY_REGISTERS && w_rows == TILE && x_rows == TILE {
                tile::<S, TILE, TILE>(simd, x, cols, col, weights, sums, 0, 0);
                continue;
            }
            for j in (0..x_rows).step_by(2) {
                for i in (0..w_rows).step_by(2) {
                    match (w_rows - i, x_rows - j) {
                        (1, 1) => tile::<S, 1, 1>(simd, x, cols, col, weights, sums, i, j),
                        (1, _) => tile::<S, 1, 2>(simd, x, cols, col, weights, sums, i, j),
                        (_, 1) => tile::<S, 2, 1>(simd, x, cols, col, weights, sums, i, j),
                        _ => tile::<S, 2, 2>(simd, x, cols, col, weights, sums, i, j),
                    }
                }
            }
        }
    }
}

/// `W` weight rows from `i` on times `X` activation rows from `j` on, added to the lanes of the columns before.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn tile<S: Simd, const W: usize, const X: usize>(
    simd: S,
    x: &[f32],
    cols: usize,
    col: usize,
    weights: &[Aligned<[f32; LANES]>],
    sums: &mut Tile,
    i: usize,
    j: usize,
) {
    let block = (cols - col).min(BLOCK_COLS);
    let chunks = block / LANES;
    let mut x_rows = [&x[..0]; X];
    for (n, row) in x_rows.iter_mut().enumerate() {
        *row = &x[(j + n) * cols + col..][..block];
    }
    let mut lanes = [[simd.splat(0.0); X]; W];
    if col > 0 {
        for (n, lanes) in lanes.iter_mut().enumerate() {
            for (m, lane) in lanes.iter_mut().enumerate() {
                *lane = simd.load(&sums[TILE * (j + m) + i + n]);
            }
        }
    }
    let (w_chunks, _) = weights.as_chunks::<TILE>();
    for c in 0..chunks {
        let mut xs = [simd.splat(0.0); X];
        for m in 0..X {
            xs[m] = simd.load(sixteen(x_rows[m], c));
        }
        for n in 0..W {
            let w = simd.load(&w_chunks[c][i + n]);
            for m in 0..X {
                lanes[n][m] = simd.mul_add(w, xs[m], lanes[n][m]);
            }
        }
    }
    if block > chunks * LANES {
        for m in 0..X {
            let mut filled = [0.0; LANES];
            filled[..block - chunks * LANES].copy_from_slice(&x_rows[m][chunks * LANES..]);
            for n in 0..W {
                lanes[n][m] = simd.mul_add(simd.load(&w_chunks[chunks][i + n]), simd.load(&filled), lanes[n][m]);
            }
        }
    }
    for (n, lanes) in lanes.into_iter().enumerate() {
        for (m, lane) in lanes.into_iter().enumerate() {
            simd.store(lane, &mut sums[TILE * (j + m) + i + n]);
        }
    }
}

instantiate!(fn finish_on = finish(
    out: &SharedSlice<'_>, out_len: usize, first: usize, rows: usize, o: usize, count: usize, panel: &Panel,
));

/// Adds the lanes, and writes the outputs from `o` on of the rows from `first` on.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn finish<S: Simd>(
    simd: S,
    out: &SharedSlice<'_>,
    out_len: usize,
    first: usize,
    rows: usize,
    o: usize,
    count: usize,
    panel: &Panel,
) {
    for (x_tile, r) in (0..rows).step_by(TILE).enumerate() {
        for (w_tile, i) in (0..count).step_by(TILE).enumerate() {
            let mut outputs = [0.0; LANES];
            simd.store(simd.sum_rows(&panel.sums[x_tile * (PANEL_ROWS / TILE) + w_tile]), &mut outputs);
            for (j, outputs) in outputs.as_chunks::<TILE>().0.iter().enumerate().take(rows - r) {
                for (n, output) in outputs.iter().enumerate().take(count - i) {
                    put(out, (first + r + j) * out_len + o + i + n, *output);
                }
            }
        }
    }
}

#[inline(always)]
fn sixteen(row: &[f32], chunk: usize) -> &[f32; LANES] {
    row[chunk * LANES..][..LANES].first_chunk().expect("a slice of sixteen")
}
