//! Scale, a fifth bit of each element, 16 bytes of nibbles; elements stand for themselves less 16.

use super::{Integers, part, two_masks};
use crate::simd::{ByteDots, Simd};

/// See `TensorType::Q5_0`.
#[derive(Clone, Copy)]
pub struct Q5_0;

impl Integers for Q5_0 {
    const BLOCK_UNITS: usize = 1;
    const BLOCK_BYTES: usize = 22;
    const OFFSET_BITS: Option<u32> = Some(4);

    #[inline(always)]
    fn words<S: Simd>(self, simd: S, block: &[u8], _: usize) -> S::W {
        let fifth = simd.where_ones(u32::from_le_bytes(*part::<2, 4>(block)), 16);
        simd.or(simd.nibbles(part::<6, 16>(block)), fifth)
    }

    #[inline(always)]
    fn bytes<S: ByteDots>(self, simd: S, blocks: &[u8], _: usize) -> S::B {
        let fifth = two_masks(part::<2, 4>(blocks), part::<24, 4>(blocks));
        simd.add_where(simd.nibbles_of_two(part::<6, 16>(blocks), part::<28, 16>(blocks)), fifth, 16)
    }

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        (simd.halves_of_blocks::<22, 0>(blocks), simd.splat(0.0))
    }
}
