//! Plain loops: what every operation means.

use super::{BYTES, ByteDots, LANES, PairDots, Pairs, Portable, Simd, WORDS, f16_to_f32};

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type W = [i16; WORDS];
    const MANY_REGISTERS: bool = false;
    const UNROLLS: bool = false;

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
    fn load_bf16_even(self, x: &[u8; 64]) -> Self::F {
        let mut out = [0.0; LANES];
        for (out, pair) in out.iter_mut().zip(x.as_chunks::<4>().0) {
            *out = f32::from_bits(u32::from_le_bytes(*pair) << 16);
        }
        out
    }
    #[inline(always)]
    fn load_bf16_odd(self, x: &[u8; 64]) -> Self::F {
        let mut out = [0.0; LANES];
        for (out, pair) in out.iter_mut().zip(x.as_chunks::<4>().0) {
            *out = f32::from_bits(u32::from_le_bytes(*pair) & 0xffff_0000);
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
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        let mut out = a;
        for (out, b) in out.iter_mut().zip(b) {
            *out += b;
        }
        out
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

    #[inline(always)]
    fn load_words(self, x: &[i32; LANES]) -> Self::W {
        each(|i| (x[i / 2] >> (i % 2 * 16)) as i16)
    }
    #[inline(always)]
    fn store_words(self, x: Self::W, to: &mut [i32; LANES]) {
        for (to, pair) in to.iter_mut().zip(x.as_chunks::<2>().0) {
            *to = i32::from(pair[0] as u16) | i32::from(pair[1]) << 16;
        }
    }
    #[inline(always)]
    fn bytes(self, x: &[u8; 32]) -> Self::W {
        each(|i| i16::from(x[i]))
    }
    #[inline(always)]
    fn signed_bytes(self, x: &[u8; 32]) -> Self::W {
        each(|i| i16::from(x[i] as i8))
    }
    #[inline(always)]
    fn nibbles(self, x: &[u8; 16]) -> Self::W {
        each(|i| i16::from(if i < 16 { x[i] & 15 } else { x[i - 16] >> 4 }))
    }
    #[inline(always)]
    fn lookup(self, x: &[u8; 16], table: &[i8; 16]) -> Self::W {
        each(|i| i16::from(table[usize::from(if i < 16 { x[i] & 15 } else { x[i - 16] >> 4 })]))
    }
    #[inline(always)]
    fn halves(self, low: i16, high: i16) -> Self::W {
        each(|i| if i < 16 { low } else { high })
    }
    #[inline(always)]
    fn where_ones(self, mask: u32, value: i16) -> Self::W {
        each(|i| if mask >> i & 1 == 1 { value } else { 0 })
    }
    #[inline(always)]
    fn and(self, a: Self::W, b: Self::W) -> Self::W {
        each(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn or(self, a: Self::W, b: Self::W) -> Self::W {
        each(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::W, b: Self::W) -> Self::W {
        each(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn mul_words(self, a: Self::W, b: Self::W) -> Self::W {
        each(|i| a[i].wrapping_mul(b[i]))
    }
    #[inline(always)]
    fn shift_right(self, a: Self::W, count: u32) -> Self::W {
        each(|i| (a[i] as u16 >> count) as i16)
    }
    #[inline(always)]
    fn shift_left(self, a: Self::W, count: u32) -> Self::W {
        each(|i| a[i] << count)
    }
    #[inline(always)]
    fn words_to_floats(self, x: Self::W) -> [Self::F; 2] {
        let mut out = [[0.0; LANES]; 2];
        for (out, x) in out.as_flattened_mut().iter_mut().zip(x) {
            *out = f32::from(x);
        }
        out
    }
    #[inline(always)]
    fn half_words_to_floats(self, x: Self::W) -> [Self::F; 2] {
        let mut out = [[0.0; LANES]; 2];
        for (out, x) in out.as_flattened_mut().iter_mut().zip(x) {
            *out = f16_to_f32(x as u16);
        }
        out
    }
    #[inline(always)]
    fn zeros(self) -> Self::I {
        [0; LANES]
    }
    #[inline(always)]
    fn load_ints(self, x: &[i32; LANES]) -> Self::I {
        *x
    }
    #[inline(always)]
    fn sub_ints(self, a: Self::I, b: Self::I) -> Self::I {
        let mut out = a;
        for (out, b) in out.iter_mut().zip(b) {
            *out = out.wrapping_sub(b);
        }
        out
    }
    #[inline(always)]
    fn shift_ints_left(self, a: Self::I, count: u32) -> Self::I {
        let mut out = a;
        for out in &mut out {
            *out <<= count;
        }
        out
    }
    #[inline(always)]
    fn dot(self, sum: Self::I, a: Self::W, b: Self::W) -> Self::I {
        let mut out = sum;
        for i in 0..LANES {
            let products =
                i32::from(a[2 * i]) * i32::from(b[2 * i]) + i32::from(a[2 * i + 1]) * i32::from(b[2 * i + 1]);
            out[i] = out[i].wrapping_add(products);
        }
        out
    }
    #[inline(always)]
    fn splat_pair(self, pair: i32) -> Self::W {
        self.pair(pair as i16, (pair >> 16) as i16)
    }
    #[inline(always)]
    fn fold(self, x: &[Self::I; 4]) -> Self::I {
        let mut out = [0; LANES];
        for (out, x) in out.iter_mut().zip(x) {
            for x in x {
                *out = x.wrapping_add(*out);
            }
        }
        out
    }
    #[inline(always)]
    fn sum_folded(self, folds: &[Self::I; 4]) -> Self::I {
        let mut out = [0; LANES];
        for (out, fold) in out.as_chunks_mut::<4>().0.iter_mut().zip(folds) {
            out.copy_from_slice(&fold[..4]);
        }
        out
    }
    #[inline(always)]
    fn ints_to_floats(self, x: Self::I) -> Self::F {
        let mut out = [0.0; LANES];
        for (out, x) in out.iter_mut().zip(x) {
            *out = x as f32;
        }
        out
    }
}

impl ByteDots for Portable {
    type B = [u8; BYTES];

    #[inline(always)]
    fn load_bytes(self, x: &[u8; BYTES]) -> Self::B {
        *x
    }
    #[inline(always)]
    fn store_bytes(self, x: Self::B, to: &mut [u8; BYTES]) {
        *to = x;
    }
    #[inline(always)]
    fn splat_four(self, four: i32) -> Self::B {
        each_byte(|i| four.to_le_bytes()[i % 4])
    }
    #[inline(always)]
    fn twice(self, x: &[u8; BYTES / 2]) -> Self::B {
        each_byte(|i| x[i % (BYTES / 2)])
    }
    #[inline(always)]
    fn join(self, first: &[u8; BYTES / 2], second: &[u8; BYTES / 2]) -> Self::B {
        each_byte(|i| if i < BYTES / 2 { first[i] } else { second[i - BYTES / 2] })
    }
    #[inline(always)]
    fn nibbles_of_two(self, first: &[u8; 16], second: &[u8; 16]) -> Self::B {
        each_byte(|i| {
            let byte = if i < BYTES / 2 { first[i % 16] } else { second[i % 16] };
            if i % 32 < 16 { byte & 15 } else { byte >> 4 }
        })
    }
    #[inline(always)]
    fn lookup_bytes(self, x: Self::B, table: &[u8; 16]) -> Self::B {
        each_byte(|i| table[usize::from(x[i])])
    }
    #[inline(always)]
    fn fields(self, x: Self::B, first: u32, second: u32, mask: u8) -> Self::B {
        each_byte(|i| x[i] >> (if i < BYTES / 2 { first } else { second }) & mask)
    }
    #[inline(always)]
    fn above(self, low: Self::B, high: Self::B) -> Self::B {
        each_byte(|i| low[i] | high[i] << 4)
    }
    #[inline(always)]
    fn add_where(self, x: Self::B, mask: u64, value: u8) -> Self::B {
        each_byte(|i| if mask >> i & 1 == 1 { x[i].wrapping_add(value) } else { x[i] })
    }
    #[inline(always)]
    fn add_where_bit(self, x: Self::B, bits: Self::B, first: u32, second: u32, value: u8) -> Self::B {
        let set = self.fields(bits, first, second, 1);
        each_byte(|i| if set[i] == 1 { x[i].wrapping_add(value) } else { x[i] })
    }
    #[inline(always)]
    fn flip_signs(self, x: Self::B) -> Self::B {
        each_byte(|i| x[i] ^ 128)
    }
    #[inline(always)]
    fn dot_bytes(self, sum: Self::I, unsigned: Self::B, signed: Self::B) -> Self::I {
        let mut out = sum;
        for (i, (unsigned, signed)) in unsigned.into_iter().zip(signed).enumerate() {
            out[i / 4] = out[i / 4].wrapping_add(i32::from(unsigned) * i32::from(signed as i8));
        }
        out
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    fn add_ints(self, a: Self::I, b: Self::I) -> Self::I {
        let mut out = a;
        for (out, b) in out.iter_mut().zip(b) {
            *out = out.wrapping_add(b);
        }
        out
    }
    #[inline(always)]
    fn mul_ints(self, a: Self::I, b: Self::I) -> Self::I {
        let mut out = a;
        for (out, b) in out.iter_mut().zip(b) {
            *out = out.wrapping_mul(b);
        }
        out
    }
    #[inline(always)]
    fn four_each(self, x: [u8; 4]) -> Self::I {
        let mut out = [0; LANES];
        for (i, out) in out.iter_mut().enumerate() {
            *out = i32::from(x[i / 4] as i8);
        }
        out
    }
    #[inline(always)]
    fn sum_fours(self, x: &[Self::I; 4]) -> Self::I {
        let mut out = [0; LANES];
        for (i, x) in x.iter().enumerate() {
            for (lane, x) in x.iter().enumerate() {
                out[lane / 4 * 4 + i] = x.wrapping_add(out[lane / 4 * 4 + i]);
            }
        }
        out
    }
    #[inline(always)]
    fn sum_halves(self, first: Self::I, second: Self::I) -> Self::I {
        let mut out = [0; LANES];
        for (i, out) in out.iter_mut().enumerate() {
            let (fours, vector, half) = (if i < 8 { first } else { second }, i / 2 % 4, i % 2);
            *out = fours[8 * half + vector].wrapping_add(fours[8 * half + 4 + vector]);
        }
        out
    }
    #[inline(always)]
    fn transpose_bytes(self, x: &mut [Self::B; LANES]) {
        let rows = *x;
        for (col, x) in x.iter_mut().enumerate() {
            *x = each_byte(|i| rows[i / 4][4 * col + i % 4]);
        }
    }
}

impl PairDots for Portable {
    type Simd = Portable;
    type P = [u8; BYTES];

    #[inline(always)]
    fn simd(self) -> Portable {
        self
    }
    #[inline(always)]
    fn load_pairs(self, x: &[u8; BYTES]) -> Self::P {
        *x
    }
    #[inline(always)]
    fn round_to_pairs(self, x: &[f32; WORDS], to: &mut Pairs) {
        for (to, x) in to.as_chunks_mut::<2>().0.iter_mut().zip(x) {
            let bits = without_subnormals(*x).to_bits();
            // Half of what is cut off, a little less where that makes a tie even.
            let rounded = if x.is_nan() { bits | 0x0040_0000 } else { bits + 0x7fff + (bits >> 16 & 1) };
            *to = ((rounded >> 16) as u16).to_le_bytes();
        }
    }
    #[inline(always)]
    fn dot_pairs(self, sum: [f32; LANES], a: Self::P, b: Self::P) -> [f32; LANES] {
        let (a, b) = (a.as_chunks::<4>().0, b.as_chunks::<4>().0);
        let mut out = sum;
        for (i, out) in out.iter_mut().enumerate() {
            for half in [2, 0] {
                let [a, b] = [a[i], b[i]].map(|pair| {
                    without_subnormals(f32::from_bits(
                        u32::from(u16::from_le_bytes([pair[half], pair[half + 1]])) << 16,
                    ))
                });
                *out = without_subnormals(a.mul_add(b, without_subnormals(*out)));
            }
        }
        out
    }
}

/// A subnormal number becomes a zero of its sign.
#[inline(always)]
fn without_subnormals(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

/// Bytes by their index.
#[inline(always)]
fn each_byte(byte: impl Fn(usize) -> u8) -> [u8; BYTES] {
    let mut out = [0; BYTES];
    for (i, out) in out.iter_mut().enumerate() {
        *out = byte(i);
    }
    out
}

impl Portable {
    #[inline(always)]
    fn pair(self, even: i16, odd: i16) -> [i16; WORDS] {
        each(|i| if i % 2 == 0 { even } else { odd })
    }
}

/// Words by their index.
#[inline(always)]
fn each(word: impl Fn(usize) -> i16) -> [i16; WORDS] {
    let mut out = [0; WORDS];
    for (i, out) in out.iter_mut().enumerate() {
        *out = word(i);
    }
    out
}
