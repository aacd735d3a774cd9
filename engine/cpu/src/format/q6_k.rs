//! Blocks of 256: 128 bytes of low nibbles, 64 bytes of upper two bits, sixteen signed scales of 16 elements each, a scale
//! of those. Elements stand for themselves less 32. The small scales are multiplied into the words, exactly.
//!
//! Each half of a block is four units: 64 bytes hold the low halves of the first two and, above them, of the other two;
//! 32 bytes hold the upper bits of all four.

use super::k::{self, BLOCK_UNITS};
use super::{Integers, from};
use crate::simd::{ByteDots, Simd};

/// See `TensorType::Q6K`.
#[derive(Clone, Copy)]
pub struct Q6K;

const BLOCK_BYTES: usize = 210;

impl Integers for Q6K {
    const BLOCK_UNITS: usize = BLOCK_UNITS;
    const BLOCK_BYTES: usize = BLOCK_BYTES;
    const SMALL_SCALES: bool = true;

    #[inline(always)]
    fn words<S: Simd>(self, simd: S, block: &[u8], unit: usize) -> S::W {
        let (half, quarter) = (unit / 4, unit % 4);
        let low = k::half_bytes(simd, from::<32>(block, 64 * half + 32 * (quarter % 2)), quarter >= 2);
        let high = k::two_bits(simd, from::<32>(block, 128 + 32 * half), 2 * quarter);
        let words = simd.sub(simd.or(low, simd.shift_left(high, 4)), simd.halves(32, 32));
        let [first, second] = from::<2>(block, 192 + 2 * unit).map(|scale| i16::from(scale as i8));
        simd.mul_words(words, simd.halves(first, second))
    }

    #[inline(always)]
    fn bytes<S: ByteDots>(self, simd: S, blocks: &[u8], pair: usize) -> S::B {
        let half = pair / 2;
        let low = simd.load_bytes(from::<64>(blocks, 64 * half));
        let high = simd.twice(from::<32>(blocks, 128 + 32 * half));
        if pair.is_multiple_of(2) {
            simd.above(simd.fields(low, 0, 0, 15), simd.fields(high, 0, 2, 3))
        } else {
            simd.above(simd.fields(low, 4, 4, 15), simd.fields(high, 4, 6, 3))
        }
    }

    #[inline(always)]
    fn small_scales<S: ByteDots>(self, simd: S, blocks: &[u8], pair: usize) -> S::I {
        simd.four_each(*from::<4>(blocks, 192 + 4 * pair))
    }

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        (k::per_block::<S, BLOCK_BYTES, 208>(simd, blocks), simd.splat(0.0))
    }
}
