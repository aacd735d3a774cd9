//! Repeatable dice and encoded weights, for tests here and in the crates above. No part of the interface.
#![allow(missing_docs, reason = "for tests")]

use crate::TensorType;

/// A repeatable source of chance (SplitMix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// A seed that differs from run to run, or the one in `ORCH_TEST_SEED`. Tests print it when they fail.
    pub fn fresh_seed() -> u64 {
        let wished = std::env::var("ORCH_TEST_SEED").ok().and_then(|text| text.parse().ok());
        wished.unwrap_or_else(|| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) >> 12)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to but not including `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next_u64() % end as u64) as usize
    }

    /// From -1 to 1.
    pub fn unit(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }
}

/// Elements as a tensor type stores them, or blocks of random bits of about their size.
pub fn encode(tensor_type: TensorType, values: &[f32]) -> Vec<u8> {
    match tensor_type {
        TensorType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        TensorType::F16 => values.iter().flat_map(|x| to_f16(*x).to_le_bytes()).collect(),
        TensorType::Bf16 => values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect(),
        TensorType::Q8_0 => values.chunks(32).flat_map(encode_q8_0).collect(),
        TensorType::F8 => values.chunks(128).flat_map(encode_f8).collect(),
        other => random_blocks(other, values),
    }
}

/// Blocks of random bits, with scales so that elements are about as large as those of `values`: for types whose encoders
/// are searches.
fn random_blocks(tensor_type: TensorType, values: &[f32]) -> Vec<u8> {
    let most = values.iter().fold(0f32, |a, x| a.max(x.abs()));
    let mut dice = Dice::new(u64::from(values[0].to_bits()));
    // Where half-precision scales lie in a block, and the largest factor that they meet.
    let (scales, factor): (&[usize], f32) = match tensor_type {
        TensorType::Q4_0 => (&[0], 8.0),
        TensorType::Q5_0 => (&[0], 16.0),
        TensorType::Q4_1 => (&[0, 2], 15.0),
        TensorType::Q5_1 => (&[0, 2], 31.0),
        TensorType::Q2K => (&[80, 82], 45.0),
        TensorType::Q3K => (&[108], 128.0),
        TensorType::Q4K => (&[0, 2], 945.0),
        TensorType::Q5K => (&[0, 2], 1953.0),
        TensorType::Q6K => (&[208], 4096.0),
        TensorType::Iq4Nl => (&[0], 127.0),
        TensorType::Iq4Xs => (&[0], 4064.0),
        TensorType::F32 | TensorType::F16 | TensorType::Bf16 | TensorType::F8 | TensorType::Q8_0 => {
            unreachable!("has an encoder")
        }
    };
    let mut out = Vec::new();
    for _ in 0..values.len() / tensor_type.block_len() {
        let start = out.len();
        out.extend((0..tensor_type.block_bytes()).map(|_| dice.next_u64() as u8));
        for at in scales {
            let scale = most / factor * (1.0 + 0.4 * dice.unit());
            // A least value is about minus half of what the elements reach above it; a minimum is subtracted.
            let number = match tensor_type {
                TensorType::Q4_1 | TensorType::Q5_1 if *at == 2 => -scale * factor / 2.0,
                TensorType::Q2K if *at == 82 => scale * 1.5,
                TensorType::Q4K if *at == 2 => scale * 7.5,
                TensorType::Q5K if *at == 2 => scale * 15.5,
                _ => scale,
            };
            out[start + at..][..2].copy_from_slice(&to_f16(number).to_le_bytes());
        }
    }
    out
}

fn encode_q8_0(block: &[f32]) -> Vec<u8> {
    let most = block.iter().fold(0f32, |a, x| a.max(x.abs()));
    let scale = most / 127.0;
    let mut out = to_f16(scale).to_le_bytes().to_vec();
    out.extend(block.iter().map(|x| if scale > 0.0 { (x / scale).round() as i8 as u8 } else { 0 }));
    out
}

fn encode_f8(block: &[f32]) -> Vec<u8> {
    let most = block.iter().fold(0f32, |a, x| a.max(x.abs()));
    let scale = most / 448.0;
    let mut out = scale.to_le_bytes().to_vec();
    out.extend(block.iter().map(|x| if scale > 0.0 { to_f8(x / scale) } else { 0 }));
    out
}

/// E4M3 of a number of 448 at most, cut off.
pub fn to_f8(x: f32) -> u8 {
    let bits = x.to_bits();
    let sign = (bits >> 24) as u8 & 0x80;
    let exponent = (bits >> 23 & 255) as i32 - 120;
    if exponent > 0 {
        return sign | (exponent as u8) << 3 | (bits >> 20 & 7) as u8;
    }
    // Subnormal: a multiple of 2^-9.
    sign | (x.abs() * 512.0) as u8
}

/// Half precision of a number below 65504, cut off.
fn to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let exponent = (bits >> 23 & 255) as i32 - 112;
    if exponent > 0 {
        return sign | (exponent as u16) << 10 | (bits >> 13 & 1023) as u16;
    }
    // Subnormal: a multiple of 2^-24.
    sign | (x.abs() * 16_777_216.0) as u16
}
