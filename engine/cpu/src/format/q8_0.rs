//! Scale, 32 signed bytes.

use super::{Integers, halves_of_blocks, part};
use crate::simd::Simd;

/// See `TensorType::Q8_0`.
#[derive(Clone, Copy)]
pub struct Q8_0;

impl Integers for Q8_0 {
    const BLOCK_UNITS: usize = 1;
    const BLOCK_BYTES: usize = 34;

    #[inline(always)]
    fn words<S: Simd>(self, simd: S, block: &[u8], _: usize) -> S::W {
        simd.signed_bytes(part::<2, 32>(block))
    }

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        (halves_of_blocks::<S, 34, 0>(simd, blocks), simd.splat(0.0))
    }
}
