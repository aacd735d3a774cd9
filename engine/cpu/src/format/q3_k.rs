//! Blocks of 256: 32 bytes of third bits, 64 bytes of low two bits, sixteen 6-bit scales of 16 elements each in twelve
//! bytes, a scale of those. A missing third bit stands for -4, and scales stand for themselves less 32; they are multiplied
//! into the words, exactly.

use super::k::{self, BLOCK_UNITS};
use super::{Integers, SMALL_OFFSET, from, part};
use crate::simd::{ByteDots, Simd};

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
    const SMALL_SCALES: bool = true;

    #[inline(always)]
    fn words<S: Simd>(self, simd: S, block: &[u8], unit: usize) -> S::W {
        let low = k::two_bits(simd, from::<32>(block, 32 + unit / 4 * 32), unit % 4 * 2);
        let third = simd.and(simd.shift_right(simd.bytes(part::<0, 32>(block)), unit as u32), simd.halves(1, 1));
        let words = simd.sub(simd.or(low, simd.shift_left(third, 2)), simd.halves(4, 4));
        simd.mul_words(words, simd.halves(small_scale(block, 2 * unit), small_scale(block, 2 * unit + 1)))
    }

    #[inline(always)]
    fn bytes<S: ByteDots>(self, simd: S, blocks: &[u8], pair: usize) -> S::B {
        let (half, unit) = (pair / 2, 2 * pair as u32);
        let two = simd.twice(from::<32>(blocks, 32 + half * 32));
        let two = if pair.is_multiple_of(2) { simd.fields(two, 0, 2, 3) } else { simd.fields(two, 4, 6, 3) };
        let three = simd.add_where_bit(two, simd.twice(part::<0, 32>(blocks)), unit, unit + 1, 4);
        simd.add_where(three, u64::MAX, (SMALL_OFFSET - 4) as u8)
    }

    #[inline(always)]
    fn small_scales<S: ByteDots>(self, simd: S, blocks: &[u8], pair: usize) -> S::I {
        let packed = part::<96, 12>(blocks);
        // Four neighbours are in the same half of their bytes.
        let low = u32::from_le_bytes(*from::<4>(packed, pair % 2 * 4)) >> (pair / 2 * 4) & 0x0f0f_0f0f;
        let high = u32::from_le_bytes(*from::<4>(packed, 8)) >> (pair * 2) & 0x0303_0303;
        simd.four_each((low | high << 4).to_le_bytes().map(|scale| scale.wrapping_sub(32)))
    }

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        (k::per_block::<S, BLOCK_BYTES, 108>(simd, blocks), simd.splat(0.0))
    }
}
