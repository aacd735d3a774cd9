//! Scale, least value, 16 bytes of nibbles.

use super::{Integers, part};
use crate::simd::{ByteDots, Simd};

/// See `TensorType::Q4_1`.
#[derive(Clone, Copy)]
pub struct Q4_1;

impl Integers for Q4_1 {
    const BLOCK_UNITS: usize = 1;
    const BLOCK_BYTES: usize = 20;
    const MINIMUMS: bool = true;

    #[inline(always)]
    fn words<S: Simd>(self, simd: S, block: &[u8], _: usize) -> S::W {
        simd.nibbles(part::<4, 16>(block))
    }

    #[inline(always)]
    fn bytes<S: ByteDots>(self, simd: S, blocks: &[u8], _: usize) -> S::B {
        simd.nibbles_of_two(part::<4, 16>(blocks), part::<24, 16>(blocks))
    }

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        let least = simd.halves_of_blocks::<20, 2>(blocks);
        (simd.halves_of_blocks::<20, 0>(blocks), simd.mul(least, simd.splat(-1.0)))
    }
}
