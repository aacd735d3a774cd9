//! Scale, 16 bytes of nibbles that are looked up in a table of unevenly spaced values.

use super::{Integers, part};
use crate::simd::{ByteDots, Simd};

/// See `TensorType::Iq4Nl`.
#[derive(Clone, Copy)]
pub struct Iq4Nl;

/// What a nibble stands for.
pub(super) const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The same, plus 128.
pub(super) const UNSIGNED: [u8; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < table.len() {
        table[i] = (VALUES[i] as u8) ^ 128;
        i += 1;
    }
    table
};

impl Integers for Iq4Nl {
    const BLOCK_UNITS: usize = 1;
    const BLOCK_BYTES: usize = 18;
    const BYTE_OFFSET_BITS: Option<u32> = Some(7);

    #[inline(always)]
    fn words<S: Simd>(self, simd: S, block: &[u8], _: usize) -> S::W {
        simd.lookup(part::<2, 16>(block), &VALUES)
    }

    #[inline(always)]
    fn bytes<S: ByteDots>(self, simd: S, blocks: &[u8], _: usize) -> S::B {
        let nibbles = simd.nibbles_of_two(part::<2, 16>(blocks), part::<20, 16>(blocks));
        simd.lookup_bytes(nibbles, &UNSIGNED)
    }

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        (simd.halves_of_blocks::<18, 0>(blocks), simd.splat(0.0))
    }
}
