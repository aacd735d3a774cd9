//! Activations as whole numbers of fifteen bits, with a scale for every 32 of them.
//!
//! Each unit of a row is scaled so that its largest element becomes [`ACTIVATION_MAX`]. The scale depends on these 32
//! elements alone. The error of an element is at most a 32766th of the unit's largest: a hundred times less than that of
//! bytes, for twice the multiplications.

use super::bytes::GROUP_PAIRS;
use super::integers::IN_PLACE_ROWS_MAX;
use crate::format::{GROUP_UNITS, SMALL_OFFSET, UNIT_LEN, WORD_MAX};
use crate::simd::{Aligned, BYTES, Isa, LANES, Simd, instantiate};

/// Largest absolute value of an activation's word.
pub const ACTIVATION_MAX: i32 = 16_383;

const _: () = assert!(
    UNIT_LEN as i64 * WORD_MAX as i64 * ACTIVATION_MAX as i64 <= i32::MAX as i64,
    "the products of a unit add up within 32 bits, whatever the numbers"
);

/// Rows of activations, ready to be multiplied. Grows with the largest step and stays.
#[derive(Default)]
pub struct Activations {
    /// Units of a row, filled up with zeros to whole groups.
    units: usize,
    /// Pairs of words, `[rows, units]`.
    words: Vec<Aligned<[i32; LANES]>>,
    /// What a word of the unit stands for, `[rows, units / 16]`.
    scales: Vec<Aligned<[f32; LANES]>>,
    /// Sums of the unit's words.
    sums: Vec<Aligned<[i32; LANES]>>,
    /// The same times the scale, negative.
    minus_sums: Vec<Aligned<[f32; LANES]>>,
    /// The words once more, `[rows, units / 2]`, where few rows are multiplied by bytes.
    halves: Vec<Halves>,
    /// Sums of four words each, times `-SMALL_OFFSET`, `[rows, units / 2]`, in the same cases.
    minus_offsets: Vec<Aligned<[i32; LANES]>>,
}

/// The words of two units as `128 * high + low`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Halves {
    /// Signed.
    pub high: [u8; BYTES],
    /// Less than 128.
    pub low: [u8; BYTES],
}

/// Sixteen units of one row.
#[derive(Clone, Copy)]
pub struct Group<'a> {
    pub words: &'a [Aligned<[i32; LANES]>; GROUP_UNITS],
    pub scales: &'a [f32; LANES],
    pub sums: &'a [i32; LANES],
    pub minus_sums: &'a [f32; LANES],
}

impl Activations {
    /// Takes over rows of `cols` elements.
    pub fn fill(&mut self, isa: Isa, x: &[f32], rows: usize, cols: usize) {
        self.units = cols.div_ceil(UNIT_LEN).next_multiple_of(GROUP_UNITS);
        let groups = rows * self.groups();
        // What is beyond a row's end must be zero, so nothing is kept.
        self.words.clear();
        self.words.resize(groups * GROUP_UNITS, Aligned([0; LANES]));
        self.sums.clear();
        self.sums.resize(groups, Aligned([0; LANES]));
        for floats in [&mut self.scales, &mut self.minus_sums] {
            floats.clear();
            floats.resize(groups, Aligned([0.0; LANES]));
        }
        fill_on(isa, self, x, rows, cols);
        self.halves.clear();
        self.minus_offsets.clear();
        if isa.multiplies_bytes() && rows <= IN_PLACE_ROWS_MAX {
            self.halves.reserve(self.words.len() / 2);
            self.minus_offsets.reserve(self.words.len() / 2);
            split_on(isa, &self.words, &mut self.halves, &mut self.minus_offsets);
        }
    }

    /// Groups of a row.
    #[inline(always)]
    pub fn groups(&self) -> usize {
        self.units / GROUP_UNITS
    }

    /// Group `index` of a row.
    #[inline(always)]
    pub fn group(&self, row: usize, index: usize) -> Group<'_> {
        let at = row * self.groups() + index;
        Group {
            words: self.words[at * GROUP_UNITS..][..GROUP_UNITS].first_chunk().expect("a slice of sixteen"),
            scales: &self.scales[at],
            sums: &self.sums[at],
            minus_sums: &self.minus_sums[at],
        }
    }

    /// The words of group `index` of a row as bytes.
    #[inline(always)]
    pub fn halves(&self, row: usize, index: usize) -> &[Halves; GROUP_PAIRS] {
        let at = (row * self.groups() + index) * GROUP_PAIRS;
        self.halves[at..][..GROUP_PAIRS].first_chunk().expect("a slice of eight")
    }

    /// For each pair of units in group `index` of a row the sums of four words each, times `-SMALL_OFFSET`.
    #[inline(always)]
    pub fn minus_offsets(&self, row: usize, index: usize) -> &[Aligned<[i32; LANES]>; GROUP_PAIRS] {
        let at = (row * self.groups() + index) * GROUP_PAIRS;
        self.minus_offsets[at..][..GROUP_PAIRS].first_chunk().expect("a slice of eight")
    }
}

instantiate!(fn split_on = split(
    words: &[Aligned<[i32; LANES]>], halves: &mut Vec<Halves>, minus_offsets: &mut Vec<Aligned<[i32; LANES]>>,
));

#[inline(always)]
fn split<S: Simd>(
    _: S,
    words: &[Aligned<[i32; LANES]>],
    halves: &mut Vec<Halves>,
    minus_offsets: &mut Vec<Aligned<[i32; LANES]>>,
) {
    for two in words.as_chunks::<2>().0 {
        let mut words = [0i16; BYTES];
        for (half, pairs) in words.as_chunks_mut::<{ BYTES / 2 }>().0.iter_mut().zip(two) {
            for (words, pair) in half.as_chunks_mut::<2>().0.iter_mut().zip(pairs.iter()) {
                *words = [*pair as i16, (*pair >> 16) as i16];
            }
        }
        let (mut high, mut low) = ([0; BYTES], [0; BYTES]);
        for ((high, low), word) in high.iter_mut().zip(&mut low).zip(words) {
            (*high, *low) = ((word >> 7) as u8, (word & 127) as u8);
        }
        halves.push(Halves { high, low });
        let mut offsets = [0; LANES];
        for (offset, four) in offsets.iter_mut().zip(words.as_chunks::<4>().0) {
            *offset =
                -SMALL_OFFSET * (i32::from(four[0]) + i32::from(four[1]) + i32::from(four[2]) + i32::from(four[3]));
        }
        minus_offsets.push(Aligned(offsets));
    }
}

instantiate!(fn fill_on = fill(to: &mut Activations, x: &[f32], rows: usize, cols: usize));

#[inline(always)]
fn fill<S: Simd>(_: S, to: &mut Activations, x: &[f32], rows: usize, cols: usize) {
    let units = to.units;
    for (row, x) in x.chunks_exact(cols).take(rows).enumerate() {
        for (unit, x) in x.chunks(UNIT_LEN).enumerate() {
            let mut filled = [0.0; UNIT_LEN];
            filled[..x.len()].copy_from_slice(x);
            let at = row * units + unit;
            let (group, lane) = (at / GROUP_UNITS, at % GROUP_UNITS);
            let (scale, sum) = unit_to_words(&filled, &mut to.words[at]);
            to.scales[group][lane] = scale;
            to.sums[group][lane] = sum;
            to.minus_sums[group][lane] = -(scale * sum as f32);
        }
    }
}

/// Scale and sum of one unit's words.
#[inline(always)]
fn unit_to_words(x: &[f32; UNIT_LEN], words: &mut [i32; LANES]) -> (f32, i32) {
    // Without their signs, floats are ordered as their bits are. What is no number is above all, and stays so.
    let mut most = 0;
    for x in x {
        most = most.max(x.to_bits() & 0x7fff_ffff);
    }
    let most = f32::from_bits(most);
    let scale = most / ACTIVATION_MAX as f32;
    // So small a unit is zero: one over its scale would be infinite.
    if scale < f32::MIN_POSITIVE {
        return (0.0, 0);
    }
    let inverse = ACTIVATION_MAX as f32 / most;
    // Adding 1.5 * 2^23 rounds to a whole number, ties to even, and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let mut sum = 0i32;
    for (word, x) in words.iter_mut().zip(x.as_chunks::<2>().0) {
        let first = (x[0] * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
        let second = (x[1] * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
        *word = (first & 0xffff | second << 16) as i32;
        sum = sum.wrapping_add(first as i32).wrapping_add(second as i32);
    }
    (scale, sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dice;

    #[test]
    fn words_are_the_nearest_and_a_unit_knows_only_itself() {
        let mut dice = Dice::new(1);
        for isa in Isa::detect() {
            for cols in [1, 31, 32, 33, 512, 513, 700] {
                let x: Vec<f32> = (0..3 * cols).map(|_| dice.unit() * 10f32.powf(6.0 * dice.unit())).collect();
                let mut all = Activations::default();
                all.fill(isa, &x, 3, cols);
                for row in 0..3 {
                    let mut alone = Activations::default();
                    alone.fill(isa, &x[row * cols..][..cols], 1, cols);
                    for index in 0..all.groups() {
                        let (all, alone) = (all.group(row, index), alone.group(0, index));
                        assert_eq!((all.words.map(|x| x.0), all.sums), (alone.words.map(|x| x.0), alone.sums));
                        assert_eq!((all.scales, all.minus_sums), (alone.scales, alone.minus_sums));
                        for unit in 0..GROUP_UNITS {
                            let words = all.words[unit].map(|pair| [pair as i16, (pair >> 16) as i16]);
                            assert_eq!(words.as_flattened().iter().map(|w| i32::from(*w)).sum::<i32>(), all.sums[unit]);
                            for (i, word) in words.as_flattened().iter().enumerate() {
                                let at = (index * GROUP_UNITS + unit) * UNIT_LEN + i;
                                let wanted = if at < cols { x[row * cols + at] } else { 0.0 };
                                let error = (f32::from(*word) * all.scales[unit] - wanted).abs();
                                assert!(error <= 0.5001 * all.scales[unit], "{error} at {at} of {cols}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; UNIT_LEN];
            x[7] = bad;
            let mut activations = Activations::default();
            activations.fill(Isa::Portable, &x, 1, UNIT_LEN);
            assert!(!activations.group(0, 0).scales[0].is_finite());
        }
    }

    #[test]
    fn zeros_and_the_smallest_numbers_are_zero() {
        for x in [0.0, -0.0, f32::from_bits(1), f32::MIN_POSITIVE] {
            let mut activations = Activations::default();
            activations.fill(Isa::Portable, &[x; UNIT_LEN], 1, UNIT_LEN);
            let group = activations.group(0, 0);
            assert_eq!((group.scales[0], group.sums[0], group.words[0].0), (0.0, 0, [0; LANES]));
        }
    }
}
