//! A few rows of activations times weights that are read as bytes, four of which are multiplied at once.
//!
//! An activation's word is 128 times a signed byte and seven bits more. So a dot product of words is `128 * (weights dot
//! high bytes) + (weights dot low ones)`, to the bit: what `integers` computes with words in twice as many operations, as
//! a vector holds two units and not one.

#![allow(clippy::needless_range_loop, reason = "the arrays of a tile are walked side by side")]

use std::ops::Range;

use super::AHEAD;
use super::activations::{Activations, Halves};
use super::integers::{add_group, group_of, put_sums};
use crate::format::{GROUP_BYTES_MAX, GROUP_UNITS, Integers, Rows};
use crate::pool::SharedSlice;
use crate::simd::{Aligned, ByteDots, LANES};

/// The most rows that are taken.
pub const IN_PLACE_ROWS_MAX: usize = 12;

/// Groups of four rows of activations that stay in the first cache: 16 KiB.
const BLOCK_GROUPS: usize = 4;

/// Pairs of units in a group.
pub const GROUP_PAIRS: usize = GROUP_UNITS / 2;

/// As `integers::in_place`, for up to `IN_PLACE_ROWS_MAX` rows.
#[inline(always)]
pub fn in_place<S: ByteDots, F: Integers>(
    simd: S,
    out: &SharedSlice<'_>,
    out_len: usize,
    x: &Activations,
    rows: usize,
    weight: Rows<'_, F>,
    range: Range<usize>,
) {
    let mut filled = [0; GROUP_BYTES_MAX];
    let mut lanes = [Aligned([[0.0; LANES]; LANES]); IN_PLACE_ROWS_MAX];
    let mut o = range.start;
    while o < range.end {
        let count = (range.end - o).min(LANES);
        let mut r = 0;
        while r < rows {
            let together = match rows - r {
                1 => 1,
                2 | 3 => 2,
                _ => 4,
            };
            // A lone row is read to its end, as memory likes it. Of several rows of activations as much as fits into the
            // first cache meets sixteen rows of weights, before what comes after it does.
            let block = if together == 1 { x.groups() } else { 4 * BLOCK_GROUPS / together };
            for first in (0..x.groups()).step_by(block) {
                let groups = first..(first + block).min(x.groups());
                for i in 0..count {
                    let groups = groups.clone();
                    match together {
                        1 => row_times::<S, F, 1>(simd, x, r, weight, o + i, i, groups, &mut filled, &mut lanes),
                        2 => row_times::<S, F, 2>(simd, x, r, weight, o + i, i, groups, &mut filled, &mut lanes),
                        _ => row_times::<S, F, 4>(simd, x, r, weight, o + i, i, groups, &mut filled, &mut lanes),
                    }
                }
            }
            r += together;
        }
        for (r, lanes) in lanes.iter().enumerate().take(rows) {
            put_sums(simd, out, r * out_len + o, count, lanes);
        }
        o += count;
    }
}

/// Some groups of weight row `o` times `X` rows of activations from `r` on: added to row `i` of their lanes, which the first
/// group begins.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn row_times<S: ByteDots, F: Integers, const X: usize>(
    simd: S,
    x: &Activations,
    r: usize,
    weight: Rows<'_, F>,
    o: usize,
    i: usize,
    groups: Range<usize>,
    filled: &mut [u8; GROUP_BYTES_MAX],
    to: &mut [Aligned<[[f32; LANES]; LANES]>; IN_PLACE_ROWS_MAX],
) {
    let mut lanes = [simd.splat(0.0); X];
    if groups.start > 0 {
        for j in 0..X {
            lanes[j] = simd.load(&to[r + j][i]);
        }
    }
    for g in groups {
        let (bytes, units) = group_of(weight, o, g, filled);
        for line in 0..F::GROUP_BYTES.div_ceil(64) {
            simd.prefetch(bytes, AHEAD + 64 * line);
        }
        let (mut halves, mut offsets) = ([x.halves(r, g); X], [x.minus_offsets(r, g); X]);
        for j in 1..X {
            (halves[j], offsets[j]) = (x.halves(r + j, g), x.minus_offsets(r + j, g));
        }
        // Each turn is compiled by itself: what lies where is known, and the sums of four pairs stay in registers.
        macro_rules! four_pairs {
            ($($pair:literal)*) => {{
                let mut dots = [[simd.zeros(); 4]; X];
                $(dots_of_pair::<S, F, X>(simd, weight.format, bytes, $pair, &halves, &offsets, &mut dots);)*
                let mut sums = [simd.zeros(); X];
                for j in 0..X {
                    sums[j] = simd.sum_fours(&dots[j]);
                }
                sums
            }};
        }
        const _: () = assert!(GROUP_PAIRS == 8, "as many as there are numbers");
        let (first, second) = (four_pairs!(0 1 2 3), four_pairs!(4 5 6 7));
        let (mut scale, mut minimum) = weight.format.scales(simd, bytes);
        if units < GROUP_UNITS {
            (scale, minimum) = (simd.first_lanes(scale, units), simd.first_lanes(minimum, units));
        }
        let offset = if F::SMALL_SCALES { None } else { F::BYTE_OFFSET_BITS };
        for j in 0..X {
            let (dots, group) = (simd.sum_halves(first[j], second[j]), x.group(r + j, g));
            lanes[j] = add_group::<S, F>(simd, lanes[j], dots, offset, group, scale, minimum);
        }
    }
    for j in 0..X {
        simd.store(lanes[j], &mut to[r + j][i]);
    }
}

/// The blocks of a group that hold one of its pairs of units, and which pair it is in them.
#[inline(always)]
pub fn blocks_of_pair<F: Integers>(group: &[u8], pair: usize) -> (&[u8], usize) {
    let (at, len) = match F::BLOCK_UNITS {
        1 => (2 * pair, 2),
        units => (2 * pair / units, 1),
    };
    (&group[at * F::BLOCK_BYTES..][..len * F::BLOCK_BYTES], pair % (F::BLOCK_UNITS / 2).max(1))
}

/// The dot products of a pair of units: one of four in `dots`.
#[inline(always)]
fn dots_of_pair<S: ByteDots, F: Integers, const X: usize>(
    simd: S,
    format: F,
    bytes: &[u8],
    pair: usize,
    halves: &[&[Halves; GROUP_PAIRS]; X],
    minus_offsets: &[&[Aligned<[i32; LANES]>; GROUP_PAIRS]; X],
    dots: &mut [[S::I; 4]; X],
) {
    let (blocks, pair_of_block) = blocks_of_pair::<F>(bytes, pair);
    let weights = format.bytes(simd, blocks, pair_of_block);
    for j in 0..X {
        let x = &halves[j][pair];
        let high = simd.dot_bytes(simd.zeros(), weights, simd.load_bytes(&x.high));
        let high = simd.shift_ints_left(high, 7);
        dots[j][pair % 4] = if F::SMALL_SCALES {
            let offset = simd.load_ints(&minus_offsets[j][pair]);
            let low = simd.dot_bytes(offset, weights, simd.load_bytes(&x.low));
            simd.mul_ints(simd.add_ints(high, low), format.small_scales(simd, blocks, pair_of_block))
        } else {
            simd.dot_bytes(high, weights, simd.load_bytes(&x.low))
        };
    }
}
