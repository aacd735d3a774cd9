//! Scale, a fifth bit of each element, 16 bytes of nibbles; elements stand for themselves less 16.

use super::{Integers, halves_of_blocks, part};
use crate::simd::Simd;

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
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        (halves_of_blocks::<S, 22, 0>(simd, blocks), simd.splat(0.0))
    }
}
