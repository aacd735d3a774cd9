//! What the K types share: blocks of 256 elements.

use super::{UNIT_LEN, from, part};
use crate::simd::Simd;

/// Units in a block.
pub(super) const BLOCK_UNITS: usize = 256 / UNIT_LEN;

/// A half-precision number of each of two blocks of `BYTES`, for all eight units of each.
#[inline(always)]
pub(super) fn per_block<S: Simd, const BYTES: usize, const AT: usize>(simd: S, blocks: &[u8]) -> S::F {
    simd.two_f16(*part::<AT, 2>(blocks), *from::<2>(blocks, BYTES + AT))
}

/// Scales and minimums of sixteen units in two blocks of Q4_K or Q5_K: six bits each, packed into twelve bytes from the
/// fourth on, times the block's own two numbers before them.
///
/// The first four of each are the low six bits of a byte of their own; the others have their low four bits in a third
/// group of bytes and their high two above those of the first four.
#[inline(always)]
pub(super) fn scales_and_minimums<S: Simd, const BYTES: usize>(simd: S, blocks: &[u8]) -> (S::F, S::F) {
    let (first, second) = (small_of_block(blocks, 0), small_of_block(blocks, BYTES));
    let scale = simd.mul(per_block::<S, BYTES, 0>(simd, blocks), simd.load_u8([first.0, second.0]));
    (scale, simd.mul(per_block::<S, BYTES, 2>(simd, blocks), simd.load_u8([first.1, second.1])))
}

/// Eight small scales and eight small minimums of the block at byte `at`.
#[inline(always)]
fn small_of_block(blocks: &[u8], at: usize) -> (u64, u64) {
    let both = u64::from_le_bytes(*from::<8>(blocks, at + 4));
    let low = u64::from(u32::from_le_bytes(*from::<4>(blocks, at + 12)));
    // The first four scales and minimums, then the others.
    let four = both & 0x3f3f_3f3f_3f3f_3f3f;
    let more = (low | low << 28) & 0x0f0f_0f0f_0f0f_0f0f | both >> 2 & 0x3030_3030_3030_3030;
    (four & 0xffff_ffff | more << 32, four >> 32 | more & 0xffff_ffff_0000_0000)
}

/// The low or high halves of 32 bytes.
#[inline(always)]
pub(super) fn half_bytes<S: Simd>(simd: S, bytes: &[u8; 32], high: bool) -> S::W {
    let words = simd.bytes(bytes);
    if high { simd.shift_right(words, 4) } else { simd.and(words, simd.halves(15, 15)) }
}

/// Two bits of each of 32 bytes, from bit `at`.
#[inline(always)]
pub(super) fn two_bits<S: Simd>(simd: S, bytes: &[u8; 32], at: usize) -> S::W {
    simd.and(simd.shift_right(simd.bytes(bytes), at as u32), simd.halves(3, 3))
}
