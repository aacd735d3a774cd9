//! Matrix of whole numbers times rows of activations.
//!
//! The dot product of a unit of 32 is exact: whole numbers in 32 bits. Lane i of sixteen sums the units i, i + 16, i + 32,
//! ... in that order, `lane = fma(weight scale * activation scale, dot, lane)` and, where the type has minimums,
//! `lane = fma(minimum, -(activation scale * sum of words), lane)`; the lanes are summed by a fixed tree. Both paths below
//! compute exactly this.
//!
//! - Few rows: a weight's row is read once, from where it lies in the file, so memory's bandwidth is the limit. A unit
//!   costs about eight operations on two ports, four cycles for 18 to 36 bytes; one core reads four to seven a cycle.
//!   Where four bytes are multiplied at once it costs about half of that: see `bytes`. On AVX2, where it is not, one to four
//!   rows are.
//! - Many rows: 32 weight rows are unpacked to a panel in which a vector has the same two columns of sixteen rows, so that
//!   a multiplication yields sixteen outputs and nothing is summed across lanes. 16 multiplications and three operations
//!   for the scales are 512 multiply-adds, ten cycles. Where four bytes are multiplied at once, weights are unpacked to
//!   bytes, which takes less time: see `byte_panel`.

#![allow(clippy::needless_range_loop, reason = "the arrays of a tile are walked side by side")]

use std::cell::RefCell;
use std::ops::Range;

use super::activations::{Activations, Group, Kept, Lane};
use super::{GRAIN_OPERATIONS, byte_panel, bytes, put};
use crate::format::{GROUP_BYTES_MAX, GROUP_UNITS, Integers, Rows, UNIT_LEN};
use crate::pool::{SharedSlice, WorkerPool};
use crate::simd::{Aligned, BYTES, ByteDots, Isa, LANES, Simd, instantiate};

/// With more rows than this, weights are unpacked to a panel, where they are not multiplied as bytes.
const IN_PLACE_ROWS_MAX: usize = 4;

/// Activation rows that are multiplied in place at once.
const IN_PLACE_ROWS: usize = 2;

/// With more rows than this, weights are unpacked to a panel.
pub fn in_place_rows_max<F: Integers>(isa: Isa) -> usize {
    match (isa.multiplies_bytes(), F::SMALL_SCALES) {
        (false, _) => IN_PLACE_ROWS_MAX,
        (true, false) => bytes::IN_PLACE_ROWS_MAX / 3,
        // Multiplying small scales into words is what makes their panel dear.
        (true, true) => bytes::IN_PLACE_ROWS_MAX,
    }
}

/// Weight rows of a panel: two vectors of outputs.
const PANEL_ROWS: usize = 2 * LANES;

/// Activation rows whose sums are kept at once, sixteen lanes of 32 outputs each: 96 KiB.
const ROWS_BLOCK: usize = 48;

/// Activation rows of a tile where there are many registers.
const TILE_ROWS: usize = 8;

/// As those, where there are sixteen and two make a vector: one vector of outputs.
const SMALL_TILE_ROWS: usize = 4;

const CACHE_LINE: usize = 64;

/// Pairs of columns in a unit.
const PAIRS: usize = UNIT_LEN / 2;

/// Fours of columns in a unit.
pub const FOURS: usize = UNIT_LEN / 4;

/// `out[r, o] = weight[o] · x[r]`, with `weight.bytes` all rows of the matrix; `scratch` takes over `x`.
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
pub fn matmul_integers<F: Integers>(
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
    let kept = if rows <= in_place_rows_max::<F>(isa) {
        Kept::Few
    } else if byte_panel::pays::<F>(isa, rows) {
        Kept::ManyBytes { offset_bits: F::BYTE_OFFSET_BITS }
    } else {
        Kept::ManyWords
    };
    scratch.fill(pool, isa, x, rows, weight.cols, kept);
    let x = &*scratch;
    let out = SharedSlice::new(&mut out[..rows * out_len]);
    let grain = (GRAIN_OPERATIONS / (rows * weight.cols).max(1)).max(1);
    if kept == Kept::Few {
        return pool.run(out_len, grain, |range| in_place_on(isa, &out, out_len, x, rows, weight, range));
    }
    pool.run(out_len.div_ceil(PANEL_ROWS), grain.div_ceil(PANEL_ROWS), |range| {
        let range = range.start * PANEL_ROWS..(range.end * PANEL_ROWS).min(out_len);
        PANEL.with_borrow_mut(|panel| {
            panel.of_bytes = kept != Kept::ManyWords;
            paneled(isa, &out, out_len, x, rows, weight, range, panel);
        });
    });
}

/// The bytes of group `index` of a row, and how many of its units the row has. What follows them is of the next row, whose
/// words meet zeros; its scales may be no numbers.
#[inline(always)]
pub fn group_of<'a, F: Integers>(
    weight: Rows<'a, F>,
    o: usize,
    index: usize,
    filled: &'a mut [u8; GROUP_BYTES_MAX],
) -> (&'a [u8], usize) {
    let units = (weight.cols.div_ceil(UNIT_LEN) - index * GROUP_UNITS).min(GROUP_UNITS);
    let bytes = &weight.bytes[o * weight.row_bytes + index * F::GROUP_BYTES..];
    match bytes.get(..F::GROUP_BYTES) {
        Some(bytes) => (bytes, units),
        None => {
            fill_up(bytes, filled);
            (&filled[..F::GROUP_BYTES], units)
        }
    }
}

/// The last bytes of a matrix, and zeros.
#[cold]
#[inline(never)]
fn fill_up(bytes: &[u8], filled: &mut [u8; GROUP_BYTES_MAX]) {
    filled.fill(0);
    filled[..bytes.len()].copy_from_slice(bytes);
}

/// The bytes of a group of units; `filled` takes the last one of a row that is no whole group.
#[inline(always)]
fn group_bytes<'a, F: Integers>(row: &'a [u8], group: usize, filled: &'a mut [u8; GROUP_BYTES_MAX]) -> &'a [u8] {
    let rest = &row[group * F::GROUP_BYTES..];
    if rest.len() >= F::GROUP_BYTES {
        return &rest[..F::GROUP_BYTES];
    }
    filled[..rest.len()].copy_from_slice(rest);
    &filled[..F::GROUP_BYTES]
}

#[inline(always)]
fn block_of<F: Integers>(group: &[u8], unit: usize) -> &[u8] {
    &group[unit / F::BLOCK_UNITS * F::BLOCK_BYTES..][..F::BLOCK_BYTES]
}

use bytes::in_place as in_place_by_bytes;

instantiate!(fn in_place_on = in_place, avx512 in_place_by_bytes<F: Integers>(
    out: &SharedSlice<'_>, out_len: usize, x: &Activations, rows: usize, weight: Rows<'_, F>, range: Range<usize>,
));

#[inline(always)]
fn in_place<S: Simd, F: Integers>(
    simd: S,
    out: &SharedSlice<'_>,
    out_len: usize,
    x: &Activations,
    rows: usize,
    weight: Rows<'_, F>,
    range: Range<usize>,
) {
    let mut filled = [0; GROUP_BYTES_MAX];
    let mut lanes = [[[0.0; LANES]; LANES]; IN_PLACE_ROWS_MAX];
    let mut o = range.start;
    while o < range.end {
        let count = (range.end - o).min(LANES);
        // Two by two: a weight's row is in the cache when it is read again.
        for r in (0..rows).step_by(IN_PLACE_ROWS) {
            for i in 0..count {
                if r + 1 < rows {
                    in_place_row::<S, F, IN_PLACE_ROWS>(simd, x, r, weight, o + i, i, &mut filled, &mut lanes);
                } else {
                    in_place_row::<S, F, 1>(simd, x, r, weight, o + i, i, &mut filled, &mut lanes);
                }
            }
        }
        for r in 0..rows {
            put_sums(simd, out, r * out_len + o, count, &lanes[r]);
        }
        o += count;
    }
}

/// Weight row `o` times `X` rows of activations from `r` on: row `i` of their lanes.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn in_place_row<S: Simd, F: Integers, const X: usize>(
    simd: S,
    x: &Activations,
    r: usize,
    weight: Rows<'_, F>,
    o: usize,
    i: usize,
    filled: &mut [u8; GROUP_BYTES_MAX],
    to: &mut [[[f32; LANES]; LANES]; IN_PLACE_ROWS_MAX],
) {
    let mut lanes = [simd.splat(0.0); X];
    for g in 0..x.groups() {
        let (bytes, units) = group_of(weight, o, g, filled);
        let mut groups = [x.group(r, g); X];
        for j in 1..X {
            groups[j] = x.group(r + j, g);
        }
        // Before the products: a branch after them would keep their sums from being made with them, in registers.
        let (mut scale, mut minimum) = weight.format.scales(simd, bytes);
        if units < GROUP_UNITS {
            (scale, minimum) = (simd.first_lanes(scale, units), simd.first_lanes(minimum, units));
        }
        // Sums of four units are folded before there are more, so that they stay in registers.
        let mut folds = [[simd.zeros(); 4]; X];
        if S::UNROLLS {
            // Each turn is compiled by itself: what lies where is known.
            macro_rules! fold {
                ($($fours:literal)*) => {
                    $(fold_units::<S, F, X>(simd, weight.format, bytes, $fours, &groups, &mut folds);)*
                };
            }
            fold!(0 1 2 3);
        } else {
            for fours in 0..GROUP_UNITS / 4 {
                fold_units::<S, F, X>(simd, weight.format, bytes, fours, &groups, &mut folds);
            }
        }
        for j in 0..X {
            let dots = simd.sum_folded(&folds[j]);
            lanes[j] = add_group::<S, F>(simd, lanes[j], dots, F::OFFSET_BITS, groups[j], scale, minimum);
        }
    }
    for j in 0..X {
        simd.store(lanes[j], &mut to[r + j][i]);
    }
}

/// Adds a group's dot products to the lanes, after what the words are too large by is subtracted.
#[inline(always)]
pub fn add_group<S: Simd, F: Integers>(
    simd: S,
    lanes: S::F,
    dots: S::I,
    offset_bits: Option<u32>,
    x: Group<'_>,
    scale: S::F,
    minimum: S::F,
) -> S::F {
    let mut dots = dots;
    if let Some(bits) = offset_bits {
        dots = simd.sub_ints(dots, simd.shift_ints_left(simd.load_ints(x.sums), bits));
    }
    let lanes = simd.mul_add(simd.mul(scale, simd.load(x.scales)), simd.ints_to_floats(dots), lanes);
    if F::MINIMUMS { simd.mul_add(minimum, simd.load(x.minus_sums), lanes) } else { lanes }
}

/// Writes the sums of the first `count` rows of lanes.
#[inline(always)]
pub fn put_sums<S: Simd>(simd: S, out: &SharedSlice<'_>, index: usize, count: usize, lanes: &[[f32; LANES]; LANES]) {
    let mut sums = [0.0; LANES];
    simd.store(simd.sum_rows(lanes), &mut sums);
    for (i, sum) in sums.iter().enumerate().take(count) {
        put(out, index + i, *sum);
    }
}

/// The dot products of four units: fold `fours` of each row.
#[inline(always)]
fn fold_units<S: Simd, F: Integers, const X: usize>(
    simd: S,
    format: F,
    bytes: &[u8],
    fours: usize,
    groups: &[Group<'_>; X],
    folds: &mut [[S::I; 4]; X],
) {
    const { assert!(GROUP_UNITS == 16, "four folds of four units") };
    let mut dots = [[simd.zeros(); 4]; X];
    for i in 0..4 {
        let unit = 4 * fours + i;
        let words = format.words(simd, block_of::<F>(bytes, unit), unit % F::BLOCK_UNITS);
        for j in 0..X {
            dots[j][i] = simd.dot(simd.zeros(), words, simd.load_words(&groups[j].words[unit]));
        }
    }
    for j in 0..X {
        folds[j][fours] = simd.fold(&dots[j]);
    }
}

/// Unpacked weights of `PANEL_ROWS` rows. Lane by lane of the sums, so that what belongs to one lies together.
#[derive(Default)]
pub struct Panel {
    pub groups: usize,
    /// Whether weights are in `bytes`, not in `words`.
    of_bytes: bool,
    /// `[2, 16 lanes, groups, PAIRS]`: two columns of sixteen rows.
    words: Vec<Aligned<[i32; LANES]>>,
    /// `[2, 16 lanes, groups, FOURS]`: four columns of sixteen rows.
    pub bytes: Vec<Aligned<[u8; BYTES]>>,
    /// `[2, 16 lanes, groups]`, of sixteen rows.
    scales: Vec<Aligned<[f32; LANES]>>,
    /// As `scales`.
    minimums: Vec<Aligned<[f32; LANES]>>,
    /// Sums of a block of activation rows, `[16 lanes, ROWS_BLOCK, 2]`, of sixteen rows.
    sums: Vec<Aligned<[f32; LANES]>>,
}

thread_local! {
    /// Grows to the widest matrix in the first step and stays.
    static PANEL: RefCell<Panel> = RefCell::default();
}

/// Many rows: a panel of weights is unpacked to memory and used for all of them. Only the unpacking knows the format.
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn paneled<F: Integers>(
    isa: Isa,
    out: &SharedSlice<'_>,
    out_len: usize,
    x: &Activations,
    rows: usize,
    weight: Rows<'_, F>,
    range: Range<usize>,
    panel: &mut Panel,
) {
    panel.groups = x.groups();
    let units = 2 * GROUP_UNITS * panel.groups;
    if panel.of_bytes {
        panel.bytes.resize(units * FOURS, Aligned([0; BYTES]));
    } else {
        panel.words.resize(units * PAIRS, Aligned([0; LANES]));
    }
    panel.scales.resize(units, Aligned([0.0; LANES]));
    panel.minimums.resize(units, Aligned([0.0; LANES]));
    panel.sums.resize(GROUP_UNITS * ROWS_BLOCK * 2, Aligned([0.0; LANES]));
    let mut o = range.start;
    while o < range.end {
        let count = (range.end - o).min(PANEL_ROWS);
        unpack_on(isa, weight, o, count, panel);
        let mut next = Next::of(isa, weight, o + count, rows, panel.groups);
        multiply_on(isa, out, out_len, x, rows, o, count, F::MINIMUMS, &mut next, panel);
        o += count;
    }
}

/// The weights of the panel after this one, asked for little by little while this one is multiplied: all at once, when they
/// are unpacked, it is they that are waited for.
struct Next<'a> {
    /// What has not been asked for.
    bytes: &'a [u8],
    /// Bytes for a group of a tile.
    step: usize,
}

impl<'a> Next<'a> {
    /// Those from row `o` on, of `rows` times `groups` of activations in tiles.
    fn of<F: Integers>(isa: Isa, weight: Rows<'a, F>, o: usize, rows: usize, groups: usize) -> Next<'a> {
        let bytes = &weight.bytes[(o * weight.row_bytes).min(weight.bytes.len())..];
        let bytes = &bytes[..bytes.len().min(PANEL_ROWS * weight.row_bytes)];
        let tiles =
            if isa.has_many_registers() { rows.div_ceil(TILE_ROWS) } else { 2 * rows.div_ceil(SMALL_TILE_ROWS) };
        let steps = GROUP_UNITS * tiles * groups;
        Next { bytes, step: bytes.len().div_ceil(steps).next_multiple_of(CACHE_LINE) }
    }

    #[inline(always)]
    fn ask<S: Simd>(&mut self, simd: S) {
        let (now, later) = self.bytes.split_at(self.step.min(self.bytes.len()));
        for line in (0..now.len()).step_by(CACHE_LINE) {
            simd.prefetch(now, line);
        }
        self.bytes = later;
    }
}

instantiate!(fn multiply_on = multiply_words, avx512 multiply_either(
    out: &SharedSlice<'_>, out_len: usize, x: &Activations, rows: usize, o: usize, count: usize, minimums: bool,
    next: &mut Next<'_>, panel: &mut Panel,
));

/// The dot products of a panel's unit.
pub trait Dots<S: Simd> {
    /// Of `W` vectors of weight rows, units `at` of the panel, with unit `g` of `X` lanes of activations. The activations
    /// are those that are kept for weights of `MINIMUMS` or without.
    fn dots<const MINIMUMS: bool, const W: usize, const X: usize>(
        simd: S,
        panel: &Panel,
        at: [usize; W],
        x: &[Lane<'_>; X],
        g: usize,
    ) -> [[S::I; X]; W];
}

/// Of a panel of words.
struct PanelOfWords;

impl<S: Simd> Dots<S> for PanelOfWords {
    #[inline(always)]
    fn dots<const MINIMUMS: bool, const W: usize, const X: usize>(
        simd: S,
        panel: &Panel,
        at: [usize; W],
        x: &[Lane<'_>; X],
        g: usize,
    ) -> [[S::I; X]; W] {
        let mut units = [&[Aligned([0; LANES]); PAIRS]; W];
        for i in 0..W {
            units[i] = panel.words[at[i] * PAIRS..].first_chunk().expect("a unit of the panel");
        }
        let mut dots = [[simd.zeros(); X]; W];
        if !S::MANY_REGISTERS {
            let mut words = [&[0; LANES]; X];
            for j in 0..X {
                words[j] = &x[j].words[g];
            }
            for i in 0..W {
                dots[i] = simd.dots_of_unit(units[i], words);
            }
            return dots;
        }
        for pair in 0..PAIRS {
            let mut words = [simd.splat_pair(0); W];
            for i in 0..W {
                words[i] = simd.load_words(&units[i][pair]);
            }
            for j in 0..X {
                let x = simd.splat_pair(x[j].words[g][pair]);
                for i in 0..W {
                    dots[i][j] = simd.dot(dots[i][j], words[i], x);
                }
            }
        }
        dots
    }
}

/// The panel's `count` weight rows, which are those from `o` on, times all rows of activations.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn multiply_words<S: Simd>(
    simd: S,
    out: &SharedSlice<'_>,
    out_len: usize,
    x: &Activations,
    rows: usize,
    o: usize,
    count: usize,
    minimums: bool,
    next: &mut Next<'_>,
    panel: &mut Panel,
) {
    multiply::<S, PanelOfWords>(simd, out, out_len, x, rows, o, count, minimums, next, panel);
}

/// As `multiply_words`, or with a panel of bytes.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn multiply_either<S: ByteDots>(
    simd: S,
    out: &SharedSlice<'_>,
    out_len: usize,
    x: &Activations,
    rows: usize,
    o: usize,
    count: usize,
    minimums: bool,
    next: &mut Next<'_>,
    panel: &mut Panel,
) {
    if panel.of_bytes {
        multiply::<S, byte_panel::PanelOfBytes>(simd, out, out_len, x, rows, o, count, minimums, next, panel);
    } else {
        multiply::<S, PanelOfWords>(simd, out, out_len, x, rows, o, count, minimums, next, panel);
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn multiply<S: Simd, D: Dots<S>>(
    simd: S,
    out: &SharedSlice<'_>,
    out_len: usize,
    x: &Activations,
    rows: usize,
    o: usize,
    count: usize,
    minimums: bool,
    next: &mut Next<'_>,
    panel: &mut Panel,
) {
    let mut first = 0;
    while first < rows {
        let block = (rows - first).min(ROWS_BLOCK);
        for lane in 0..GROUP_UNITS {
            if minimums {
                sum_lane::<S, D, true>(simd, x, first, block, lane, next, panel);
            } else {
                sum_lane::<S, D, false>(simd, x, first, block, lane, next, panel);
            }
        }
        finish(simd, out, out_len, o, count, first, block, panel);
        first += block;
    }
}

instantiate!(fn unpack_on = unpack_words, avx512 unpack_either<F: Integers>(
    weight: Rows<'_, F>, o: usize, count: usize, panel: &mut Panel,
));

/// Fills the panel with `count` rows from `o`; the others are zero.
#[inline(always)]
fn unpack_words<S: Simd, F: Integers>(simd: S, weight: Rows<'_, F>, o: usize, count: usize, panel: &mut Panel) {
    unpack::<S, F, WordUnits>(simd, weight, o, count, panel);
}

/// How a panel's weights are unpacked.
pub trait Units<S: Simd, F: Integers> {
    /// Group `g` of sixteen rows, the first or the second half of the panel's: their columns become rows.
    fn unpack(simd: S, format: F, groups: &[&[u8]; LANES], half: usize, g: usize, panel: &mut Panel);
}

/// As `unpack_words`, or as bytes.
#[inline(always)]
fn unpack_either<S: ByteDots, F: Integers>(simd: S, weight: Rows<'_, F>, o: usize, count: usize, panel: &mut Panel) {
    if panel.of_bytes && !F::SMALL_SCALES {
        unpack::<S, F, byte_panel::ByteUnits>(simd, weight, o, count, panel);
    } else {
        unpack::<S, F, WordUnits>(simd, weight, o, count, panel);
    }
}

#[inline(always)]
fn unpack<S: Simd, F: Integers, U: Units<S, F>>(
    simd: S,
    weight: Rows<'_, F>,
    o: usize,
    count: usize,
    panel: &mut Panel,
) {
    let mut filled = [[0; GROUP_BYTES_MAX]; LANES];
    for half in 0..2 {
        let rows = count.saturating_sub(half * LANES).min(LANES);
        for g in 0..panel.groups {
            let mut groups = [&[0; GROUP_BYTES_MAX][..F::GROUP_BYTES]; LANES];
            let (mut scales, mut minimums) = ([simd.splat(0.0); LANES], [simd.splat(0.0); LANES]);
            for (i, (group, filled)) in groups.iter_mut().zip(&mut filled).enumerate().take(rows) {
                *group = group_bytes::<F>(weight.row(o + half * LANES + i), g, filled);
                (scales[i], minimums[i]) = weight.format.scales(simd, group);
            }
            simd.transpose_floats(&mut scales);
            if F::MINIMUMS {
                simd.transpose_floats(&mut minimums);
            }
            for unit in 0..GROUP_UNITS {
                let at = (half * GROUP_UNITS + unit) * panel.groups + g;
                simd.store(scales[unit], &mut panel.scales[at]);
                if F::MINIMUMS {
                    simd.store(minimums[unit], &mut panel.minimums[at]);
                }
            }
            U::unpack(simd, weight.format, &groups, half, g, panel);
        }
    }
}

/// Unpacks to words.
struct WordUnits;

impl<S: Simd, F: Integers> Units<S, F> for WordUnits {
    #[inline(always)]
    fn unpack(simd: S, format: F, groups: &[&[u8]; LANES], half: usize, g: usize, panel: &mut Panel) {
        let mut rows = [Aligned([0; LANES]); LANES];
        for unit in 0..GROUP_UNITS {
            let at = (half * GROUP_UNITS + unit) * panel.groups + g;
            let to = panel.words[at * PAIRS..].first_chunk_mut().expect("a unit of the panel");
            unpack_unit::<S, F>(simd, format, groups, unit, &mut rows, to);
        }
    }
}

/// One unit of sixteen rows: their columns become rows. `rows` is room for what waits in memory.
#[inline(always)]
fn unpack_unit<S: Simd, F: Integers>(
    simd: S,
    format: F,
    groups: &[&[u8]; LANES],
    unit: usize,
    rows: &mut [Aligned<[i32; LANES]>; LANES],
    to: &mut [Aligned<[i32; LANES]>; PAIRS],
) {
    let offset = F::OFFSET_BITS.map_or(0, |bits| 1 << bits);
    let offset = simd.halves(offset, offset);
    if !S::MANY_REGISTERS {
        // They do not stay in registers anyway.
        for i in 0..LANES {
            let words = format.words(simd, block_of::<F>(groups[i], unit), unit % F::BLOCK_UNITS);
            simd.store_words(if F::OFFSET_BITS.is_some() { simd.sub(words, offset) } else { words }, &mut rows[i]);
        }
        return simd.transpose_stored(rows, to);
    }
    let mut words = [simd.splat_pair(0); LANES];
    for i in 0..LANES {
        words[i] = format.words(simd, block_of::<F>(groups[i], unit), unit % F::BLOCK_UNITS);
        if F::OFFSET_BITS.is_some() {
            words[i] = simd.sub(words[i], offset);
        }
    }
    simd.transpose(&mut words);
    for (to, words) in to.iter_mut().zip(words) {
        simd.store_words(words, to);
    }
}

/// Sums one lane for a block of activation rows.
#[inline(always)]
fn sum_lane<S: Simd, D: Dots<S>, const MINIMUMS: bool>(
    simd: S,
    x: &Activations,
    first: usize,
    block: usize,
    lane: usize,
    next: &mut Next<'_>,
    panel: &mut Panel,
) {
    if S::MANY_REGISTERS {
        let mut r = 0;
        // Sums of a unit stay in registers, those of the lane wait in memory. Sixteen rows are two tiles.
        while r + TILE_ROWS <= block {
            tile::<S, D, MINIMUMS, 2, TILE_ROWS>(simd, x, first, r, lane, 0, next, panel);
            r += TILE_ROWS;
        }
        match block - r {
            0 => {}
            1 => tile::<S, D, MINIMUMS, 2, 1>(simd, x, first, r, lane, 0, next, panel),
            2 => tile::<S, D, MINIMUMS, 2, 2>(simd, x, first, r, lane, 0, next, panel),
            3 => tile::<S, D, MINIMUMS, 2, 3>(simd, x, first, r, lane, 0, next, panel),
            4 => tile::<S, D, MINIMUMS, 2, 4>(simd, x, first, r, lane, 0, next, panel),
            5 => tile::<S, D, MINIMUMS, 2, 5>(simd, x, first, r, lane, 0, next, panel),
            6 => tile::<S, D, MINIMUMS, 2, 6>(simd, x, first, r, lane, 0, next, panel),
            _ => tile::<S, D, MINIMUMS, 2, 7>(simd, x, first, r, lane, 0, next, panel),
        }
        return;
    }
    // Tiles are about as large as each other.
    let step = block.div_ceil(block.div_ceil(SMALL_TILE_ROWS));
    for half in 0..2 {
        for r in (0..block).step_by(step) {
            match step.min(block - r) {
                1 => tile::<S, D, MINIMUMS, 1, 1>(simd, x, first, r, lane, half, next, panel),
                2 => tile::<S, D, MINIMUMS, 1, 2>(simd, x, first, r, lane, half, next, panel),
                3 => tile::<S, D, MINIMUMS, 1, 3>(simd, x, first, r, lane, half, next, panel),
                _ => tile::<S, D, MINIMUMS, 1, SMALL_TILE_ROWS>(simd, x, first, r, lane, half, next, panel),
            }
        }
    }
}

/// `W` vectors of weight rows from `half` on times `X` activation rows.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn tile<S: Simd, D: Dots<S>, const MINIMUMS: bool, const W: usize, const X: usize>(
    simd: S,
    x: &Activations,
    first: usize,
    r: usize,
    lane: usize,
    half: usize,
    next: &mut Next<'_>,
    panel: &mut Panel,
) {
    let groups = panel.groups;
    let mut x_lanes = [x.lane(first + r, lane); X];
    for j in 1..X {
        x_lanes[j] = x.lane(first + r + j, lane);
    }
    let mut lanes = [[simd.splat(0.0); X]; W];
    for g in 0..x.groups_of_lane(lane) {
        let mut at = [0; W];
        for (i, at) in at.iter_mut().enumerate() {
            *at = ((half + i) * GROUP_UNITS + lane) * groups + g;
        }
        next.ask(simd);
        let dots = D::dots::<MINIMUMS, W, X>(simd, panel, at, &x_lanes, g);
        for i in 0..W {
            let scale = simd.load(&panel.scales[at[i]]);
            for j in 0..X {
                let x = x_lanes[j];
                let both = simd.mul(scale, simd.splat(x.scales[g]));
                lanes[i][j] = simd.mul_add(both, simd.ints_to_floats(dots[i][j]), lanes[i][j]);
                if MINIMUMS {
                    let minimum = simd.load(&panel.minimums[at[i]]);
                    lanes[i][j] = simd.mul_add(minimum, simd.splat(x.minus_sums[g]), lanes[i][j]);
                }
            }
        }
    }
    for i in 0..W {
        for j in 0..X {
            simd.store(lanes[i][j], &mut panel.sums[(lane * ROWS_BLOCK + r + j) * 2 + half + i]);
        }
    }
}

/// Adds the lanes by the tree of `Simd::sum`, and writes `count` outputs from `o` of each row of the block.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn finish<S: Simd>(
    simd: S,
    out: &SharedSlice<'_>,
    out_len: usize,
    o: usize,
    count: usize,
    first: usize,
    block: usize,
    panel: &Panel,
) {
    for r in 0..block {
        for half in 0..count.div_ceil(LANES) {
            let mut lanes = [simd.splat(0.0); GROUP_UNITS];
            for (lane, sum) in lanes.iter_mut().enumerate() {
                *sum = simd.load(&panel.sums[(lane * ROWS_BLOCK + r) * 2 + half]);
            }
            let mut width = GROUP_UNITS / 2;
            while width > 0 {
                for i in 0..width {
                    lanes[i] = simd.add(lanes[i], lanes[i + width]);
                }
                width /= 2;
            }
            let mut outputs = [0.0; LANES];
            simd.store(lanes[0], &mut outputs);
            for (i, output) in outputs.iter().enumerate().take(count - half * LANES) {
                put(out, (first + r) * out_len + o + half * LANES + i, *output);
            }
        }
    }
}
