//! Random numbers by counting: a number depends on the seed and the position and on no other draw.
//!
//! Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3" (Philox 4x32-10).

const ROUNDS: usize = 10;

/// 64 random bits.
pub fn bits(seed: u64, position: u64) -> u64 {
    let words = philox([position as u32, (position >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    u64::from(words[0]) << 32 | u64::from(words[1])
}

fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut a, mut b, mut c, mut d], [mut k0, mut k1]) = (counter, key);
    for _ in 0..ROUNDS {
        let left = u64::from(a) * 0xd251_1f53;
        let right = u64::from(c) * 0xcd9e_8d57;
        (a, b, c, d) = ((right >> 32) as u32 ^ b ^ k0, right as u32, (left >> 32) as u32 ^ d ^ k1, left as u32);
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with their code.
    #[test]
    fn known_answers() {
        let zero = philox([0; 4], [0; 2]);
        assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn numbers_are_spread_evenly() {
        let mut buckets = [0; 10];
        for position in 0..10_000 {
            buckets[((u128::from(bits(42, position)) * 10) >> 64) as usize] += 1;
        }
        assert!(buckets.iter().all(|n| (900..1100).contains(n)), "{buckets:?}");
    }
}
