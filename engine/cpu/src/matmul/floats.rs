//! Matrix of floating-point numbers times rows of activations.
//!
//! One output element is a dot product over sixteen lanes, which take units of 32 columns in their order: lane i adds the
//! product of element i of the unit's first half, then that of its second half ([`Floats::half`] says which columns these
//! are), and the lanes are summed by a fixed tree. A lone row and many compute exactly this; they differ in how often a
//! weight is read and in how many elements are under way at once.
//!
//! Decoding is exact or one rounding (`scale * quant`), and done before the multiplication.
//!
//! - A lone row waits for memory: its weights are decoded in registers, where they lie in the file.
//! - Many rows: weights are decoded in registers too, once for each tile of activations, because what decodes them is other
//!   parts of the processor than multiply. What takes more than an operation to decode is decoded once, to memory. With
//!   sixteen registers tiles are small: there few rows only are decoded in registers, whatever it takes, and more of them
//!   from memory.

#![allow(clippy::needless_range_loop, reason = "the arrays of a tile are walked side by side")]

use std::cell::RefCell;
use std::ops::Range;

use super::{AHEAD, Activations, GRAIN_OPERATIONS, put};
use crate::format::{Decoding, F32, Floats, Rows, UNIT_LEN};
use crate::pool::{SharedSlice, WorkerPool};
use crate::simd::{Aligned, Isa, LANES, Simd, instantiate};

/// Sixteen columns of a row.
pub type Vector = Aligned<[f32; LANES]>;

/// Weight rows whose sums are kept together.
pub(super) const PANEL_ROWS: usize = 32;

/// Columns that are multiplied before the next ones are read.
const BLOCK_COLS: usize = 512;

/// Vectors of a block of columns of one row.
const BLOCK_VECTORS: usize = BLOCK_COLS / LANES;

/// Rows of activations of which a block of columns stays in the first cache, 20 KiB, while all rows of a panel pass. Twice
/// as many would fit, but not beside the weights: the rows of those lie apart by powers of two, in few sets of the cache.
const NEAR_ROWS: usize = 2 * TILE_X;

/// As those, where there are sixteen registers: three tiles.
const SMALL_NEAR_ROWS: usize = 3 * SMALL_TILE_X;

/// Rows of activations whose sums are kept: with a block of their columns 400 KiB, for the second cache.
const BLOCK_ROWS: usize = 10 * NEAR_ROWS;

/// Rows of weights, and of activations, that are multiplied in registers where there are 32 of them. Twenty sums, five
/// activations, and the weights as they are stored, of which both halves come.
const TILE_W: usize = 4;
const TILE_X: usize = 5;

/// As those, where there are sixteen and two make a vector: twelve sums, and of each half of the others one after the other.
const SMALL_TILE_W: usize = 2;
const SMALL_TILE_X: usize = 3;

/// With more rows of activations than this, weights that need no decoding are copied: so wide they are that the rows of a
/// tile, powers of two apart, push each other out of the first cache.
const IN_PLACE_ROWS_MAX: usize = 16;

/// How many weight rows ahead of its use a block of columns is asked for: a tile.
const AHEAD_ROWS: usize = TILE_W;

/// `out[r, o] = weight[o] · x[r]`, with `weight.bytes` all rows of the matrix; `scratch` takes over `x`.
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
pub fn matmul_floats<F: Floats>(
    pool: &WorkerPool,
    isa: Isa,
    out: &mut [f32],
    out_len: usize,
    scratch: &mut Activations,
    x: &[f32],
    rows: usize,
    weight: Rows<'_, F>,
) {
    assert!(out.len() >= rows * out_len && x.len() >= rows * weight.cols, "activations are too short for the matmul");
    if rows == 0 {
        return;
    }
    let packed = &mut scratch.floats;
    packed.resize(weight.cols.div_ceil(BLOCK_COLS) * rows * BLOCK_VECTORS, Aligned([0.0; LANES]));
    let shared = SharedSlice::new(packed);
    pool.run(rows, (GRAIN_ELEMENTS / weight.cols.max(1)).max(1), |range| {
        pack_on(isa, &shared, x, rows, weight.cols, F::PAIRS, range);
    });
    let x = &packed[..];
    let out = SharedSlice::new(&mut out[..rows * out_len]);
    let grain = (GRAIN_OPERATIONS / (rows * weight.cols).max(1)).next_multiple_of(PANEL_ROWS);
    pool.run(out_len, grain, |range| {
        if rows == 1 {
            lone_on(isa, &out, x, weight, range);
        } else {
            PANEL.with_borrow_mut(|panel| paneled(isa, &out, out_len, x, rows, weight, range, panel));
        }
    });
}

/// Elements that are worth waking a worker for.
pub(super) const GRAIN_ELEMENTS: usize = 1 << 14;

instantiate!(fn pack_on = pack(
    packed: &SharedSlice<'_, Vector>, x: &[f32], rows: usize, cols: usize, pairs: bool, range: Range<usize>,
));

/// Rows of activations as `[blocks of columns, rows, BLOCK_VECTORS]`, so that what is multiplied together lies together;
/// with `pairs` the even elements of each unit come first. The last unit is filled up with zeros.
#[inline(always)]
#[allow(unsafe_code, reason = "threads share what is filled")]
fn pack<S: Simd>(
    _: S,
    packed: &SharedSlice<'_, Vector>,
    x: &[f32],
    rows: usize,
    cols: usize,
    pairs: bool,
    range: Range<usize>,
) {
    for row in range {
        for (block, x) in x[row * cols..][..cols].chunks(BLOCK_COLS).enumerate() {
            let at = (block * rows + row) * BLOCK_VECTORS;
            // SAFETY: the place belongs to one row, and the pool gives each row to one thread.
            let to = unsafe { packed.part(at..at + BLOCK_VECTORS) };
            let (units, rest) = x.as_chunks::<UNIT_LEN>();
            let (to, _) = to.as_chunks_mut::<2>();
            for (to, unit) in to.iter_mut().zip(units) {
                pack_unit(unit, pairs, to);
            }
            if !rest.is_empty() {
                let mut filled = [0.0; UNIT_LEN];
                filled[..rest.len()].copy_from_slice(rest);
                pack_unit(&filled, pairs, &mut to[units.len()]);
            }
        }
    }
}

#[inline(always)]
fn pack_unit(unit: &[f32; UNIT_LEN], pairs: bool, to: &mut [Vector; 2]) {
    let [first, second] = to;
    for i in 0..LANES {
        let (one, other) = if pairs { (2 * i, 2 * i + 1) } else { (i, LANES + i) };
        (first[i], second[i]) = (unit[one], unit[other]);
    }
}

instantiate!(fn lone_on = lone<F: Floats>(
    out: &SharedSlice<'_>, x: &[Vector], weight: Rows<'_, F>, range: Range<usize>,
));

/// A lone row of activations. One row of weights after the other, as memory likes to be read: two at once are a quarter
/// slower where it is memory that is waited for, though their sums are two chains of additions and not one.
#[inline(always)]
fn lone<S: Simd, F: Floats>(simd: S, out: &SharedSlice<'_>, x: &[Vector], weight: Rows<'_, F>, range: Range<usize>) {
    let (x_units, _) = x.as_chunks::<2>();
    let whole = weight.cols / UNIT_LEN / F::BLOCK_UNITS;
    for o in range {
        let row = weight.row(o);
        let mut sum = simd.splat(0.0);
        for (block, x) in row.chunks_exact(F::BLOCK_BYTES).zip(x_units.chunks_exact(F::BLOCK_UNITS)).take(whole) {
            for line in 0..F::BLOCK_BYTES.div_ceil(64) {
                simd.prefetch(block, AHEAD + 64 * line);
            }
            for (unit, x) in x.iter().enumerate() {
                sum = add_unit::<S, F>(simd, weight.format, block, unit, x, sum);
            }
        }
        if weight.cols > whole * F::BLOCK_UNITS * UNIT_LEN {
            let mut filled = [0; UNIT_BYTES_MAX];
            let block = fill_up::<F>(&row[whole * F::BLOCK_BYTES..], &mut filled);
            sum = add_unit::<S, F>(simd, weight.format, block, 0, &x_units[whole * F::BLOCK_UNITS], sum);
        }
        put(out, o, simd.sum(sum));
    }
}

/// Adds the products of one unit of a block: those of its first half, then those of its second.
#[inline(always)]
fn add_unit<S: Simd, F: Floats>(simd: S, format: F, block: &[u8], unit: usize, x: &[Vector; 2], sum: S::F) -> S::F {
    let sum = simd.mul_add(format.half::<S, false>(simd, block, unit), simd.load(&x[0]), sum);
    simd.mul_add(format.half::<S, true>(simd, block, unit), simd.load(&x[1]), sum)
}

/// Bytes of the largest unit that may be a row's rest.
const UNIT_BYTES_MAX: usize = 128;

/// The rest of a row, and zeros.
#[inline(always)]
fn fill_up<'a, F: Floats>(rest: &[u8], filled: &'a mut [u8; UNIT_BYTES_MAX]) -> &'a [u8] {
    filled[..rest.len()].copy_from_slice(rest);
    &filled[..F::BLOCK_BYTES]
}

/// What a thread keeps for many rows.
#[derive(Default)]
struct Panel {
    /// A block of columns that was decoded to memory, `[PANEL_ROWS, BLOCK_VECTORS]`.
    weights: Vec<Vector>,
    /// Lanes of the outputs, `[BLOCK_ROWS, PANEL_ROWS / 16]`.
    sums: Vec<Sums>,
}

/// Lanes of sixteen outputs.
pub(super) type Sums = Aligned<[[f32; LANES]; LANES]>;

/// Those of an activation row.
pub(super) const ROW_SUMS: usize = PANEL_ROWS / LANES;

thread_local! {
    static PANEL: RefCell<Panel> = RefCell::default();
}

/// A block of columns of some rows of weights.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// From the first row's first column of the block on.
    pub bytes: &'a [u8],
    /// Bytes from one row to the next.
    pub row_bytes: usize,
    /// Rows, at least one.
    pub count: usize,
    /// The first one's place in the panel.
    pub row: usize,
    /// Bytes of the block's columns in a row.
    pub len: usize,
    /// Whether these are the first columns, with which the sums begin.
    pub first: bool,
    /// How far behind these the columns lie that are multiplied next.
    pub next: usize,
    /// Whether the bytes lie in the file, from which they have to be asked for.
    pub stored: bool,
}

impl<'a> Block<'a> {
    /// `cols` columns from `col` on, or as many as there are, of `count` rows from `o` on.
    pub fn of<F: Floats>(weight: Rows<'a, F>, o: usize, count: usize, col: usize, cols: usize) -> Block<'a> {
        let start = col / UNIT_LEN / F::BLOCK_UNITS * F::BLOCK_BYTES;
        let len = (cols / UNIT_LEN / F::BLOCK_UNITS * F::BLOCK_BYTES).min(weight.row_bytes - start);
        let (bytes, row_bytes) = (&weight.bytes[o * weight.row_bytes + start..], weight.row_bytes);
        let next = if col + cols >= weight.cols { count * row_bytes - start } else { len };
        Block { bytes, row_bytes, count, row: 0, len, first: col == 0, next, stored: true }
    }

    /// Its rows from `i` on. Of those that there are not, the last one stands in.
    #[inline(always)]
    pub fn rows<const W: usize>(&self, i: usize) -> [&'a [u8]; W] {
        let mut rows = [&self.bytes[..0]; W];
        for (n, row) in rows.iter_mut().enumerate() {
            *row = &self.bytes[(i + n).min(self.count - 1) * self.row_bytes..][..self.len];
        }
        rows
    }

    /// How far behind row `i` that lies which is wanted `rows` rows later.
    #[inline(always)]
    pub fn ahead(&self, i: usize, rows: usize) -> usize {
        if i + rows < self.count {
            rows * self.row_bytes
        } else {
            // Rows from the first one on, of the columns after these.
            (self.next + rows * self.row_bytes).wrapping_sub(self.count * self.row_bytes)
        }
    }
}

/// Many rows: the sums of a panel of weight rows, block by block of the columns.
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn paneled<F: Floats>(
    isa: Isa,
    out: &SharedSlice<'_>,
    out_len: usize,
    x: &[Vector],
    rows: usize,
    weight: Rows<'_, F>,
    range: Range<usize>,
    panel: &mut Panel,
) {
    panel.sums.resize(BLOCK_ROWS * ROW_SUMS, Aligned([[0.0; LANES]; LANES]));
    let in_place = match F::DECODING {
        Decoding::None => rows <= IN_PLACE_ROWS_MAX,
        Decoding::InRegisters => isa.has_many_registers() || rows <= IN_PLACE_ROWS_MAX,
        Decoding::ToMemory => !isa.has_many_registers() && rows <= F::DECODED_AGAIN_ROWS_MAX,
    };
    // Blocks of rows are about as long as each other.
    let block_rows = rows.div_ceil(rows.div_ceil(BLOCK_ROWS)).next_multiple_of(NEAR_ROWS);
    for o in range.clone().step_by(PANEL_ROWS) {
        let count = (range.end - o).min(PANEL_ROWS);
        for first in (0..rows).step_by(block_rows) {
            let block_rows = (rows - first).min(block_rows);
            for col in (0..weight.cols).step_by(BLOCK_COLS) {
                let x = &x[(col / BLOCK_COLS * rows + first) * BLOCK_VECTORS..][..block_rows * BLOCK_VECTORS];
                let block = Block::of(weight, o, count, col, BLOCK_COLS);
                if in_place {
                    multiply_on(isa, weight.format, block, x, block_rows, &mut panel.sums);
                } else {
                    panel.multiply_decoded(isa, weight.format, block, x, block_rows);
                }
            }
            finish_on(isa, out, out_len, first, block_rows, o, count, &panel.sums);
        }
    }
}

impl Panel {
    /// A block whose type is decoded to memory first.
    fn multiply_decoded<F: Floats>(&mut self, isa: Isa, format: F, block: Block<'_>, x: &[Vector], rows: usize) {
        self.weights.resize(PANEL_ROWS * BLOCK_VECTORS, Aligned([0.0; LANES]));
        // As few weight rows at a time as a tile has, while all rows of activations stay in the first cache.
        let near = rows <= SMALL_NEAR_ROWS && !isa.has_many_registers();
        let step = if near { SMALL_TILE_W } else { PANEL_ROWS };
        for row in (0..block.count).step_by(step) {
            let bytes = &block.bytes[row * block.row_bytes..];
            let some = Block { bytes, count: step.min(block.count - row), row, ..block };
            decode_on(isa, format, some, &mut self.weights);
            let len = block.len.div_ceil(F::BLOCK_BYTES) * F::BLOCK_UNITS * F32::BLOCK_BYTES;
            let (bytes, row_bytes) = (as_bytes(&self.weights), 4 * BLOCK_COLS);
            let decoded = Block { bytes, row_bytes, len, next: 0, stored: false, ..some };
            multiply_on(isa, F32, decoded, x, rows, &mut self.sums);
        }
    }
}

/// The bytes one after the other.
#[allow(unsafe_code, reason = "a view that the compiler cannot know to be one")]
fn as_bytes(vectors: &[Vector]) -> &[u8] {
    const { assert!(size_of::<Vector>() == 4 * LANES && cfg!(target_endian = "little"), "what `F32` reads") };
    // SAFETY: as many bytes, all of them initialised, borrowed as long.
    unsafe { std::slice::from_raw_parts(vectors.as_ptr().cast(), size_of_val(vectors)) }
}

instantiate!(fn decode_on = decode<F: Floats>(
    format: F, block: Block<'_>, to: &mut [Vector],
));

/// Decodes a block of columns.
#[inline(always)]
fn decode<S: Simd, F: Floats>(simd: S, format: F, block: Block<'_>, to: &mut [Vector]) {
    const { assert!(BLOCK_COLS.is_multiple_of(UNIT_LEN * F::BLOCK_UNITS), "a block of columns is whole blocks of weights") };
    for i in 0..block.count {
        let row = &block.bytes[i * block.row_bytes..][..block.len];
        let (mut units, _) = to[i * BLOCK_VECTORS..][..BLOCK_VECTORS].as_chunks_mut::<2>();
        for stored in row.chunks(F::BLOCK_BYTES) {
            let mut filled = [0; UNIT_BYTES_MAX];
            let stored = if stored.len() < F::BLOCK_BYTES { fill_up::<F>(stored, &mut filled) } else { stored };
            let (now, later) = units.split_at_mut(F::BLOCK_UNITS);
            for (unit, to) in now.iter_mut().enumerate() {
                simd.store(format.half::<S, false>(simd, stored, unit), &mut to[0]);
                simd.store(format.half::<S, true>(simd, stored, unit), &mut to[1]);
            }
            units = later;
        }
    }
}

instantiate!(fn multiply_on = multiply<F: Floats>(
    format: F, block: Block<'_>, x: &[Vector], rows: usize, sums: &mut [Sums],
));

/// A block of columns of the weights times those of all rows of activations, added to the sums.
#[inline(always)]
fn multiply<S: Simd, F: Floats>(simd: S, format: F, block: Block<'_>, x: &[Vector], rows: usize, sums: &mut [Sums]) {
    if !S::MANY_REGISTERS {
        for near in (0..rows).step_by(SMALL_NEAR_ROWS) {
            let end = (near + SMALL_NEAR_ROWS).min(rows);
            for i in (0..block.count).step_by(SMALL_TILE_W) {
                let mut r = near;
                while r < end {
                    // Four are two and two: one alone is a chain of additions that is waited for.
                    let step = match end - r {
                        4 => 2,
                        left => left.min(SMALL_TILE_X),
                    };
                    match step {
                        1 => tile::<S, F, SMALL_TILE_W, 1>(simd, format, block, x, i, r, sums),
                        2 => tile::<S, F, SMALL_TILE_W, 2>(simd, format, block, x, i, r, sums),
                        _ => tile::<S, F, SMALL_TILE_W, SMALL_TILE_X>(simd, format, block, x, i, r, sums),
                    }
                    r += step;
                }
            }
        }
        return;
    }
    // As few parts as can be, about as large as each other, and so are their tiles.
    let near_rows = rows.div_ceil(rows.div_ceil(NEAR_ROWS));
    for near in (0..rows).step_by(near_rows) {
        let end = (near + near_rows).min(rows);
        let step = (end - near).div_ceil((end - near).div_ceil(TILE_X));
        for i in (0..block.count).step_by(TILE_W) {
            for r in (near..end).step_by(step) {
                match step.min(end - r) {
                    1 => tile::<S, F, TILE_W, 1>(simd, format, block, x, i, r, sums),
                    2 => tile::<S, F, TILE_W, 2>(simd, format, block, x, i, r, sums),
                    3 => tile::<S, F, TILE_W, 3>(simd, format, block, x, i, r, sums),
                    4 => tile::<S, F, TILE_W, 4>(simd, format, block, x, i, r, sums),
                    _ => tile::<S, F, TILE_W, TILE_X>(simd, format, block, x, i, r, sums),
                }
            }
        }
    }
}

/// `W` weight rows from `i` on times `X` activation rows from `r` on. Of weight rows that there are not, the last one
/// stands in: nobody reads those sums.
#[inline(always)]
fn tile<S: Simd, F: Floats, const W: usize, const X: usize>(
    simd: S,
    format: F,
    block: Block<'_>,
    x: &[Vector],
    i: usize,
    r: usize,
    sums: &mut [Sums],
) {
    let w_rows = block.rows::<W>(i);
    let i = block.row + i;
    let units = block.len / F::BLOCK_BYTES * F::BLOCK_UNITS;
    // A row of larger blocks is whole ones.
    let rest = F::BLOCK_UNITS == 1 && block.len > units * F::BLOCK_BYTES;
    // Cut to what the loop below uses, so that it asks once whether it is at the end.
    let lines = const { F::BLOCK_BYTES / 64 };
    let mut w_lines = [&w_rows[0].as_chunks::<64>().0[..0]; W];
    for (lines_of_row, row) in w_lines.iter_mut().zip(&w_rows) {
        *lines_of_row = &row.as_chunks::<64>().0[..units / F::BLOCK_UNITS * lines];
    }
    let mut x_rows = [&[[Aligned([0.0; LANES]); 2]; BLOCK_VECTORS / 2][..0]; X];
    for (m, row) in x_rows.iter_mut().enumerate() {
        let (all, _) = x[(r + m) * BLOCK_VECTORS..][..BLOCK_VECTORS].as_chunks::<2>();
        *row = &all[..units + usize::from(rest)];
    }
    let mut lanes = [[simd.splat(0.0); X]; W];
    if !block.first {
        for (n, lanes) in lanes.iter_mut().enumerate() {
            for (m, lane) in lanes.iter_mut().enumerate() {
                *lane = simd.load(&sums[(r + m) * ROW_SUMS + (i + n) / LANES][(i + n) % LANES]);
            }
        }
    }
    let ahead = block.ahead(i - block.row, AHEAD_ROWS);
    for index in 0..units / F::BLOCK_UNITS {
        let mut blocks = [&w_rows[0][..0]; W];
        for n in 0..W {
            blocks[n] = if F::BLOCK_UNITS == 1 {
                w_lines[n][index * lines..][..lines].as_flattened()
            } else {
                &w_rows[n][index * F::BLOCK_BYTES..][..F::BLOCK_BYTES]
            };
            // What was decoded is in the second cache; where a load and a product cost the same, asking for it takes a load's place.
            if S::MANY_REGISTERS || block.stored {
                for line in 0..F::BLOCK_BYTES.div_ceil(64) {
                    simd.prefetch(blocks[n], ahead.wrapping_add(64 * line));
                }
            }
        }
        for unit in 0..F::BLOCK_UNITS {
            let u = index * F::BLOCK_UNITS + unit;
            add_half::<S, F, W, X, false>(simd, format, &blocks, unit, &x_rows, u, &mut lanes);
            add_half::<S, F, W, X, true>(simd, format, &blocks, unit, &x_rows, u, &mut lanes);
        }
    }
    if rest {
        let mut filled = [[0; UNIT_BYTES_MAX]; W];
        let mut blocks = [&w_rows[0][..0]; W];
        for ((block, filled), row) in blocks.iter_mut().zip(&mut filled).zip(&w_rows) {
            *block = fill_up::<F>(&row[units * F::BLOCK_BYTES..], filled);
        }
        add_half::<S, F, W, X, false>(simd, format, &blocks, 0, &x_rows, units, &mut lanes);
        add_half::<S, F, W, X, true>(simd, format, &blocks, 0, &x_rows, units, &mut lanes);
    }
    for (n, lanes) in lanes.into_iter().enumerate() {
        for (m, lane) in lanes.into_iter().enumerate() {
            simd.store(lane, &mut sums[(r + m) * ROW_SUMS + (i + n) / LANES][(i + n) % LANES]);
        }
    }
}

/// Half of unit `u`, whose weights are unit `unit` of `blocks`.
#[inline(always)]
fn add_half<S: Simd, F: Floats, const W: usize, const X: usize, const SECOND: bool>(
    simd: S,
    format: F,
    blocks: &[&[u8]; W],
    unit: usize,
    x_rows: &[&[[Vector; 2]]; X],
    u: usize,
    lanes: &mut [[S::F; X]; W],
) {
    let mut xs = [simd.splat(0.0); X];
    for m in 0..X {
        xs[m] = simd.load(&x_rows[m][u][usize::from(SECOND)]);
    }
    for n in 0..W {
        let w = format.half::<S, SECOND>(simd, blocks[n], unit);
        for m in 0..X {
            lanes[n][m] = simd.mul_add(w, xs[m], lanes[n][m]);
        }
    }
}

instantiate!(pub(super) fn finish_on = finish(
    out: &SharedSlice<'_>, out_len: usize, first: usize, rows: usize, o: usize, count: usize, sums: &[Sums],
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
    sums: &[Sums],
) {
    for (r, sums) in sums.as_chunks::<ROW_SUMS>().0.iter().enumerate().take(rows) {
        for (part, sums) in sums.iter().enumerate().take(count.div_ceil(LANES)) {
            let mut outputs = [0.0; LANES];
            simd.store(simd.sum_rows(sums), &mut outputs);
            for (i, output) in outputs.iter().enumerate().take(count - part * LANES) {
                put(out, (first + r) * out_len + o + part * LANES + i, *output);
            }
        }
    }
}
