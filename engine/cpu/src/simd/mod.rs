//! Sixteen `f32` lanes on whatever the processor has. One of the rooms where `unsafe` lives.
//!
//! A kernel is generic code over [`Simd`]; `instantiate!` makes one copy of it per instruction set, each compiled with
//! that set's features, and a door that picks the copy at run time. A token such as [`Avx512`] can only be had from
//! [`Isa::detect`], so holding one proves that the processor can do it.
//!
//! Every operation rounds the same way on AVX-512 and AVX2: fused multiply-add, lanes in the same order. The portable
//! copy rounds twice where they round once, so its logits differ in the last bits. Integers are the same everywhere.
//!
//! To add an instruction set, add a file with an `impl Simd` and a line to `Isa` and `instantiate!`.
#![allow(unsafe_code, reason = "intrinsics need it; the tokens make them safe to call")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

/// Lanes of a vector. The order of every reduction is built on this number.
pub const LANES: usize = 16;

/// Words of a vector of integers.
pub const WORDS: usize = 2 * LANES;

/// Bytes of a vector.
pub const BYTES: usize = 4 * LANES;

/// What begins at a cache line: a vector that crosses from one to the next is loaded twice.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Aligned<T>(pub T);

impl<T> std::ops::Deref for Aligned<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> std::ops::DerefMut for Aligned<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// Instruction sets with kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW, VL and VNNI.
    Avx512(Avx512),
    /// The same and BF16: activations that meet bfloat16 are rounded to it. Faster, and less exact: only for who asks for it.
    Avx512Bf16(Avx512Bf16),
    /// AVX2 with FMA and F16C.
    Avx2(Avx2),
    /// Whatever the compiler makes of plain loops.
    Portable,
}

impl Isa {
    /// Everything this processor can do, the one that is taken by itself first.
    pub fn detect() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            if avx2 && avx512 {
                found.push(Isa::Avx512(Avx512(())));
                if is_x86_feature_detected!("avx512bf16") {
                    found.push(Isa::Avx512Bf16(Avx512Bf16(Avx512(()))));
                }
            }
            if avx2 {
                found.push(Isa::Avx2(Avx2(())));
            }
        }
        found.push(Isa::Portable);
        found
    }

    /// The one of that name, if this processor has it.
    pub fn named(name: &str) -> Option<Isa> {
        Isa::detect().into_iter().find(|isa| isa.name() == name)
    }

    /// Whether 32 vectors fit its registers.
    pub fn has_many_registers(self) -> bool {
        matches!(self, Isa::Avx512(_) | Isa::Avx512Bf16(_))
    }

    /// Whether it multiplies four bytes at once.
    pub fn multiplies_bytes(self) -> bool {
        self.has_many_registers()
    }

    /// Whether it multiplies two bfloat16 at once.
    pub fn multiplies_pairs(self) -> bool {
        matches!(self, Isa::Avx512Bf16(_))
    }

    /// Name for people and for `arithmetic`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512Bf16(_) => "avx512-bf16",
            Isa::Avx512(_) => "avx512",
            Isa::Avx2(_) => "avx2",
            Isa::Portable => "portable",
        }
    }
}

/// Proof that the processor has AVX-512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

/// Proof that the processor has AVX-512 with BF16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512Bf16(Avx512);

impl Avx512Bf16 {
    /// What it proves as well.
    #[inline(always)]
    pub fn avx512(self) -> Avx512 {
        self.0
    }
}

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
    /// Sixteen `i32`.
    type I: Copy;
    /// Thirty-two `i16`.
    type W: Copy;

    /// True when 32 vectors fit the registers, so that large tiles pay.
    const MANY_REGISTERS: bool;

    /// True when it pays to compile a loop's turns one by one.
    const UNROLLS: bool;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; LANES]) -> Self::F;
    fn store(self, x: Self::F, to: &mut [f32; LANES]);
    /// Little-endian `f32`.
    fn load_f32(self, x: &[u8; 64]) -> Self::F;
    /// Little-endian half precision.
    fn load_f16(self, x: &[u8; 32]) -> Self::F;
    /// Little-endian bfloat16.
    fn load_bf16(self, x: &[u8; 32]) -> Self::F;
    /// Every second of 32 little-endian bfloat16, from the first one on.
    fn load_bf16_even(self, x: &[u8; 64]) -> Self::F;
    /// As `load_bf16_even`, from the second one on.
    fn load_bf16_odd(self, x: &[u8; 64]) -> Self::F;
    /// Signed bytes.
    fn load_i8(self, x: &[u8; 16]) -> Self::F;
    /// One half-precision number.
    fn f16(self, x: [u8; 2]) -> f32;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the processor can.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    /// Thirty-two words, two in each `i32`, the first in the low half.
    fn load_words(self, x: &[i32; LANES]) -> Self::W;
    fn store_words(self, x: Self::W, to: &mut [i32; LANES]);
    /// Unsigned bytes as words.
    fn bytes(self, x: &[u8; 32]) -> Self::W;
    /// Signed bytes as words.
    fn signed_bytes(self, x: &[u8; 32]) -> Self::W;
    /// The low halves of sixteen bytes, then their high halves.
    fn nibbles(self, x: &[u8; 16]) -> Self::W;
    /// As `nibbles`, each replaced by its entry in a table.
    fn lookup(self, x: &[u8; 16], table: &[i8; 16]) -> Self::W;
    /// One value in the first sixteen words, another in the others.
    fn halves(self, low: i16, high: i16) -> Self::W;
    /// `value` where the mask has a one, zero elsewhere; bit i for word i.
    fn where_ones(self, mask: u32, value: i16) -> Self::W;
    fn and(self, a: Self::W, b: Self::W) -> Self::W;
    fn or(self, a: Self::W, b: Self::W) -> Self::W;
    fn sub(self, a: Self::W, b: Self::W) -> Self::W;
    /// The low sixteen bits of the products.
    fn mul_words(self, a: Self::W, b: Self::W) -> Self::W;
    /// Logical shifts of each word.
    fn shift_right(self, a: Self::W, count: u32) -> Self::W;
    fn shift_left(self, a: Self::W, count: u32) -> Self::W;
    /// Words as numbers, the first sixteen and the others.
    fn words_to_floats(self, x: Self::W) -> [Self::F; 2];
    /// As `words_to_floats`, of words that are half-precision numbers.
    fn half_words_to_floats(self, x: Self::W) -> [Self::F; 2];

    fn zeros(self) -> Self::I;
    fn load_ints(self, x: &[i32; LANES]) -> Self::I;
    fn sub_ints(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a * 2^count`.
    fn shift_ints_left(self, a: Self::I, count: u32) -> Self::I;
    /// Adds to lane i the products of words 2i and 2i + 1. No sum may leave the range of `i32`.
    fn dot(self, sum: Self::I, a: Self::W, b: Self::W) -> Self::I;
    /// The sums of `dot` over a unit of sixteen rows, of which `weights` has two columns each, with a unit of each of `X`
    /// other rows. For up to four.
    #[inline(always)]
    fn dots_of_unit<const X: usize>(
        self,
        weights: &[Aligned<[i32; LANES]>; LANES],
        x: [&[i32; LANES]; X],
    ) -> [Self::I; X] {
        let mut dots = [self.zeros(); X];
        for (pair, words) in weights.iter().enumerate() {
            let words = self.load_words(words);
            for (dot, x) in dots.iter_mut().zip(x) {
                *dot = self.dot(*dot, words, self.splat_pair(x[pair]));
            }
        }
        dots
    }
    /// One pair of words for all lanes of `dot`.
    fn splat_pair(self, pair: i32) -> Self::W;
    /// Sums of the lanes of four vectors, not yet complete: `sum_folded` takes four of these.
    fn fold(self, x: &[Self::I; 4]) -> Self::I;
    /// Lane 4f + i is the sum of the lanes of vector i of fold f.
    fn sum_folded(self, folds: &[Self::I; 4]) -> Self::I;
    /// Lanes as the nearest `f32`.
    fn ints_to_floats(self, x: Self::I) -> Self::F;
    /// Rows become columns, of pairs of words. Off the hot path where it is not written out: a panel is used many times.
    #[inline(always)]
    fn transpose(self, x: &mut [Self::W; LANES]) {
        let mut rows = [[0; LANES]; LANES];
        for (row, x) in rows.iter_mut().zip(x.iter()) {
            self.store_words(*x, row);
        }
        for (col, x) in x.iter_mut().enumerate() {
            let mut column = [0; LANES];
            for (to, row) in column.iter_mut().zip(&rows) {
                *to = row[col];
            }
            *x = self.load_words(&column);
        }
    }

    /// As `transpose`, from memory to memory.
    #[inline(always)]
    fn transpose_stored(self, x: &[Aligned<[i32; LANES]>; LANES], to: &mut [Aligned<[i32; LANES]>; LANES]) {
        for (col, to) in to.iter_mut().enumerate() {
            for (to, row) in to.0.iter_mut().zip(x) {
                *to = row[col];
            }
        }
    }

    /// Rows become columns.
    #[inline(always)]
    fn transpose_floats(self, x: &mut [Self::F; LANES]) {
        let mut rows = [[0.0; LANES]; LANES];
        for (row, x) in rows.iter_mut().zip(x.iter()) {
            self.store(*x, row);
        }
        for (col, x) in x.iter_mut().enumerate() {
            let mut column = [0.0; LANES];
            for (to, row) in column.iter_mut().zip(&rows) {
                *to = row[col];
            }
            *x = self.load(&column);
        }
    }

    /// Each of sixteen unsigned bytes, the first in the lowest bits.
    #[inline(always)]
    fn load_u8(self, x: [u64; 2]) -> Self::F {
        let mut wide = [0; 32];
        wide[..8].copy_from_slice(&x[0].to_le_bytes());
        wide[8..16].copy_from_slice(&x[1].to_le_bytes());
        self.words_to_floats(self.bytes(&wide))[0]
    }

    /// One half-precision number in the first eight lanes, another in the others.
    #[inline(always)]
    fn two_f16(self, first: [u8; 2], second: [u8; 2]) -> Self::F {
        let (first, second) = (self.f16(first), self.f16(second));
        self.load(&[
            first, first, first, first, first, first, first, first, second, second, second, second, second, second,
            second, second,
        ])
    }

    /// The half-precision number at byte `AT` of each of sixteen blocks of `STRIDE` bytes.
    #[inline(always)]
    fn halves_of_blocks<const STRIDE: usize, const AT: usize>(self, blocks: &[u8]) -> Self::F {
        let mut halves = [0u8; 32];
        for (half, block) in halves.as_chunks_mut::<2>().0.iter_mut().zip(blocks.chunks_exact(STRIDE)) {
            *half = *block[AT..AT + 2].first_chunk().expect("two of a block");
        }
        self.load_f16(&halves)
    }

    /// The largest absolute value of thirty-two; what is no number is larger than all, and stays none.
    #[inline(always)]
    fn largest(self, x: &[f32; WORDS]) -> f32 {
        // Without their signs, floats are ordered as their bits are.
        let mut most = 0;
        for x in x {
            most = most.max(x.to_bits() & 0x7fff_ffff);
        }
        f32::from_bits(most)
    }

    /// Thirty-two numbers, none larger than a word, times a factor, as the nearest words, ties to even; their sum. Of what
    /// is no number anything is made.
    #[inline(always)]
    fn round_to_words(self, x: &[f32; WORDS], factor: f32, words: &mut [i32; LANES]) -> i32 {
        // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let mut sum = 0i32;
        for (word, x) in words.iter_mut().zip(x.as_chunks::<2>().0) {
            let first = (x[0] * factor + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
            let second = (x[1] * factor + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
            *word = (first & 0xffff | second << 16) as i32;
            sum = sum.wrapping_add(first as i32).wrapping_add(second as i32);
        }
        sum
    }

    /// Asks for the cache line that is `ahead` bytes after the first of `x`; it need not be memory at all.
    #[inline(always)]
    fn prefetch(self, _x: &[u8], _ahead: usize) {}

    /// The first `count` lanes, and zeros.
    #[inline(always)]
    fn first_lanes(self, x: Self::F, count: usize) -> Self::F {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        lanes[count..].fill(0.0);
        self.load(&lanes)
    }

    /// In lane i what `sum` makes of row i.
    #[inline(always)]
    fn sum_rows(self, x: &[[f32; LANES]; LANES]) -> Self::F {
        let mut sums = [0.0; LANES];
        for (sum, row) in sums.iter_mut().zip(x) {
            *sum = sum_lanes(row);
        }
        self.load(&sums)
    }

    /// Sum of the lanes, always by the same tree: halves onto halves.
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        sum_lanes(&lanes)
    }
}

/// Operations on sixty-four bytes, for instruction sets that multiply four bytes at once. Plain loops say what they mean.
pub trait ByteDots: Simd {
    /// Sixty-four bytes.
    type B: Copy;

    fn load_bytes(self, x: &[u8; BYTES]) -> Self::B;
    fn store_bytes(self, x: Self::B, to: &mut [u8; BYTES]);
    /// Four bytes, the first in the lowest bits, for all lanes of `dot_bytes`.
    fn splat_four(self, four: i32) -> Self::B;
    /// Thirty-two bytes twice.
    fn twice(self, x: &[u8; BYTES / 2]) -> Self::B;
    /// Thirty-two bytes, then thirty-two others.
    fn join(self, first: &[u8; BYTES / 2], second: &[u8; BYTES / 2]) -> Self::B;
    /// The low halves of sixteen bytes, then their high halves; then those of the others.
    fn nibbles_of_two(self, first: &[u8; 16], second: &[u8; 16]) -> Self::B;
    /// Each byte replaced by the entry of a table that its low half names; the high half is zero.
    fn lookup_bytes(self, x: Self::B, table: &[u8; 16]) -> Self::B;
    /// The bits from `first` on in each of the first thirty-two bytes, and from `second` on in the others, those of the
    /// mask.
    fn fields(self, x: Self::B, first: u32, second: u32, mask: u8) -> Self::B;
    /// `low | high << 4`, of bytes less than sixteen.
    fn above(self, low: Self::B, high: Self::B) -> Self::B;
    /// `x + value` where the mask has a one, `x` elsewhere; bit i for byte i.
    fn add_where(self, x: Self::B, mask: u64, value: u8) -> Self::B;
    /// `x + value` where bit `first` of the first thirty-two bytes of `bits`, and bit `second` of the others, is set.
    fn add_where_bit(self, x: Self::B, bits: Self::B, first: u32, second: u32, value: u8) -> Self::B;
    /// `x + 128`: signed bytes become unsigned ones that are larger by 128.
    fn flip_signs(self, x: Self::B) -> Self::B;
    /// Adds to lane i the products of bytes 4i to 4i + 3, unsigned ones times signed ones.
    fn dot_bytes(self, sum: Self::I, unsigned: Self::B, signed: Self::B) -> Self::I;
    fn splat_int(self, x: i32) -> Self::I;
    fn add_ints(self, a: Self::I, b: Self::I) -> Self::I;
    /// The low 32 bits of the products.
    fn mul_ints(self, a: Self::I, b: Self::I) -> Self::I;
    /// Each of four signed bytes in four lanes.
    fn four_each(self, x: [u8; 4]) -> Self::I;
    /// In lane 4l + i the sum of lanes 4l to 4l + 3 of vector i.
    fn sum_fours(self, x: &[Self::I; 4]) -> Self::I;
    /// What two vectors of `sum_fours` make of eight vectors: lanes 2i and 2i + 1 are the sums of the first and the second
    /// eight lanes of vector i.
    fn sum_halves(self, first: Self::I, second: Self::I) -> Self::I;
    /// Rows become columns, of four bytes each.
    fn transpose_bytes(self, x: &mut [Self::B; LANES]);
}

/// Thirty-two bfloat16, little-endian, as a file has them.
pub type Pairs = Aligned<[u8; BYTES]>;

/// Products of bfloat16, two of a lane at once. Plain code says what they mean; subnormal numbers are zeros.
pub trait PairDots: Copy {
    /// What does everything else.
    type Simd: Simd;
    /// Thirty-two bfloat16.
    type P: Copy;

    fn simd(self) -> Self::Simd;
    fn load_pairs(self, x: &[u8; BYTES]) -> Self::P;
    /// The nearest bfloat16, ties to even.
    fn round_to_pairs(self, x: &[f32; WORDS], to: &mut Pairs);
    /// Adds to lane i the product of elements 2i + 1, then that of elements 2i, rounded after each.
    fn dot_pairs(self, sum: <Self::Simd as Simd>::F, a: Self::P, b: Self::P) -> <Self::Simd as Simd>::F;
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

/// Makes a door to a kernel `fn kernel<S: Simd>(simd: S, ...)`: compiled once per instruction set, picked at run time. With
/// `avx512 other`, that one is taken on AVX-512; the two must give the same bits.
///
/// The kernel must be `#[inline(always)]` and without closures, which would be compiled without the features.
#[macro_export]
macro_rules! instantiate {
    ($(#[$meta:meta])* $vis:vis fn $door:ident = $kernel:ident, avx512 $wide:ident $($signature:tt)*) => {
        $crate::instantiate!(@ [$(#[$meta])* $vis] $door $kernel $wide $($signature)*);
    };
    ($(#[$meta:meta])* $vis:vis fn $door:ident = $kernel:ident $($signature:tt)*) => {
        $crate::instantiate!(@ [$(#[$meta])* $vis] $door $kernel $kernel $($signature)*);
    };
    (@ [$($head:tt)*] $door:ident $kernel:ident $wide:ident $(<$t:ident: $bound:path>)? ($($name:ident: $ty:ty),* $(,)?)) => {
        #[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
        $($head)* fn $door $(<$t: $bound>)? (isa: $crate::simd::Isa, $($name: $ty),*) {
            use $crate::simd::{Isa, Portable};
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::simd::{Avx2, Avx512};
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx512 $(<$t: $bound>)? (simd: Avx512, $($name: $ty),*) {
                    $wide(simd, $($name),*)
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
                    Isa::Avx512Bf16(simd) => return unsafe { avx512 $(::<$t>)? (simd.avx512(), $($name),*) },
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
pub use instantiate;

/// As `instantiate!`, for a kernel `fn kernel<D: PairDots>(dots: D, ...)`: the instruction set that has such products, and
/// plain code.
macro_rules! instantiate_pairs {
    ($vis:vis fn $door:ident = $kernel:ident ($($name:ident: $ty:ty),* $(,)?)) => {
        #[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shapes")]
        $vis fn $door(isa: $crate::simd::Isa, $($name: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::simd::{Avx512Bf16, Isa};
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx512_bf16(dots: Avx512Bf16, $($name: $ty),*) {
                    $kernel(dots, $($name),*)
                }
                if let Isa::Avx512Bf16(dots) = isa {
                    // SAFETY: the token inside proves that the processor has these features.
                    #[allow(unsafe_code, reason = "one of the doors of the SIMD room")]
                    return unsafe { avx512_bf16(dots, $($name),*) };
                }
            }
            let _ = isa;
            $kernel($crate::simd::Portable, $($name),*)
        }
    };
}
pub(crate) use instantiate_pairs;

#[cfg(test)]
mod tests {
    use super::*;

    /// Slow and by the book: sign, exponent, fraction.
    fn f16_by_the_book(bits: u16) -> f64 {
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let exponent = i32::from(bits >> 10 & 31);
        let fraction = f64::from(bits & 1023) / 1024.0;
        match exponent {
            0 => sign * fraction * two_to(-14),
            31 if bits & 1023 == 0 => sign * f64::INFINITY,
            31 => f64::NAN,
            e => sign * (1.0 + fraction) * two_to(e - 15),
        }
    }

    /// Exactly: of `powi` that is not promised.
    fn two_to(exponent: i32) -> f64 {
        f64::from_bits(((1023 + exponent) as u64) << 52)
    }

    #[test]
    fn every_half_is_converted_exactly() {
        for bits in (0..=u16::MAX).step_by(if cfg!(miri) { 509 } else { 1 }) {
            let (got, wanted) = (f64::from(f16_to_f32(bits)), f16_by_the_book(bits));
            assert!(got == wanted || got.is_nan() && wanted.is_nan(), "{bits:#06x}: {got} and not {wanted}");
        }
    }

    #[inline(always)]
    fn loads<S: Simd>(simd: S, bytes: &[u8; 64], out: &mut [[f32; LANES]; 20]) {
        let half: &[u8; 32] = bytes.first_chunk().expect("32 of 64");
        simd.store(simd.load_f32(bytes), &mut out[0]);
        simd.store(simd.load_f16(half), &mut out[1]);
        simd.store(simd.load_bf16(half), &mut out[2]);
        simd.store(simd.load_i8(bytes.first_chunk().expect("16 of 64")), &mut out[3]);
        out[4][0] = simd.f16([bytes[0], bytes[1]]);
        let [low, high] = [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight of 64")));
        simd.store(simd.load_u8([low, high]), &mut out[5]);
        simd.store(simd.two_f16([bytes[0], bytes[1]], [bytes[2], bytes[3]]), &mut out[6]);
        let mut blocks = [0; 16 * 34];
        for (i, byte) in blocks.iter_mut().enumerate() {
            *byte = bytes[i % 61];
        }
        simd.store(simd.halves_of_blocks::<18, 0>(&blocks[..16 * 18]), &mut out[7]);
        simd.store(simd.halves_of_blocks::<20, 2>(&blocks[..16 * 20]), &mut out[8]);
        simd.store(simd.halves_of_blocks::<22, 0>(&blocks[..16 * 22]), &mut out[9]);
        simd.store(simd.halves_of_blocks::<24, 2>(&blocks[..16 * 24]), &mut out[10]);
        simd.store(simd.halves_of_blocks::<34, 0>(&blocks), &mut out[11]);
        simd.store(simd.first_lanes(simd.load_f32(bytes), usize::from(bytes[0] % 17)), &mut out[12]);
        let mut rows = [[0.0; LANES]; LANES];
        for (i, row) in rows.iter_mut().enumerate() {
            *row =
                bytes[i..i + LANES].first_chunk().expect("sixteen").map(|byte: u8| f32::from(byte) / (i as f32 + 0.7));
        }
        simd.store(simd.sum_rows(&rows), &mut out[13]);
        let numbers: &[f32; WORDS] = rows.as_flattened()[..WORDS].first_chunk().expect("32 of 256");
        let signed: [f32; WORDS] = std::array::from_fn(|i| numbers[i] * if bytes[i] & 1 == 0 { 100.0 } else { -100.0 });
        out[14][0] = simd.largest(&signed);
        let mut words = [0; LANES];
        out[14][1] = simd.round_to_words(&signed, 0.731, &mut words) as f32;
        out[15] = words.map(|word| f32::from_bits(word as u32 & 0x7fff_ffff));
        simd.store(simd.load_bf16_even(bytes), &mut out[16]);
        simd.store(simd.load_bf16_odd(bytes), &mut out[17]);
        let mut square = [simd.splat(0.0); LANES];
        for (x, row) in square.iter_mut().zip(&rows) {
            *x = simd.load(row);
        }
        simd.transpose_floats(&mut square);
        simd.store(square[3], &mut out[18]);
        simd.store(square[14], &mut out[19]);
    }

    instantiate!(fn loads_on = loads(bytes: &[u8; 64], out: &mut [[f32; LANES]; 20]));

    #[test]
    fn loads_mean_the_same_everywhere() {
        let mut state = 7u64;
        for _ in 0..if cfg!(miri) { 5 } else { 1000 } {
            let bytes = std::array::from_fn(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            });
            let mut plain = [[0.0; LANES]; 20];
            loads(Portable, &bytes, &mut plain);
            for isa in Isa::detect() {
                let mut fast = [[0.0; LANES]; 20];
                loads_on(isa, &bytes, &mut fast);
                for (p, f) in plain.as_flattened().iter().zip(fast.as_flattened()) {
                    assert!(p.to_bits() == f.to_bits() || p.is_nan() && f.is_nan(), "{}: {f} and not {p}", isa.name());
                }
            }
        }
    }

    #[inline(always)]
    fn integers<S: Simd>(simd: S, bytes: &[u8; 64], words: &mut [[i32; LANES]; 12], ints: &mut [[i32; LANES]; 44]) {
        let (a, b): (&[u8; 32], &[u8; 32]) = (bytes.first_chunk().expect("32"), bytes.last_chunk().expect("32"));
        let small: &[u8; 16] = bytes.first_chunk().expect("16 of 64");
        let (x, y) = (simd.signed_bytes(a), simd.bytes(b));
        let table = std::array::from_fn(|i| b[i] as i8);
        let mask = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let all = [
            x,
            y,
            simd.nibbles(small),
            simd.lookup(small, &table),
            simd.halves(x0(bytes), -7),
            simd.where_ones(mask, 16),
            simd.and(x, y),
            simd.or(x, y),
            simd.sub(x, y),
            simd.mul_words(x, y),
            simd.shift_right(y, 3),
            simd.shift_left(x, 5),
        ];
        for (word, to) in all.into_iter().zip(words.iter_mut()) {
            simd.store_words(word, to);
        }
        let mut vectors = [simd.zeros(); LANES];
        for i in 0..LANES {
            let pair = i32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3] & 15]);
            vectors[i] = simd.dot(simd.zeros(), simd.load_words(&words[i % 12]), simd.splat_pair(pair));
        }
        let mut folds = [simd.zeros(); 4];
        for (fold, vectors) in folds.iter_mut().zip(vectors.as_chunks::<4>().0) {
            *fold = simd.fold(vectors);
        }
        let sums = simd.sum_folded(&folds);
        let shifted = simd.sub_ints(simd.shift_ints_left(sums, 2), simd.load_ints(&std::array::from_fn(|i| i as i32)));
        let mut square = [simd.splat_pair(0); LANES];
        for (row, words) in square.iter_mut().enumerate() {
            *words = simd.load_words(&std::array::from_fn(|i| i32::from(bytes[row + i]) << row));
        }
        simd.transpose(&mut square);
        for (to, words) in ints.iter_mut().zip(square) {
            simd.store_words(words, to);
        }
        let mut unit = [Aligned([0; LANES]); LANES];
        for (row, unit) in unit.iter_mut().enumerate() {
            simd.store_words(simd.load_words(&words[row % 12]), unit);
            unit[row] ^= row as i32;
        }
        let mut columns = [Aligned([0; LANES]); LANES];
        simd.transpose_stored(&unit, &mut columns);
        for (to, column) in ints[18..34].iter_mut().zip(&columns) {
            *to = **column;
        }
        // Small enough that no sum leaves the range.
        let x: [[i32; LANES]; 4] =
            std::array::from_fn(|j| std::array::from_fn(|i| i32::from(bytes[8 * j + i]) << 8 & 0x3fff));
        let [one] = simd.dots_of_unit(&unit, [&x[0]]);
        let two = simd.dots_of_unit(&unit, [&x[0], &x[1]]);
        let three = simd.dots_of_unit(&unit, [&x[0], &x[1], &x[2]]);
        let four = simd.dots_of_unit(&unit, [&x[0], &x[1], &x[2], &x[3]]);
        let dots = [one, two[0], two[1], three[0], three[1], three[2], four[0], four[1], four[2], four[3]];
        for (at, x) in dots.into_iter().enumerate() {
            // As floats they are rounded: the lower half is enough to tell them apart.
            let mut floats = [0.0; LANES];
            simd.store(simd.ints_to_floats(simd.shift_ints_left(x, 8)), &mut floats);
            ints[34 + at] = floats.map(|x| x as i32);
        }
        for (at, x) in [(16, sums), (17, shifted)] {
            let mut floats = [0.0; LANES];
            simd.store(simd.ints_to_floats(x), &mut floats);
            ints[at] = floats.map(|x| x as i32);
        }
    }

    #[inline(always)]
    fn bytes_of_all<S: ByteDots>(simd: S, x: &[u8; 64], all: &mut [[u8; BYTES]; 30], ints: &mut [[i32; LANES]; 10]) {
        let (a, b): (&[u8; 32], &[u8; 32]) = (x.first_chunk().expect("32"), x.last_chunk().expect("32"));
        let (small, other): (&[u8; 16], &[u8; 16]) = (a.first_chunk().expect("16"), b.first_chunk().expect("16"));
        let whole = simd.load_bytes(x);
        let nibbles = simd.nibbles_of_two(small, other);
        let mask = u64::from_le_bytes([x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]]);
        let bytes = [
            whole,
            simd.twice(a),
            simd.join(b, a),
            nibbles,
            simd.lookup_bytes(nibbles, other),
            simd.fields(whole, 0, 4, 15),
            simd.fields(whole, 4, 6, 3),
            simd.fields(whole, 7, 7, 1),
            simd.above(nibbles, simd.fields(whole, 2, 0, 3)),
            simd.add_where(nibbles, mask, 16),
            simd.add_where_bit(nibbles, whole, 3, 4, 16),
            simd.add_where_bit(nibbles, whole, 0, 7, 28),
            simd.flip_signs(whole),
            simd.splat_four(i32::from_le_bytes([x[9], x[2], x[33], x[40]])),
        ];
        let mut square = [whole; LANES];
        for (row, to) in square.iter_mut().enumerate() {
            *to = simd.add_where(whole, mask.rotate_left(row as u32), row as u8 * 5);
        }
        simd.transpose_bytes(&mut square);
        for (bytes, to) in bytes.into_iter().chain(square).zip(all.iter_mut()) {
            simd.store_bytes(bytes, to);
        }
        let mut vectors = [simd.zeros(); 8];
        for i in 0..8 {
            let dot = simd.dot_bytes(simd.zeros(), bytes[i], bytes[12 - i]);
            vectors[i] = simd.add_ints(dot, simd.mul_ints(dot, simd.four_each([x[i], x[i + 1], x[i + 2], x[i + 3]])));
        }
        let (fours, _) = vectors.as_chunks::<4>();
        let halves = simd.sum_halves(simd.sum_fours(&fours[0]), simd.sum_fours(&fours[1]));
        let number = simd.splat_int(i32::from_le_bytes([x[0], x[1], x[2], x[3]]));
        let sums = [vectors[3], vectors[6], halves, simd.dot_bytes(vectors[1], whole, whole), number];
        for (sum, to) in sums.into_iter().zip(ints.as_chunks_mut::<2>().0) {
            // As floats they are rounded: once all of it, once the lower half.
            for (to, part) in to.iter_mut().zip([sum, simd.shift_ints_left(sum, 16)]) {
                let mut floats = [0.0; LANES];
                simd.store(simd.ints_to_floats(part), &mut floats);
                *to = floats.map(|x| x as i32);
            }
        }
    }

    instantiate!(fn bytes_on = no_bytes, avx512 bytes_of_all(
        x: &[u8; 64], all: &mut [[u8; BYTES]; 30], ints: &mut [[i32; LANES]; 10],
    ));

    /// The other instruction sets have none.
    #[inline(always)]
    fn no_bytes<S: Simd>(_: S, x: &[u8; 64], all: &mut [[u8; BYTES]; 30], ints: &mut [[i32; LANES]; 10]) {
        bytes_of_all(Portable, x, all, ints);
    }

    #[test]
    fn bytes_mean_the_same_everywhere() {
        let mut dice = crate::testing::Dice::new(4);
        for _ in 0..if cfg!(miri) { 5 } else { 500 } {
            let x = std::array::from_fn(|_| dice.next_u64() as u8);
            let (mut plain, mut plain_ints) = ([[0; BYTES]; 30], [[0; LANES]; 10]);
            bytes_of_all(Portable, &x, &mut plain, &mut plain_ints);
            assert_eq!((plain[3][0], plain[3][16], plain[3][32]), (x[0] & 15, x[0] >> 4, x[32] & 15));
            assert_eq!((plain[13][1], plain[13][62], plain[14][2], plain[29][1]), (x[2], x[33], x[2], x[61]));
            for isa in Isa::detect() {
                let (mut fast, mut fast_ints) = ([[0; BYTES]; 30], [[0; LANES]; 10]);
                bytes_on(isa, &x, &mut fast, &mut fast_ints);
                assert_eq!((fast, fast_ints), (plain, plain_ints), "{}", isa.name());
            }
        }
    }

    #[inline(always)]
    fn pairs<D: PairDots>(dots: D, x: &[f32; WORDS], weights: &Pairs, rounded: &mut Pairs, lanes: &mut [f32; LANES]) {
        dots.round_to_pairs(x, rounded);
        let sums = dots.simd().load(x.first_chunk().expect("sixteen of 32"));
        let sums = dots.dot_pairs(sums, dots.load_pairs(weights), dots.load_pairs(rounded));
        dots.simd().store(sums, lanes);
    }

    instantiate_pairs!(fn pairs_on = pairs(
        x: &[f32; WORDS], weights: &Pairs, rounded: &mut Pairs, lanes: &mut [f32; LANES],
    ));

    #[test]
    fn pairs_mean_the_same_everywhere() {
        let mut dice = crate::testing::Dice::new(5);
        for turn in 0..if cfg!(miri) { 5 } else { 2000 } {
            // Of all sizes; at the end so small and so large that there are zeros and infinities, too.
            let size = if turn % 10 == 0 { 250 } else { 20 };
            let mut number = || dice.unit() * 2f32.powi(dice.below(size) as i32 - size as i32 / 2);
            let x: [f32; WORDS] = std::array::from_fn(|_| number());
            let mut weights = Aligned([0; BYTES]);
            for bytes in weights.as_chunks_mut::<2>().0 {
                *bytes = ((number().to_bits() >> 16) as u16).to_le_bytes();
            }
            let (mut plain, mut plain_lanes) = (Aligned([0; BYTES]), [0.0; LANES]);
            pairs(Portable, &x, &weights, &mut plain, &mut plain_lanes);
            for isa in Isa::detect().into_iter().filter(|isa| isa.multiplies_pairs()) {
                let (mut fast, mut fast_lanes) = (Aligned([0; BYTES]), [0.0; LANES]);
                pairs_on(isa, &x, &weights, &mut fast, &mut fast_lanes);
                assert_eq!(*fast, *plain, "{x:?}");
                assert_eq!(fast_lanes.map(f32::to_bits), plain_lanes.map(f32::to_bits), "{x:?} times {:?}", *weights);
            }
        }
        let mut rounded = Aligned([0; BYTES]);
        let ties = std::array::from_fn(|i| f32::from_bits(0x3f80_8000 + ((i as u32) << 16) + u32::from(i == 5)));
        Portable.round_to_pairs(&ties, &mut rounded);
        let rounded: Vec<u16> = rounded.as_chunks::<2>().0.iter().map(|x| u16::from_le_bytes(*x)).collect();
        assert_eq!(rounded[..6], [0x3f80, 0x3f82, 0x3f82, 0x3f84, 0x3f84, 0x3f86], "ties to even, and one above a tie");
    }

    #[inline(always)]
    fn x0(bytes: &[u8; 64]) -> i16 {
        i16::from_le_bytes([bytes[0], bytes[1]])
    }

    instantiate!(fn integers_on = integers(
        bytes: &[u8; 64], words: &mut [[i32; LANES]; 12], ints: &mut [[i32; LANES]; 44],
    ));

    #[test]
    fn integers_mean_the_same_everywhere() {
        let mut dice = crate::testing::Dice::new(3);
        for _ in 0..if cfg!(miri) { 5 } else { 500 } {
            let bytes = std::array::from_fn(|_| dice.next_u64() as u8);
            let (mut words, mut ints) = ([[0; LANES]; 12], [[0; LANES]; 44]);
            integers(Portable, &bytes, &mut words, &mut ints);
            assert_eq!(words[2][0], i32::from(bytes[0] & 15) | i32::from(bytes[1] & 15) << 16);
            assert_eq!(words[2][15] >> 16, i32::from(bytes[15] >> 4));
            for isa in Isa::detect() {
                let (mut fast_words, mut fast_ints) = ([[0; LANES]; 12], [[0; LANES]; 44]);
                integers_on(isa, &bytes, &mut fast_words, &mut fast_ints);
                assert_eq!(fast_words, words, "{}", isa.name());
                assert_eq!(fast_ints, ints, "{}", isa.name());
            }
        }
    }
}
