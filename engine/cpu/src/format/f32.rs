//! Single precision.

use super::{Decoding, Floats, part};
use crate::simd::Simd;

/// See `TensorType::F32`.
#[derive(Clone, Copy)]
pub struct F32;

impl Floats for F32 {
    const BLOCK_BYTES: usize = 128;
    const DECODING: Decoding = Decoding::None;

    #[inline(always)]
    fn unit<S: Simd>(self, simd: S, block: &[u8], _: usize) -> [S::F; 2] {
        [simd.load_f32(part::<0, 64>(block)), simd.load_f32(part::<64, 64>(block))]
    }
}
