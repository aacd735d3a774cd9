//! As Q4_K, with 32 bytes of fifth bits before the nibbles: bit u of byte i belongs to element i of unit u.

use super::k::{self, BLOCK_UNITS};
use super::{Integers, from, part};
use crate::simd::{ByteDots, Simd};

/// See `TensorType::Q5K`.
#[derive(Clone, Copy)]
pub struct Q5K;

const BLOCK_BYTES: usize = 176;

impl Integers for Q5K {
    const BLOCK_UNITS: usize = BLOCK_UNITS;
    const BLOCK_BYTES: usize = BLOCK_BYTES;
    const MINIMUMS: bool = true;

    #[inline(always)]
    fn words<S: Simd>(self, simd: S, block: &[u8], unit: usize) -> S::W {
        let low = k::half_bytes(simd, from::<32>(block, 48 + unit / 2 * 32), unit % 2 == 1);
        let bits = simd.and(simd.shift_right(simd.bytes(part::<16, 32>(block)), unit as u32), simd.halves(1, 1));
        simd.or(low, simd.shift_left(bits, 4))
    }

    #[inline(always)]
    fn bytes<S: ByteDots>(self, simd: S, blocks: &[u8], pair: usize) -> S::B {
        let low = simd.fields(simd.twice(from::<32>(blocks, 48 + pair * 32)), 0, 4, 15);
        let unit = 2 * pair as u32;
        simd.add_where_bit(low, simd.twice(part::<16, 32>(blocks)), unit, unit + 1, 16)
    }

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        k::scales_and_minimums::<S, BLOCK_BYTES>(simd, blocks)
    }
}
