//! How the CPU reads a weight's row: 32 elements at a time, as two vectors of `f32`.
//!
//! To add a tensor type, add its code to `gguf::TensorType` and its unit here.

use super::simd::{LANES, Simd};

/// Elements that are decoded together. The rest of a row is filled up with zeros.
pub const UNIT_LEN: usize = 2 * LANES;

/// A tensor type as bytes of a row.
pub trait Format: Copy + Sync {
    /// Bytes of [`UNIT_LEN`] elements.
    const UNIT_BYTES: usize;

    /// Decodes one unit; `bytes` has `UNIT_BYTES` of them. All-zero bytes are all-zero elements.
    fn unit<S: Simd>(self, simd: S, bytes: &[u8]) -> [S::F; 2];
}

/// See `TensorType::F32`.
#[derive(Clone, Copy)]
pub struct F32;

/// See `TensorType::F16`.
#[derive(Clone, Copy)]
pub struct F16;

/// See `TensorType::Bf16`.
#[derive(Clone, Copy)]
pub struct Bf16;

/// See `TensorType::Q8_0`.
#[derive(Clone, Copy)]
pub struct Q8_0;

/// The bytes from `AT`, `N` of them.
#[inline(always)]
fn part<const AT: usize, const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes[AT..AT + N].first_chunk().expect("a slice of N has N")
}

impl Format for F32 {
    const UNIT_BYTES: usize = 128;

    #[inline(always)]
    fn unit<S: Simd>(self, simd: S, bytes: &[u8]) -> [S::F; 2] {
        [simd.load_f32(part::<0, 64>(bytes)), simd.load_f32(part::<64, 64>(bytes))]
    }
}

impl Format for F16 {
    const UNIT_BYTES: usize = 64;

    #[inline(always)]
    fn unit<S: Simd>(self, simd: S, bytes: &[u8]) -> [S::F; 2] {
        [simd.load_f16(part::<0, 32>(bytes)), simd.load_f16(part::<32, 32>(bytes))]
    }
}

impl Format for Bf16 {
    const UNIT_BYTES: usize = 64;

    #[inline(always)]
    fn unit<S: Simd>(self, simd: S, bytes: &[u8]) -> [S::F; 2] {
        [simd.load_bf16(part::<0, 32>(bytes)), simd.load_bf16(part::<32, 32>(bytes))]
    }
}

impl Format for Q8_0 {
    const UNIT_BYTES: usize = 34;

    #[inline(always)]
    fn unit<S: Simd>(self, simd: S, bytes: &[u8]) -> [S::F; 2] {
        let scale = simd.splat(simd.f16(*part::<0, 2>(bytes)));
        [simd.mul(scale, simd.load_i8(part::<2, 16>(bytes))), simd.mul(scale, simd.load_i8(part::<18, 16>(bytes)))]
    }
}

/// Some rows of a weight, `row_bytes` each.
#[derive(Clone, Copy)]
pub struct Rows<'a, F> {
    /// The tensor type.
    pub format: F,
    /// The bytes of the first row and those after it.
    pub bytes: &'a [u8],
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Elements of a row.
    pub cols: usize,
}

impl<'a, F: Format> Rows<'a, F> {
    #[inline(always)]
    pub(super) fn row(&self, index: usize) -> &'a [u8] {
        &self.bytes[index * self.row_bytes..][..self.row_bytes]
    }
}

/// Decodes one row into `out`, whose length is that of a row filled up to whole units.
#[inline(always)]
pub fn decode_row<S: Simd, F: Format>(simd: S, format: F, row: &[u8], out: &mut [f32]) {
    let (whole, tail) = row.split_at(row.len() / F::UNIT_BYTES * F::UNIT_BYTES);
    let (out_units, _) = out.as_chunks_mut::<UNIT_LEN>();
    let mut out_units = out_units.iter_mut();
    for (bytes, out) in whole.chunks_exact(F::UNIT_BYTES).zip(out_units.by_ref()) {
        put(simd, format.unit(simd, bytes), out);
    }
    if let (false, Some(out)) = (tail.is_empty(), out_units.next()) {
        // 128 is the largest unit's size.
        let mut filled = [0u8; 128];
        filled[..tail.len()].copy_from_slice(tail);
        put(simd, format.unit(simd, &filled[..F::UNIT_BYTES]), out);
    }
}

#[inline(always)]
fn put<S: Simd>(simd: S, unit: [S::F; 2], out: &mut [f32; UNIT_LEN]) {
    let (halves, _) = out.as_chunks_mut::<LANES>();
    simd.store(unit[0], &mut halves[0]);
    simd.store(unit[1], &mut halves[1]);
}
