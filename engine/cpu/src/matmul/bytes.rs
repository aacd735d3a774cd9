//! One or two rows of activations times weights that are read as bytes, four of which are multiplied at once.
//!
//! An activation's word is 128 times a signed byte and seven bits more. So a dot product of words is `128 * (weights dot
//! high bytes) + (weights dot low ones)`, to the bit: what `integers` computes with words in twice as many operations, as
//! a vector holds two units and not one.

#![allow(clippy::needless_range_loop, reason = "the arrays of a tile are walked side by side")]

use std::ops::Range;

use super::AHEAD;
use super::activations::{Activations, Halves};
use super::integers::{IN_PLACE_ROWS_MAX, add_group, group_of, put_sums};
use crate::format::{GROUP_BYTES_MAX, GROUP_UNITS, Integers, Rows};
use crate::pool::SharedSlice;
use crate::simd::{Aligned, ByteDots, LANES};

/// Pairs of units in a group.
pub const GROUP_PAIRS: usize = GROUP_UNITS / 2;

/// As `integers::in_place`.
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
    let mut lanes = [[[0.0; LANES]; LANES]; IN_PLACE_ROWS_MAX];
    let mut o = range.start;
    while o < range.end {
        let count = (range.end - o).min(LANES);
        for i in 0..count {
            if rows == 2 {
                row_times::<S, F, 2>(simd, x, weight, o + i, i, &mut filled, &mut lanes);
            } else {
                row_times::<S, F, 1>(simd, x, weight, o + i, i, &mut filled, &mut lanes);
            }
        }
        for r in 0..rows {
            put_sums(simd, out, r * out_len + o, count, &lanes[r]);
        }
        o += count;
    }
}

/// Weight row `o` times `X` rows of activations: row `i` of their lanes.
#[inline(always)]
fn row_times<S: ByteDots, F: Integers, const X: usize>(
    simd: S,
    x: &Activations,
    weight: Rows<'_, F>,
    o: usize,
    i: usize,
    filled: &mut [u8; GROUP_BYTES_MAX],
    to: &mut [[[f32; LANES]; LANES]; IN_PLACE_ROWS_MAX],
) {
    let mut lanes = [simd.splat(0.0); X];
    for g in 0..x.groups() {
        let (bytes, units) = group_of(weight, o, g, filled);
        for line in 0..F::GROUP_BYTES.div_ceil(64) {
            simd.prefetch(bytes, AHEAD + 64 * line);
        }
        let (mut halves, mut offsets) = ([x.halves(0, g); X], [x.minus_offsets(0, g); X]);
        for j in 1..X {
            (halves[j], offsets[j]) = (x.halves(j, g), x.minus_offsets(j, g));
        }
        let mut dots = [[simd.zeros(); GROUP_PAIRS]; X];
        // Each turn is compiled by itself: what lies where is known, and the sums stay in registers.
        macro_rules! each_pair {
            ($($pair:literal)*) => {{
                $(dots_of_pair::<S, F, X>(simd, weight.format, bytes, $pair, &halves, &offsets, &mut dots);)*
            }};
        }
        const _: () = assert!(GROUP_PAIRS == 8, "as many as there are numbers");
        each_pair!(0 1 2 3 4 5 6 7);
        let (mut scale, mut minimum) = weight.format.scales(simd, bytes);
        if units < GROUP_UNITS {
            (scale, minimum) = (simd.first_lanes(scale, units), simd.first_lanes(minimum, units));
        }
        let offset = if F::SMALL_SCALES { None } else { F::BYTE_OFFSET_BITS };
        for j in 0..X {
            let (dots, group) = (simd.sum_each_half(&dots[j]), x.group(j, g));
            lanes[j] = add_group::<S, F>(simd, lanes[j], dots, offset, group, scale, minimum);
        }
    }
    for j in 0..X {
        simd.store(lanes[j], &mut to[j][i]);
    }
}

#[inline(always)]
fn dots_of_pair<S: ByteDots, F: Integers, const X: usize>(
    simd: S,
    format: F,
    bytes: &[u8],
    pair: usize,
    halves: &[&[Halves; GROUP_PAIRS]; X],
    minus_offsets: &[&[Aligned<[i32; LANES]>; GROUP_PAIRS]; X],
    dots: &mut [[S::I; GROUP_PAIRS]; X],
) {
    let (at, len) = match F::BLOCK_UNITS {
        1 => (2 * pair, 2),
        units => (2 * pair / units, 1),
    };
    let blocks = &bytes[at * F::BLOCK_BYTES..][..len * F::BLOCK_BYTES];
    let pair_of_block = pair % (F::BLOCK_UNITS / 2).max(1);
    let weights = format.bytes(simd, blocks, pair_of_block);
    for j in 0..X {
        let x = &halves[j][pair];
        let high = simd.dot_bytes(simd.zeros(), weights, simd.load_bytes(&x.high));
        let high = simd.shift_ints_left(high, 7);
        dots[j][pair] = if F::SMALL_SCALES {
            let low = simd.dot_bytes(simd.load_ints(&minus_offsets[j][pair]), weights, simd.load_bytes(&x.low));
            simd.mul_ints(simd.add_ints(high, low), format.small_scales(simd, blocks, pair_of_block))
        } else {
            simd.dot_bytes(high, weights, simd.load_bytes(&x.low))
        };
    }
}
