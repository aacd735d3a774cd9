//! How the CPU reads a weight's row, one file per tensor type.
//!
//! A row is units of [`UNIT_LEN`] elements. There are two kinds of types: [`Floats`] are decoded to `f32` and multiplied
//! as such; [`Integers`] are small whole numbers with a scale per unit, and are multiplied as integers.
//!
//! To add a tensor type: its code, name and block in `tensor_type.rs`, a file here, and a line in [`with_format`].

mod bf16;
mod f16;
mod f32;
mod f8;
mod iq4_nl;
mod iq4_xs;
mod k;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

pub use bf16::Bf16;
pub use f8::F8;
pub use f16::F16;
pub use f32::F32;
pub use iq4_nl::Iq4Nl;
pub use iq4_xs::Iq4Xs;
pub use q2_k::Q2K;
pub use q3_k::Q3K;
pub use q4_0::Q4_0;
pub use q4_1::Q4_1;
pub use q4_k::Q4K;
pub use q5_0::Q5_0;
pub use q5_1::Q5_1;
pub use q5_k::Q5K;
pub use q6_k::Q6K;
pub use q8_0::Q8_0;

use super::simd::{ByteDots, LANES, Simd};

/// Elements that are decoded together. The rest of a row is filled up with zeros.
pub const UNIT_LEN: usize = 2 * LANES;

/// Units whose scales are read together.
pub const GROUP_UNITS: usize = LANES;

/// Bytes of the largest unit, and of the largest group of units.
const UNIT_BYTES_MAX: usize = 128;
pub const GROUP_BYTES_MAX: usize = 16 * 34;

/// What it takes to decode a type's elements to `f32`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Decoding {
    /// They are such numbers.
    None,
    /// So little that each tile does it anew, where there are registers for it or few rows. A block is one unit.
    InRegisters,
    /// So much that it is done once, to memory, but for a tile or two of rows where there are few registers.
    ToMemory,
}

/// A type whose elements are multiplied as `f32`.
pub trait Floats: Copy + Sync {
    /// Units that are stored together.
    const BLOCK_UNITS: usize = 1;
    /// Bytes of that many units.
    const BLOCK_BYTES: usize;

    /// What it takes to decode.
    const DECODING: Decoding = Decoding::InRegisters;
    /// With more rows of activations than this, what is decoded to memory is so with few registers, too.
    const DECODED_AGAIN_ROWS_MAX: usize = 3;
    /// Whether `half` gives the even elements of a unit and the odd ones, not the first sixteen and the others.
    const PAIRS: bool = false;

    /// Decodes one unit of a block. All-zero bytes are all-zero elements.
    fn unit<S: Simd>(self, simd: S, block: &[u8], unit: usize) -> [S::F; 2];

    /// Decodes half of a unit, the first or the second.
    #[inline(always)]
    fn half<S: Simd, const SECOND: bool>(self, simd: S, block: &[u8], unit: usize) -> S::F {
        self.unit(simd, block, unit)[usize::from(SECOND)]
    }
}

/// A type whose elements are `scale * word - minimum`, the words being whole numbers.
///
/// The words of a unit times those of an activation must add up within `i32`: see [`WORD_MAX`].
pub trait Integers: Copy + Sync {
    /// Units that are stored together.
    const BLOCK_UNITS: usize;
    /// Bytes of that many units.
    const BLOCK_BYTES: usize;
    /// Log2 of what is to be subtracted from each word that `words` gives, if something is.
    const OFFSET_BITS: Option<u32> = None;
    /// Whether there are minimums.
    const MINIMUMS: bool = false;

    /// The words of one unit of a block, before the offset is subtracted.
    fn words<S: Simd>(self, simd: S, block: &[u8], unit: usize) -> S::W;

    /// The same of two units, as bytes that are larger than the words by two to the `BYTE_OFFSET_BITS`; `blocks` are those
    /// that hold pair `pair` of the units of a block, or of two blocks.
    ///
    /// With `SMALL_SCALES` they are yet to be multiplied by `small_scales`, after the offset is subtracted.
    fn bytes<S: ByteDots>(self, simd: S, blocks: &[u8], pair: usize) -> S::B;

    /// Log2 of what is to be subtracted from each byte that `bytes` gives, if something is.
    const BYTE_OFFSET_BITS: Option<u32> = Self::OFFSET_BITS;

    /// Whether the bytes have scales of their own: then the offset is [`SMALL_OFFSET`].
    const SMALL_SCALES: bool = false;

    /// In lane i the scale of bytes 4i to 4i + 3 of a pair.
    fn small_scales<S: ByteDots>(self, simd: S, _blocks: &[u8], _pair: usize) -> S::I {
        simd.zeros()
    }

    /// Scales and minimums of sixteen units; `blocks` are whole ones and hold exactly these. All-zero bytes are zero.
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F);

    /// Bytes of a group of units.
    const GROUP_BYTES: usize = GROUP_UNITS / Self::BLOCK_UNITS * Self::BLOCK_BYTES;
}

/// What is to be subtracted from bytes that have small scales.
pub const SMALL_OFFSET: i32 = 32;

/// Largest absolute value of a word with its offset subtracted: that of Q6_K, 32 * 128.
pub const WORD_MAX: i32 = 4096;

/// Calls `$work` with a value of the tensor type's format in `$format`.
macro_rules! with_format {
    ($tensor_type:expr, $format:ident => floats $floats:expr, integers $integers:expr) => {{
        use $crate::TensorType as T;
        use $crate::format as f;
        macro_rules! floats {
            ($value:expr) => {{
                let $format = $value;
                $floats
            }};
        }
        macro_rules! integers {
            ($value:expr) => {{
                let $format = $value;
                $integers
            }};
        }
        match $tensor_type {
            T::F32 => floats!(f::F32),
            T::F16 => floats!(f::F16),
            T::Bf16 => floats!(f::Bf16),
            T::F8 => floats!(f::F8),
            T::Q2K => floats!(f::Q2K),
            T::Q4_0 => integers!(f::Q4_0),
            T::Q4_1 => integers!(f::Q4_1),
            T::Q5_0 => integers!(f::Q5_0),
            T::Q5_1 => integers!(f::Q5_1),
            T::Q8_0 => integers!(f::Q8_0),
            T::Q3K => integers!(f::Q3K),
            T::Q4K => integers!(f::Q4K),
            T::Q5K => integers!(f::Q5K),
            T::Q6K => integers!(f::Q6K),
            T::Iq4Nl => integers!(f::Iq4Nl),
            T::Iq4Xs => integers!(f::Iq4Xs),
        }
    }};
}
pub(crate) use with_format;

/// The bytes from `AT`, `N` of them.
#[inline(always)]
fn part<const AT: usize, const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes[AT..AT + N].first_chunk().expect("a slice of N has N")
}

/// As `part`, from a place that is not a constant.
#[inline(always)]
fn from<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    bytes[at..at + N].first_chunk().expect("a slice of N has N")
}

/// A bit for each element of two units.
#[inline(always)]
fn two_masks(first: &[u8; 4], second: &[u8; 4]) -> u64 {
    u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*second)) << 32
}

/// Some rows of a weight, `row_bytes` each.
#[derive(Clone, Copy)]
pub struct Rows<'a, F> {
    /// The tensor type.
    pub format: F,
    /// The bytes of the first row and those after it.
    pub bytes: &'a [u8],
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Elements of a row.
    pub cols: usize,
}

impl<'a, F: Copy> Rows<'a, F> {
    #[inline(always)]
    pub(super) fn row(&self, index: usize) -> &'a [u8] {
        &self.bytes[index * self.row_bytes..][..self.row_bytes]
    }
}

/// Decodes one row into `out`, whose length is that of a row filled up to whole units.
#[inline(always)]
pub fn decode_floats<S: Simd, F: Floats>(simd: S, format: F, row: &[u8], out: &mut [f32]) {
    let (whole, tail) = row.split_at(row.len() / F::BLOCK_BYTES * F::BLOCK_BYTES);
    let (units, _) = out.as_chunks_mut::<UNIT_LEN>();
    let mut units = units.iter_mut();
    for block in whole.chunks_exact(F::BLOCK_BYTES) {
        for unit in 0..F::BLOCK_UNITS {
            put(simd, format.unit(simd, block, unit), units.next().expect("out is as long as the row"));
        }
    }
    if let (false, Some(out)) = (tail.is_empty(), units.next()) {
        let mut filled = [0u8; UNIT_BYTES_MAX];
        filled[..tail.len()].copy_from_slice(tail);
        put(simd, format.unit(simd, &filled[..F::BLOCK_BYTES], 0), out);
    }
}

/// As `decode_floats`: `scale * word - minimum`, rounded once.
#[inline(always)]
pub fn decode_integers<S: Simd, F: Integers>(simd: S, format: F, row: &[u8], out: &mut [f32]) {
    let offset = F::OFFSET_BITS.map_or(0, |bits| 1 << bits);
    for (group, out) in row.chunks(F::GROUP_BYTES).zip(out.chunks_mut(GROUP_UNITS * UNIT_LEN)) {
        let mut filled = [0u8; GROUP_BYTES_MAX];
        let group = if group.len() == F::GROUP_BYTES {
            group
        } else {
            filled[..group.len()].copy_from_slice(group);
            &filled[..F::GROUP_BYTES]
        };
        let (mut scales, mut minimums) = ([0.0; LANES], [0.0; LANES]);
        let (scale, minimum) = format.scales(simd, group);
        simd.store(scale, &mut scales);
        simd.store(minimum, &mut minimums);
        for (unit, out) in out.as_chunks_mut::<UNIT_LEN>().0.iter_mut().enumerate() {
            let block = &group[unit / F::BLOCK_UNITS * F::BLOCK_BYTES..][..F::BLOCK_BYTES];
            let words = simd.sub(format.words(simd, block, unit % F::BLOCK_UNITS), simd.halves(offset, offset));
            let [low, high] = simd.words_to_floats(words);
            let (scale, minimum) = (simd.splat(scales[unit]), simd.splat(-minimums[unit]));
            put(simd, [simd.mul_add(scale, low, minimum), simd.mul_add(scale, high, minimum)], out);
        }
    }
}

#[inline(always)]
fn put<S: Simd>(simd: S, unit: [S::F; 2], out: &mut [f32; UNIT_LEN]) {
    let (halves, _) = out.as_chunks_mut::<LANES>();
    simd.store(unit[0], &mut halves[0]);
    simd.store(unit[1], &mut halves[1]);
}
