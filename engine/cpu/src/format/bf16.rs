//! The upper half of single precision.

use super::{Floats, part};
use crate::simd::Simd;

/// See `TensorType::Bf16`.
#[derive(Clone, Copy)]
pub struct Bf16;

impl Floats for Bf16 {
    const BLOCK_BYTES: usize = 64;

    #[inline(always)]
    fn unit<S: Simd>(self, simd: S, block: &[u8], _: usize) -> [S::F; 2] {
        [simd.load_bf16(part::<0, 32>(block)), simd.load_bf16(part::<32, 32>(block))]
    }
}
