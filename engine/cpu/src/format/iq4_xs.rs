//! Blocks of 256: scale, upper two bits of eight 6-bit scales (16 bits), their lower four (4 bytes), 128 bytes of nibbles
//! as in IQ4_NL. Scales stand for themselves less 32.

use super::iq4_nl::{UNSIGNED, VALUES};
use super::k::{self, BLOCK_UNITS};
use super::{Integers, from, part};
use crate::simd::{ByteDots, LANES, Simd};

/// See `TensorType::Iq4Xs`.
#[derive(Clone, Copy)]
pub struct Iq4Xs;

const BLOCK_BYTES: usize = 136;

impl Integers for Iq4Xs {
    const BLOCK_UNITS: usize = BLOCK_UNITS;
    const BLOCK_BYTES: usize = BLOCK_BYTES;
    const BYTE_OFFSET_BITS: Option<u32> = Some(7);

    #[inline(always)]
    fn words<S: Simd>(self, simd: S, block: &[u8], unit: usize) -> S::W {
        simd.lookup(from::<16>(block, 8 + 16 * unit), &VALUES)
    }

    #[inline(always)]
    fn bytes<S: ByteDots>(self, simd: S, blocks: &[u8], pair: usize) -> S::B {
        let units = from::<32>(blocks, 8 + 32 * pair);
        simd.lookup_bytes(simd.nibbles_of_two(part::<0, 16>(units), part::<16, 16>(units)), &UNSIGNED)
    }

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, blocks: &[u8]) -> (S::F, S::F) {
        let mut scales = [0u8; LANES];
        for (scales, block) in scales.as_chunks_mut::<BLOCK_UNITS>().0.iter_mut().zip(blocks.chunks_exact(BLOCK_BYTES))
        {
            let high = u16::from_le_bytes(*part::<2, 2>(block));
            let low = u32::from_le_bytes(*part::<4, 4>(block));
            for (unit, scale) in scales.iter_mut().enumerate() {
                let bits = (low >> (4 * unit) & 15) as u8 | ((high >> (2 * unit) & 3) as u8) << 4;
                *scale = bits.wrapping_sub(32);
            }
        }
        (simd.mul(k::per_block::<S, BLOCK_BYTES, 0>(simd, blocks), simd.load_i8(&scales)), simd.splat(0.0))
    }
}
