//! Blocks of 256: sixteen bytes, each a 4-bit scale and a 4-bit minimum of 16 elements, 64 bytes of two bits an element, a
//! scale of scales, a scale of minimums.
//!
//! Two minimums a unit fit no kernel of whole numbers here: it is multiplied as `f32`.

use super::k::{self, BLOCK_UNITS};
use super::{Decoding, Floats, from, part};
use crate::simd::Simd;

/// See `TensorType::Q2K`.
#[derive(Clone, Copy)]
pub struct Q2K;

impl Floats for Q2K {
    const BLOCK_UNITS: usize = BLOCK_UNITS;
    const BLOCK_BYTES: usize = 84;
    const DECODING: Decoding = Decoding::ToMemory;

    #[inline(always)]
    fn unit<S: Simd>(self, simd: S, block: &[u8], unit: usize) -> [S::F; 2] {
        let words = k::two_bits(simd, from::<32>(block, 16 + unit / 4 * 32), unit % 4 * 2);
        let (scale, minimum) = (simd.f16(*part::<80, 2>(block)), simd.f16(*part::<82, 2>(block)));
        let mut out = simd.words_to_floats(words);
        for (out, packed) in out.iter_mut().zip(*from::<2>(block, 2 * unit)) {
            let scale = simd.splat(scale * f32::from(packed & 15));
            *out = simd.mul_add(scale, *out, simd.splat(-minimum * f32::from(packed >> 4)));
        }
        out
    }
}
