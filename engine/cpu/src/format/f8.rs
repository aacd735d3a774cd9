//! Blocks of 128: a single-precision scale, then as many bytes with a sign, four bits of exponent and three of fraction.
//!
//! No file has such blocks: where models keep bytes and scales apart, they are put together when they are loaded, so that
//! a scale for the whole matrix, for a row, or for a square of it is one thing here.
//! Source of the bytes: Micikevicius et al. 2022 (E4M3).

use super::{Decoding, Floats, from, part};
use crate::simd::Simd;

/// Elements in a block.
const BLOCK_LEN: usize = 128;

/// See `TensorType::F8`.
#[derive(Clone, Copy)]
pub struct F8;

impl Floats for F8 {
    const BLOCK_UNITS: usize = BLOCK_LEN / super::UNIT_LEN;
    const BLOCK_BYTES: usize = 4 + BLOCK_LEN;
    const DECODING: Decoding = Decoding::ToMemory;
    const DECODED_AGAIN_ROWS_MAX: usize = 4;

    #[inline(always)]
    fn unit<S: Simd>(self, simd: S, block: &[u8], unit: usize) -> [S::F; 2] {
        // Shifted to where half precision has its exponent, a number is one of half precision, subnormal or not, that is
        // smaller by the difference of the biases: 2 to the power of 8. Widened with its sign, it brings that along, and a
        // bit too much.
        let words = simd.shift_left(simd.signed_bytes(from::<32>(block, 4 + unit * 32)), 7);
        let numbers = simd.and(words, simd.halves(!0x4000, !0x4000));
        let scale = simd.splat(f32::from_le_bytes(*part::<0, 4>(block)) * 256.0);
        simd.half_words_to_floats(numbers).map(|x| simd.mul(x, scale))
    }
}
