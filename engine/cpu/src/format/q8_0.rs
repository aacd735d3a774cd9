//! Scale, 32 signed bytes.

use super::{Integers, part};
use crate::simd::{ByteDots, Simd};

/// See `TensorType::Q8_0`.
#[derive(Clone, Copy)]
pub struct Q8_0;

impl Integers for Q8_0 {
    const BLOCK_UNITS: usize = 1;
    const BLOCK_BYTES: usize = 34;
    const BYTE_OFFSET_BITS: Option<u32> = Some(7);

    #[inline(always)]
    fn words<S: Simd>(self, simd: S, block: &[u8], _: usize) -> S::W {
        simd.signed_bytes(part::<2, 32>(block))
    }

    #[inline(always)]
    fn bytes<S: ByteDots>(self, simd: S, blocks: &[u8], _: usize) -> S::B {
        simd.flip_signs(simd.join(part::<2, 32>(blocks), part::<36, 32>(blocks)))
    }

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        (simd.halves_of_blocks::<34, 0>(blocks), simd.splat(0.0))
    }
}
