//! Scale, 16 bytes of nibbles that stand for themselves less 8: first the low halves, then the high ones.

use super::{Integers, part};
use crate::simd::{ByteDots, Simd};

/// See `TensorType::Q4_0`.
#[derive(Clone, Copy)]
pub struct Q4_0;

impl Integers for Q4_0 {
    const BLOCK_UNITS: usize = 1;
    const BLOCK_BYTES: usize = 18;
    const OFFSET_BITS: Option<u32> = Some(3);

    #[inline(always)]
    fn words<S: Simd>(self, simd: S, block: &[u8], _: usize) -> S::W {
        simd.nibbles(part::<2, 16>(block))
    }

    #[inline(always)]
    fn bytes<S: ByteDots>(self, simd: S, blocks: &[u8], _: usize) -> S::B {
        simd.nibbles_of_two(part::<2, 16>(blocks), part::<20, 16>(blocks))
    }

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        (simd.halves_of_blocks::<18, 0>(blocks), simd.splat(0.0))
    }
}
