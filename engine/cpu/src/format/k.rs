//! What the K types share: blocks of 256 elements.

use super::{UNIT_LEN, from, part};
use crate::simd::{LANES, Simd};

/// Units in a block.
pub(super) const BLOCK_UNITS: usize = 256 / UNIT_LEN;

/// A half-precision number of each of two blocks of `BYTES`, for all eight units of each.
#[inline(always)]
pub(super) fn per_block<S: Simd, const BYTES: usize, const AT: usize>(simd: S, blocks: &[u8]) -> S::F {
    let mut halves = [0u8; 32];
    for (halves, block) in halves.as_chunks_mut::<16>().0.iter_mut().zip(blocks.chunks_exact(BYTES)) {
        for half in halves.as_chunks_mut::<2>().0 {
            *half = *part::<AT, 2>(block);
        }
    }
    simd.load_f16(&halves)
}

/// Scales and minimums of sixteen units in two blocks of Q4_K or Q5_K: six bits each, packed into twelve bytes from the
/// fourth on, times the block's own two numbers before them.
///
/// The first four of each are the low six bits of a byte of their own; the others have their low four bits in a third
/// group of bytes and their high two above those of the first four.
#[inline(always)]
pub(super) fn scales_and_minimums<S: Simd, const BYTES: usize>(simd: S, blocks: &[u8]) -> (S::F, S::F) {
    let (mut scales, mut minimums) = ([0u8; LANES], [0u8; LANES]);
    for (index, block) in blocks.chunks_exact(BYTES).enumerate() {
        let [a, b, c] = [4, 8, 12].map(|at| u32::from_le_bytes(*from::<4>(block, at)));
        let at = index * BLOCK_UNITS;
        scales[at..at + 4].copy_from_slice(&(a & 0x3f3f_3f3f).to_le_bytes());
        minimums[at..at + 4].copy_from_slice(&(b & 0x3f3f_3f3f).to_le_bytes());
        scales[at + 4..at + 8].copy_from_slice(&((c & 0x0f0f_0f0f) | (a >> 2 & 0x3030_3030)).to_le_bytes());
        minimums[at + 4..at + 8].copy_from_slice(&((c >> 4 & 0x0f0f_0f0f) | (b >> 2 & 0x3030_3030)).to_le_bytes());
    }
    let scale = simd.mul(per_block::<S, BYTES, 0>(simd, blocks), simd.load_u8(&scales));
    (scale, simd.mul(per_block::<S, BYTES, 2>(simd, blocks), simd.load_u8(&minimums)))
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
