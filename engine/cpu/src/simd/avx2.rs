//! AVX2 with FMA and F16C. One of the rooms where `unsafe` lives.
#![allow(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use super::{Aligned, Avx2, LANES, Simd};

// SAFETY, for all of it: a token is only made by `Isa::detect` after it has seen every feature that the intrinsics below
// need, and every pointer comes from an array of exactly the size that is read or written; the loads and stores are the
// unaligned ones.
impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type W = [__m256i; 2];
    const MANY_REGISTERS: bool = false;
    const UNROLLS: bool = true;

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
    fn load_bf16_even(self, x: &[u8; 64]) -> Self::F {
        unsafe {
            let low = _mm256_loadu_si256(x.as_ptr().cast());
            let high = _mm256_loadu_si256(x.as_ptr().add(32).cast());
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
        }
    }
    #[inline(always)]
    fn load_bf16_odd(self, x: &[u8; 64]) -> Self::F {
        unsafe {
            let upper = _mm256_set1_epi32(0xffff_0000u32 as i32);
            let low = _mm256_loadu_si256(x.as_ptr().cast());
            let high = _mm256_loadu_si256(x.as_ptr().add(32).cast());
            [_mm256_castsi256_ps(_mm256_and_si256(low, upper)), _mm256_castsi256_ps(_mm256_and_si256(high, upper))]
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
    fn sum_rows(self, x: &[[f32; LANES]; LANES]) -> Self::F {
        let mut sums = [0.0; LANES];
        for (sum, row) in sums.iter_mut().zip(x) {
            unsafe {
                let [low, high] = self.load(row);
                let eight = _mm256_add_ps(low, high);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                *sum = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
            }
        }
        self.load(&sums)
    }
    #[inline(always)]
    fn prefetch(self, x: &[u8], ahead: usize) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(ahead).cast()) }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn load_words(self, x: &[i32; LANES]) -> [__m256i; 2] {
        unsafe { [_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(8).cast())] }
    }
    #[inline(always)]
    fn store_words(self, x: [__m256i; 2], to: &mut [i32; LANES]) {
        unsafe {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(8).cast(), x[1]);
        }
    }
    #[inline(always)]
    fn bytes(self, x: &[u8; 32]) -> [__m256i; 2] {
        let (halves, _) = x.as_chunks::<16>();
        unsafe { [widen_bytes(&halves[0]), widen_bytes(&halves[1])] }
    }
    #[inline(always)]
    fn signed_bytes(self, x: &[u8; 32]) -> [__m256i; 2] {
        unsafe {
            let low = _mm_loadu_si128(x.as_ptr().cast());
            let high = _mm_loadu_si128(x.as_ptr().add(16).cast());
            [_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)]
        }
    }
    #[inline(always)]
    fn nibbles(self, x: &[u8; 16]) -> [__m256i; 2] {
        unsafe {
            let wide = widen_bytes(x);
            [_mm256_and_si256(wide, _mm256_set1_epi16(15)), _mm256_srli_epi16::<4>(wide)]
        }
    }
    #[inline(always)]
    fn lookup(self, x: &[u8; 16], table: &[i8; 16]) -> [__m256i; 2] {
        unsafe {
            let packed = _mm_loadu_si128(x.as_ptr().cast());
            let (table, low_half) = (_mm_loadu_si128(table.as_ptr().cast()), _mm_set1_epi8(15));
            let low = _mm_shuffle_epi8(table, _mm_and_si128(packed, low_half));
            let high = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16::<4>(packed), low_half));
            [_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)]
        }
    }
    #[inline(always)]
    fn halves(self, low: i16, high: i16) -> [__m256i; 2] {
        unsafe { [_mm256_set1_epi16(low), _mm256_set1_epi16(high)] }
    }
    #[inline(always)]
    fn where_ones(self, mask: u32, value: i16) -> [__m256i; 2] {
        unsafe {
            let bits = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
            let low = _mm256_and_si256(_mm256_set1_epi16(mask as i16), bits);
            let high = _mm256_and_si256(_mm256_set1_epi16((mask >> 16) as i16), bits);
            let value = _mm256_set1_epi16(value);
            [
                _mm256_and_si256(_mm256_cmpeq_epi16(low, bits), value),
                _mm256_and_si256(_mm256_cmpeq_epi16(high, bits), value),
            ]
        }
    }
    #[inline(always)]
    fn and(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn or(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    fn sub(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_sub_epi16(a[0], b[0]), _mm256_sub_epi16(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul_words(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_mullo_epi16(a[0], b[0]), _mm256_mullo_epi16(a[1], b[1])] }
    }
    #[inline(always)]
    fn shift_right(self, a: [__m256i; 2], count: u32) -> [__m256i; 2] {
        unsafe {
            let count = _mm_cvtsi32_si128(count as i32);
            [_mm256_srl_epi16(a[0], count), _mm256_srl_epi16(a[1], count)]
        }
    }
    #[inline(always)]
    fn shift_left(self, a: [__m256i; 2], count: u32) -> [__m256i; 2] {
        unsafe {
            let count = _mm_cvtsi32_si128(count as i32);
            [_mm256_sll_epi16(a[0], count), _mm256_sll_epi16(a[1], count)]
        }
    }
    #[inline(always)]
    fn words_to_floats(self, x: [__m256i; 2]) -> [[__m256; 2]; 2] {
        unsafe {
            [
                [widen(_mm256_castsi256_si128(x[0])), widen(_mm256_extracti128_si256::<1>(x[0]))],
                [widen(_mm256_castsi256_si128(x[1])), widen(_mm256_extracti128_si256::<1>(x[1]))],
            ]
        }
    }
    #[inline(always)]
    fn half_words_to_floats(self, x: [__m256i; 2]) -> [[__m256; 2]; 2] {
        x.map(|x| unsafe {
            [_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(x))]
        })
    }
    #[inline(always)]
    fn zeros(self) -> [__m256i; 2] {
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    fn load_ints(self, x: &[i32; LANES]) -> [__m256i; 2] {
        unsafe { [_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(8).cast())] }
    }
    #[inline(always)]
    fn sub_ints(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    fn shift_ints_left(self, a: [__m256i; 2], count: u32) -> [__m256i; 2] {
        unsafe {
            let count = _mm_cvtsi32_si128(count as i32);
            [_mm256_sll_epi32(a[0], count), _mm256_sll_epi32(a[1], count)]
        }
    }
    #[inline(always)]
    fn dot(self, sum: [__m256i; 2], a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            [
                _mm256_add_epi32(sum[0], _mm256_madd_epi16(a[0], b[0])),
                _mm256_add_epi32(sum[1], _mm256_madd_epi16(a[1], b[1])),
            ]
        }
    }
    #[inline(always)]
    fn splat_pair(self, pair: i32) -> [__m256i; 2] {
        unsafe { [_mm256_set1_epi32(pair); 2] }
    }
    #[inline(always)]
    fn fold(self, x: &[[__m256i; 2]; 4]) -> [__m256i; 2] {
        unsafe {
            let a = _mm256_add_epi32(x[0][0], x[0][1]);
            let b = _mm256_add_epi32(x[1][0], x[1][1]);
            let c = _mm256_add_epi32(x[2][0], x[2][1]);
            let d = _mm256_add_epi32(x[3][0], x[3][1]);
            // Half of a vector is enough.
            [_mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d)), _mm256_setzero_si256()]
        }
    }
    #[inline(always)]
    fn sum_folded(self, folds: &[[__m256i; 2]; 4]) -> [__m256i; 2] {
        [across(folds[0][0], folds[1][0]), across(folds[2][0], folds[3][0])]
    }
    #[inline(always)]
    fn ints_to_floats(self, x: [__m256i; 2]) -> [__m256; 2] {
        unsafe { [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])] }
    }
    #[inline(always)]
    fn dots_of_unit<const X: usize>(
        self,
        weights: &[Aligned<[i32; LANES]>; LANES],
        x: [&[i32; LANES]; X],
    ) -> [[__m256i; 2]; X] {
        let mut dots = [self.zeros(); X];
        // SAFETY: as above.
        unsafe {
            match *x.as_slice() {
                [a] => dots.copy_from_slice(&one_row(weights, a)),
                [a, b] => dots.copy_from_slice(&two_rows(weights, a, b)),
                [a, b, c] => dots.copy_from_slice(&three_rows(weights, a, b, c)),
                [a, b, c, d] => dots.copy_from_slice(&four_rows(weights, a, b, c, d)),
                _ => unreachable!("more than registers have room for"),
            }
        }
        dots
    }
    #[inline(always)]
    fn transpose_floats(self, x: &mut [[__m256; 2]; LANES]) {
        let (mut rows, mut columns) = ([Aligned([0; LANES]); LANES], [Aligned([0; LANES]); LANES]);
        for (row, x) in rows.iter_mut().zip(x.iter()) {
            self.store_words([unsafe { _mm256_castps_si256(x[0]) }, unsafe { _mm256_castps_si256(x[1]) }], row);
        }
        self.transpose_stored(&rows, &mut columns);
        for (x, column) in x.iter_mut().zip(&columns) {
            let [low, high] = self.load_words(column);
            *x = unsafe { [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)] };
        }
    }
    #[inline(always)]
    fn transpose_stored(self, x: &[Aligned<[i32; LANES]>; LANES], to: &mut [Aligned<[i32; LANES]>; LANES]) {
        // Four columns of eight rows at a time: four words of a row and of that which is four rows later are a vector as they
        // are loaded, which takes none of the two pipes that shuffle.
        for at in [0, 4, 8, 12] {
            for half in [0, 8] {
                unsafe {
                    let (a, b) = (two_rows_of(x, half, at), two_rows_of(x, half + 1, at));
                    let (c, d) = (two_rows_of(x, half + 2, at), two_rows_of(x, half + 3, at));
                    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
                    let (ef, gh) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
                    _mm256_store_si256(to[at].as_mut_ptr().add(half).cast(), _mm256_unpacklo_epi64(ab, cd));
                    _mm256_store_si256(to[at + 1].as_mut_ptr().add(half).cast(), _mm256_unpackhi_epi64(ab, cd));
                    _mm256_store_si256(to[at + 2].as_mut_ptr().add(half).cast(), _mm256_unpacklo_epi64(ef, gh));
                    _mm256_store_si256(to[at + 3].as_mut_ptr().add(half).cast(), _mm256_unpackhi_epi64(ef, gh));
                }
            }
        }
    }
}

/// Four words of row `i`, then of row `i + 4`.
#[inline(always)]
unsafe fn two_rows_of(x: &[Aligned<[i32; LANES]>; LANES], i: usize, at: usize) -> __m256i {
    unsafe {
        let low = _mm_loadu_si128(x[i].as_ptr().add(at).cast());
        let high = _mm256_broadcastsi128_si256(_mm_loadu_si128(x[i + 4].as_ptr().add(at).cast()));
        _mm256_blend_epi32::<0xf0>(_mm256_castsi128_si256(low), high)
    }
}

/// Makes the function behind `dots_of_unit` for some rows, each with the names of its sums.
///
/// Written out because the compiler, if it knows how often the loop turns, spreads out all activations before the first
/// product, and with sixteen registers most of them wait on the stack; if it does not, it counts.
macro_rules! dots_of_rows {
    ($name:ident $([$row:ident $low:ident $high:ident])*) => {
        #[inline]
        #[target_feature(enable = "avx2")]
        fn $name(weights: &[Aligned<[i32; LANES]>; LANES], $($row: &[i32; LANES]),*) -> [[__m256i; 2]; [$(stringify!($row)),*].len()] {
            $(let (mut $low, mut $high) = (_mm256_setzero_si256(), _mm256_setzero_si256());)*
            // SAFETY: it reads one unit of each argument, and the caller's token proves that there are such instructions.
            unsafe {
                std::arch::asm!(
                    ".irp at, 0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60",
                    "vmovdqa {w}, [{weights} + 16*\\at]",
                    "vmovdqa {v}, [{weights} + 16*\\at + 32]",
                    $(
                        concat!("vpbroadcastd {x}, [{", stringify!($row), "} + \\at]"),
                        "vpmaddwd {product}, {x}, {w}",
                        "vpmaddwd {x}, {x}, {v}",
                        concat!("vpaddd {", stringify!($low), "}, {", stringify!($low), "}, {product}"),
                        concat!("vpaddd {", stringify!($high), "}, {", stringify!($high), "}, {x}"),
                    )*
                    ".endr",
                    weights = in(reg) weights.as_ptr(),
                    $($row = in(reg) $row.as_ptr(), $low = inout(ymm_reg) $low, $high = inout(ymm_reg) $high,)*
                    w = out(ymm_reg) _,
                    v = out(ymm_reg) _,
                    x = out(ymm_reg) _,
                    product = out(ymm_reg) _,
                    options(pure, readonly, nostack, preserves_flags),
                );
            }
            [$([$low, $high]),*]
        }
    };
}

dots_of_rows!(one_row [a a_low a_high]);
dots_of_rows!(two_rows [a a_low a_high] [b b_low b_high]);
dots_of_rows!(three_rows [a a_low a_high] [b b_low b_high] [c c_low c_high]);
dots_of_rows!(four_rows [a a_low a_high] [b b_low b_high] [c c_low c_high] [d d_low d_high]);

#[inline(always)]
fn widen(x: __m128i) -> __m256 {
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(x)) }
}

/// One `vpmovzxbw`. As an intrinsic, the compiler exchanges it with the masks and shifts that come after it, and has two of
/// them where there was one to share.
#[inline]
#[target_feature(enable = "avx2")]
fn widen_bytes(x: &[u8; 16]) -> __m256i {
    let out;
    // SAFETY: it reads sixteen bytes, and the caller's token proves that there is such an instruction.
    unsafe {
        std::arch::asm!(
            "vpmovzxbw {out}, [{x}]",
            out = out(ymm_reg) out,
            x = in(reg) x.as_ptr(),
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    out
}

/// Adds the 128-bit halves: those of `a`, then those of `b`.
#[inline(always)]
fn across(a: __m256i, b: __m256i) -> __m256i {
    unsafe {
        let cross = _mm256_permute2x128_si256::<0x21>(a, b);
        _mm256_add_epi32(_mm256_blend_epi32::<0xf0>(a, b), cross)
    }
}
