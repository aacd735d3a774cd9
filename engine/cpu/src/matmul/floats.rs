//! Matrix of floating-point numbers times rows of activations.
//!
//! One output element is a dot product over sixteen lanes: lane i sums the products of columns i, i + 16, i + 32, ... in
//! that order, and the lanes are summed by a fixed tree. Every path below computes exactly this; they differ in how
//! often a weight is decoded and in how many elements are under way at once.
//!
//! Decoding is exact or one rounding (`scale * quant`), and done before the multiplication in all paths.

use std::cell::RefCell;
use std::ops::Range;

use super::{AHEAD, GRAIN_OPERATIONS, put};
use crate::format::{Floats, Rows, UNIT_LEN, decode_floats};
use crate::pool::{SharedSlice, WorkerPool};
use crate::simd::{Isa, LANES, Simd, instantiate};

/// With more rows than this, a weight is decoded once to memory and not once per tile.
const FUSED_ROWS_MAX: usize = 4;

/// Weight rows that are decoded together.
const PANEL_ROWS: usize = 8;

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
    /// Decoded weight rows. Grows to the widest matrix in the first step and stays.
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
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
    // As few rows at once as keep the FMA units busy: memory likes to be read in order.
    while rows == 1 && o + 2 <= range.end {
        fused_tile::<S, F, 2, 1>(simd, out, out_len, x, 0, weight, o);
        o += 2;
    }
    while o + 4 <= range.end {
        match rows {
            2 => fused_tile::<S, F, 4, 2>(simd, out, out_len, x, 0, weight, o),
            3 => fused_tile::<S, F, 4, 3>(simd, out, out_len, x, 0, weight, o),
            _ => fused_tile::<S, F, 4, 4>(simd, out, out_len, x, 0, weight, o),
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
                for line in 0..F::BLOCK_BYTES.div_ceil(64) {
                    simd.prefetch(block, AHEAD + 64 * line);
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
    panel: &mut Vec<f32>,
) {
    let stride = weight.cols.next_multiple_of(UNIT_LEN);
    if panel.len() < PANEL_ROWS * stride {
        panel.resize(PANEL_ROWS * stride, 0.0);
    }
    let mut o = range.start;
    while o < range.end {
        let count = (range.end - o).min(PANEL_ROWS);
        decode_rows_on(isa, weight, o, count, stride, panel);
        multiply_on(isa, out, out_len, x, rows, weight.cols, o, count, stride, panel);
        o += count;
    }
}

instantiate!(fn decode_rows_on = decode_rows<F: Floats>(
    weight: Rows<'_, F>, o: usize, count: usize, stride: usize, panel: &mut [f32],
));

/// Decodes `count` weight rows from `o` on, `stride` elements apart.
#[inline(always)]
fn decode_rows<S: Simd, F: Floats>(
    simd: S,
    weight: Rows<'_, F>,
    o: usize,
    count: usize,
    stride: usize,
    panel: &mut [f32],
) {
    for i in 0..count {
        decode_floats(simd, weight.format, weight.row(o + i), &mut panel[i * stride..][..stride]);
    }
}

instantiate!(fn multiply_on = multiply(
    out: &SharedSlice<'_>, out_len: usize, x: &[f32], rows: usize, cols: usize, o: usize, count: usize, stride: usize,
    panel: &[f32],
));

/// The panel's `count` weight rows, which are those from `o` on, times all rows of activations.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn multiply<S: Simd>(
    simd: S,
    out: &SharedSlice<'_>,
    out_len: usize,
    x: &[f32],
    rows: usize,
    cols: usize,
    o: usize,
    count: usize,
    stride: usize,
    panel: &[f32],
) {
    let mut i = 0;
    if S::MANY_REGISTERS {
        while i + 4 <= count {
            tile_rows::<S, 4, 4>(simd, out, out_len, x, rows, cols, &panel[i * stride..], stride, o + i);
            i += 4;
        }
    }
    while i + 2 <= count {
        tile_rows::<S, 2, 2>(simd, out, out_len, x, rows, cols, &panel[i * stride..], stride, o + i);
        i += 2;
    }
    while i < count {
        tile_rows::<S, 1, 4>(simd, out, out_len, x, rows, cols, &panel[i * stride..], stride, o + i);
        i += 1;
    }
}

/// `W` decoded weight rows times all activation rows, `X` at a time.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn tile_rows<S: Simd, const W: usize, const X: usize>(
    simd: S,
    out: &SharedSlice<'_>,
    out_len: usize,
    x: &[f32],
    rows: usize,
    cols: usize,
    panel: &[f32],
    stride: usize,
    o: usize,
) {
    let mut r = 0;
    while r + X <= rows {
        tile::<S, W, X>(simd, out, out_len, x, r, cols, panel, stride, o);
        r += X;
    }
    while r < rows {
        tile::<S, W, 1>(simd, out, out_len, x, r, cols, panel, stride, o);
        r += 1;
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn tile<S: Simd, const W: usize, const X: usize>(
    simd: S,
    out: &SharedSlice<'_>,
    out_len: usize,
    x: &[f32],
    r: usize,
    cols: usize,
    panel: &[f32],
    stride: usize,
    o: usize,
) {
    let chunks = cols / LANES;
    let mut w_rows = [&panel[..0]; W];
    for (i, row) in w_rows.iter_mut().enumerate() {
        *row = &panel[i * stride..][..stride];
    }
    let mut x_rows = [&x[..0]; X];
    for (i, row) in x_rows.iter_mut().enumerate() {
        *row = &x[(r + i) * cols..][..cols];
    }
    let mut sums = [[simd.splat(0.0); X]; W];
    for c in 0..chunks {
        let mut xs = [simd.splat(0.0); X];
        for j in 0..X {
            xs[j] = simd.load(sixteen(x_rows[j], c));
        }
        for i in 0..W {
            let w = simd.load(sixteen(w_rows[i], c));
            for j in 0..X {
                sums[i][j] = simd.mul_add(w, xs[j], sums[i][j]);
            }
        }
    }
    if cols > chunks * LANES {
        for j in 0..X {
            let mut filled = [0.0; LANES];
            filled[..cols - chunks * LANES].copy_from_slice(&x_rows[j][chunks * LANES..]);
            for i in 0..W {
                sums[i][j] = simd.mul_add(simd.load(sixteen(w_rows[i], chunks)), simd.load(&filled), sums[i][j]);
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
fn sixteen(row: &[f32], chunk: usize) -> &[f32; LANES] {
    row[chunk * LANES..][..LANES].first_chunk().expect("a slice of sixteen")
}
