//! Half precision.

use super::{Floats, part};
use crate::simd::Simd;

/// See `TensorType::F16`.
#[derive(Clone, Copy)]
pub struct F16;

impl Floats for F16 {
    const BLOCK_BYTES: usize = 64;

    #[inline(always)]
    fn unit<S: Simd>(self, simd: S, block: &[u8], _: usize) -> [S::F; 2] {
        [simd.load_f16(part::<0, 32>(block)), simd.load_f16(part::<32, 32>(block))]
    }
}
