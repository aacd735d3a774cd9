//! Activations as whole numbers of fifteen bits, with a scale for every 32 of them.
//!
//! Each unit of a row is scaled so that its largest element becomes [`ACTIVATION_MAX`]. The scale depends on these 32
//! elements alone. The error of an element is at most a 32766th of the unit's largest: a hundred times less than that of
//! bytes, for twice the multiplications.

use std::ops::Range;

use super::bytes::GROUP_PAIRS;
use super::floats::Vector;
use crate::format::{GROUP_UNITS, SMALL_OFFSET, UNIT_LEN, WORD_MAX};
use crate::pool::{SharedSlice, WorkerPool};
use crate::simd::{Aligned, BYTES, Isa, LANES, Pairs, Simd, instantiate};

/// Largest absolute value of an activation's word.
pub const ACTIVATION_MAX: i32 = 16_383;

const _: () = assert!(
    UNIT_LEN as i64 * WORD_MAX as i64 * ACTIVATION_MAX as i64 <= i32::MAX as i64,
    "the products of a unit add up within 32 bits, whatever the numbers"
);

/// Rows of activations, ready to be multiplied. Grows with the largest step and stays.
#[derive(Default)]
pub struct Activations {
    /// Units of a row.
    units: usize,
    few: Few,
    many: Many,
    /// Rows that stay floats, as `floats` packs them.
    pub(super) floats: Vec<Vector>,
    /// Rows that are rounded to bfloat16, as `pairs` packs them.
    pub(super) pairs: Vec<Pairs>,
}

/// Few rows: sixteen units of a row lie together, as their weights do.
#[derive(Default)]
struct Few {
    /// Pairs of words, `[rows, units]`.
    words: Vec<Aligned<[i32; LANES]>>,
    /// What a word of the unit stands for, `[rows, units / 16]`.
    scales: Vec<Aligned<[f32; LANES]>>,
    /// Sums of the unit's words.
    sums: Vec<Aligned<[i32; LANES]>>,
    /// The same times the scale, negative.
    minus_sums: Vec<Aligned<[f32; LANES]>>,
    /// The words once more, `[rows, units / 2]`, where weights are multiplied as bytes.
    halves: Vec<Halves>,
    /// Sums of four words each, times `-SMALL_OFFSET`, `[rows, units / 2]`, in the same case.
    minus_offsets: Vec<Aligned<[i32; LANES]>>,
}

/// Many rows: the units of one lane of the sums lie together, as it is one lane after the other that a panel of weights is
/// multiplied by. In the order of the rows they would be a kilobyte apart, in a few sets of the cache.
#[derive(Default)]
struct Many {
    rows: usize,
    /// Pairs of words, `[16 lanes, rows, units / 16]`. Where weights are multiplied as bytes, fours of the words' high
    /// bytes and then of their low ones: see `Halves`.
    words: Vec<Aligned<[i32; LANES]>>,
    /// What a word of the unit stands for, `[16 lanes, rows, units / 16]`.
    scales: Vec<f32>,
    /// The sum of the unit's words times the scale, negative, as `scales`.
    minus_sums: Vec<f32>,
    /// The sum of the unit's words times what weights' bytes are too large by, negative, where they are multiplied as bytes.
    minus_offsets: Vec<i32>,
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

/// Every sixteenth unit of one row.
#[derive(Clone, Copy)]
pub struct Lane<'a> {
    pub words: &'a [Aligned<[i32; LANES]>],
    pub scales: &'a [f32],
    pub minus_sums: &'a [f32],
    pub minus_offsets: &'a [i32],
}

/// What rows are multiplied by, and so how they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Weights as they lie in the file.
    Few,
    /// A panel of words.
    ManyWords,
    /// A panel of bytes that are larger than the weights' words by two to the `offset_bits`.
    ManyBytes { offset_bits: Option<u32> },
}

impl Activations {
    /// Takes over rows of `cols` elements.
    pub fn fill(&mut self, pool: &WorkerPool, isa: Isa, x: &[f32], rows: usize, cols: usize, kept: Kept) {
        self.units = cols.div_ceil(UNIT_LEN);
        let units = self.groups() * GROUP_UNITS;
        match kept {
            Kept::Few => self.few.fill(isa, x, rows, cols, units),
            _ => self.many.fill(pool, isa, x, rows, cols, units, kept),
        }
    }

    /// Groups of a row; the last one is filled up with zeros.
    #[inline(always)]
    pub fn groups(&self) -> usize {
        self.units.div_ceil(GROUP_UNITS)
    }

    /// Groups in which there is something in a lane.
    #[inline(always)]
    pub fn groups_of_lane(&self, lane: usize) -> usize {
        (self.units + GROUP_UNITS - 1 - lane) / GROUP_UNITS
    }

    /// Group `index` of one of few rows.
    #[inline(always)]
    pub fn group(&self, row: usize, index: usize) -> Group<'_> {
        let at = row * self.groups() + index;
        Group {
            words: self.few.words[at * GROUP_UNITS..][..GROUP_UNITS].first_chunk().expect("a slice of sixteen"),
            scales: &self.few.scales[at],
            sums: &self.few.sums[at],
            minus_sums: &self.few.minus_sums[at],
        }
    }

    /// The words of group `index` of one of few rows as bytes.
    #[inline(always)]
    pub fn halves(&self, row: usize, index: usize) -> &[Halves; GROUP_PAIRS] {
        let at = (row * self.groups() + index) * GROUP_PAIRS;
        self.few.halves[at..][..GROUP_PAIRS].first_chunk().expect("a slice of eight")
    }

    /// For each pair of units in group `index` of one of few rows the sums of four words each, times `-SMALL_OFFSET`.
    #[inline(always)]
    pub fn minus_offsets(&self, row: usize, index: usize) -> &[Aligned<[i32; LANES]>; GROUP_PAIRS] {
        let at = (row * self.groups() + index) * GROUP_PAIRS;
        self.few.minus_offsets[at..][..GROUP_PAIRS].first_chunk().expect("a slice of eight")
    }

    /// Lane `lane` of one of many rows: a unit of each group.
    #[inline(always)]
    pub fn lane(&self, row: usize, lane: usize) -> Lane<'_> {
        let groups = self.groups();
        let at = (lane * self.many.rows + row) * groups;
        Lane {
            words: &self.many.words[at..][..groups],
            scales: &self.many.scales[at..][..groups],
            minus_sums: &self.many.minus_sums[at..][..groups],
            minus_offsets: &self.many.minus_offsets[at..][..groups],
        }
    }
}

impl Few {
    fn fill(&mut self, isa: Isa, x: &[f32], rows: usize, cols: usize, units: usize) {
        let groups = rows * units / GROUP_UNITS;
        // What is beyond a row's end must be zero, so nothing is kept.
        self.words.clear();
        self.words.resize(groups * GROUP_UNITS, Aligned([0; LANES]));
        self.sums.clear();
        self.sums.resize(groups, Aligned([0; LANES]));
        for floats in [&mut self.scales, &mut self.minus_sums] {
            floats.clear();
            floats.resize(groups, Aligned([0.0; LANES]));
        }
        fill_few_on(isa, self, x, rows, cols, units);
        self.halves.clear();
        self.minus_offsets.clear();
        if isa.multiplies_bytes() {
            self.halves.reserve(self.words.len() / 2);
            self.minus_offsets.reserve(self.words.len() / 2);
            split_on(isa, &self.words, &mut self.halves, &mut self.minus_offsets);
        }
    }
}

instantiate!(fn fill_few_on = fill_few(to: &mut Few, x: &[f32], rows: usize, cols: usize, units: usize));

#[inline(always)]
fn fill_few<S: Simd>(simd: S, to: &mut Few, x: &[f32], rows: usize, cols: usize, units: usize) {
    for (row, x) in x.chunks_exact(cols).take(rows).enumerate() {
        for (unit, x) in x.chunks(UNIT_LEN).enumerate() {
            let at = row * units + unit;
            let (group, lane) = (at / GROUP_UNITS, at % GROUP_UNITS);
            let (scale, sum) = words_of_unit(simd, x, &mut to.words[at]);
            to.scales[group][lane] = scale;
            to.sums[group][lane] = sum;
            to.minus_sums[group][lane] = -(scale * sum as f32);
        }
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

impl Many {
    #[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
    fn fill(&mut self, pool: &WorkerPool, isa: Isa, x: &[f32], rows: usize, cols: usize, units: usize, kept: Kept) {
        self.rows = rows;
        // What is beyond a row's end must be zero; all else is written.
        if !cols.is_multiple_of(UNIT_LEN * GROUP_UNITS) {
            self.words.clear();
            self.scales.clear();
            self.minus_sums.clear();
            self.minus_offsets.clear();
        }
        self.words.resize(rows * units, Aligned([0; LANES]));
        self.scales.resize(rows * units, 0.0);
        self.minus_sums.resize(rows * units, 0.0);
        self.minus_offsets.resize(rows * units, 0);
        let words = SharedSlice::new(&mut self.words);
        let (scales, minus_sums) = (SharedSlice::new(&mut self.scales), SharedSlice::new(&mut self.minus_sums));
        let minus_offsets = SharedSlice::new(&mut self.minus_offsets);
        let groups = units / GROUP_UNITS;
        pool.run(rows, (GRAIN_ELEMENTS / cols).max(1), |range| {
            fill_many_on(isa, &words, &scales, &minus_sums, &minus_offsets, x, rows, cols, groups, kept, range);
        });
    }
}

/// Elements that are worth waking a worker for.
const GRAIN_ELEMENTS: usize = 1 << 14;

instantiate!(fn fill_many_on = fill_many(
    words: &SharedSlice<'_, Aligned<[i32; LANES]>>, scales: &SharedSlice<'_>, minus_sums: &SharedSlice<'_>,
    minus_offsets: &SharedSlice<'_, i32>, x: &[f32], rows: usize, cols: usize, groups: usize, kept: Kept,
    range: Range<usize>,
));

#[inline(always)]
#[allow(unsafe_code, reason = "threads share what is filled")]
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
fn fill_many<S: Simd>(
    simd: S,
    words: &SharedSlice<'_, Aligned<[i32; LANES]>>,
    scales: &SharedSlice<'_>,
    minus_sums: &SharedSlice<'_>,
    minus_offsets: &SharedSlice<'_, i32>,
    x: &[f32],
    rows: usize,
    cols: usize,
    groups: usize,
    kept: Kept,
    range: Range<usize>,
) {
    for row in range {
        for (unit, x) in x[row * cols..][..cols].chunks(UNIT_LEN).enumerate() {
            let at = (unit % GROUP_UNITS * rows + row) * groups + unit / GROUP_UNITS;
            // SAFETY: the place belongs to a unit of one row, and the pool gives each row to one thread.
            unsafe {
                let words = &mut words.part(at..at + 1)[0];
                let (scale, sum) = words_of_unit(simd, x, words);
                scales.write(at, scale);
                minus_sums.write(at, -(scale * sum as f32));
                if let Kept::ManyBytes { offset_bits } = kept {
                    *words = Aligned(bytes_of_unit(words));
                    minus_offsets.write(at, offset_bits.map_or(0, |bits| (sum << bits).wrapping_neg()));
                }
            }
        }
    }
}

/// Fours of the high bytes of a unit's words, then of their low ones.
#[inline(always)]
fn bytes_of_unit(words: &[i32; LANES]) -> [i32; LANES] {
    let (mut high, mut low) = ([0; UNIT_LEN], [0; UNIT_LEN]);
    for (i, pair) in words.iter().enumerate() {
        for (i, word) in [(2 * i, *pair as i16), (2 * i + 1, (*pair >> 16) as i16)] {
            (high[i], low[i]) = ((word >> 7) as u8, (word & 127) as u8);
        }
    }
    let mut fours = [0; LANES];
    for (to, four) in fours.iter_mut().zip(high.as_chunks::<4>().0.iter().chain(low.as_chunks::<4>().0)) {
        *to = i32::from_le_bytes(*four);
    }
    fours
}

/// Scale and sum of the words of one unit, which may be the rest of a row.
#[inline(always)]
fn words_of_unit<S: Simd>(simd: S, x: &[f32], words: &mut [i32; LANES]) -> (f32, i32) {
    let mut filled = [0.0; UNIT_LEN];
    let x = match x.first_chunk() {
        Some(x) => x,
        None => {
            filled[..x.len()].copy_from_slice(x);
            &filled
        }
    };
    let most = simd.largest(x);
    let scale = most / ACTIVATION_MAX as f32;
    // So small a unit is zero: one over its scale would be infinite.
    if scale < f32::MIN_POSITIVE {
        *words = [0; LANES];
        return (0.0, 0);
    }
    (scale, simd.round_to_words(x, ACTIVATION_MAX as f32 / most, words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dice;

    #[test]
    fn words_are_the_nearest_and_a_unit_knows_only_itself() {
        const ROWS: usize = 5;
        let mut dice = Dice::new(1);
        let pool = WorkerPool::new(3).expect("threads for a test");
        for isa in Isa::detect() {
            let (mut all, mut alone) = (Activations::default(), Activations::default());
            for cols in [1, 31, 32, 33, 512, 513, 700] {
                let x: Vec<f32> = (0..ROWS * cols).map(|_| dice.unit() * 10f32.powf(6.0 * dice.unit())).collect();
                all.fill(&pool, isa, &x, ROWS, cols, Kept::ManyWords);
                for row in 0..ROWS {
                    alone.fill(&pool, isa, &x[row * cols..][..cols], 1, cols, Kept::Few);
                    for index in 0..all.groups() {
                        let group = alone.group(0, index);
                        for unit in 0..GROUP_UNITS {
                            let lane = all.lane(row, unit);
                            assert_eq!(group.words[unit].0, lane.words[index].0);
                            assert_eq!(group.scales[unit], lane.scales[index]);
                            assert_eq!(group.minus_sums[unit], lane.minus_sums[index]);
                            let words = group.words[unit].map(|pair| [pair as i16, (pair >> 16) as i16]);
                            let sum = words.as_flattened().iter().map(|w| i32::from(*w)).sum::<i32>();
                            assert_eq!(
                                (group.sums[unit], -(group.scales[unit] * sum as f32)),
                                (sum, group.minus_sums[unit])
                            );
                            for (i, word) in words.as_flattened().iter().enumerate() {
                                let at = (index * GROUP_UNITS + unit) * UNIT_LEN + i;
                                let wanted = if at < cols { x[row * cols + at] } else { 0.0 };
                                let error = (f32::from(*word) * group.scales[unit] - wanted).abs();
                                // Half a word, and three roundings of what may be as large as the largest word.
                                let most = 0.5 + 3.0 * ACTIVATION_MAX as f32 / (1 << 24) as f32;
                                assert!(error <= most * group.scales[unit], "{error} at {at} of {cols}");
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
            activations.fill(&WorkerPool::new(1).expect("no thread"), Isa::detect()[0], &x, 1, UNIT_LEN, Kept::Few);
            assert!(!activations.group(0, 0).scales[0].is_finite());
        }
    }

    #[test]
    fn zeros_and_the_smallest_numbers_are_zero() {
        for x in [0.0, -0.0, f32::from_bits(1), f32::MIN_POSITIVE] {
            let mut activations = Activations::default();
            activations.fill(
                &WorkerPool::new(1).expect("no thread"),
                Isa::detect()[0],
                &[x; UNIT_LEN],
                1,
                UNIT_LEN,
                Kept::Few,
            );
            let group = activations.group(0, 0);
            assert_eq!((group.scales[0], group.sums[0], group.words[0].0), (0.0, 0, [0; LANES]));
        }
    }
}
