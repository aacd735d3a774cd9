//! Sixteen `f32` lanes on whatever the processor has. One of the rooms where `unsafe` lives.
//!
//! A kernel is generic code over [`Simd`]; `instantiate!` makes one copy of it per instruction set, each compiled with
//! that set's features, and a door that picks the copy at run time. A token such as [`Avx512`] can only be had from
//! [`Isa::detect`], so holding one proves that the processor can do it.
//!
//! Every operation rounds the same way on AVX-512 and AVX2: fused multiply-add, lanes in the same order. The portable
//! copy rounds twice where they round once, so its logits differ in the last bits.
#![allow(unsafe_code, reason = "intrinsics need it; the tokens make them safe to call")]

/// Lanes of a vector. The order of every reduction is built on this number.
pub const LANES: usize = 16;

/// Instruction sets with kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW and VL.
    Avx512(Avx512),
    /// AVX2 with FMA and F16C.
    Avx2(Avx2),
    /// Whatever the compiler makes of plain loops.
    Portable,
}

impl Isa {
    /// Everything this processor can do, the best first.
    pub fn detect() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                found.push(Isa::Avx512(Avx512(())));
            }
            if avx2 {
                found.push(Isa::Avx2(Avx2(())));
            }
        }
        found.push(Isa::Portable);
        found
    }

    /// Name for people and for `arithmetic`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512(_) => "avx512",
            Isa::Avx2(_) => "avx2",
            Isa::Portable => "portable",
        }
    }
}

/// Proof that the processor has AVX-512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

/// Plain loops.
#[derive(Clone, Copy)]
pub struct Portable;

/// Operations on sixteen lanes.
pub trait Simd: Copy {
    /// Sixteen `f32`.
    type F: Copy;

    /// True when 32 vectors fit the registers, so that large tiles pay.
    const MANY_REGISTERS: bool;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; LANES]) -> Self::F;
    fn store(self, x: Self::F, to: &mut [f32; LANES]);
    /// Little-endian `f32`.
    fn load_f32(self, x: &[u8; 64]) -> Self::F;
    /// Little-endian half precision.
    fn load_f16(self, x: &[u8; 32]) -> Self::F;
    /// Little-endian bfloat16.
    fn load_bf16(self, x: &[u8; 32]) -> Self::F;
    /// Signed bytes.
    fn load_i8(self, x: &[u8; 16]) -> Self::F;
    /// One half-precision number.
    fn f16(self, x: [u8; 2]) -> f32;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the processor can.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    /// Sum of the lanes, always by the same tree: halves onto halves.
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        sum_lanes(&lanes)
    }
}

/// Sum by a tree: lane i and i + 8, then i + 4, i + 2, i + 1.
#[inline(always)]
pub fn sum_lanes(x: &[f32; LANES]) -> f32 {
    let mut lanes = *x;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Half precision to single, exactly, in integer arithmetic.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let rest = u32::from(bits & 0x7fff) << 13;
    // Multiplying by 2^112 moves the exponent's bias from 15 to 127, and makes subnormals normal.
    let magnitude = f32::from_bits(rest) * f32::from_bits((127 + 112) << 23);
    let special = if rest >= 0x0f80_0000 { rest | 0x7f80_0000 } else { magnitude.to_bits() };
    f32::from_bits(sign | special)
}

impl Simd for Portable {
    type F = [f32; LANES];
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        *to = x;
    }
    #[inline(always)]
    fn load_f32(self, x: &[u8; 64]) -> Self::F {
        let mut out = [0.0; LANES];
        for (out, bytes) in out.iter_mut().zip(x.as_chunks::<4>().0) {
            *out = f32::from_le_bytes(*bytes);
        }
        out
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Self::F {
        let mut out = [0.0; LANES];
        for (out, bytes) in out.iter_mut().zip(x.as_chunks::<2>().0) {
            *out = f16_to_f32(u16::from_le_bytes(*bytes));
        }
        out
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> Self::F {
        let mut out = [0.0; LANES];
        for (out, bytes) in out.iter_mut().zip(x.as_chunks::<2>().0) {
            *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
        }
        out
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8; 16]) -> Self::F {
        let mut out = [0.0; LANES];
        for (out, byte) in out.iter_mut().zip(x) {
            *out = f32::from(*byte as i8);
        }
        out
    }
    #[inline(always)]
    fn f16(self, x: [u8; 2]) -> f32 {
        f16_to_f32(u16::from_le_bytes(x))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        let mut out = a;
        for (out, b) in out.iter_mut().zip(b) {
            *out *= b;
        }
        out
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let mut out = c;
        for i in 0..LANES {
            // Without an FMA unit a fused operation would be a library call.
            out[i] += a[i] * b[i];
        }
        out
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Avx2, Avx512, LANES, Simd};

    // SAFETY, for both implementations: a token is only made by `Isa::detect` after it has seen every feature that the
    // intrinsics below need, and every pointer comes from an array of exactly the size that is read or written;
    // the loads and stores are the unaligned ones.

    impl Simd for Avx512 {
        type F = __m512;
        const MANY_REGISTERS: bool = true;

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, x: &[f32; LANES]) -> __m512 {
            unsafe { _mm512_loadu_ps(x.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, x: __m512, to: &mut [f32; LANES]) {
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
        }
        #[inline(always)]
        fn load_f32(self, x: &[u8; 64]) -> __m512 {
            unsafe { _mm512_loadu_ps(x.as_ptr().cast()) }
        }
        #[inline(always)]
        fn load_f16(self, x: &[u8; 32]) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
        }
        #[inline(always)]
        fn load_bf16(self, x: &[u8; 32]) -> __m512 {
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
        }
        #[inline(always)]
        fn load_i8(self, x: &[u8; 16]) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
        }
        #[inline(always)]
        fn f16(self, x: [u8; 2]) -> f32 {
            unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(x))))) }
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
    }

    impl Simd for Avx2 {
        type F = [__m256; 2];
        const MANY_REGISTERS: bool = false;

        #[inline(always)]
        fn splat(self, x: f32) -> Self::F {
            unsafe { [_mm256_set1_ps(x); 2] }
        }
        #[inline(always)]
        fn load(self, x: &[f32; LANES]) -> Self::F {
            unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
        }
        #[inline(always)]
        fn store(self, x: Self::F, to: &mut [f32; LANES]) {
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), x[1]);
            }
        }
        #[inline(always)]
        fn load_f32(self, x: &[u8; 64]) -> Self::F {
            unsafe { [_mm256_loadu_ps(x.as_ptr().cast()), _mm256_loadu_ps(x.as_ptr().add(32).cast())] }
        }
        #[inline(always)]
        fn load_f16(self, x: &[u8; 32]) -> Self::F {
            unsafe {
                let low = _mm_loadu_si128(x.as_ptr().cast());
                let high = _mm_loadu_si128(x.as_ptr().add(16).cast());
                [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
            }
        }
        #[inline(always)]
        fn load_bf16(self, x: &[u8; 32]) -> Self::F {
            unsafe {
                let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
                let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().add(16).cast()));
                [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
            }
        }
        #[inline(always)]
        fn load_i8(self, x: &[u8; 16]) -> Self::F {
            unsafe {
                let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().cast()));
                let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().add(8).cast()));
                [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
            }
        }
        #[inline(always)]
        fn f16(self, x: [u8; 2]) -> f32 {
            unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(x))))) }
        }
        #[inline(always)]
        fn mul(self, a: Self::F, b: Self::F) -> Self::F {
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
    }
}

/// Makes a door to a kernel `fn kernel<S: Simd>(simd: S, ...)`: compiled once per instruction set, picked at run time.
///
/// The kernel must be `#[inline(always)]` and without closures, which would be compiled without the features.
macro_rules! instantiate {
    ($(#[$meta:meta])* $vis:vis fn $door:ident = $kernel:ident $(<$t:ident: $bound:path>)? ($($name:ident: $ty:ty),* $(,)?)) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
        $vis fn $door $(<$t: $bound>)? (isa: $crate::backend::cpu::simd::Isa, $($name: $ty),*) {
            use $crate::backend::cpu::simd::{Isa, Portable};
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::backend::cpu::simd::{Avx2, Avx512};
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx512 $(<$t: $bound>)? (simd: Avx512, $($name: $ty),*) {
                    $kernel(simd, $($name),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx2 $(<$t: $bound>)? (simd: Avx2, $($name: $ty),*) {
                    $kernel(simd, $($name),*)
                }
                match isa {
                    // SAFETY: the token inside proves that the processor has these features.
                    #[allow(unsafe_code, reason = "one of the doors of the SIMD room")]
                    Isa::Avx512(simd) => return unsafe { avx512 $(::<$t>)? (simd, $($name),*) },
                    // SAFETY: as above.
                    #[allow(unsafe_code, reason = "one of the doors of the SIMD room")]
                    Isa::Avx2(simd) => return unsafe { avx2 $(::<$t>)? (simd, $($name),*) },
                    Isa::Portable => {}
                }
            }
            let _ = isa;
            $kernel(Portable, $($name),*)
        }
    };
}
pub(crate) use instantiate;

#[cfg(test)]
mod tests {
    use super::*;

    /// Slow and by the book: sign, exponent, fraction.
    fn f16_by_the_book(bits: u16) -> f64 {
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let exponent = i32::from(bits >> 10 & 31);
        let fraction = f64::from(bits & 1023) / 1024.0;
        match exponent {
            0 => sign * fraction * 2f64.powi(-14),
            31 if bits & 1023 == 0 => sign * f64::INFINITY,
            31 => f64::NAN,
            e => sign * (1.0 + fraction) * 2f64.powi(e - 15),
        }
    }

    #[test]
    fn every_half_is_converted_exactly() {
        for bits in 0..=u16::MAX {
            let (got, wanted) = (f64::from(f16_to_f32(bits)), f16_by_the_book(bits));
            assert!(got == wanted || got.is_nan() && wanted.is_nan(), "{bits:#06x}: {got} and not {wanted}");
        }
    }

    #[inline(always)]
    fn loads<S: Simd>(simd: S, bytes: &[u8; 64], out: &mut [[f32; LANES]; 5]) {
        let half: &[u8; 32] = bytes.first_chunk().expect("32 of 64");
        simd.store(simd.load_f32(bytes), &mut out[0]);
        simd.store(simd.load_f16(half), &mut out[1]);
        simd.store(simd.load_bf16(half), &mut out[2]);
        simd.store(simd.load_i8(bytes.first_chunk().expect("16 of 64")), &mut out[3]);
        out[4][0] = simd.f16([bytes[0], bytes[1]]);
    }

    instantiate!(fn loads_on = loads(bytes: &[u8; 64], out: &mut [[f32; LANES]; 5]));

    #[test]
    fn loads_mean_the_same_everywhere() {
        let mut state = 7u64;
        for _ in 0..1000 {
            let bytes = std::array::from_fn(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            });
            let mut plain = [[0.0; LANES]; 5];
            loads(Portable, &bytes, &mut plain);
            for isa in Isa::detect() {
                let mut fast = [[0.0; LANES]; 5];
                loads_on(isa, &bytes, &mut fast);
                for (p, f) in plain.as_flattened().iter().zip(fast.as_flattened()) {
                    assert!(p.to_bits() == f.to_bits() || p.is_nan() && f.is_nan(), "{}: {f} and not {p}", isa.name());
                }
            }
        }
    }
}
