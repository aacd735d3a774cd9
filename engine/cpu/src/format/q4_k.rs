//! Blocks of 256: scale of scales, scale of minimums, both for eight units in twelve bytes, 128 bytes of nibbles. 32
//! bytes hold two units, the first in their low halves.

use super::k::{self, BLOCK_UNITS};
use super::{Integers, from};
use crate::simd::{ByteDots, Simd};

/// See `TensorType::Q4K`.
#[derive(Clone, Copy)]
pub struct Q4K;

const BLOCK_BYTES: usize = 144;

impl Integers for Q4K {
    const BLOCK_UNITS: usize = BLOCK_UNITS;
    const BLOCK_BYTES: usize = BLOCK_BYTES;
    const MINIMUMS: bool = true;

    #[inline(always)]
    fn words<S: Simd>(self, simd: S, block: &[u8], unit: usize) -> S::W {
        k::half_bytes(simd, from::<32>(block, 16 + unit / 2 * 32), unit % 2 == 1)
    }

    #[inline(always)]
    fn bytes<S: ByteDots>(self, simd: S, blocks: &[u8], pair: usize) -> S::B {
        simd.fields(simd.twice(from::<32>(blocks, 16 + pair * 32)), 0, 4, 15)
    }

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        k::scales_and_minimums::<S, BLOCK_BYTES>(simd, blocks)
    }
}
