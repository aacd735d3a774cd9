//! AVX-512 with VNNI. One of the rooms where `unsafe` lives.
#![allow(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use super::{Avx512, Avx512Bf16, BYTES, ByteDots, LANES, PairDots, Pairs, Simd, WORDS};

// SAFETY, for all of it: a token is only made by `Isa::detect` after it has seen every feature that the intrinsics below
// need, and every pointer comes from an array of exactly the size that is read or written; the loads and stores are the
// unaligned ones.
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type W = __m512i;
    const MANY_REGISTERS: bool = true;
    const UNROLLS: bool = true;

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
    fn load_bf16_even(self, x: &[u8; 64]) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(x.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn load_bf16_odd(self, x: &[u8; 64]) -> __m512 {
        unsafe {
            let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(x.as_ptr().cast()), upper))
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
    fn load_u8(self, x: [u64; 2]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_set_epi64x(x[1] as i64, x[0] as i64))) }
    }
    #[inline(always)]
    fn two_f16(self, first: [u8; 2], second: [u8; 2]) -> __m512 {
        unsafe {
            let first = _mm_set1_epi16(i16::from_le_bytes(first));
            let second = _mm_set1_epi16(i16::from_le_bytes(second));
            _mm512_cvtph_ps(_mm256_inserti128_si256::<1>(_mm256_castsi128_si256(first), second))
        }
    }
    #[inline(always)]
    fn halves_of_blocks<const STRIDE: usize, const AT: usize>(self, blocks: &[u8]) -> __m512 {
        let mut halves = self.zeros();
        for window in 0..Windows::<STRIDE, AT>::COUNT {
            let bytes: &[u8; 128] = blocks[Windows::<STRIDE, AT>::start(window)..].first_chunk().expect("a window");
            let (words, mask) = (&Windows::<STRIDE, AT>::WORDS[window], Windows::<STRIDE, AT>::MASKS[window]);
            unsafe {
                let low = _mm512_loadu_si512(bytes.as_ptr().cast());
                let high = _mm512_loadu_si512(bytes[64..].as_ptr().cast());
                let found = _mm512_maskz_permutex2var_epi16(mask, low, _mm512_loadu_si512(words.as_ptr().cast()), high);
                halves = _mm512_or_si512(halves, found);
            }
        }
        unsafe { _mm512_cvtph_ps(_mm512_castsi512_si256(halves)) }
    }
    #[inline(always)]
    fn largest(self, x: &[f32; WORDS]) -> f32 {
        let (halves, _) = x.as_chunks::<LANES>();
        unsafe {
            let (a, b) = (_mm512_castps_si512(self.load(&halves[0])), _mm512_castps_si512(self.load(&halves[1])));
            let most = _mm512_max_epu32(_mm512_slli_epi32::<1>(a), _mm512_slli_epi32::<1>(b));
            f32::from_bits(_mm512_reduce_max_epu32(most) >> 1)
        }
    }
    #[inline(always)]
    fn round_to_words(self, x: &[f32; WORDS], factor: f32, words: &mut [i32; LANES]) -> i32 {
        let (halves, _) = x.as_chunks::<LANES>();
        let factor = self.splat(factor);
        unsafe {
            let a = _mm512_cvtps_epi32(self.mul(self.load(&halves[0]), factor));
            let b = _mm512_cvtps_epi32(self.mul(self.load(&halves[1]), factor));
            let both =
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(a)), _mm512_cvtepi32_epi16(b));
            self.store_words(both, words);
            _mm512_reduce_add_epi32(_mm512_add_epi32(a, b))
        }
    }
    #[inline(always)]
    fn prefetch(self, x: &[u8], ahead: usize) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(ahead).cast()) }
    }
    #[inline(always)]
    fn first_lanes(self, x: __m512, count: usize) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(((1u32 << count) - 1) as u16, x) }
    }
    #[inline(always)]
    fn sum_rows(self, x: &[[f32; LANES]; LANES]) -> __m512 {
        // Halves onto halves: lanes of 128 bits first, then what is within them. Two rows become one vector each time.
        let mut eights = [self.splat(0.0); 8];
        let mut fours = [self.splat(0.0); 4];
        unsafe {
            for (i, eight) in eights.iter_mut().enumerate() {
                let (a, b) = (self.load(&x[2 * i]), self.load(&x[2 * i + 1]));
                *eight = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
            }
            for (i, four) in fours.iter_mut().enumerate() {
                let (a, b) = (eights[2 * i], eights[2 * i + 1]);
                *four = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
            }
            let (a, b) = (add_pairs(fours[0], fours[1]), add_pairs(fours[2], fours[3]));
            let sums = _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b));
            let lanes = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
            _mm512_permutexvar_ps(lanes, sums)
        }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn load_words(self, x: &[i32; LANES]) -> __m512i {
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_words(self, x: __m512i, to: &mut [i32; LANES]) {
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), x) }
    }
    #[inline(always)]
    fn bytes(self, x: &[u8; 32]) -> __m512i {
        unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn signed_bytes(self, x: &[u8; 32]) -> __m512i {
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn nibbles(self, x: &[u8; 16]) -> __m512i {
        unsafe {
            let twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(x.as_ptr().cast()));
            let counts = _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi16(4));
            _mm512_and_si512(_mm512_srlv_epi16(_mm512_cvtepu8_epi16(twice), counts), _mm512_set1_epi16(15))
        }
    }
    #[inline(always)]
    fn lookup(self, x: &[u8; 16], table: &[i8; 16]) -> __m512i {
        unsafe {
            let packed = _mm_loadu_si128(x.as_ptr().cast());
            let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(packed), _mm_srli_epi16::<4>(packed));
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_cvtepi8_epi16(_mm256_shuffle_epi8(table, _mm256_and_si256(both, _mm256_set1_epi8(15))))
        }
    }
    #[inline(always)]
    fn halves(self, low: i16, high: i16) -> __m512i {
        unsafe { _mm512_inserti64x4::<1>(_mm512_set1_epi16(low), _mm256_set1_epi16(high)) }
    }
    #[inline(always)]
    fn where_ones(self, mask: u32, value: i16) -> __m512i {
        unsafe { _mm512_maskz_set1_epi16(mask, value) }
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi16(a, b) }
    }
    #[inline(always)]
    fn mul_words(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mullo_epi16(a, b) }
    }
    #[inline(always)]
    fn shift_right(self, a: __m512i, count: u32) -> __m512i {
        unsafe { _mm512_srl_epi16(a, _mm_cvtsi32_si128(count as i32)) }
    }
    #[inline(always)]
    fn shift_left(self, a: __m512i, count: u32) -> __m512i {
        unsafe { _mm512_sll_epi16(a, _mm_cvtsi32_si128(count as i32)) }
    }
    #[inline(always)]
    fn words_to_floats(self, x: __m512i) -> [__m512; 2] {
        unsafe {
            let low = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(x));
            let high = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64::<1>(x));
            [_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high)]
        }
    }
    #[inline(always)]
    fn half_words_to_floats(self, x: __m512i) -> [__m512; 2] {
        unsafe { [_mm512_cvtph_ps(_mm512_castsi512_si256(x)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(x))] }
    }
    #[inline(always)]
    fn zeros(self) -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn load_ints(self, x: &[i32; LANES]) -> __m512i {
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn sub_ints(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn shift_ints_left(self, a: __m512i, count: u32) -> __m512i {
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(count as i32)) }
    }
    #[inline(always)]
    fn dot(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        unsafe { dot_words(sum, a, b) }
    }
    #[inline(always)]
    fn splat_pair(self, pair: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(pair) }
    }
    #[inline(always)]
    fn fold(self, x: &[__m512i; 4]) -> __m512i {
        // Vectors are interleaved while they are added, first within their 128-bit lanes, then across.
        sum_four(x, 0)
    }
    #[inline(always)]
    fn sum_folded(self, folds: &[__m512i; 4]) -> __m512i {
        across(across(folds[0], folds[1]), across(folds[2], folds[3]))
    }
    #[inline(always)]
    fn ints_to_floats(self, x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    fn transpose_floats(self, x: &mut [__m512; LANES]) {
        let mut bits = [self.zeros(); LANES];
        for (bits, x) in bits.iter_mut().zip(x.iter()) {
            *bits = unsafe { _mm512_castps_si512(*x) };
        }
        self.transpose(&mut bits);
        for (x, bits) in x.iter_mut().zip(bits) {
            *x = unsafe { _mm512_castsi512_ps(bits) };
        }
    }
    #[inline(always)]
    fn transpose(self, r: &mut [__m512i; LANES]) {
        unsafe {
            // Four by four within the 128-bit lanes: t[4g + k] has column 4l + k of rows 4g to 4g + 3 in its lane l.
            let mut t = *r;
            for g in 0..4 {
                let (a, b, c, d) = (r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]);
                let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
                let (ef, gh) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
                t[4 * g] = _mm512_unpacklo_epi64(ab, cd);
                t[4 * g + 1] = _mm512_unpackhi_epi64(ab, cd);
                t[4 * g + 2] = _mm512_unpacklo_epi64(ef, gh);
                t[4 * g + 3] = _mm512_unpackhi_epi64(ef, gh);
            }
            // Then the lanes themselves.
            for k in 0..4 {
                let (a, b, c, d) = (t[k], t[4 + k], t[8 + k], t[12 + k]);
                let (ab, cd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
                let (ef, gh) = (_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d));
                r[k] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
                r[4 + k] = _mm512_shuffle_i32x4::<0x88>(ef, gh);
                r[8 + k] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
                r[12 + k] = _mm512_shuffle_i32x4::<0xdd>(ef, gh);
            }
        }
    }
}

// SAFETY: as for `Simd`.
impl ByteDots for Avx512 {
    type B = __m512i;

    #[inline(always)]
    fn load_bytes(self, x: &[u8; BYTES]) -> __m512i {
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_bytes(self, x: __m512i, to: &mut [u8; BYTES]) {
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), x) }
    }
    #[inline(always)]
    fn splat_four(self, four: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(four) }
    }
    #[inline(always)]
    fn twice(self, x: &[u8; BYTES / 2]) -> __m512i {
        unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn join(self, first: &[u8; BYTES / 2], second: &[u8; BYTES / 2]) -> __m512i {
        unsafe {
            let first = _mm512_castsi256_si512(_mm256_loadu_si256(first.as_ptr().cast()));
            _mm512_inserti64x4::<1>(first, _mm256_loadu_si256(second.as_ptr().cast()))
        }
    }
    #[inline(always)]
    fn nibbles_of_two(self, first: &[u8; 16], second: &[u8; 16]) -> __m512i {
        unsafe {
            let first = _mm512_broadcast_i32x4(_mm_loadu_si128(first.as_ptr().cast()));
            let both = _mm512_mask_broadcast_i32x4(first, 0xff00, _mm_loadu_si128(second.as_ptr().cast()));
            let counts = _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0);
            _mm512_and_si512(_mm512_srlv_epi64(both, counts), _mm512_set1_epi8(15))
        }
    }
    #[inline(always)]
    fn lookup_bytes(self, x: __m512i, table: &[u8; 16]) -> __m512i {
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), x) }
    }
    #[inline(always)]
    fn fields(self, x: __m512i, first: u32, second: u32, mask: u8) -> __m512i {
        unsafe {
            // What comes down from a neighbour is beyond the mask: no field is that long.
            let counts = halves_epi64(i64::from(first), i64::from(second));
            _mm512_and_si512(_mm512_srlv_epi64(x, counts), _mm512_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    fn above(self, low: __m512i, high: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(low, _mm512_slli_epi16::<4>(high)) }
    }
    #[inline(always)]
    fn add_where(self, x: __m512i, mask: u64, value: u8) -> __m512i {
        unsafe { _mm512_mask_add_epi8(x, mask, x, _mm512_set1_epi8(value as i8)) }
    }
    #[inline(always)]
    fn add_where_bit(self, x: __m512i, bits: __m512i, first: u32, second: u32, value: u8) -> __m512i {
        unsafe {
            let each = 0x0101_0101_0101_0101i64;
            let mask = _mm512_test_epi8_mask(bits, halves_epi64(each << first, each << second));
            _mm512_mask_add_epi8(x, mask, x, _mm512_set1_epi8(value as i8))
        }
    }
    #[inline(always)]
    fn flip_signs(self, x: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(x, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    fn dot_bytes(self, sum: __m512i, unsigned: __m512i, signed: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, unsigned, signed) }
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn add_ints(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn mul_ints(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mullo_epi32(a, b) }
    }
    #[inline(always)]
    fn four_each(self, x: [u8; 4]) -> __m512i {
        unsafe {
            let wide = _mm_cvtepi8_epi32(_mm_cvtsi32_si128(i32::from_le_bytes(x)));
            let lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
            _mm512_permutexvar_epi32(lanes, _mm512_castsi128_si512(wide))
        }
    }
    #[inline(always)]
    fn sum_fours(self, x: &[__m512i; 4]) -> __m512i {
        sum_four(x, 0)
    }
    #[inline(always)]
    fn sum_halves(self, first: __m512i, second: __m512i) -> __m512i {
        unsafe {
            // Even ones and odd ones of the first four vectors, then of the others.
            let lanes = _mm512_set_epi32(15, 11, 14, 10, 13, 9, 12, 8, 7, 3, 6, 2, 5, 1, 4, 0);
            _mm512_permutexvar_epi32(lanes, across(first, second))
        }
    }
    #[inline(always)]
    fn transpose_bytes(self, x: &mut [__m512i; LANES]) {
        self.transpose(x);
    }
}

/// Where the words at byte `AT` of sixteen blocks of `STRIDE` bytes lie, in windows of two vectors.
struct Windows<const STRIDE: usize, const AT: usize>;

impl<const STRIDE: usize, const AT: usize> Windows<STRIDE, AT> {
    /// Blocks whose word lies in a window that begins with the first of them.
    const BLOCKS: usize = (128 - AT - 2) / STRIDE + 1;
    const COUNT: usize = LANES.div_ceil(Self::BLOCKS);
    const WORDS: [[u16; 32]; 4] = Self::tables().0;
    const MASKS: [u32; 4] = Self::tables().1;

    /// Byte at which a window begins; the last one ends with the last block.
    const fn start(window: usize) -> usize {
        let (start, last) = (window * Self::BLOCKS * STRIDE, LANES * STRIDE - 128);
        if start < last { start } else { last }
    }

    /// For each window, which word belongs into lane i, and which lanes it has.
    const fn tables() -> ([[u16; 32]; 4], [u32; 4]) {
        assert!(STRIDE.is_multiple_of(2) && AT.is_multiple_of(2) && Self::COUNT <= 4);
        let (mut words, mut masks) = ([[0; 32]; 4], [0; 4]);
        let mut block = 0;
        while block < LANES {
            let window = block / Self::BLOCKS;
            words[window][block] = ((block * STRIDE + AT - Self::start(window)) / 2) as u16;
            masks[window] |= 1 << block;
            block += 1;
        }
        (words, masks)
    }
}

/// One value in the first four lanes, another in the others.
#[inline(always)]
fn halves_epi64(first: i64, second: i64) -> __m512i {
    unsafe { _mm512_set_epi64(second, second, second, second, first, first, first, first) }
}

/// One `vpdpwssd`. As an intrinsic, the compiler makes a multiplication and an addition of it wherever it sees a chain, for
/// its latency; the kernels have chains enough, and two operations in place of one.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_words(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    let mut out = sum;
    // SAFETY: it reads and writes registers only, and the caller's token proves that there is such an instruction.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {out}, {a}, {b}",
            out = inout(zmm_reg) out,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}

/// Sums within 128-bit lanes: lane l of the result holds those of vectors `first` to `first + 3`.
#[inline(always)]
fn sum_four(x: &[__m512i], first: usize) -> __m512i {
    let (low, high) = (sum_two(x[first], x[first + 1]), sum_two(x[first + 2], x[first + 3]));
    unsafe { _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high)) }
}

#[inline(always)]
fn sum_two(a: __m512i, b: __m512i) -> __m512i {
    unsafe { _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)) }
}

/// Within lanes of 128 bits, the upper two onto the lower two: those of `a`, then those of `b`.
#[inline(always)]
fn add_pairs(a: __m512, b: __m512) -> __m512 {
    unsafe {
        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    }
}

/// Adds the 128-bit lanes in pairs: those of `a`, then those of `b`.
#[inline(always)]
fn across(a: __m512i, b: __m512i) -> __m512i {
    unsafe { _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b)) }
}

// SAFETY: as above.
impl PairDots for Avx512Bf16 {
    type Simd = Avx512;
    type P = __m512bh;

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.avx512()
    }
    #[inline(always)]
    fn load_pairs(self, x: &[u8; BYTES]) -> __m512bh {
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn round_to_pairs(self, x: &[f32; WORDS], to: &mut Pairs) {
        let (halves, _) = x.as_chunks::<LANES>();
        let (low, high) = (self.avx512().load(&halves[0]), self.avx512().load(&halves[1]));
        unsafe {
            let pairs = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
        }
    }
    #[inline(always)]
    fn dot_pairs(self, sum: __m512, a: __m512bh, b: __m512bh) -> __m512 {
        unsafe { _mm512_dpbf16_ps(sum, a, b) }
    }
}
