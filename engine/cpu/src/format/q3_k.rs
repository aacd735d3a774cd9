//! Blocks of 256: 32 bytes of third bits, 64 bytes of low two bits, sixteen 6-bit scales of 16 elements each in twelve
//! bytes, a scale of those. A missing third bit stands for -4, and scales stand for themselves less 32; they are multiplied
//! into the words, exactly.

use super::k::{self, BLOCK_UNITS};
use super::{Integers, from, part};
use crate::simd::Simd;

/// See `TensorType::Q3K`.
#[derive(Clone, Copy)]
pub struct Q3K;

const BLOCK_BYTES: usize = 110;

/// The small scale `index`: its low four bits lie in the first eight bytes, low halves first, its high two in the others.
#[inline(always)]
fn small_scale(block: &[u8], index: usize) -> i16 {
    let packed = part::<96, 12>(block);
    let low = packed[index % 8] >> (index / 8 * 4) & 15;
    let high = packed[8 + index % 4] >> (index / 4 * 2) & 3;
    i16::from(low | high << 4) - 32
}

impl Integers for Q3K {
    const BLOCK_UNITS: usize = BLOCK_UNITS;
    const BLOCK_BYTES: usize = BLOCK_BYTES;

    #[inline(always)]
    fn words<S: Simd>(self, simd: S, block: &[u8], unit: usize) -> S::W {
        let low = k::two_bits(simd, from::<32>(block, 32 + unit / 4 * 32), unit % 4 * 2);
        let third = simd.and(simd.shift_right(simd.bytes(part::<0, 32>(block)), unit as u32), simd.halves(1, 1));
        let words = simd.sub(simd.or(low, simd.shift_left(third, 2)), simd.halves(4, 4));
        simd.mul_words(words, simd.halves(small_scale(block, 2 * unit), small_scale(block, 2 * unit + 1)))
    }

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        (k::per_block::<S, BLOCK_BYTES, 108>(simd, blocks), simd.splat(0.0))
    }
}
