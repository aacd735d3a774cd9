//! `exp` for sixteen lanes, in plain loops without branches.
//!
//! The system's own differs from machine to machine; this one rounds the same wherever it runs, since multiplication and
//! addition are never fused here.

use super::simd::LANES;

/// `exp` of one number, for -87 to 88; beyond, it stays at the value of the border.
///
/// Relative error below 2e-7: the argument is reduced to ±ln(2)/2, then a polynomial of degree 6.
///
/// Source: the method of Cephes `expf` (Moshier 1992).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    let scale = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    y * scale
}

/// `exp` of sixteen numbers.
#[inline(always)]
pub fn exp_lanes(x: &mut [f32; LANES]) {
    for x in x {
        *x = exp(*x);
    }
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `tanh`, to about 2e-7 absolutely.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// `x * P(X <= x)` for a normally distributed X, approximated by tanh.
///
/// Source: Hendrycks and Gimpel 2016.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_as_good_as_f32_allows() {
        let mut worst = 0f64;
        let mut x = -87.0f32;
        while x < 88.0 {
            let wanted = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - wanted).abs() / wanted);
            x += 0.00037;
        }
        assert!(worst < 2e-7, "relative error {worst}");
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn silu_survives_what_is_far_out() {
        assert!((silu(-100.0) - 0.0).abs() < 1e-30);
        assert_eq!(silu(100.0), 100.0);
        assert_eq!(silu(0.0), 0.0);
    }

    #[test]
    fn tanh_and_gelu_are_good_enough_for_logits() {
        for i in -4000..4000 {
            let x = i as f32 * 0.005;
            let wide = f64::from(x);
            assert!((f64::from(tanh(x)) - wide.tanh()).abs() < 3e-7, "tanh({x})");
            let wanted = 0.5 * wide * (1.0 + (0.797_884_560_802_865 * (wide + 0.044_715 * wide.powi(3))).tanh());
            assert!((f64::from(gelu(x)) - wanted).abs() < 4e-7 * wide.abs().max(1.0), "gelu({x})");
        }
        assert_eq!((tanh(1e9), tanh(-1e9), gelu(1e9), gelu(-1e9)), (1.0, -1.0, 1e9, -0.0));
    }
}
