//! Scale, least value, a fifth bit of each element, 16 bytes of nibbles.

use super::{Integers, part, two_masks};
use crate::simd::{ByteDots, Simd};

/// See `TensorType::Q5_1`.
#[derive(Clone, Copy)]
pub struct Q5_1;

impl Integers for Q5_1 {
    const BLOCK_UNITS: usize = 1;
    const BLOCK_BYTES: usize = 24;
    const MINIMUMS: bool = true;

    #[inline(always)]
    fn words<S: Simd>(self, simd: S, block: &[u8], _: usize) -> S::W {
        let fifth = simd.where_ones(u32::from_le_bytes(*part::<4, 4>(block)), 16);
        simd.or(simd.nibbles(part::<8, 16>(block)), fifth)
    }

    #[inline(always)]
    fn bytes<S: ByteDots>(self, simd: S, blocks: &[u8], _: usize) -> S::B {
        let fifth = two_masks(part::<4, 4>(blocks), part::<28, 4>(blocks));
        simd.add_where(simd.nibbles_of_two(part::<8, 16>(blocks), part::<32, 16>(blocks)), fifth, 16)
    }

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        let least = simd.halves_of_blocks::<24, 2>(blocks);
        (simd.halves_of_blocks::<24, 0>(blocks), simd.mul(least, simd.splat(-1.0)))
    }
}
