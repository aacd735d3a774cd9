//! Scale, 16 bytes of nibbles that are looked up in a table of unevenly spaced values.

use super::{Integers, halves_of_blocks, part};
use crate::simd::Simd;

/// See `TensorType::Iq4Nl`.
#[derive(Clone, Copy)]
pub struct Iq4Nl;

/// What a nibble stands for.
pub(super) const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Integers for Iq4Nl {
    const BLOCK_UNITS: usize = 1;
    const BLOCK_BYTES: usize = 18;

    #[inline(always)]
    fn words<S: Simd>(self, simd: S, block: &[u8], _: usize) -> S::W {
        simd.lookup(part::<2, 16>(block), &VALUES)
    }

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        (halves_of_blocks::<S, 18, 0>(simd, blocks), simd.splat(0.0))
    }
}
