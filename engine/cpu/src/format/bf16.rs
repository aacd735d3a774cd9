//! The upper half of single precision.

use super::{Floats, part};
use crate::simd::Simd;

/// See `TensorType::Bf16`.
#[derive(Clone, Copy)]
pub struct Bf16;

impl Floats for Bf16 {
    const BLOCK_BYTES: usize = 64;
    const PAIRS: bool = true;

    #[inline(always)]
    fn unit<S: Simd>(self, simd: S, block: &[u8], _: usize) -> [S::F; 2] {
        [simd.load_bf16(part::<0, 32>(block)), simd.load_bf16(part::<32, 32>(block))]
    }

    /// A pair is four bytes: the upper half is a number as it is, the lower one has but to be moved there.
    #[inline(always)]
    fn half<S: Simd, const SECOND: bool>(self, simd: S, block: &[u8], _: usize) -> S::F {
        if SECOND { simd.load_bf16_odd(part::<0, 64>(block)) } else { simd.load_bf16_even(part::<0, 64>(block)) }
    }
}
