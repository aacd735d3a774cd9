//! A panel of weights as bytes, four of which are multiplied at once, and activations as `bytes` has them: 128 times a
//! signed byte and seven bits more.
//!
//! A vector has four columns of sixteen rows. Multiplying takes as many operations as with words, and one or two more for a
//! unit: high bytes, a shift, low bytes. Unpacking takes less than half as many, as a vector holds two units and not one, and
//! two thirds of the time, as it waits for memory, too.
//! The whole numbers are those of `integers`, so the bits of the result are.

#![allow(clippy::needless_range_loop, reason = "the arrays of a tile are walked side by side")]

use super::activations::{ACTIVATION_MAX, Lane};
use super::bytes::{GROUP_PAIRS, blocks_of_pair};
use super::integers::{Dots, FOURS, Panel, Units};
use crate::format::{GROUP_UNITS, Integers, UNIT_LEN};
use crate::simd::{Aligned, BYTES, ByteDots, Isa, LANES};

/// With more rows than this, what unpacking saves is not seen, and what is added to multiplying is.
const ROWS_MAX: usize = 32;

const _: () = {
    // `dot_bytes` does not saturate. A weight's byte is at most 255, whatever type it is of, and a high byte at most 128, of
    // either sign.
    let (weight, unit) = (255, UNIT_LEN as i64);
    let high = unit * weight * (ACTIVATION_MAX as i64 / 128 + 1);
    let low = unit * weight * 127;
    // No type's byte is larger than its word by more than 128.
    let offset = unit * 128 * ACTIVATION_MAX as i64;
    assert!((high << 7) + low + offset <= i32::MAX as i64, "a unit's sums are whole at every step");
};

/// Whether a panel of bytes is the faster one.
pub fn pays<F: Integers>(isa: Isa, rows: usize) -> bool {
    // Small scales would have to be multiplied into bytes, which are too short for them.
    isa.multiplies_bytes() && !F::SMALL_SCALES && rows <= ROWS_MAX
}

/// Unpacks to bytes.
pub struct ByteUnits;

impl<S: ByteDots, F: Integers> Units<S, F> for ByteUnits {
    #[inline(always)]
    fn unpack(simd: S, format: F, groups: &[&[u8]; LANES], half: usize, g: usize, panel: &mut Panel) {
        const { assert!(!F::MINIMUMS || F::BYTE_OFFSET_BITS.is_none(), "one of both is all that is added") };
        for pair in 0..GROUP_PAIRS {
            let mut rows = [simd.splat_four(0); LANES];
            for i in 0..LANES {
                let (blocks, pair_of_block) = blocks_of_pair::<F>(groups[i], pair);
                rows[i] = format.bytes(simd, blocks, pair_of_block);
            }
            simd.transpose_bytes(&mut rows);
            for (second, columns) in rows.as_chunks::<FOURS>().0.iter().enumerate() {
                let at = (half * GROUP_UNITS + 2 * pair + second) * panel.groups + g;
                let to: &mut [Aligned<[u8; BYTES]>; FOURS] =
                    panel.bytes[at * FOURS..].first_chunk_mut().expect("a unit of the panel");
                for (to, column) in to.iter_mut().zip(columns) {
                    simd.store_bytes(*column, to);
                }
            }
        }
    }
}

/// Of a panel of bytes.
pub struct PanelOfBytes;

impl<S: ByteDots> Dots<S> for PanelOfBytes {
    #[inline(always)]
    fn dots<const MINIMUMS: bool, const W: usize, const X: usize>(
        simd: S,
        panel: &Panel,
        at: [usize; W],
        x: &[Lane<'_>; X],
        g: usize,
    ) -> [[S::I; X]; W] {
        let mut units = [&[Aligned([0; BYTES]); FOURS]; W];
        for i in 0..W {
            units[i] = panel.bytes[at[i] * FOURS..].first_chunk().expect("a unit of the panel");
        }
        let mut dots = add_fours::<S, W, X>(simd, [[simd.zeros(); X]; W], &units, x, g, 0);
        for j in 0..X {
            for i in 0..W {
                dots[i][j] = simd.shift_ints_left(dots[i][j], 7);
                if !MINIMUMS {
                    dots[i][j] = simd.add_ints(dots[i][j], simd.splat_int(x[j].minus_offsets[g]));
                }
            }
        }
        add_fours::<S, W, X>(simd, dots, &units, x, g, FOURS)
    }
}

/// Adds the products with the fours of bytes of the activations from `first` on.
#[inline(always)]
fn add_fours<S: ByteDots, const W: usize, const X: usize>(
    simd: S,
    mut dots: [[S::I; X]; W],
    units: &[&[Aligned<[u8; BYTES]>; FOURS]; W],
    x: &[Lane<'_>; X],
    g: usize,
    first: usize,
) -> [[S::I; X]; W] {
    for four in 0..FOURS {
        let mut weights = [simd.splat_four(0); W];
        for i in 0..W {
            weights[i] = simd.load_bytes(&units[i][four]);
        }
        for j in 0..X {
            let x = simd.splat_four(x[j].words[g][first + four]);
            for i in 0..W {
                dots[i][j] = simd.dot_bytes(dots[i][j], weights[i], x);
            }
        }
    }
    dots
}
